"""Texts of every platform: cut into parts that it takes, and read as commands."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence

from bot.messages import COMMANDS, MAX_ARGUMENT, WITH_ARGUMENT

_ZWJ = "\u200d"
_BREAKS = (
    re.compile(r"(?=\n[ \t\r]*\n)"),  # paragraph
    re.compile(r"(?=\n)"),  # line
    re.compile(r"""[.!?…]+["')\]”’»]*(?=\s)|[。！？；…]+["')”’」』）】》]*"""),  # sentence
    re.compile(r"[，、：]|(?=\s)"),  # word; the comma stands in where a script writes no spaces
)
_WHOLE = re.compile(r"```.*?```|https?://[^\s\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+", re.DOTALL)
"""Code and links, which are of no use in two parts."""
_LONGEST_CLUSTER = 64
"""Characters to step back for a clean cut; longer pile-ups of accents are cut anyway."""


def utf16_length(text: str) -> int:
    """UTF-16 code units, the unit in which Telegram counts; a lone surrogate is one."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def split(text: str, limit: int, length: Callable[[str], int] = len) -> list[str]:
    """Parts of at most `limit`, cut after a paragraph, else a line, a sentence, a word, else between characters.

    A link or a block of code that fits into one part is never cut.

    `length` measures a text; every character counts at least one, and a longer text never less. White space at the
    ends and at the cuts goes, nothing else; no part is empty, so a blank text has none. A single character longer
    than `limit` becomes a part of its own.
    """
    parts, rest = [], text.strip()
    while rest:
        cut = _cut(rest, limit, length)
        parts.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return parts


def _cut(text: str, limit: int, length: Callable[[str], int]) -> int:
    fits = _longest_prefix(text, limit, length)
    if fits == len(text):
        return fits
    whole = [part for part in _spans(text) if length(text[part.start - 1 : part.stop]) <= limit]
    half = fits // 2  # an earlier break would scatter a text over more messages than it needs
    for pattern in _BREAKS:
        if cut := _last_break(pattern, text, half, fits, whole):
            return cut
    return _last_break(_BREAKS[-1], text, 1, half, whole) or _between_characters(text, fits, whole)


def _spans(text: str) -> list[range]:
    """Where a cut would break something: range(3, 9) is a link of letters 2 to 8."""
    return [range(found.start() + 1, found.end()) for found in _WHOLE.finditer(text)]


def _longest_prefix(text: str, limit: int, length: Callable[[str], int]) -> int:
    most = min(len(text), limit)
    return max(1, bisect_right(range(1, most + 1), limit, key=lambda end: length(text[:end])))


def _last_break(pattern: re.Pattern[str], text: str, low: int, high: int, whole: Sequence[range]) -> int:
    window = text[: high + 1]  # one more: what follows the cut tells whether a sentence ended there
    ends = (match.end() for match in pattern.finditer(window))
    cuts = (end for end in ends if low <= end <= high and not _joined(text, end))
    return max((cut for cut in cuts if not any(cut in part for part in whole)), default=0)


def _between_characters(text: str, end: int, whole: Sequence[range]) -> int:
    end = next((part.start - 1 for part in whole if end in part and part.start > 1), end)
    for cut in range(end, max(0, end - _LONGEST_CLUSTER), -1):
        if not _joined(text, cut):
            return cut
    return end


def _joined(text: str, cut: int) -> bool:
    """Whether the characters on both sides of `cut` are drawn as one: accents, emoji sequences, flags."""
    before, after = text[cut - 1 : cut], text[cut : cut + 1]
    return before == _ZWJ or after == _ZWJ or _extends(after) or (_is_flag(after) and _odd_flags(text, cut))


def _extends(char: str) -> bool:
    return bool(char) and (unicodedata.category(char).startswith("M") or "\U0001f3fb" <= char <= "\U0001f3ff")


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _odd_flags(text: str, cut: int) -> bool:
    start = cut
    while start and _is_flag(text[start - 1]):
        start -= 1
    return (cut - start) % 2 == 1


def as_command(words: str, mark: str) -> str:
    """The command that a text is, and its argument where it takes one, without the mark; "" when it is none."""
    name, _, argument = words.strip().removeprefix(mark).partition(" ")
    name, argument = name.lower(), argument.strip()[:MAX_ARGUMENT]
    if not words.strip().startswith(mark) or name not in COMMANDS or (argument and name not in WITH_ARGUMENT):
        return ""
    return f"{name} {argument}".strip()
