"""What agents see: the card of an escalation, as text that every platform can show, and answers about the desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from bot.brief import brief
from bot.catalogue import language_of, say
from bot.conversation import Author, Escalation, Line, Reason
from bot.messages import Address, AgentAction, Button, InboundKind, Rating, action_token
from bot.store.database import Writer
from bot.store.reader import Reader

_THUMBS = {Rating.UP: "👍", Rating.DOWN: "👎"}
MAX_QUOTE = 300
"""Characters of one line on a card."""
SHOWN, MOODS = 6, 12
"""Of the last turns on a card: lines, and moods of the customer's messages."""


class CardWriter:
    """Writes cards, in the language of the message that caused them. `emoji` shows a label's mood."""

    def __init__(self, emoji: Callable[[str], str]) -> None:
        self._emoji = emoji

    def text(self, escalation: Escalation) -> str:
        """Who, where, why, moods, the message, the customer's sentences that matter, the last turns. The first line is
        the title."""
        language = self.language(escalation)
        if escalation.reason is Reason.ERASED:
            return self._title(escalation, language)
        customer, address = escalation.conversation.customer, escalation.conversation.address
        lines = [
            self._title(escalation, language),
            say("card_customer", language, name=customer.name or customer.id, id=customer.id * bool(customer.name)),
            say("card_place", language, place=_place(address)),
            *([say("card_origin", language, origin=origin)] if (origin := escalation.conversation.origin) else []),
            *([say("card_unreachable", language, why=why)] if (why := escalation.conversation.unreachable) else []),
            say("card_since", language, since=_at(escalation.opened_at), times=escalation.times),
            *self._state(escalation, language),
        ]
        if moods := self._moods(escalation.recent):
            lines.append(say("card_moods", language, moods=moods))
        if escalation.evidence is not None:
            lines += ["", say("card_message", language), self._line(escalation.evidence, language)]
        if sentences := brief(escalation.recent):
            lines += ["", say("card_brief", language), *(f"• {sentence}" for sentence in sentences)]
        lines += ["", say("card_recent", language)]
        lines += [self._line(line, language) for line in escalation.recent[-SHOWN:]]
        return "\n".join(lines)

    def buttons(self, escalation: Escalation) -> tuple[Button, ...]:
        """What can be done about it now."""
        actions = []
        if escalation.resolved_at is None:
            actions += [AgentAction.RETURN if escalation.claimed_by else AgentAction.CLAIM, AgentAction.RESOLVE]
        evidence = escalation.evidence
        if escalation.reason is Reason.NEGATIVE and evidence is not None and not evidence.corrected:
            actions.append(AgentAction.CORRECT)
        language = self.language(escalation)
        return tuple(Button(say(f"button_{each}", language), action_token(each, escalation.id)) for each in actions)

    def relayed(self, line: Line, name: str) -> str:
        """What a customer said, for agents."""
        mood = f"{self._emoji(line.sentiment.label)} " if line.sentiment else ""
        return f"{mood}{name}: {_quote(line, most=None)}"

    def language(self, escalation: Escalation) -> str:
        """Of a card: that of the customer's last words."""
        said = [line.text for line in escalation.recent if _is_wording(line)]
        return language_of(said[-1] if said else "", escalation.conversation.customer.language)

    def customers_language(self, escalation: Escalation) -> str:
        """Of what is said to the customer: the one they chose, else as on the card."""
        return escalation.conversation.customer.chosen or self.language(escalation)

    def _state(self, escalation: Escalation, language: str) -> list[str]:
        lines = []
        if escalation.claimed_by and escalation.claimed_at:
            waited = _minutes(escalation.claimed_at - escalation.opened_at)
            since = _at(escalation.claimed_at)
            lines.append(say("card_claimed", language, name=escalation.claimed_by, since=since, waited=waited))
        if escalation.evidence and escalation.evidence.corrected:
            lines.append(say("card_correct", language))
        if escalation.ended and escalation.resolved_at:
            lines.append(say(f"card_{escalation.ended}", language, since=_at(escalation.resolved_at)))
        if escalation.came_back_at:
            lines.append(say("card_back", language, since=_at(escalation.came_back_at)))
        if escalation.score:
            lines.append(say("card_score", language, score=escalation.score))
        return lines

    def _title(self, escalation: Escalation, language: str) -> str:
        sentiment = escalation.evidence.sentiment if escalation.evidence else None
        negative = f" {sentiment.negative:.2f}" if sentiment and escalation.reason is Reason.NEGATIVE else ""
        return f"🔔 #{escalation.id} {say(f'reason_{escalation.reason}', language)}{negative}"

    def _moods(self, lines: Sequence[Line]) -> str:
        """The course of the customer's moods, the newest last; "" where there is no course yet."""
        found = [self._emoji(line.sentiment.label) for line in lines if line.sentiment]
        return "".join(found[-MOODS:]) if len(found) > 1 else ""

    def _line(self, line: Line, language: str) -> str:
        mood = f"{self._emoji(line.sentiment.label)} {line.sentiment.negative:.2f} " if line.sentiment else ""
        rated = f" {_THUMBS[line.rating]}" if line.rating else ""
        return f"{mood}{say(f'author_{line.author}', language)}: {_quote(line)}{rated}"


class Desk:
    """Answers what staff ask of the desk itself: how it fares, and who waits.

    Names and numbers of customers are told only where the cards go, to whoever was let in there.
    """

    def __init__(self, reader: Reader, writer: Writer, agents: Address | None) -> None:
        self._reader = reader
        self._writer = writer
        self._agents = agents

    async def __call__(self, words: str, place: Address, code: str = "") -> str:
        """The answer to "", "help", "status" or "open" asked in a place. Raises DatabaseUnavailable."""
        language = language_of("" if words.isascii() else words, code)  # "open" is said in every language
        match words.strip().lower():
            case "status":
                load = await self._writer(self._reader.load)
                return say("desk_status", language, calls=load.open_escalations, jobs=load.jobs)
            case "open":
                return await self._open(language, place)
        return say(f"desk_help_{place.platform}", language)

    async def _open(self, language: str, place: Address) -> str:
        if self._agents is None or not self._agents.is_chat(place.platform, place.chat):
            return say("desk_elsewhere", language)
        calls = await self._writer(self._reader.open_calls)
        return "\n".join(_in_a_line(each, language) for each in calls) or say("desk_nobody", language)


def _in_a_line(call: Escalation, language: str) -> str:
    who = call.conversation.customer.name or call.conversation.customer.id
    reason, since = say(f"reason_{call.reason}", language), _at(call.opened_at)
    mood = call.evidence.sentiment if call.evidence else None
    parts = (f"#{call.id} {reason}" + (f" {mood.negative:.2f}" if mood else ""), who, _place(call.conversation.address))
    claimed = f"✋ {call.claimed_by}" if call.claimed_by else ""
    return " · ".join(filter(None, (*parts, since, claimed)))


def _is_wording(line: Line) -> bool:
    return line.author is Author.CUSTOMER and line.kind is InboundKind.TEXT


def _place(address: Address) -> str:
    return f"{address.platform.capitalize()} {address.chat}" + (f" / {address.thread}" if address.thread else "")


def _minutes(time: timedelta) -> int:
    return int(time.total_seconds() // 60)


def _at(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _quote(line: Line, most: int | None = MAX_QUOTE) -> str:
    """Folded and cut to `most` characters, None for neither."""
    text = " ".join(line.text.split()) if most else line.text
    kind, _, links = (line.media or line.text).partition(" ")
    if line.kind is InboundKind.COMMAND:
        text = f"/{text}"
    elif line.kind is InboundKind.MEDIA:
        text = f"[{kind}] {links}".strip()
    elif line.media:
        text = " ".join(filter(None, (f"[{kind}]", links, text)))
    elif line.kind is InboundKind.EDIT:
        text = f"✏️ {text}"
    return text if not most or len(text) <= most else f"{text[: most - 1]}…"
