"""Read a Qwen2 chat model from a directory into memory: safetensors only, fp32, no code of the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from bot.errors import ModelUnavailable


def read(path: Path, on_progress: Callable[[float], None]) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """The model and the tokenizer in `path`; `on_progress` is called with 0 to 1. Raises ModelUnavailable."""
    _refuse_other_kinds(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model, absent = _weights(path, on_progress)
    except Exception as error:  # whatever transformers, tokenizers or safetensors make of a broken file
        raise ModelUnavailable(
            f"the model in {path} cannot be loaded ({type(error).__name__}: {_first_line(error)}): "
            "run `frontdesk model pull`, or name another one in engine.model"
        ) from error
    if absent:
        raise ModelUnavailable(
            f"the weights in {path} lack {absent[0]} ({len(absent)} in all): run `frontdesk model pull`"
        )
    _refuse_unfit_tokenizer(path, model, tokenizer)
    on_progress(1.0)
    return model, tokenizer  # from_pretrained has put it into evaluation mode


def _refuse_other_kinds(path: Path) -> None:
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelUnavailable(f"{path / 'config.json'} cannot be read: run `frontdesk model pull`") from None
    if kind != "qwen2":
        raise ModelUnavailable(f"{path} holds a {kind} model and only qwen2 is served: choose a Qwen1.5 chat model")


def _weights(path: Path, on_progress: Callable[[float], None]) -> tuple[Qwen2ForCausalLM, list[str]]:
    """The model, and the names of the weights that its files lack."""
    with _progress_to(on_progress):
        loaded = Qwen2ForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, report = cast(tuple[Qwen2ForCausalLM, dict[str, Any]], loaded)
    return model, sorted(report["missing_keys"])


def _refuse_unfit_tokenizer(path: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise ModelUnavailable(
            f"the tokenizer in {path} has {len(tokenizer)} entries and the weights have {model.config.vocab_size}: "
            "they belong to two models, so copy one of them whole"
        )
    if not tokenizer.chat_template:
        raise ModelUnavailable(
            f"the model in {path} has no chat template: choose a chat model, such as a -Chat variant"
        )


@contextmanager
def _progress_to(on_progress: Callable[[float], None]) -> Iterator[None]:
    """Report what transformers would draw as a progress bar while it reads the weights."""

    def counted(factory: object, args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[Any]:
        items = list(args[0])
        for done, item in enumerate(items):
            on_progress(done / len(items))
            yield item

    previous = transformers_logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no further word"])[0]
