"""What the engine asks of a model, whichever stands behind it: our own forward pass, or transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Past(Protocol):
    """What a model remembers of one sequence. `tokens` are what is in it, in order."""

    tokens: list[int]

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def keep(self, count: int) -> None:
        """Forget everything after the first `count` tokens."""
        ...

    def copy(self, count: int, room: int = 0) -> Past:
        """One of its own with the first `count` tokens of this one, and room for more."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one sequence; its past holds what came before and takes them up."""

    past: Past
    tokens: Sequence[int]


class Network(Protocol):
    """A model that can be served. Not for several threads at once."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def positions(self) -> int:
        """Tokens that a sequence may have."""
        ...

    def begin(self) -> Past:
        """The past of an empty sequence."""
        ...

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """A row for each token of all segments in order; their pasts take the tokens up."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """(rows, vocabulary) of what follows each row."""
        ...

    def logits_of(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """(rows, tokens): the logits of a few tokens alone."""
        ...
