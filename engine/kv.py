"""What the model remembers of a sequence: the keys and values of its tokens, and which tokens these are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.network import Past
    from engine.qwen2 import Shape

ROOM = 64
"""Tokens that a cache grows by at least; it doubles beyond that."""


class Place(NamedTuple):
    """One layer of a cache: a view (1, heads of keys, then of values, new, head size) to write to, and two of
    (1, heads, all, head size) to read.
    """

    new: Tensor
    keys: Tensor
    values: Tensor


class Cache:
    """Keys and values (layers, heads of keys, then of values, capacity, head size); `tokens` are what is in it."""

    def __init__(self, shape: Shape, capacity: int = ROOM, kept: torch.dtype = torch.float32) -> None:
        self._shape, self._kept = shape, kept
        self.tokens: list[int] = []
        self.pairs = self._empty(capacity)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return self.pairs.nbytes

    def places(self, more: int) -> list[Place]:
        """In each layer, where `more` tokens go after those that are here; there is room for them."""
        start, end, capacity = len(self), len(self) + more, self.pairs.shape[2]
        if end > capacity:
            self._move(max(end + ROOM, min(2 * capacity, end + 8 * ROOM)))
        used = self.pairs[:, None, :, :end]
        keys, values = used.chunk(2, dim=2)
        return list(map(Place, used[:, :, :, start:].unbind(), keys.unbind(), values.unbind()))

    def keep(self, count: int) -> None:
        """Forget everything after the first `count` tokens."""
        del self.tokens[count:]

    def copy(self, count: int, room: int = 0) -> Cache:
        """A cache of its own with the first `count` tokens of this one and room for more."""
        other = Cache(self._shape, count + room + ROOM, self._kept)
        other.pairs[:, :, :count] = self.pairs[:, :, :count]
        other.tokens = self.tokens[:count]
        return other

    def _move(self, capacity: int) -> None:
        count, pairs = len(self), self.pairs
        self.pairs = self._empty(capacity)
        self.pairs[:, :, :count] = pairs[:, :, :count]

    def _empty(self, capacity: int) -> Tensor:
        shape = self._shape
        return torch.empty(shape.layers, 2 * shape.kv_heads, capacity, shape.head_size, dtype=self._kept)


class Histories:
    """What was read of each conversation, by its name: the latest ones within a budget of bytes.

    A name finds its own cache and no other; taking it out leaves none behind.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._caches: OrderedDict[str, Past] = OrderedDict()

    def take(self, name: str) -> Past | None:
        return self._caches.pop(name, None) if name else None

    def keep(self, name: str, cache: Past) -> None:
        if not name:
            return
        self._caches[name] = cache
        self._caches.move_to_end(name)
        while sum(each.nbytes for each in self._caches.values()) > self._budget:
            self._caches.popitem(last=False)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
