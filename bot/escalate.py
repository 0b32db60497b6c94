"""What agents see: the card of an escalation, as text that every platform can show, and answers about the desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bot.catalogue import language_of, say
from bot.conversation import Author, Escalation, Line, Reason
from bot.messages import Address, InboundKind, Rating
from bot.store.database import Writer
from bot.store.reader import Reader

_THUMBS = {Rating.UP: "👍", Rating.DOWN: "👎"}
MAX_QUOTE = 300
"""Characters of one line on a card."""


class CardWriter:
    """Writes cards, in the language of the message that caused them. `emoji` shows a label's mood."""

    def __init__(self, emoji: Callable[[str], str]) -> None:
        self._emoji = emoji

    def text(self, escalation: Escalation) -> str:
        """Who, where, why, the message, its probability, the last turns. The first line is the title."""
        language = self._language(escalation)
        if escalation.reason is Reason.ERASED:
            return self._title(escalation, language)
        customer, address = escalation.conversation.customer, escalation.conversation.address
        lines = [
            self._title(escalation, language),
            say("card_customer", language, name=customer.name or customer.id, id=customer.id * bool(customer.name)),
            say("card_place", language, place=_place(address)),
            *([say("card_origin", language, origin=origin)] if (origin := escalation.conversation.origin) else []),
            *([say("card_unreachable", language, why=why)] if (why := escalation.conversation.unreachable) else []),
            say("card_since", language, since=f"{escalation.opened_at:%Y-%m-%d %H:%M} UTC", times=escalation.times),
        ]
        if escalation.evidence is not None:
            lines += ["", say("card_message", language), self._line(escalation.evidence, language)]
        lines += ["", say("card_recent", language), *self._recent(escalation.recent, language)]
        return "\n".join(lines)

    def _title(self, escalation: Escalation, language: str) -> str:
        sentiment = escalation.evidence.sentiment if escalation.evidence else None
        negative = f" {sentiment.negative:.2f}" if sentiment and escalation.reason is Reason.NEGATIVE else ""
        return f"🔔 #{escalation.id} {say(f'reason_{escalation.reason}', language)}{negative}"

    def _recent(self, lines: Sequence[Line], language: str) -> list[str]:
        return [self._line(line, language) for line in lines]

    def _line(self, line: Line, language: str) -> str:
        mood = f"{self._emoji(line.sentiment.label)} {line.sentiment.negative:.2f} " if line.sentiment else ""
        rated = f" {_THUMBS[line.rating]}" if line.rating else ""
        return f"{mood}{say(f'author_{line.author}', language)}: {_quote(line)}{rated}"

    def _language(self, escalation: Escalation) -> str:
        said = [line.text for line in escalation.recent if _is_wording(line)]
        return language_of(said[-1] if said else "", escalation.conversation.customer.language)


class Desk:
    """Answers what staff ask of the desk itself: how it fares, and who waits.

    Names and numbers of customers are told only where the cards go, to whoever was let in there.
    """

    def __init__(self, reader: Reader, writer: Writer, agents: Address | None) -> None:
        self._reader = reader
        self._writer = writer
        self._agents = agents

    async def __call__(self, words: str, place: Address) -> str:
        """The answer to "", "help", "status" or "open" asked in a place. Raises DatabaseUnavailable."""
        language = language_of(words, "")
        match words.strip().lower():
            case "status":
                load = await self._writer(self._reader.load)
                return say("desk_status", language, calls=load.open_escalations, jobs=load.jobs)
            case "open":
                return await self._open(language, place)
        return say("desk_help", language)

    async def _open(self, language: str, place: Address) -> str:
        if self._agents is None or (place.platform, place.chat) != (self._agents.platform, self._agents.chat):
            return say("desk_elsewhere", language)
        calls = await self._writer(self._reader.open_calls)
        return "\n".join(_in_a_line(each, language) for each in calls) or say("desk_nobody", language)


def _in_a_line(call: Escalation, language: str) -> str:
    who = call.conversation.customer.name or call.conversation.customer.id
    reason, since = say(f"reason_{call.reason}", language), f"{call.opened_at:%Y-%m-%d %H:%M} UTC"
    return f"#{call.id} {reason} · {who} · {_place(call.conversation.address)} · {since}"


def _is_wording(line: Line) -> bool:
    return line.author is Author.CUSTOMER and line.kind is InboundKind.TEXT


def _place(address: Address) -> str:
    return f"{address.platform.capitalize()} {address.chat}" + (f" / {address.thread}" if address.thread else "")


def _quote(line: Line) -> str:
    text = " ".join(line.text.split())
    if line.kind is InboundKind.COMMAND:
        text = f"/{text}"
    elif line.kind is InboundKind.MEDIA:
        text = f"[{text}]"
    elif line.kind is InboundKind.EDIT:
        text = f"✏️ {text}"
    return text if len(text) <= MAX_QUOTE else f"{text[: MAX_QUOTE - 1]}…"
