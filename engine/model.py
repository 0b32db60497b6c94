"""Read a Qwen2 chat model from a directory into memory: safetensors only, no code of the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bot.errors import ModelUnavailable
from engine.load import weights
from engine.network import Network
from engine.qwen2 import MakeLinear, Qwen2, Shape
from engine.rows import RowsOnDisk

OWN = "qwen2"
"""The model_type that engine.qwen2 runs."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be served. `stops` are the tokens that end a reply."""

    network: Network
    stops: frozenset[int]
    tokenizer: PreTrainedTokenizerBase


def read(
    path: Path, linear: MakeLinear, on_progress: Callable[[float], None], kept: torch.dtype = torch.float32
) -> Model:
    """The model in `path`, its layers made by `linear`, keys and values `kept`; `on_progress` hears 0 to 1.

    Models of another family than Qwen2 are run by transformers, in fp32. Raises ModelUnavailable.
    """
    config, tokenizer = _config(path), tokenizer_of(path)
    if config["model_type"] == OWN:
        network: Network = Weights(path).network(linear, on_progress, kept)
    else:
        with _said_of(path):
            network = _other(path)
    _refuse_unfit_tokenizer(path, network, tokenizer)
    on_progress(1.0)
    return Model(network, _stops(path, config, tokenizer), tokenizer)


def is_own(path: Path) -> bool:
    """Whether our own forward pass runs the model in `path`. Raises ModelUnavailable."""
    return bool(_config(path)["model_type"] == OWN)


def _other(path: Path) -> Network:
    from engine.other import OtherModel  # imports the models of transformers: seconds

    return OtherModel(path)


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`. Raises ModelUnavailable."""
    with _said_of(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        return tokenizer


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelUnavailable(f"{path / 'config.json'} cannot be read: run `frontdesk model pull`") from None
    return config


class Weights:
    """The files of the model in `path`. Raises ModelUnavailable."""

    def __init__(self, path: Path) -> None:
        self.config = _config(path)
        self._path = path
        self._files: dict[str, Path] = {}
        with _said_of(path):
            for file in weights(path):
                with safe_open(file, framework="pt") as content:
                    self._files.update(dict.fromkeys(content.keys(), file))

    def network(
        self, linear: MakeLinear, on_progress: Callable[[float], None], kept: torch.dtype = torch.float32
    ) -> Qwen2:
        """The network, layer by layer, so that no second copy of all weights is ever in memory."""
        on_progress(0.0)
        done = 0

        def take(name: str) -> Tensor:
            nonlocal done
            done += 1
            on_progress(min(0.99, done / len(self._files)))
            with safe_open(self._files[name], framework="pt") as content:  # anew: what was read leaves with the tensor
                tensor: Tensor = content.get_tensor(name)
            if name in sizes and list(tensor.shape) != sizes[name]:
                raise ValueError(f"{name} has the shape {list(tensor.shape)} instead of {sizes[name]}")
            return tensor

        def rows(name: str) -> RowsOnDisk:
            take(name)
            return RowsOnDisk(self._files[name], name)

        with _said_of(self._path):
            shape = Shape.of(self.config)
            sizes = shape.sizes()
            _refuse_missing(self._path, shape, set(self._files))
            return Qwen2(shape, take, rows, linear, kept)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Whatever torch, tokenizers or safetensors make of a broken file becomes one sentence."""
    try:
        yield
    except ModelUnavailable:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"the model in {path} cannot be loaded ({type(error).__name__}: {_first_line(error)}): "
            "run `frontdesk model pull`, or name another one in engine.model"
        ) from error


def _refuse_missing(path: Path, shape: Shape, found: set[str]) -> None:
    absent = sorted(set(shape.sizes()) - found)
    if absent:
        raise ModelUnavailable(
            f"the weights in {path} lack {absent[0]} ({len(absent)} in all): run `frontdesk model pull`"
        )


def _refuse_unfit_tokenizer(path: Path, network: Network, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > network.vocabulary:
        raise ModelUnavailable(
            f"the tokenizer in {path} has {len(tokenizer)} entries and the weights have {network.vocabulary}: "
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
