"""Any other chat model that transformers can load, in fp32, one sequence after another: slower, the same port."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from engine.network import Segment


class OtherPast:
    """What transformers remembers of one sequence, in a cache that holds every token of every layer."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.cache = DynamicCache()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for layer in self._layers() for each in (layer.keys, layer.values))

    def keep(self, count: int) -> None:
        """Forget everything after the first `count` tokens; of a step that failed, also what only some layers took."""
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[..., :count, :], layer.values[..., :count, :]
        del self.tokens[count:]

    def copy(self, count: int, room: int = 0) -> OtherPast:
        other = OtherPast()
        for number, layer in enumerate(self._layers()):
            other.cache.update(layer.keys[..., :count, :].clone(), layer.values[..., :count, :].clone(), number)
        other.tokens = self.tokens[:count]
        return other

    def _layers(self) -> list[Any]:
        layers: list[Any] = self.cache.layers
        return [layer for layer in layers if layer.is_initialized]


class OtherModel:
    """engine.network.Network on transformers. Its rows are the logits: what lies before them differs between models."""

    def __init__(self, path: Path) -> None:
        """Load safetensors weights; no code of the model's own is run. Raises ValueError, or as transformers does."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        self._model, found = loaded  # as output_loading_info asks
        amiss = sorted([*found["missing_keys"], *found["unexpected_keys"]])
        if amiss:  # transformers would make up what is missing and leave out what is too much
            raise ValueError(f"the weights and config.json do not fit each other at {amiss[0]}")
        self._model.eval()
        text = self._model.config.get_text_config()
        self.vocabulary: int = text.vocab_size
        self.positions: int = getattr(text, "max_position_embeddings", 0) or 2_048

    def begin(self) -> OtherPast:
        return OtherPast()

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        return torch.cat([self._read(cast(OtherPast, each.past), each.tokens) for each in segments])

    def logits(self, rows: Tensor) -> Tensor:
        return rows

    def logits_of(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return rows[:, tokens]

    def _read(self, past: OtherPast, tokens: Sequence[int]) -> Tensor:
        said = self._model(input_ids=torch.tensor([list(tokens)]), past_key_values=past.cache, use_cache=True)
        past.tokens += tokens
        return cast(Tensor, said.logits[0].float())
