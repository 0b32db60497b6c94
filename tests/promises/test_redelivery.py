"""A platform may deliver every event up to five times, and late: one row, one answer, one effect."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from adapters.slack_events import to_inbound
from bot.messages import (
    AgentAction,
    Customer,
    Edited,
    Event,
    InboundMessage,
    OutboundKind,
    OutboundMessage,
    Pressed,
    Rated,
    Rating,
)
from bot.store.store import Store
from bot.store.values import Accepted
from tests.conftest import AGENTS, inbound
from tests.house import House, working
from tests.promises.simulated import Clock, Look, emptied, opened, simulate

__all__ = ["opened"]

ANNA = Customer("UANNA", "Anna")
LATE_S = 60.0
"""How long after an event it may come again."""


class Platforms:
    """Deliver each event one to five times: first when it happens, then whenever they like."""

    def __init__(self, database: Engine, seed: int) -> None:
        self.chance = random.Random(seed)
        self.house = House(database, clock=Clock())
        self.house.slack.members = {ANNA.id}
        self.copies: list[asyncio.Task[None]] = []
        self.events = 0

    async def deliver(self, events: Sequence[Event | Sequence[Event]]) -> None:
        """Where an event has several forms, any of them may come first. What follows is done before this returns."""
        for event in self.chance.sample(events, len(events)):
            forms = event if isinstance(event, list) else [event]
            self.events += 1
            await self.house.intake.receive(self.chance.choice(forms))
            for _ in range(self.chance.randrange(5)):
                again = self.again(self.chance.choice(forms), self.chance.uniform(0, LATE_S))
                self.copies.append(asyncio.create_task(again))
        await asyncio.sleep(5)

    async def again(self, event: Event, after: float) -> None:
        await asyncio.sleep(after)
        await self.house.intake.receive(event)

    async def live(self, customers: int) -> None:
        """Customers on both platforms complain; Anna claims, answers and resolves; they edit and rate."""
        async with working(self.house):
            calls = range(1, 2 * customers + 1)
            asked = [inbound("awful", event=f"t{number}", customer=f"c{number}") for number in range(customers)]
            await self.deliver([*asked, *map(_said_on_slack, range(customers))])
            await self.deliver([_pressed(number, AgentAction.CLAIM) for number in calls])
            await self.deliver([_words(number, card) for number, card in enumerate(self.cards())])
            await self.deliver([inbound("thanks", event=f"x{n}", customer=f"c{n}") for n in range(customers)])
            await self.deliver([_edited(message) for message in asked])
            await self.deliver([_pressed(number, AgentAction.RESOLVE) for number in calls])
            await self.deliver([_rated(message) for message in self.sent() if message.kind is OutboundKind.REPLY])
            await asyncio.gather(*self.copies)
            await self.house.idle()

    def sent(self) -> list[OutboundMessage]:
        """New messages, without what was edited into one that is there."""
        return [message for message in (*self.house.telegram.sent, *self.house.slack.sent) if not message.edits]

    def cards(self) -> list[str]:
        """The platform's ids of the cards."""
        sent = enumerate(self.house.slack.sent, start=1)
        return [f"p{number}" for number, each in sent if each.kind is OutboundKind.CARD and not each.edits]


def _said_on_slack(number: int) -> list[Event]:
    """Where the bot is mentioned, Slack tells of one message twice, under event ids of their own."""
    said = {"user": f"U{number}", "text": "<@U0BOT> awful", "ts": f"1.{number}", "channel": f"D{number}"}
    bodies = [
        {"type": "event_callback", "event_id": f"Ev-{kind}-{number}", "event": {**said, "type": kind}}
        for kind in ("message", "app_mention")
    ]
    return [to_inbound(body, "T1", "U0BOT", AGENTS.chat) for body in bodies]


def _pressed(number: int, action: AgentAction) -> Pressed:
    return Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, ANNA, number, action)


def _words(number: int, card: str) -> InboundMessage:
    return InboundMessage(AGENTS, ANNA, f"{AGENTS.chat}:{number}", f"words {number}", answers=card)


def _edited(message: InboundMessage) -> Edited:
    of = message.event_id
    return Edited(message.address.platform, message.address.account, f"{of}:2", of, "awful, I said")


def _rated(reply: OutboundMessage) -> Rated:
    place = reply.address
    who = place.chat.removeprefix("chat-").replace("D", "U")
    return Rated(place.platform, place.account, who, reply.id, Rating.UP)


def live(opened: tuple[Engine, Look], seed: int, customers: int) -> Counter[str]:
    """How much there was of what, in the database and on the platforms."""
    engine, look = opened
    with emptied(engine):

        async def day() -> Platforms:
            day = Platforms(engine, seed)
            await day.live(customers)
            return day

        lived = simulate(day)
        print(f"seed {seed}: {lived.events} events, delivered {lived.events + len(lived.copies)} times")
        found = Counter({str(kind): n for kind, n in Counter(each.kind for each in lived.sent()).items()})
        found["rows"] = look("SELECT count(*) FROM messages WHERE author = 'customer'")[0][0]
        found["rows of agents"] = look("SELECT count(*) FROM messages WHERE author = 'agent'")[0][0]
        found["rated"] = look("SELECT count(*) FROM messages WHERE rating = 'up'")[0][0]
    return found


def expected(customers: int) -> Counter[str]:
    """Of two conversations each, of which one went on."""
    calls = 2 * customers
    once = {"reply": calls, "agent": calls, "mark": calls, "card": calls, "ask": calls, "rated": calls}
    relayed = 2 * customers  # the thanks, and the edits
    notices = 3 * calls  # a colleague was called, came, and left
    rows = {"rows": calls + 2 * customers, "rows of agents": calls}
    return Counter({**once, **rows, "relay": relayed, "notice": notices})


def test_an_event_that_comes_again_changes_nothing(opened: tuple[Engine, Look]) -> None:
    assert live(opened, seed=1, customers=2) == expected(2)


@pytest.mark.slow
def test_events_that_come_again_change_nothing_at_length(opened: tuple[Engine, Look]) -> None:
    for seed in range(20):
        assert live(opened, seed, customers=20) == expected(20)


def test_where_a_redelivery_is_taken_for_a_new_message_customers_are_answered_twice(
    opened: tuple[Engine, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage."""
    accept, numbers = Store.accept, itertools.count()

    def accepted(store: Store, message: InboundMessage) -> Accepted:
        return accept(store, replace(message, event_id=f"{message.event_id} {next(numbers)}"))

    monkeypatch.setattr(Store, "accept", accepted)
    assert live(opened, seed=1, customers=1)["rows"] > expected(1)["rows"]
