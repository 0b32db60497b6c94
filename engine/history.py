"""What of a conversation fits into the model's window. Pure: how long a text is, is asked of `count`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from bot.errors import ConfigError, EngineError
from engine.types import Speaker, Turn

GAP = " … "
MESSAGE_ROOM = 32
"""Tokens that a role's own words must leave to the customer's."""


def refuse_crowding(role: str, words: int, budget: int) -> None:
    """Raise ConfigError when a role's own `words` leave of `budget` tokens no room for a message."""
    if words + MESSAGE_ROOM > budget:
        raise ConfigError(
            f"the instructions of the role {role} take {words} of {budget} tokens and leave no room for a message: "
            "raise engine.context_tokens, or shorten business.about and business.facts"
        )


def refuse_monologue(turns: Sequence[Turn]) -> None:
    """Raise EngineError when it is not the customer's turn that is to be answered."""
    if not turns or turns[-1].speaker is not Speaker.USER:
        raise EngineError("nothing to answer: the last turn must be the customer's")


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
