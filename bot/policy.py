"""decide(): what to do about what a conversation waits for. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache

from bot.catalogue import languages
from bot.conversation import Call, Line, Outcome, Owner, Pace, Reason
from bot.messages import InboundKind, Sentiment

HUMAN, FORGET = "human", "forget"
"""The commands that call a person, and that erase everything."""
_SURE = ("yes", "是", "确认")


@dataclass(frozen=True, slots=True)
class Heard:
    """A waiting line of the history with its mood; None where there was nothing to judge."""

    line: Line
    sentiment: Sentiment | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one customer may write, and how often one conversation is answered, in a minute."""

    messages: int
    replies: int

    def passed(self, pace: Pace) -> bool:
        """Whether the last minute was more than is allowed; `pace` counts what waits."""
        return pace.messages > self.messages or pace.replies >= self.replies


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do. `before` and `after` are keys of the catalogue, said around the model's answer.

    `language` is the one that the customer chose now, "" for none. `forget`: everything the customer wrote is erased.
    """

    answer: bool
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    call: Call | None = None
    language: str = ""
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Instead:
    """What happens instead of the model's answer: why a human is called, the key of what the customer is told, and what
    becomes of messages that are not why."""

    reason: Reason
    sentence: str
    outcome: Outcome


OUT_OF_ORDER = Instead(Reason.FAILED, "out_of_order", Outcome.ANSWERED)
"""The engine fails again and again."""
TOO_LATE = Instead(Reason.OVERLOAD, "too_late", Outcome.SHED)
"""The turn of a message came too late."""
SLOW = "slow"
"""The key of what a customer is told who had to wait for their turn."""
SLOW_AFTER, TOO_LATE_AFTER = timedelta(seconds=20), timedelta(seconds=120)
"""How long a message may wait for its turn."""
CAUGHT_UP = timedelta(seconds=1)
"""When turns come as fast as that, nobody waits any more."""


def decide(heard: Sequence[Heard], owner: Owner, keywords: Sequence[str], told_too_long: bool = False) -> Decision:
    """Answer, escalate, or both. A customer who is heard by the bot always gets an answer of some kind; and whoever
    owns the conversation, what was written can be erased.

    `told_too_long`: the customer was told before that we read only the beginning of a long message.
    """
    if forgets([each.line for each in heard]):
        return Decision(False, ("forgotten",), forget=True)
    if owner is Owner.HUMAN:
        asked = any(_command(each.line)[0] == FORGET for each in heard)
        return Decision(False, ("forget_sure",) if asked else ())
    call = _call(heard, keywords)
    notices = [notice for each in heard if (notice := _notice(each.line, owner)) is not None]
    answer = needs_model([each.line for each in heard], keywords)
    chosen = [language for each in heard if (language := _chosen(each.line))]
    if not told_too_long and any(each.line.cut for each in heard):
        notices.append("too_long")
    before = tuple(dict.fromkeys(notices))
    return Decision(answer, before, _hand_over(call, owner), call, chosen[-1] if chosen else "")


def shed(lines: Sequence[Line], owner: Owner, keywords: Sequence[str], told: bool) -> Decision:
    """The same for what is too much: nothing is read or answered, but who asks for a person still gets one.

    `told`: the customer was asked to slow down already, and is not asked again.
    """
    call = _call([Heard(line) for line in lines], keywords)
    before = () if told or call else ("too_fast",)
    return Decision(False, before, _hand_over(call, owner), call)


def stand_in(lines: Sequence[Line], owner: Owner, keywords: Sequence[str], instead: Instead, told: bool) -> Decision:
    """The same where the model is not asked: commands and who asks for a person go on as ever, for the rest a human is
    called.

    `told`: the customer was told so already, and is not told again.
    """
    decision = decide([Heard(line) for line in lines], owner, keywords, told_too_long=True)
    if not decision.answer or decision.call:
        return replace(decision, answer=False)
    newest = next(line for line in reversed(lines) if line.kind is InboundKind.TEXT)
    after = () if told else (instead.sentence,)
    return replace(decision, answer=False, after=after, call=Call(instead.reason, newest.id))


def needs_model(lines: Sequence[Line], keywords: Sequence[str]) -> bool:
    """Whether there are words that only the model can answer: neither a command, nor media, nor a bare call."""
    return any(line.kind is InboundKind.TEXT and not _only_calls(line, keywords) for line in lines)


def forgets(lines: Sequence[Line]) -> bool:
    """Whether the customer is sure that everything is to be erased."""
    return any(name == FORGET and argument in _SURE for name, argument in map(_command, lines))


def asks_for_human(text: str, keywords: Sequence[str]) -> bool:
    """Whether a keyword occurs: as a whole word in a script that has spaces, anywhere in one that has none."""
    return any(_pattern(keyword).search(text) for keyword in keywords)


def _call(heard: Sequence[Heard], keywords: Sequence[str]) -> Call | None:
    """The weightiest reason: who asked for a person gets one, else the angriest message is the evidence."""
    for each in reversed(heard):
        if _command(each.line)[0] == HUMAN or asks_for_human(_words(each.line), keywords):
            return Call(Reason.ASKED, each.line.id, each.sentiment)
    negative = [(each.sentiment.negative, each) for each in heard if each.sentiment and each.sentiment.is_negative]
    if not negative:
        return None
    worst = max(negative, key=lambda pair: pair[0])[1]
    return Call(Reason.NEGATIVE, worst.line.id, worst.sentiment)


def _hand_over(call: Call | None, owner: Owner) -> tuple[str, ...]:
    """Said once per escalation; who asks again is told that somebody already knows."""
    if call is None:
        return ()
    if owner is Owner.BOT:
        return ("human_called",)
    return ("human_already_called",) if call.reason is Reason.ASKED else ()


def _notice(line: Line, owner: Owner) -> str | None:
    if line.kind is InboundKind.MEDIA:
        return "media"
    match _command(line)[0]:
        case "start" | "help" as name:
            return name
        case "status":
            return "status_waiting" if owner is Owner.WAITING else "status_bot"
        case "language":
            return "language_set" if _chosen(line) else "language_which"
        case "forget":
            return "forget_sure"
    return None


def _chosen(line: Line) -> str:
    """The language that a line chooses, "" where it chooses none that we have."""
    name, argument = _command(line)
    return argument if name == "language" and argument in languages() else ""


def _command(line: Line) -> tuple[str, str]:
    """Name and argument, both "" where the line is no command."""
    name, _, argument = line.text.partition(" ") if line.kind is InboundKind.COMMAND else ("", "", "")
    return name, argument.strip().lower()


def _only_calls(line: Line, keywords: Sequence[str]) -> bool:
    return _words(line).strip(" \t\n.,!?。，！？~～").casefold() in {keyword.casefold() for keyword in keywords}


def _words(line: Line) -> str:
    return line.text if line.kind is InboundKind.TEXT else ""


@lru_cache(maxsize=256)
def _pattern(keyword: str) -> re.Pattern[str]:
    edge = r"(?<![a-z0-9])", r"(?![a-z0-9])"
    spaced = keyword.isascii()
    return re.compile(edge[0] * spaced + re.escape(keyword.casefold()) + edge[1] * spaced, re.IGNORECASE)
