"""A human takes over from the card, answers from its thread, and hands back: only one ever speaks to the customer."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from bot.app import handoff_manners
from bot.catalogue import say
from bot.config import DatabaseSection, Secrets, Settings, parse
from bot.conversation import Outcome
from bot.errors import DatabaseUnavailable, RetryLater, Undeliverable
from bot.export import export_labels
from bot.handoff import CONFIRMED_S, REMEMBERED_S
from bot.labelled import read as read_labelled
from bot.messages import (
    DELIVERED,
    NOT_DELIVERED,
    AgentAction,
    Customer,
    Edited,
    InboundKind,
    InboundMessage,
    Left,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Receipt,
)
from tests.conftest import AGENTS, TurnableClock, inbound
from tests.house import House, working

ANNA, BO, STRANGER = Customer("UANNA", "anna"), Customer("UBO", "bo"), Customer("UX", "x")
_numbers = itertools.count(1)


@pytest.fixture
async def called(house: House) -> House:
    """A house with two agents, where an angry customer waits; the card is "p1"."""
    house.slack.members = {ANNA.id, BO.id}
    await house.hears("太差了", event="1")
    return house


async def press(house: House, action: AgentAction, agent: Customer = ANNA, chat: str = AGENTS.chat) -> str:
    words = await house.intake.press(Pressed(AGENTS.platform, AGENTS.account, chat, agent, 1, action))
    await house.idle()
    return words


async def writes(house: House, text: str, agent: Customer = ANNA, answers: str = "p1", event: str = "") -> Receipt:
    event = event or f"{AGENTS.chat}:ts{next(_numbers)}"
    receipt = await house.intake.receive(InboundMessage(AGENTS, agent, event, text, answers=answers))
    await house.idle()
    return receipt


def cards(house: House) -> list[OutboundMessage]:
    return [each for each in house.slack.sent if each.kind is OutboundKind.CARD]


def sent(house: House, kind: OutboundKind) -> list[tuple[str, str]]:
    """What went to the agents: text, and what it hangs on."""
    return [(each.text, each.reply_to) for each in house.slack.sent if each.kind is kind]


# -- claim


async def test_the_card_has_buttons_that_fit_its_state(called: House) -> None:
    labels = [[button.label for button in cards(called)[-1].buttons]]
    for action in (AgentAction.CLAIM, AgentAction.RESOLVE):
        await press(called, action)
        labels.append([button.label for button in cards(called)[-1].buttons])
    assert labels == [["接手", "已解决", "不是负面"], ["转回机器人", "已解决", "不是负面"], ["不是负面"]]
    assert {card.edits for card in cards(called)[1:]} == {"p1"}, "edited in place"


async def test_who_claims_is_on_the_card_and_the_customer_is_told(called: House) -> None:
    assert await press(called, AgentAction.CLAIM) == say("press_claim", "zh")
    assert "✋ anna" in cards(called)[-1].text
    assert called.telegram.said()[-1] == say("human_joined", "zh")


async def test_the_bot_is_silent_from_then_on(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    before = len(called.telegram.sent)
    await called.hears("在吗？", event="2")
    assert len(called.telegram.sent) == before
    assert called.outcomes()[-1] is Outcome.SILENT


async def test_of_two_agents_the_first_wins_and_the_other_hears_who(called: House) -> None:
    await press(called, AgentAction.CLAIM, ANNA)
    assert await press(called, AgentAction.CLAIM, BO) == say("press_taken", "zh", name="anna")
    assert await press(called, AgentAction.CLAIM, ANNA) == say("press_yours", "zh")
    assert called.telegram.said().count(say("human_joined", "zh")) == 1


async def test_a_wrong_judgement_is_corrected_on_the_card_and_exported(
    called: House, database_url: str, tmp_path: Path
) -> None:
    assert await press(called, AgentAction.CORRECT) == say("press_correct", "zh")
    assert say("card_correct", "zh") in cards(called)[-1].text
    assert [button.label for button in cards(called)[-1].buttons] == ["接手", "已解决"]
    settings = Settings(database=DatabaseSection(url=database_url))
    assert export_labels(settings, tmp_path / "labels.csv") == 1
    (example,) = read_labelled(tmp_path / "labels.csv")
    assert (example.text, example.label) == ("太差了", "正面")


async def test_a_press_that_could_not_be_stored_is_not_confirmed(
    called: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(event: Pressed, notice: str, asked: str) -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(called.store, "press", away)
    pressed = Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, ANNA, 1, AgentAction.CLAIM, cursor=9)
    with pytest.raises(DatabaseUnavailable):
        await called.intake.press(pressed)
    assert called.store.cursor(AGENTS.platform, AGENTS.account) is None
    monkeypatch.undo()
    await called.intake.press(pressed)
    assert called.store.cursor(AGENTS.platform, AGENTS.account) == 9


# -- authorisation


@pytest.mark.parametrize("action", AgentAction)
async def test_a_stranger_can_do_nothing(called: House, action: AgentAction) -> None:
    assert await press(called, action, STRANGER) == say("press_stranger", "zh")
    assert await press(called, action, ANNA, chat="C0ELSEWHERE") == say("press_stranger", "zh")
    assert len(cards(called)) == 1


async def test_a_strangers_words_reach_nobody(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    before = len(called.telegram.sent)
    assert await writes(called, "pay me", STRANGER) is Receipt.DROPPED
    assert len(called.telegram.sent) == before


async def test_membership_is_asked_for_again_after_a_minute(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    called.slack.members = set()
    assert await writes(called, "still known") is Receipt.ACCEPTED
    called.seconds += REMEMBERED_S
    assert await writes(called, "not any more") is Receipt.DROPPED


async def test_while_the_platform_does_not_say_only_who_was_confirmed_lately_may_act(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    called.slack.members = RetryLater("away")
    called.seconds += CONFIRMED_S - 1
    assert await writes(called, "confirmed nine minutes ago") is Receipt.ACCEPTED
    assert await press(called, AgentAction.RESOLVE, BO) == say("press_stranger", "zh")
    called.seconds += 2
    assert await writes(called, "too long ago") is Receipt.DROPPED


# -- relay


async def test_what_the_claimer_writes_reaches_the_customer_and_is_marked(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    assert await writes(called, "您好，我是 Anna", event=f"{AGENTS.chat}:ts77") is Receipt.ACCEPTED
    assert called.telegram.sent[-1].text == "您好，我是 Anna"
    assert sent(called, OutboundKind.MARK) == [(DELIVERED, "ts77")]


async def test_what_is_delivered_again_is_said_once(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await writes(called, "hello", event=f"{AGENTS.chat}:ts5")
    assert await writes(called, "hello", event=f"{AGENTS.chat}:ts5") is Receipt.DUPLICATE
    assert [each.text for each in called.telegram.sent].count("hello") == 1


async def test_what_does_not_arrive_is_marked_with_the_reason(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    called.telegram.plan = [Undeliverable("blocked by the user")]
    await writes(called, "hello?", event=f"{AGENTS.chat}:ts9")
    assert sent(called, OutboundKind.MARK) == [(NOT_DELIVERED, "ts9")]
    assert sent(called, OutboundKind.NOTICE) == [("blocked by the user", "ts9")]


async def test_what_the_customer_writes_appears_under_the_card_with_its_mood(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await called.hears("还是太差了", event="2")
    await called.hears("photo", event="3", kind=InboundKind.MEDIA)
    assert sent(called, OutboundKind.RELAY) == [("😢 Li Wei: 还是太差了", "p1"), ("Li Wei: [photo]", "p1")]


async def test_an_answer_to_the_customers_words_is_one_to_the_customer(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await called.hears("在吗？", event="2")
    relayed = 1 + next(at for at, each in enumerate(called.slack.sent) if each.kind is OutboundKind.RELAY)
    assert await writes(called, "在的", answers=f"p{relayed}") is Receipt.ACCEPTED
    assert called.telegram.sent[-1].text == "在的"


async def test_what_the_customer_edits_is_shown_too(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await called.intake.receive(Edited(Platform.TELEGRAM, "1", "1:2", "1", "好多了"))
    await called.idle()
    assert sent(called, OutboundKind.RELAY) == [("✏️ 好多了", "p1")]


async def test_what_the_customer_writes_while_an_agent_claims_is_not_lost(called: House) -> None:
    called.engine.hold = None
    await called.intake.receive(inbound("再问一下", event="2"))
    await press(called, AgentAction.CLAIM)
    shown = [text for text, _ in sent(called, OutboundKind.RELAY)]
    answered = [each.text for each in called.telegram.sent]
    assert any("再问一下" in text for text in [*shown, *answered])


@pytest.mark.parametrize("text", ["// he is right", "//", "//note"])
async def test_notes_stay_among_the_agents(called: House, text: str) -> None:
    await press(called, AgentAction.CLAIM)
    before = len(called.telegram.sent)
    assert await writes(called, text) is Receipt.DROPPED
    assert len(called.telegram.sent) == before


async def test_who_has_not_claimed_is_told_once_and_not_relayed(called: House) -> None:
    await press(called, AgentAction.CLAIM, ANNA)
    before = len(called.telegram.sent)
    await writes(called, "let me", BO)
    await writes(called, "please", BO)
    assert len(called.telegram.sent) == before
    assert [text for text, _ in sent(called, OutboundKind.NOTICE)] == [say("claim_first", "en", name="bo")]


async def test_words_outside_of_any_thread_are_nobodys_business(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    assert await writes(called, "lunch?", answers="") is Receipt.DROPPED
    assert await writes(called, "lunch?", answers="p99") is Receipt.DROPPED


async def test_when_the_model_is_broken_the_customers_words_still_reach_the_agent(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    called.engine.failures = 100
    await called.hears("在吗？", event="2")
    assert sent(called, OutboundKind.RELAY) == [("Li Wei: 在吗？", "p1")]


# -- what waits too long


@pytest.fixture
async def waiting(engine: Engine, clock: TurnableClock, impatient_queue: None) -> AsyncIterator[House]:
    """As `called`, with a clock that a test turns."""
    house = House(engine, clock=clock)
    house.slack.members = {ANNA.id, BO.id}
    async with working(house):
        await house.hears("太差了", event="1")
        yield house
    house.writer.close()


async def sweep(house: House) -> None:
    await house.handoff.sweep()
    await house.idle()


async def test_agents_are_reminded_once_of_what_nobody_claims(waiting: House, clock: TurnableClock) -> None:
    clock.advance(14 * 60)
    await sweep(waiting)
    assert sent(waiting, OutboundKind.NOTICE) == []
    clock.advance(60)
    await sweep(waiting)
    await sweep(waiting)
    assert sent(waiting, OutboundKind.NOTICE) == [(say("overdue_remind", "zh", minutes=15), "p1")]


async def test_after_an_hour_the_customer_hears_once_that_they_are_not_forgotten(
    waiting: House, clock: TurnableClock
) -> None:
    clock.advance(3_600)
    await sweep(waiting)
    await sweep(waiting)
    assert waiting.telegram.said().count(say("overdue_apologise", "zh")) == 1


async def test_what_is_claimed_is_not_brought_up(waiting: House, clock: TurnableClock) -> None:
    await press(waiting, AgentAction.CLAIM)
    clock.advance(3_600)
    await sweep(waiting)
    assert sent(waiting, OutboundKind.NOTICE) == []
    assert say("overdue_apologise", "zh") not in waiting.telegram.said()


async def test_an_agent_who_fell_silent_hands_back_to_the_bot(waiting: House, clock: TurnableClock) -> None:
    await press(waiting, AgentAction.CLAIM)
    clock.advance(11 * 3_600)
    await writes(waiting, "one moment")
    clock.advance(11 * 3_600)
    await sweep(waiting)
    assert "✋" in cards(waiting)[-1].text
    assert "🤖" not in cards(waiting)[-1].text
    clock.advance(3_600)
    await sweep(waiting)
    assert "🤖" in cards(waiting)[-1].text
    assert waiting.telegram.said()[-1] == say("human_returned", "zh")


async def test_what_is_set_to_zero_waits_for_ever(engine: Engine) -> None:
    settings = parse({"escalation": {"remind_minutes": 0, "apologise_minutes": 0, "idle_hours": 0}}, Secrets())
    assert handoff_manners(settings).patience == {}


# -- and back


@pytest.mark.parametrize(
    ("action", "notice"), [(AgentAction.RESOLVE, "human_resolved"), (AgentAction.RETURN, "human_returned")]
)
async def test_afterwards_the_bot_answers_again_and_the_customer_was_told(
    called: House, action: AgentAction, notice: str
) -> None:
    await press(called, AgentAction.CLAIM)
    await press(called, action)
    assert called.telegram.said()[-1] == say(notice, "zh")
    await called.hears("谢谢", event="2")
    assert called.telegram.said()[-1] == "answer to: 谢谢"


async def test_what_nobody_claimed_is_resolved_in_silence(called: House) -> None:
    before = len(called.telegram.sent)
    await press(called, AgentAction.RESOLVE, BO)
    assert len(called.telegram.sent) == before
    assert await press(called, AgentAction.CLAIM) == say("press_over", "zh")


async def test_what_the_agent_writes_after_resolving_does_not_reach_the_customer(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await press(called, AgentAction.RESOLVE)
    before = len(called.telegram.sent)
    await writes(called, "one more thing")
    assert len(called.telegram.sent) == before


async def test_an_angry_message_after_that_opens_a_new_card(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await press(called, AgentAction.RESOLVE)
    await called.hears("又坏了，太差了", event="2")
    assert cards(called)[-1].text.startswith("🔔 #2")
    assert cards(called)[-1].edits == ""


async def test_the_model_sees_later_what_the_agent_said(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    await writes(called, "明天补发")
    await press(called, AgentAction.RETURN)
    await called.hears("好的", event="2")
    turns = called.engine.asked[-1][1]
    assert "明天补发" in [turn.text for turn in turns][-2]  # type: ignore[attr-defined]


async def test_who_left_the_channel_is_no_member_from_that_moment(called: House) -> None:
    await press(called, AgentAction.CLAIM)
    called.slack.members = set()
    await called.intake.receive(Left(Platform.TELEGRAM, "1", AGENTS.chat, ANNA.id))
    assert await writes(called, "somebody left another chat") is Receipt.ACCEPTED
    await called.intake.receive(Left(AGENTS.platform, AGENTS.account, AGENTS.chat, ANNA.id))
    assert await writes(called, "the minute is not over") is Receipt.DROPPED


async def test_only_who_has_not_claimed_sees_that_they_have_not(called: House) -> None:
    await press(called, AgentAction.CLAIM, ANNA)
    await writes(called, "let me", BO)
    (hint,) = [each for each in called.slack.sent if each.kind is OutboundKind.NOTICE]
    assert hint.only_for == BO.id
