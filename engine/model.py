"""Read a Qwen2 chat model from a directory into memory: safetensors only, no code of the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bot.errors import ConfigError, ModelUnavailable
from engine.load import weights
from engine.quantize import fp32_linear, int8_linear, int8_supported
from engine.qwen2 import Qwen2, Shape


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be served. `stops` are the tokens that end a reply."""

    network: Qwen2
    stops: frozenset[int]
    tokenizer: PreTrainedTokenizerBase


def read(path: Path, precision: str, on_progress: Callable[[float], None]) -> Model:
    """The model in `path`; `on_progress` is called with 0 to 1. `precision` is "fp32" or "int8".

    Raises ModelUnavailable, and ConfigError for a precision that this machine does not have.
    """
    if precision == "int8" and not int8_supported():
        raise ConfigError('engine.precision = "int8" needs a CPU with VNNI, which this one lacks: use "fp32"')
    config = _config(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        network = _network(path, config, precision, on_progress)
    except ModelUnavailable:
        raise
    except Exception as error:  # whatever torch, tokenizers or safetensors make of a broken file
        raise ModelUnavailable(
            f"the model in {path} cannot be loaded ({type(error).__name__}: {_first_line(error)}): "
            "run `frontdesk model pull`, or name another one in engine.model"
        ) from error
    _refuse_unfit_tokenizer(path, network, tokenizer)
    on_progress(1.0)
    return Model(network, _stops(path, config, tokenizer), tokenizer)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelUnavailable(f"{path / 'config.json'} cannot be read: run `frontdesk model pull`") from None
    if kind != "qwen2":
        raise ModelUnavailable(f"{path} holds a {kind} model and only qwen2 is served: choose a Qwen1.5 chat model")
    return config


def _network(path: Path, config: dict[str, Any], precision: str, on_progress: Callable[[float], None]) -> Qwen2:
    """The network, from the files layer by layer, so that no second copy of all weights is ever in memory."""
    on_progress(0.0)
    shape = Shape.of(config)
    with ExitStack() as opened:
        found: dict[str, Any] = {}
        for file in weights(path):
            content = opened.enter_context(safe_open(file, framework="pt"))
            found.update(dict.fromkeys(content.keys(), content))
        _refuse_missing(path, shape, set(found))
        done = 0

        def take(name: str) -> Tensor:
            nonlocal done
            done += 1
            on_progress(min(0.99, done / len(found)))
            tensor: Tensor = found[name].get_tensor(name)
            if name in sizes and list(tensor.shape) != sizes[name]:
                raise ValueError(f"{name} has the shape {list(tensor.shape)} instead of {sizes[name]}")
            return tensor

        sizes = shape.sizes()
        return Qwen2(shape, take, int8_linear if precision == "int8" else fp32_linear)


def _refuse_missing(path: Path, shape: Shape, found: set[str]) -> None:
    absent = sorted(set(shape.sizes()) - found)
    if absent:
        raise ModelUnavailable(
            f"the weights in {path} lack {absent[0]} ({len(absent)} in all): run `frontdesk model pull`"
        )


def _refuse_unfit_tokenizer(path: Path, network: Qwen2, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > network.shape.vocabulary:
        raise ModelUnavailable(
            f"the tokenizer in {path} has {len(tokenizer)} entries and the weights have {network.shape.vocabulary}: "
            "they belong to two models, so copy one of them whole"
        )
    if not tokenizer.chat_template:
        raise ModelUnavailable(
            f"the model in {path} has no chat template: choose a chat model, such as a -Chat variant"
        )


def _stops(path: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends a reply: the model's end tokens, and every special token, because none belongs in a text."""
    generation = path / "generation_config.json"
    named = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    ends = named.get("eos_token_id", config.get("eos_token_id"))
    own = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*own, *tokenizer.all_special_ids] if token is not None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no further word"])[0]
