"""What of a conversation fits into the model's window. Pure: how long a text is, is asked of `count`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from engine.types import Speaker, Turn

GAP = " … "
MESSAGE_ROOM = 32
"""Tokens that a role's own words must leave to the customer's."""


def fit(turns: Sequence[Turn], count: Callable[[Sequence[Turn]], int], budget: int) -> list[Turn]:
    """The latest turns whose `count` (tokens of the whole prompt) is at most `budget`.

    The oldest turns go first, and what is kept begins with the customer. The newest turn always stays: when it alone
    is too long, its middle is left out.
    """
    starts = [index for index, turn in enumerate(turns) if turn.speaker is Speaker.USER]
    first = bisect_left(starts, True, key=lambda start: count(turns[start:]) <= budget)
    if first < len(starts):
        return list(turns[starts[first] :])
    newest = turns[-1]
    return [Turn(newest.speaker, cut(newest.text, lambda text: count([Turn(newest.speaker, text)]), budget))]


def cut(text: str, count: Callable[[str], int], budget: int) -> str:
    """`text`, or as much of its head and tail in equal parts as `count` lets into `budget`.

    Head and tail, because people name the matter first and ask last.
    """
    if count(text) <= budget:
        return text
    longest = bisect_left(range(len(text)), True, key=lambda kept: count(_ends(text, kept)) > budget)
    return _ends(text, longest - 1) if longest else ""


def _ends(text: str, kept: int) -> str:
    tail = kept // 2
    return text[: kept - tail] + GAP + text[len(text) - tail :]
