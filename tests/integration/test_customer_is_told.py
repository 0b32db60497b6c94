"""What customers are told about colleagues: who joins, when somebody is there, and the question how it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.config import Secrets, parse
from bot.messages import (
    AgentAction,
    Customer,
    InboundKind,
    InboundMessage,
    OutboundKind,
    Platform,
    Pressed,
    Receipt,
    Scored,
    read_score,
)
from tests.conftest import AGENTS, TurnableClock
from tests.house import House, working

ANNA = Customer("UANNA", "anna")
WEEK = {"timezone": "Asia/Shanghai", "monday": ["09:00-18:00"], "tuesday": ["09:00-18:00"]}
Open = Callable[..., Any]


@pytest.fixture
async def house_with(engine: Engine, clock: TurnableClock, impatient_queue: None) -> AsyncIterator[Open]:
    """Opens a house with these settings; it is a Monday, noon in Shanghai."""
    clock.now = datetime(2026, 1, 5, 4, tzinfo=UTC)
    async with AsyncExitStack() as stack:

        async def opened(**sections: dict[str, object]) -> House:
            house = House(engine, parse(sections, Secrets()), clock)
            house.slack.members = {ANNA.id, "UBO"}
            stack.callback(house.writer.close)
            await stack.enter_async_context(working(house))
            return house

        yield opened


async def press(house: House, action: AgentAction, agent: Customer = ANNA) -> str:
    words = await house.intake.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, agent, 1, action))
    await house.idle()
    return words


async def sweep(house: House) -> None:
    await house.handoff.sweep()
    await house.idle()


# -- opening hours


async def test_while_colleagues_are_there_nothing_is_said_about_hours(house_with: Open) -> None:
    house = await house_with(hours=WEEK)
    await house.hears("太差了", event="1")
    assert house.telegram.said()[-1] == say("human_called", "zh")


async def test_after_closing_the_customer_hears_when_somebody_will_be_there(
    house_with: Open, clock: TurnableClock
) -> None:
    house = await house_with(hours=WEEK)
    clock.advance(8 * 3600)
    await house.hears("太差了", event="1")
    assert house.telegram.said()[-1] == say("human_called", "zh") + "\n现在是非工作时间，同事明天 09:00 上班。"
    clock.advance(24 * 3600)
    await house.hears("human", event="2", kind=InboundKind.COMMAND)
    assert house.telegram.said()[-1].endswith("同事周一 09:00 上班。")


async def test_at_night_nobody_is_reminded_and_after_opening_they_have_their_time(
    house_with: Open, clock: TurnableClock
) -> None:
    house = await house_with(hours=WEEK)
    clock.advance(8 * 3600)
    await house.hears("太差了", event="1")
    clock.advance(12 * 3600)
    await sweep(house)
    clock.advance(3600 + 14 * 60)
    await sweep(house)
    assert not [each for each in house.slack.sent if each.kind is OutboundKind.NOTICE]
    clock.advance(60)
    await sweep(house)
    assert [each.text for each in house.slack.sent if each.kind is OutboundKind.NOTICE] == [
        say("overdue_remind", "zh", minutes=15)
    ]


# -- names and who may act


async def test_who_joins_is_called_by_the_configured_name(house_with: Open) -> None:
    house = await house_with(escalation={"names": {ANNA.id: "Anna Weber"}})
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    assert house.telegram.said()[-1] == "同事 Anna Weber 来了，现在由同事在这里为您解答。"


async def test_of_the_members_only_the_listed_may_act(house_with: Open) -> None:
    house = await house_with(escalation={"agents": ["UBO"]})
    await house.hears("太差了", event="1")
    assert await press(house, AgentAction.CLAIM) == say("press_stranger", "zh")
    assert await press(house, AgentAction.CLAIM, Customer("UBO", "bo")) == say("press_claim", "zh")


# -- how it was


async def scored(house: House, score: int, customer: str = "c1") -> Receipt:
    receipt = await house.intake.receive(Scored(Platform.TELEGRAM, "1", customer, 1, score))
    await house.idle()
    return receipt


async def test_after_a_colleague_resolved_it_the_customer_may_say_how_it_was(house_with: Open) -> None:
    house = await house_with()
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    await press(house, AgentAction.RESOLVE)
    asked = house.telegram.sent[-1]
    assert (asked.kind, asked.text) == (OutboundKind.ASK, say("ask_score", "zh"))
    assert [read_score(button.token) for button in asked.buttons] == [(score, 1) for score in range(1, 6)]
    assert await scored(house, 2) is Receipt.ACCEPTED
    assert await scored(house, 4) is Receipt.ACCEPTED, "they may change their mind"
    assert say("card_score", "zh", score=4) in house.slack.sent[-1].text


async def test_nobody_else_can_say_how_it_was(house_with: Open) -> None:
    house = await house_with()
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    assert await scored(house, 5) is Receipt.DROPPED, "it is not over"
    await press(house, AgentAction.RESOLVE)
    assert await scored(house, 5, customer="c2") is Receipt.DROPPED


@pytest.mark.parametrize("last", [AgentAction.RETURN, None])
async def test_who_was_handed_back_or_never_helped_is_not_asked(house_with: Open, last: AgentAction | None) -> None:
    house = await house_with()
    await house.hears("太差了", event="1")
    if last is not None:
        await press(house, AgentAction.CLAIM)
    await press(house, last or AgentAction.RESOLVE)
    assert not [each for each in house.telegram.sent if each.kind is OutboundKind.ASK]


async def test_the_question_can_be_left_away(house_with: Open) -> None:
    house = await house_with(escalation={"ask_score": False})
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    await press(house, AgentAction.RESOLVE)
    assert not [each for each in house.telegram.sent if each.kind is OutboundKind.ASK]


# -- afterwards


async def test_the_card_says_once_that_the_customer_came_back(house_with: Open, clock: TurnableClock) -> None:
    house = await house_with()
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    await press(house, AgentAction.RESOLVE)
    clock.advance(60)
    await house.hears("谢谢", event="2")
    back = say("card_back", "zh", since="2026-01-05 04:01 UTC")
    assert back in house.slack.sent[-1].text
    cards = len(house.slack.sent)
    await house.hears("再见", event="3")
    assert len(house.slack.sent) == cards
    assert house.telegram.said()[-1] == "answer to: 再见"


async def test_the_model_can_tell_a_colleagues_words_from_its_own_and_does_not_imitate_the_mark(
    house_with: Open,
) -> None:
    house = await house_with()
    await house.hears("太差了", event="1")
    await press(house, AgentAction.CLAIM)
    words = InboundMessage(AGENTS, ANNA, f"{AGENTS.chat}:1", "明天补发", answers="p1")
    await house.intake.receive(words)
    await press(house, AgentAction.RETURN)
    house.engine.answer = lambda turns: "[同事] 好的"
    await house.hears("好的", event="2")
    turns = house.engine.asked[-1][1]
    assert "[同事] 明天补发" in turns[-2].text  # type: ignore[attr-defined]
    assert house.telegram.said()[-1] == "好的"
