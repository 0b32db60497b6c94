"""Any update that Telegram's type table allows: none is an exception, and none costs a neighbour."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from adapters.telegram_updates import to_inbound
from bot.intake import Intake
from bot.messages import InboundKind, InboundMessage, Platform, Receipt
from bot.metrics import Metrics
from bot.store.database import Writer
from bot.store.store import Store
from tests.fakes.telegram_schema import TYPES

ACCOUNT, USERNAME = "4242", "shop_bot"
WORDS = (
    "",
    "hi @shop_bot",
    "/help",
    "/start a b",
    "/forget yes",
    "太差了",
    "a\x00b",
    "\ud83d",
    "x" * 5_000,
    "👨\u200d👩\u200d👧",
)
DEEPEST = 4


class Maker:
    """Values of the table's types: what is required always, the rest now and then."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def update(self, number: int) -> dict[str, Any]:
        """One of every kind of update; most often a message, and in half of these one that people could have sent."""
        kinds = [name for name in TYPES["Update"]["fields"] if name != "update_id"]
        kind = self._random.choice(["message", "edited_message", "callback_query", *kinds])
        made = self._value(TYPES["Update"]["fields"][kind][0], 0)
        if "from" in made and self._random.random() < 0.5:
            made["from"]["is_bot"] = False
            made.pop("sender_chat", None)
        if "chat" in made and self._random.random() < 0.8:
            made["chat"]["type"] = self._random.choice(["private", "group", "supergroup"])
        return {"update_id": number, kind: made}

    def _value(self, kind: str, depth: int) -> Any:
        if kind.startswith("Array of "):
            return [self._value(kind.removeprefix("Array of "), depth + 1) for _ in range(self._random.randrange(3))]
        if kind == "String":
            return self._random.choice(WORDS)
        if kind == "Boolean":
            return self._random.random() < 0.5
        if kind in ("Integer", "Float"):
            number = self._random.choice((0, 1, 7, -1_001, 2**31, 2**52, -(2**63), 2**63))
            return number if kind == "Integer" else float(number)
        described = TYPES[kind]
        if "one_of" in described:
            return self._value(self._random.choice(described["one_of"]), depth)
        chance = 0.5 / (depth + 1) if depth < DEEPEST else 0.0
        return {
            name: self._value(self._random.choice(types), depth + 1)
            for name, types in described["fields"].items()
            if name in described["required"] or self._random.random() < chance
        }


@given(st.integers(0, 2**32))
@settings(max_examples=2_000, deadline=None)
def test_any_update_has_its_place_in_the_order(seed: int) -> None:
    event = to_inbound(Maker(Random(seed)).update(seed), ACCOUNT, USERNAME)
    assert event.cursor == seed
    if isinstance(event, InboundMessage):
        assert event.text or event.kind is InboundKind.MEDIA
        assert event.customer.id


async def test_updates_of_every_kind_are_stored_or_dropped_beside_each_other(engine: Engine) -> None:
    store, writer = Store(engine), Writer()
    intake = Intake(store, writer, Metrics(), 4_000, None, lambda: None)
    maker, said = Maker(Random(5)), 0
    for number in range(1, 201):
        await intake.receive(to_inbound(maker.update(2 * number), ACCOUNT, USERNAME))
        person = {"id": number, "is_bot": False, "first_name": "Li"}
        message = {"message_id": 1, "from": person, "chat": {"id": number, "type": "private"}, "text": "hello"}
        receipt = await intake.receive(to_inbound({"update_id": 2 * number + 1, "message": message}, ACCOUNT, USERNAME))
        said += receipt is Receipt.ACCEPTED
        assert store.cursor(Platform.TELEGRAM, ACCOUNT) == 2 * number + 1
    writer.close()
    assert said >= 195, "a random update may have taken the event id of a neighbour"


async def test_updates_out_of_order_and_twice_are_stored_once_each(engine: Engine) -> None:
    store, writer = Store(engine), Writer()
    intake = Intake(store, writer, Metrics(), 4_000, None, lambda: None)
    person, chat = {"id": 7, "is_bot": False, "first_name": "Li"}, {"id": 7, "type": "private"}
    updates = [
        {
            "update_id": 100 + number,
            "message": {"message_id": number, "from": person, "chat": chat, "text": f"m{number}"},
        }
        for number in range(1, 21)
    ]
    came = [*updates, *updates]
    Random(3).shuffle(came)
    receipts = [await intake.receive(to_inbound(update, ACCOUNT, USERNAME)) for update in came]
    writer.close()
    assert receipts.count(Receipt.ACCEPTED) == receipts.count(Receipt.DUPLICATE) == 20


def test_the_table_makes_updates_that_are_messages() -> None:
    found = [to_inbound(Maker(Random(seed)).update(seed), ACCOUNT, USERNAME) for seed in range(400)]
    assert {type(event).__name__ for event in found} >= {"InboundMessage", "Moved", "Dropped"}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
