"""/forget: it asks, then erases; no copy stays."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.conversation import OwnerEvent
from bot.errors import Undeliverable
from bot.messages import InboundKind, OutboundKind
from bot.store.jobs import JobKind
from tests.conftest import inbound, on_disk, only_sqlite, rows
from tests.house import House, working

CANARY = "kanarienvogel-太差了-0815"


async def test_it_asks_before_it_erases(house: House) -> None:
    await house.hears("几点开门？", event="1")
    await house.hears("forget", event="2", kind=InboundKind.COMMAND)
    assert house.telegram.said()[-1] == say("forget_sure", "zh", mark="/")
    assert len(house.outcomes()) == 2, "nothing is gone yet"


@pytest.mark.parametrize("word", ["yes", "YES", "是", "确认"])
async def test_then_it_says_so_and_nothing_is_left(house: House, engine: Engine, word: str) -> None:
    await house.hears("几点开门？", event="1")
    await house.hears(f"forget {word}", event="2", kind=InboundKind.COMMAND)
    assert house.telegram.said()[-1] == say("forgotten", "zh")
    assert rows(engine) == {}


@only_sqlite
async def test_no_byte_of_it_stays_on_disk(house: House, database_url: str) -> None:
    await house.hears(f"{CANARY} one", event="1")
    assert CANARY.encode() in on_disk(database_url)
    await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    assert CANARY.encode() not in on_disk(database_url)
    assert b"Li Wei" not in on_disk(database_url)


async def test_the_engine_keeps_nothing_of_it(house: House) -> None:
    await house.hears("hello", event="1")
    await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    assert len(house.engine.forgot) == 1


async def test_the_card_that_agents_saw_is_emptied(house: House, engine: Engine) -> None:
    await house.hears(CANARY, event="1")
    await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    first, last = house.slack.sent[0], house.slack.sent[-1]
    assert CANARY in first.text
    assert (last.kind, last.edits) == (OutboundKind.CARD, "p1")
    assert last.text == f"🔔 #1 {say('reason_erased', 'zh')}" or last.text == f"🔔 #1 {say('reason_erased', 'en')}"
    assert rows(engine) == {}


async def test_every_chat_of_the_customer_is_erased_and_nobody_elses(house: House) -> None:
    await house.hears("mine, here", event="1", customer="c1")
    await house.hears("mine, in the group", event="2", customer="c1", chat="-7")
    await house.hears("not mine", event="3", customer="c2", chat="-7")
    await house.hears("forget yes", event="4", customer="c1", kind=InboundKind.COMMAND)
    assert house.reader.history(inbound(chat="-7").address, "c1") == []
    assert next(line.text for line in house.reader.history(inbound(chat="-7").address, "c2")) == "not mine"


async def test_it_works_whoever_owns_the_conversation(house: House, engine: Engine) -> None:
    await house.hears("hello", event="1")
    house.store.change_owner(1, OwnerEvent.CLAIM)
    await house.hears("forget", event="2", kind=InboundKind.COMMAND)
    assert house.telegram.said()[-1] == say("forget_sure", "zh", mark="/")
    await house.hears("forget yes", event="3", kind=InboundKind.COMMAND)
    assert house.telegram.said()[-1] == say("forgotten", "zh")
    assert rows(engine) == {}


async def test_who_cannot_be_told_is_erased_all_the_same(house: House, engine: Engine) -> None:
    await house.hears("hello", event="1")
    house.telegram.plan = [Undeliverable("blocked by the user")]
    await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    assert rows(engine) == {}
    assert house.slack.sent == []


async def test_who_writes_again_is_a_new_customer(house: House) -> None:
    await house.hears("hello", event="1")
    await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    await house.hears("hello again", event="3")
    assert [line.text for line in house.reader.history(inbound().address, "c1")] == [
        "hello again",
        "answer to: hello again",
    ]


async def test_what_was_written_after_it_is_answered(engine: Engine) -> None:
    house = House(engine)
    await house.intake.receive(inbound("old", event="1"))
    await house.intake.receive(inbound("forget yes", event="2", kind=InboundKind.COMMAND))
    claim = house.store.claim(JobKind.ATTEND, timedelta(seconds=30))
    assert claim is not None
    waiting = house.store.waiting(claim)
    await house.intake.receive(inbound("new", event="3"))
    attendant = house.handlers[JobKind.ATTEND]
    settlement = await attendant._attend(waiting)  # type: ignore[attr-defined]  # between reading and settling
    house.store.finish(claim, settlement)
    async with working(house):
        await house.idle()
    house.writer.close()
    history = [line.text for line in house.reader.history(inbound().address, "c1")]
    assert history == ["new", say("forgotten", "zh"), "answer to: new"]
