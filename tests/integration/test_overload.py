"""When the engine does not work, or not fast enough: what customers hear, and who is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from bot.app import build
from bot.catalogue import say
from bot.config import Secrets, Settings, parse
from bot.conversation import Outcome, OwnerEvent
from bot.messages import InboundKind, InboundMessage
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store
from bot.store.values import Settlement, Verdict, Waiting
from tests.conftest import TurnableClock, inbound, until
from tests.fakes.engine import ScriptedEngine
from tests.house import House, working

BROKEN = 1_000_000
"""More requests than any test makes."""


@pytest.fixture
async def desk(engine: Engine, clock: TurnableClock, impatient_queue: None) -> AsyncIterator[House]:
    """A house whose time stands still until a test moves it."""
    house = House(engine, clock=clock)
    async with working(house):
        yield house
    house.writer.close()


@pytest.fixture
def closed(engine: Engine, clock: TurnableClock) -> Iterator[House]:
    """A house in which nobody works yet."""
    house = House(engine, clock=clock)
    yield house
    house.writer.close()


async def serve(house: House, clock: TurnableClock, waits: float, *messages: InboundMessage) -> None:
    """Nobody attends to the messages for `waits` seconds, and then everybody does."""
    for message in messages:
        house.store.accept(message)
    clock.advance(waits)
    async with working(house):
        await house.idle()


# -- the engine is out of order --------------------------------------------------------------------


async def break_engine(house: House, clock: TurnableClock, event: str = "boom") -> None:
    """All three attempts of one message fail. Retries need the time to go on a little."""
    house.engine.failures = BROKEN
    await house.intake.receive(inbound("boom", event=event, customer="c0"))
    async with asyncio.timeout(10):
        while house.reader.load().jobs:
            clock.advance(0.01)
            await asyncio.sleep(0.005)
    assert house.circuit.is_open
    house.engine.asked.clear()
    for platform in (house.telegram, house.slack):
        platform.sent.clear()


async def test_while_the_engine_is_out_of_order_it_is_not_asked_and_a_human_is_called_at_once(
    desk: House, clock: TurnableClock
) -> None:
    await break_engine(desk, clock)
    await desk.hears("几点开门？", event="1")
    assert desk.telegram.said() == [say("out_of_order", "zh")]
    assert say("reason_failed", "zh") in desk.slack.sent[0].text
    assert desk.outcomes() == [Outcome.ESCALATED]
    assert desk.engine.asked == []


async def test_whose_message_was_the_last_straw_hears_it_too(desk: House, clock: TurnableClock) -> None:
    desk.engine.failures = BROKEN
    for number in range(3):
        await desk.intake.receive(inbound("hello", event=str(number), customer=f"c{number}"))
    await until(lambda: len(desk.telegram.sent) == 1)
    clock.advance(1)
    asked = len(desk.engine.asked)
    await until(lambda: len(desk.telegram.sent) == 3)
    await desk.idle()
    assert desk.telegram.said() == [say("out_of_order", "en")] * 3
    assert len(desk.engine.asked) == asked, "those who were to be tried again are not"


async def test_it_is_said_once_in_a_conversation_while_it_lasts(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    for number in range(3):
        await desk.hears("hello?", event=str(number))
    await desk.hears("hello?", event="other", customer="c2")
    assert desk.telegram.said() == [say("out_of_order", "en")] * 2
    assert desk.outcomes() == [Outcome.ESCALATED] * 3
    assert "3×" in desk.slack.sent[2].text, "agents see the newest message, and how many there were"


async def test_it_is_said_again_when_it_happens_again(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    await desk.hears("hello?", event="1")
    desk.engine.failures = 0
    clock.advance(31)
    await desk.hears("hello?", event="2")
    await break_engine(desk, clock, event="again")
    await desk.hears("hello?", event="3")
    assert desk.telegram.said() == [say("out_of_order", "en")]


async def test_of_a_burst_the_newest_message_is_shown_and_one_sentence_said(
    closed: House, clock: TurnableClock
) -> None:
    for _ in range(3):
        closed.circuit.failed()
    await serve(closed, clock, 0, *(inbound(f"part {number}", event=str(number)) for number in range(3)))
    assert closed.telegram.said() == [say("out_of_order", "en")]
    assert closed.outcomes() == [Outcome.ANSWERED, Outcome.ANSWERED, Outcome.ESCALATED]


@pytest.mark.parametrize(
    ("text", "kind", "key"),
    [
        ("help", InboundKind.COMMAND, "help"),
        ("status", InboundKind.COMMAND, "status_bot"),
        ("human", InboundKind.COMMAND, "human_called"),
        ("forget", InboundKind.COMMAND, "forget_sure"),
        ("forget yes", InboundKind.COMMAND, "forgotten"),
        ("language zh", InboundKind.COMMAND, "language_set"),
        ("photo", InboundKind.MEDIA, "media"),
        ("人工", InboundKind.TEXT, "human_called"),
        ("太差了，转人工", InboundKind.TEXT, "human_called"),
    ],
)
async def test_what_needs_no_model_works_as_ever(
    desk: House, clock: TurnableClock, text: str, kind: InboundKind, key: str
) -> None:
    await break_engine(desk, clock)
    await desk.hears(text, event="1", kind=kind)
    assert desk.telegram.said() == [say(key, "zh", mark="/")]
    assert desk.engine.asked == []
    assert desk.circuit.is_open


async def test_a_chosen_language_holds_also_while_the_engine_is_out_of_order(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    await desk.hears("language en", event="1", kind=InboundKind.COMMAND)
    await desk.hears("几点开门？", event="2")
    assert desk.telegram.said() == [say("language_set", "en"), say("out_of_order", "en")]


async def test_after_30_seconds_one_message_is_a_try_and_its_answer_ends_it(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    desk.engine.failures = 0
    await desk.hears("too early", event="1")
    clock.advance(31)
    await desk.hears("hello", event="2")
    await desk.hears("and?", event="3")
    assert desk.telegram.said() == [
        say("out_of_order", "en"),
        "answer to: too early\nhello",
        "answer to: and?",
    ]
    assert not desk.circuit.is_open


async def test_a_try_that_fails_is_no_different_from_not_trying(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    clock.advance(31)
    await desk.hears("hello", event="1")
    asked = len(desk.engine.asked)
    await desk.hears("hello", event="2", customer="c2")
    assert desk.telegram.said() == [say("out_of_order", "en")] * 2
    assert asked > 0
    assert len(desk.engine.asked) == asked
    assert desk.outcomes() == [Outcome.ESCALATED]


async def test_commands_are_no_tries(desk: House, clock: TurnableClock) -> None:
    await break_engine(desk, clock)
    desk.engine.failures = 0
    clock.advance(31)
    await desk.hears("help", event="1", kind=InboundKind.COMMAND)
    await desk.hears("hello", event="2")
    assert desk.telegram.said()[-1] == "answer to: hello"


async def test_what_a_customer_says_to_an_agent_arrives_without_its_mood(desk: House, clock: TurnableClock) -> None:
    await desk.hears("人工", event="1")
    desk.store.change_owner(1, OwnerEvent.CLAIM)
    await break_engine(desk, clock)
    await desk.hears("太差了", event="2")
    assert [each.text for each in desk.slack.sent] == ["Li Wei: 太差了"]
    assert desk.telegram.said() == []
    assert desk.outcomes()[-1] is Outcome.SILENT
    assert desk.engine.asked == []


async def test_who_claims_while_the_engine_fails_still_gets_the_customers_words(desk: House) -> None:
    await desk.hears("人工", event="1")
    desk.engine.hold = asyncio.Event()
    await desk.intake.receive(inbound("hello", event="2"))
    await until(lambda: any(name == "reply" for name, _ in desk.engine.asked))
    desk.store.change_owner(1, OwnerEvent.CLAIM)
    desk.engine.failures = BROKEN
    for _ in range(2):
        desk.circuit.failed()
    desk.engine.hold.set()
    await desk.idle()
    assert desk.circuit.is_open
    assert desk.slack.sent[-1].text == "Li Wei: hello"
    assert desk.telegram.said() == [say("human_called", "zh")]
    assert desk.outcomes() == [Outcome.ESCALATED, Outcome.SILENT]


async def test_that_it_opened_and_closed_is_counted_and_logged_once(desk: House, clock: TurnableClock) -> None:
    def state() -> tuple[bool, bool]:
        shown = desk.metrics.render()
        return b"frontdesk_circuit_open 1.0" in shown, b"frontdesk_circuit_openings_total 1.0" in shown

    assert state() == (False, False)
    with capture_logs() as logs:
        await break_engine(desk, clock)
        await desk.hears("hello", event="1")
        assert state() == (True, True)
        desk.engine.failures = 0
        clock.advance(31)
        await desk.hears("hello", event="2")
        await desk.hears("hello", event="3")
    assert state() == (False, True)
    said = [each["event"] for each in logs if "the engine" in each["event"]]
    assert said == [
        "the engine is out of order; humans are called until it answers again",
        "the engine answers again",
    ]


async def test_health_says_that_the_engine_is_out_of_order(database_url: str) -> None:
    app = build(parse({"web": {"enabled": False}, "database": {"url": database_url}}, Secrets()), ScriptedEngine())
    assert (await app.health()).is_well
    for _ in range(3):
        app.circuit.failed()
    health = await app.health()
    await app.close()
    assert (health.is_well, health.engine) == (False, False)


# -- messages that wait for their turn -------------------------------------------------------------


async def test_who_waited_for_20_seconds_is_answered_as_ever(closed: House, clock: TurnableClock) -> None:
    await serve(closed, clock, 20, inbound("hello"))
    assert closed.telegram.said() == ["answer to: hello"]


async def test_who_waited_longer_is_told_that_it_takes_longer_and_answered(closed: House, clock: TurnableClock) -> None:
    await serve(closed, clock, 21, inbound("几点开门？"))
    assert closed.telegram.said() == [say("slow", "zh"), "answer to: 几点开门？"]
    assert closed.outcomes() == [Outcome.ANSWERED]
    assert closed.slack.sent == []


async def test_of_a_burst_the_message_that_waited_longest_counts(closed: House, clock: TurnableClock) -> None:
    closed.store.accept(inbound("one", event="1"))
    clock.advance(15)
    await serve(closed, clock, 15, inbound("two", event="2"))
    assert closed.telegram.said() == [say("slow", "en"), "answer to: one\ntwo"]


async def test_it_is_said_once_in_a_conversation_until_the_queue_was_caught_up_with(
    closed: House, clock: TurnableClock
) -> None:
    for number in range(2):
        await serve(closed, clock, 30, inbound("hello", event=str(number)))
    await serve(closed, clock, 30, inbound("hello", event="other", customer="c2"))
    assert closed.telegram.said().count(say("slow", "en")) == 2, "each of them once"
    await serve(closed, clock, 0.5, inbound("hello", event="quick", customer="c3"))
    await serve(closed, clock, 30, inbound("hello", event="late again"))
    assert closed.telegram.said().count(say("slow", "en")) == 3


async def test_a_queue_that_is_a_little_faster_for_a_while_was_not_caught_up_with(
    closed: House, clock: TurnableClock
) -> None:
    for number, waits in enumerate((30, 10, 30)):
        await serve(closed, clock, waits, inbound("hello", event=str(number)))
    assert closed.telegram.said().count(say("slow", "en")) == 1


async def test_who_waited_for_two_minutes_is_answered_by_a_human(closed: House, clock: TurnableClock) -> None:
    await serve(closed, clock, 121, inbound("几点开门？", event="1"), inbound("太差了", event="2"))
    assert closed.telegram.said() == [say("too_late", "zh")]
    assert say("reason_overload", "zh") in closed.slack.sent[0].text
    assert closed.outcomes() == [Outcome.SHED] * 2
    assert closed.engine.asked == []


async def test_who_waits_too_long_again_and_again_is_told_once(closed: House, clock: TurnableClock) -> None:
    for number in range(3):
        await serve(closed, clock, 121, inbound("hello?", event=str(number)))
    assert closed.telegram.said() == [say("too_late", "en")]
    assert closed.outcomes() == [Outcome.SHED] * 3
    assert closed.reader.load().open_escalations == 1


async def test_what_is_shed_for_its_age_does_not_ask_an_engine_that_is_out_of_order(
    closed: House, clock: TurnableClock
) -> None:
    for _ in range(3):
        closed.circuit.failed()
    await serve(closed, clock, 121, inbound("hello", event="1"))
    await serve(closed, clock, 0, inbound("hello", event="2", customer="c2"))
    assert closed.telegram.said() == [say("too_late", "en"), "answer to: hello"], "the first was no try"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("human", InboundKind.COMMAND, ("slow", "human_called")),
        ("forget yes", InboundKind.COMMAND, ("forgotten",)),
        ("help", InboundKind.COMMAND, ("slow", "help")),
        ("人工", InboundKind.TEXT, ("human_called",)),
        ("太差了，转人工", InboundKind.TEXT, ("human_called",)),
    ],
)
async def test_what_needs_no_model_works_however_late(
    closed: House, clock: TurnableClock, text: str, kind: InboundKind, said: tuple[str, ...]
) -> None:
    await serve(closed, clock, 121, inbound(text, kind=kind))
    assert closed.telegram.said() == [say(key, "zh") for key in said]
    assert closed.engine.asked == []


async def test_an_agent_gets_the_customers_words_however_late(closed: House, clock: TurnableClock) -> None:
    await serve(closed, clock, 0, inbound("人工", event="1"))
    closed.store.change_owner(1, OwnerEvent.CLAIM)
    await serve(closed, clock, 121, inbound("still there?", event="2"))
    assert closed.slack.sent[-1].text == "😄 Li Wei: still there?"
    assert closed.telegram.said() == [say("human_called", "zh")]
    assert closed.outcomes()[-1] is Outcome.SILENT


async def test_who_writes_too_much_is_asked_to_slow_down_however_late(engine: Engine, clock: TurnableClock) -> None:
    house = House(engine, Settings.model_validate({"limits": {"messages_per_minute": 1}}), clock)
    await serve(house, clock, 30, inbound("one", event="1"), inbound("two", event="2"))
    house.writer.close()
    assert house.telegram.said() == [say("too_fast", "en")]


# -- whose turn it is ------------------------------------------------------------------------------


def begin_turn(store: Store) -> tuple[Claim, Waiting]:
    """Whose turn it is, and what for."""
    claim = store.claim(JobKind.ATTEND, timedelta(seconds=30))
    assert claim is not None
    return claim, store.waiting(claim)


def end_turn(store: Store, claim: Claim, waiting: Waiting) -> str:
    """Returns the newest of the words that were answered."""
    store.finish(claim, Settlement(tuple(Verdict(line.id, Outcome.ANSWERED) for line in waiting.lines)))
    return waiting.lines[-1].text


def test_who_never_stops_writing_keeps_nobody_waiting(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound("busy 0", event="0", customer="busy"))
    for number in range(1, 4):
        turn = begin_turn(store)
        for customer in (f"quiet {number}", "busy"):
            clock.advance(1)
            store.accept(inbound(f"{customer} {number}", event=f"{customer} {number}", customer=customer))
        assert end_turn(store, *turn).startswith("busy")
        assert end_turn(store, *begin_turn(store)).startswith("quiet")


def test_many_chats_of_one_customer_come_before_another_only_if_they_were_first(
    store: Store, clock: TurnableClock
) -> None:
    for number in range(3):
        store.accept(inbound(f"before {number}", event=str(number), customer="busy", chat=f"chat {number}"))
        clock.advance(1)
    store.accept(inbound("quiet", event="quiet", customer="quiet"))
    for number in range(3, 6):
        clock.advance(1)
        store.accept(inbound(f"after {number}", event=str(number), customer="busy", chat=f"chat {number}"))
    turns = [end_turn(store, *begin_turn(store)) for _ in range(7)]
    assert turns.index("quiet") == 3
