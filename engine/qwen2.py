"""The forward pass of the Qwen2 family in plain torch, for inference on a CPU.

One step takes new tokens of any number of sequences at once: the first tokens of one, the next token of another. All of
them go through the linear layers together, which is where the time goes; attention runs for each sequence on its own
cache, so nothing of one can reach another. The reference is transformers' Qwen2ForCausalLM (modeling_qwen2.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from engine.kv import Cache, Place
from engine.network import Segment


class Linear(Protocol):
    """A layer's product, fp32, and what stands around it, so that a layer may do both in fewer operations: each of them
    costs a lone row microseconds, whatever it does.
    """

    def __call__(self, x: Tensor, divisor: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """(rows, in) -> (rows, out). Each row is divided by its own of `divisor` (rows, 1) first; the product is added
        to `onto` (rows, out), in its place.
        """
        ...


Weight = Callable[[], Tensor]
"""Reads a layer's weight: (out, in), of any float type."""

Rows = Callable[[Sequence[int]], Tensor]
"""Some rows of a weight, by their numbers: (rows, in), fp32."""

OUTPUT = "head"
"""The name of the last layer, from hidden states to the vocabulary."""

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
    """engine.network.Network on our own forward pass.

    `weights` gives a tensor of any float type by its name, and `rows` the vectors of the vocabulary in the same way.
    Keys and values are of the type `kept`, and so is what is done with them; everything else is fp32.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Callable[[str], Tensor],
        rows: Callable[[str], Rows],
        linear: MakeLinear,
        kept: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.kept = shape, kept
        head = "model.embed_tokens.weight" if shape.tied else "lm_head.weight"
        self._vectors = rows("model.embed_tokens.weight")
        self._label_vectors = self._vectors if shape.tied else rows(head)
        with ThreadPoolExecutor(1) as beside:
            last = beside.submit(linear, OUTPUT, lambda: weights(head), None)  # as large as half of the others together
            self._layers = [_layer(number, shape, weights, linear) for number in range(shape.layers)]
        self._norm = weights("model.norm.weight").float().clone()
        self._head = last.result()
        self._turns = _rotations(shape)
        self._floor = torch.tensor((shape.hidden * shape.epsilon) ** 0.5)

    @property
    def vocabulary(self) -> int:
        return self.shape.vocabulary

    @property
    def positions(self) -> int:
        return self.shape.positions

    def begin(self) -> Cache:
        """An empty cache."""
        return Cache(self.shape, kept=self.kept)

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Hidden states (tokens, hidden), normed, of all segments' tokens in order; the caches take the tokens up."""
        starts, counts = [len(each.past) for each in segments], [len(each.tokens) for each in segments]
        places = [cast(Cache, each.past).places(count) for each, count in zip(segments, counts, strict=True)]
        masks = [_mask(start, count, self.kept) for start, count in zip(starts, counts, strict=True)]
        turns = torch.cat([self._turns[start : start + count] for start, count in zip(starts, counts, strict=True)])
        stay = turns.new_ones(len(turns), self.shape.kv_heads, turns.shape[1])  # values are not turned
        turns = torch.cat([turns[:, None].expand(-1, self.shape.heads + self.shape.kv_heads, -1), stay], dim=1)
        x = self._vectors([token for each in segments for token in each.tokens])
        for layer, spots in zip(self._layers, zip(*places, strict=True), strict=True):
            qkv = layer.qkv(x * layer.attention_norm, self._length(x))
            x = layer.out(self._attend(qkv, turns, spots, counts, masks), onto=x)
            gate, up = layer.gate_up(x * layer.mlp_norm, self._length(x)).view(len(x), 2, -1).unbind(1)
            x = layer.down(functional.silu(gate).mul_(up), onto=x)
        for segment in segments:
            segment.past.tokens += segment.tokens
        return functional.rms_norm(x, x.shape[-1:], self._norm, self.shape.epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) of what follows each row of hidden states."""
        return self._head(hidden)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(rows, tokens): the logits of a few tokens alone, which spares the whole vocabulary. Always in fp32."""
        return hidden @ self._label_vectors(tokens.tolist()).T

    def _length(self, x: Tensor) -> Tensor:
        """What is left of the norm (RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467), a divisor for each row: the
        root of the sum of squares, where it says of their mean; the norm's weights hold the root of `hidden`.
        """
        return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)

    def _attend(
        self, qkv: Tensor, turns: Tensor, spots: Sequence[Place], counts: list[int], masks: Sequence[Tensor | None]
    ) -> Tensor:
        """What each token (tokens, heads * size) attends to. `spots`, `counts`, `masks`: of each segment in order."""
        shape = self.shape
        pairs = torch.view_as_complex(qkv.view(len(qkv), -1, shape.head_size // 2, 2))
        heads = torch.view_as_real(pairs * turns).view(1, len(qkv), -1, shape.head_size).to(self.kept).transpose(1, 2)
        queries, new = torch.split(heads, [shape.heads, 2 * shape.kv_heads], dim=1)
        parts = (torch.split(each, counts, dim=2) for each in (queries, new))
        found = []
        for place, mask, (query, pair) in zip(spots, masks, zip(*parts, strict=True), strict=True):
            place.new.copy_(pair)
            found.append(_attention(query, place.keys, place.values, mask))
        return torch.cat(found, dim=2).transpose(1, 2).flatten(2)[0].float()


def _layer(number: int, shape: Shape, weights: Callable[[str], Tensor], linear: MakeLinear) -> _Layer:
    name = f"model.layers.{number}"

    def part(called: str, *parts: str) -> Linear:
        """Layers that read the same input, as one."""
        found = [weights(f"{name}.{each}.weight") for each in parts]
        return linear(f"layers.{number}.{called}", lambda: torch.cat(found) if len(found) > 1 else found[0], None)

    def attention(kind: str) -> Tensor:
        query, key, value = (weights(f"{name}.self_attn.{each}_proj.{kind}") for each in "qkv")
        return torch.cat([_paired(query, shape), _paired(key, shape), value])

    return _Layer(
        weights(f"{name}.input_layernorm.weight").float() * shape.hidden**0.5,
        linear(f"layers.{number}.qkv", lambda: attention("weight"), attention("bias").float()),
        part("out", "self_attn.o_proj"),
        weights(f"{name}.post_attention_layernorm.weight").float() * shape.hidden**0.5,
        part("gate_up", "mlp.gate_proj", "mlp.up_proj"),
        part("down", "mlp.down_proj"),
    )


def _paired(rows: Tensor, shape: Shape) -> Tensor:
    """The rows of a query's or key's weight or bias, the two that are turned together side by side.

    The file has the first of all pairs before the second of all. Queries and keys are reordered alike, so their
    products stay the same, and a pair can be turned as one complex number, in a third of the time.
    """
    return torch.unflatten(rows, 0, (-1, 2, shape.head_size // 2)).transpose(1, 2).flatten(0, 2)


def _rotations(shape: Shape) -> Tensor:
    """Turns of the rotary embedding (Su et al. 2021, arXiv 2104.09864): (positions, head size / 2), complex."""
    frequencies = 1.0 / shape.theta ** (torch.arange(0, shape.head_size, 2).float() / shape.head_size)
    angles = torch.outer(torch.arange(shape.positions).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def _mask(start: int, count: int, kind: torch.dtype) -> Tensor | None:
    """What is added (new, all) where new tokens must not see later ones; None for one alone, or where none are old."""
    if count == 1 or start == 0:
        return None
    return torch.full((count, start + count), -torch.inf, dtype=kind).triu(start + 1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """(1, heads, new, size) from queries of this shape and keys, values (1, kv heads, all, size); new ones are last."""
    causal = mask is None and queries.shape[2] > 1
    if keys.shape[1] != queries.shape[1]:
        share = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
