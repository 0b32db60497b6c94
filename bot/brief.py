"""A brief in the customer's own words: the sentences that an agent wants to read first. Nothing is generated."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.conversation import Author, Line
from bot.messages import InboundKind

SENTENCES, LETTERS = 3, 120
"""How many sentences at most, and how much of each."""
SHORTEST = 4
"""Letters that a sentence needs to say anything: "ok" and "你好" do not count."""
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？!?…])|\n+")
_NUMBER = re.compile(r"\d")


def brief(lines: Sequence[Line]) -> list[str]:
    """The customer's sentences that matter most, in the order in which they were said; none twice.

    Anger weighs most, then numbers (of orders, sums, days), then questions, then length. One sentence
    needs no brief.
    """
    said = [line for line in lines if line.author is Author.CUSTOMER and line.kind is InboundKind.TEXT]
    found = {sentence: _weight(sentence, line) for line in said for sentence in _sentences(line.text)}
    if len(found) < 2:
        return []
    chosen = sorted(found, key=lambda sentence: (found[sentence], len(sentence)), reverse=True)[:SENTENCES]
    return [_cut(sentence) for sentence in found if sentence in chosen]


def _weight(sentence: str, line: Line) -> float:
    anger = line.sentiment.negative if line.sentiment else 0.0
    return anger + 0.3 * bool(_NUMBER.search(sentence)) + 0.1 * sentence.endswith(("?", "？"))


def _sentences(text: str) -> list[str]:
    parts = (" ".join(part.split()) for part in _END.split(text))
    return [part for part in parts if sum(map(str.isalnum, part)) >= SHORTEST]


def _cut(sentence: str) -> str:
    return sentence if len(sentence) <= LETTERS else f"{sentence[: LETTERS - 1]}…"
