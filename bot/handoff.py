"""What agents do where the cards are: claim, resolve, hand back, and answer customers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog

from bot.catalogue import language_of, say
from bot.conversation import Overdue
from bot.errors import DeliveryError
from bot.escalate import CardWriter
from bot.hours import Hours
from bot.messages import (
    Adapter,
    Address,
    AgentAction,
    Edited,
    InboundKind,
    InboundMessage,
    Left,
    Platform,
    Pressed,
    Receipt,
)
from bot.store.database import Writer
from bot.store.store import Clock, Store, utc_now
from bot.store.values import Heard, Pressing

log = structlog.get_logger(__name__)

REMEMBERED_S, CONFIRMED_S = 60.0, 600.0
"""How long somebody counts as a member without asking the platform again; and while it does not answer."""
NOTE = "//"
"""What agents write to each other begins with it."""
_NOTICES = {
    AgentAction.CLAIM: "human_joined",
    AgentAction.RESOLVE: "human_resolved",
    AgentAction.RETURN: "human_returned",
}

_OVERDUE = {
    Overdue.REMIND: "overdue_remind",
    Overdue.APOLOGISE: "overdue_apologise",
    Overdue.IDLE: _NOTICES[AgentAction.RETURN],
}


@dataclass(frozen=True, slots=True)
class HandoffManners:
    """How long what may wait, when colleagues are there, what customers call them by id, and whether they are asked
    how it was."""

    patience: Mapping[Overdue, timedelta]
    hours: Hours
    names: Mapping[str, str]
    ask_score: bool


class Members:
    """Who is in the agents' chat. Buttons can be pressed by people who are not, so each press is checked."""

    def __init__(
        self,
        adapters: Mapping[Platform, Adapter],
        agents: Address,
        only: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`only`: the ids of those who may act, if not every member."""
        self._only = frozenset(only)
        self._adapters = adapters
        self._agents = agents
        self._now = clock
        self._confirmed: dict[str, float] = {}

    async def holds(self, person: str) -> bool:
        """Whether somebody is a member; where the platform does not answer, whether they were lately."""
        if self._only and person not in self._only:
            return False
        confirmed = self._confirmed.get(person, float("-inf"))
        if self._now() - confirmed < REMEMBERED_S:
            return True
        try:
            member = await self._adapters[self._agents.platform].is_member(self._agents.chat, person)
        except DeliveryError as error:
            log.warning("cannot see who is in the agents' chat", error=str(error))
            return self._now() - confirmed < CONFIRMED_S
        if member:
            self._confirmed[person] = self._now()
        else:
            self.forget(person)
        return member

    def forget(self, person: str) -> None:
        """They left: the next time the platform is asked again."""
        self._confirmed.pop(person, None)


class Handoff:
    """Takes what happens in the agents' chat. `on_change` wakes the queue."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        members: Members,
        agents: Address,
        cards: CardWriter,
        on_change: Callable[[], None],
        manners: HandoffManners,
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._writer = writer
        self._members = members
        self._agents = agents
        self._cards = cards
        self._on_change = on_change
        self._manners = manners
        self._now = clock

    def left(self, event: Left) -> None:
        """Somebody is not in a chat any more."""
        if self.is_here(event.platform, event.chat):
            self._members.forget(event.person)

    def is_here(self, platform: Platform, chat: str) -> bool:
        """Whether that is the agents' chat."""
        return self._agents.is_chat(platform, chat)

    async def press(self, event: Pressed) -> str:
        """Do what a button on a card says. Returns what to tell whoever pressed it. Raises DatabaseUnavailable."""
        call = await self._writer(self._store.call, event.escalation_id)
        if call is None:
            return ""
        theirs, customers = self._cards.language(call), self._cards.customers_language(call)
        if not self.is_here(event.platform, event.chat) or not await self._members.holds(event.agent.id):
            log.warning("a button was pressed by somebody who is no agent", escalation=event.escalation_id)
            return say("press_stranger", theirs)
        notice = self._notice(event.action, customers, event.agent.id)
        asked = say("ask_score", customers) if self._manners.ask_score else ""
        done = await self._writer(self._store.press, event, notice, asked)
        log.info("button pressed", escalation=event.escalation_id, action=event.action, result=done)
        self._on_change()
        if done is Pressing.DONE:
            return say(f"press_{event.action}", theirs)
        return say(f"press_{done}", theirs, name=call.claimed_by)

    def _notice(self, action: AgentAction, language: str, agent: str) -> str:
        name = self._manners.names.get(agent, "")
        return say(_NOTICES[action], language, name=name) if action in _NOTICES else ""

    async def sweep(self) -> None:
        """See to what has waited too long. To be called now and then. Raises DatabaseUnavailable."""
        patience = self._due()
        for what, call in await self._writer(self._store.overdue, patience):
            cards = self._cards
            language = cards.language(call) if what is Overdue.REMIND else cards.customers_language(call)
            text = say(_OVERDUE[what], language, minutes=int(patience[what].total_seconds() // 60))
            await self._writer(self._store.bring_up, call.id, what, text)
            log.info("overdue", escalation=call.id, what=what)
            self._on_change()

    def _due(self) -> Mapping[Overdue, timedelta]:
        """What may be overdue now. Nobody is reminded while nobody is there, and then not before they had time."""
        since = self._manners.hours.since(self._now())
        return {
            what: time
            for what, time in self._manners.patience.items()
            if what is Overdue.IDLE or (since is not None and self._now() - since >= time)
        }

    async def hear(self, message: InboundMessage) -> Receipt:
        """Pass on what the claimer of a conversation writes in its thread. Raises DatabaseUnavailable."""
        placed = message.answers or message.address.thread
        if message.kind is InboundKind.COMMAND or message.text.startswith(NOTE) or not placed:
            return Receipt.DROPPED
        if not await self._members.holds(message.customer.id):
            return Receipt.DROPPED
        language = language_of(message.text, message.customer.language)
        told = say("claim_first", language, name=message.customer.name or message.customer.id)
        heard = await self._writer(self._store.hear_agent, message, told, say("media_across", language))
        log.info("heard among the agents", result=heard)
        self._on_change()
        return {Heard.RELAYED: Receipt.ACCEPTED, Heard.DUPLICATE: Receipt.DUPLICATE}.get(heard, Receipt.DROPPED)

    async def edit(self, event: Edited) -> Receipt:
        """Pass on that an agent's message says something else now. Raises DatabaseUnavailable."""
        if event.text.startswith(NOTE) or not await self._members.holds(event.by):
            return Receipt.DROPPED
        passed_on = await self._writer(self._store.edit_agent, event)
        self._on_change()
        return Receipt.ACCEPTED if passed_on else Receipt.DROPPED
