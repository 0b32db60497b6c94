"""The forward pass of the Qwen2 family in plain torch, for inference on a CPU.

One step takes new tokens of any number of sequences at once: the first tokens of one, the next token of another. All of
them go through the linear layers together, which is where the time goes; attention runs for each sequence on its own
cache, so nothing of one can reach another. The reference is transformers' Qwen2ForCausalLM (modeling_qwen2.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from engine.kv import Cache
from engine.network import Segment

Linear = Callable[[Tensor], Tensor]
"""(rows, in) -> (rows, out), fp32."""

Weight = Callable[[], Tensor]
"""Reads a layer's weight: (out, in), of any float type."""

MakeLinear = Callable[[str, Weight, Tensor | None], Linear]
"""A layer's name, its weight, which need not be read, and its bias (out,) in fp32 become a Linear."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes in a config.json of model_type qwen2."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    theta: float
    epsilon: float
    tied: bool

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def sizes(self) -> dict[str, list[int]]:
        """The shape of every weight, by the names of transformers."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        found = {"model.embed_tokens.weight": [self.vocabulary, self.hidden], "model.norm.weight": [self.hidden]}
        if not self.tied:
            found["lm_head.weight"] = [self.vocabulary, self.hidden]
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            for name, out in (("q", query), ("k", key), ("v", key)):
                found[f"{layer}.self_attn.{name}_proj.weight"] = [out, self.hidden]
                found[f"{layer}.self_attn.{name}_proj.bias"] = [out]
            found[f"{layer}.self_attn.o_proj.weight"] = [self.hidden, query]
            found[f"{layer}.mlp.gate_proj.weight"] = found[f"{layer}.mlp.up_proj.weight"] = [self.inner, self.hidden]
            found[f"{layer}.mlp.down_proj.weight"] = [self.hidden, self.inner]
            found[f"{layer}.input_layernorm.weight"] = [self.hidden]
            found[f"{layer}.post_attention_layernorm.weight"] = [self.hidden]
        return found

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes, as transformers 4 and 5 write them. Raises KeyError."""
        rope = config.get("rope_parameters") or {}
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            positions=config.get("max_position_embeddings", 32_768),
            theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            epsilon=config.get("rms_norm_eps", 1e-6),
            tied=config.get("tie_word_embeddings", False),
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Qwen2:
    """engine.network.Network on our own forward pass. `weights` gives a tensor of any float type by its name."""

    def __init__(self, shape: Shape, weights: Callable[[str], Tensor], linear: MakeLinear) -> None:
        self.shape = shape
        self._embedding = weights("model.embed_tokens.weight").clone()  # a view would keep the whole file in memory
        head = self._embedding if shape.tied else weights("lm_head.weight")
        self._layers = [_layer(number, weights, linear) for number in range(shape.layers)]
        self._norm = weights("model.norm.weight").float().clone()
        self._head = linear("head", lambda: head, None)
        self._label_rows = head if shape.tied else head.clone()
        self._cos, self._sin = _rotations(shape)

    @property
    def vocabulary(self) -> int:
        return self.shape.vocabulary

    @property
    def positions(self) -> int:
        return self.shape.positions

    def begin(self) -> Cache:
        """An empty cache."""
        return Cache(self.shape)

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Hidden states (tokens, hidden), normed, of all segments' tokens in order; the caches take the tokens up."""
        caches = [cast(Cache, segment.past) for segment in segments]
        starts, counts = [len(cache) for cache in caches], [len(segment.tokens) for segment in segments]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        spans = list(zip(caches, starts, counts, strict=True))
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in spans])
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        ids = torch.tensor([token for segment in segments for token in segment.tokens])
        x = self._embedding[ids].float()
        for number, layer in enumerate(self._layers):
            normed = functional.rms_norm(x, x.shape[-1:], layer.attention_norm, self.shape.epsilon)
            x = x + layer.out(self._attend(number, layer.qkv(normed), cos, sin, spans))
            normed = functional.rms_norm(x, x.shape[-1:], layer.mlp_norm, self.shape.epsilon)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        for segment in segments:
            segment.past.tokens += segment.tokens
        return functional.rms_norm(x, x.shape[-1:], self._norm, self.shape.epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) of what follows each row of hidden states."""
        return self._head(hidden)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(rows, tokens): the logits of a few tokens alone, which spares the whole vocabulary. Always in fp32."""
        return hidden @ self._label_rows[tokens].float().T

    def _attend(
        self, number: int, qkv: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[tuple[Cache, int, int]]
    ) -> Tensor:
        """What each token of the layer `number` attends to. `spans`: a cache, its length before, its new tokens."""
        shape = self.shape
        heads = qkv.view(len(qkv), -1, shape.head_size)
        turned = heads[:, : shape.heads + shape.kv_heads]
        turned = turned * cos + _half_turned(turned) * sin
        queries, keys = turned[:, : shape.heads], turned[:, shape.heads :]
        values = heads[:, shape.heads + shape.kv_heads :]
        found, row = [], 0
        for cache, start, count in spans:
            rows, end = slice(row, row + count), start + count
            cached_keys, cached_values = cache.keys[number], cache.values[number]
            cached_keys[:, start:end] = keys[rows].transpose(0, 1)
            cached_values[:, start:end] = values[rows].transpose(0, 1)
            found.append(_attention(queries[rows].transpose(0, 1), cached_keys[:, :end], cached_values[:, :end]))
            row = rows.stop
        return torch.cat(found).flatten(1) if len(found) > 1 else found[0].flatten(1)


def _layer(number: int, weights: Callable[[str], Tensor], linear: MakeLinear) -> _Layer:
    name = f"model.layers.{number}"

    def part(called: str, *parts: str) -> Linear:
        """Layers that read the same input, as one."""
        found = [weights(f"{name}.{each}.weight") for each in parts]
        biased = called == "qkv"
        bias = torch.cat([weights(f"{name}.{each}.bias").float() for each in parts]) if biased else None
        return linear(f"layers.{number}.{called}", lambda: torch.cat(found) if len(found) > 1 else found[0], bias)

    return _Layer(
        weights(f"{name}.input_layernorm.weight").float().clone(),
        part("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        part("out", "self_attn.o_proj"),
        weights(f"{name}.post_attention_layernorm.weight").float().clone(),
        part("gate_up", "mlp.gate_proj", "mlp.up_proj"),
        part("down", "mlp.down_proj"),
    )


def _rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, head size) of the rotary embedding (Su et al. 2021, arXiv 2104.09864)."""
    frequencies = 1.0 / shape.theta ** (torch.arange(0, shape.head_size, 2).float() / shape.head_size)
    angles = torch.outer(torch.arange(shape.positions).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _half_turned(heads: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(new, heads, size) from queries (heads, new, size) and keys, values (kv heads, all, size); new ones come last."""
    new, total = queries.shape[1], keys.shape[1]
    if len(keys) != len(queries):
        share = len(queries) // len(keys)
        keys, values = keys.repeat_interleave(share, dim=0), values.repeat_interleave(share, dim=0)
    mask = None
    if new > 1 and new < total:
        mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)
    found = functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], attn_mask=mask, is_causal=new > 1 and new == total
    )
    return found[0].transpose(0, 1)
