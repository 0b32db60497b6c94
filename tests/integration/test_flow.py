"""One message's way through intake, store, queue, policy and delivery; only model and platform are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.config import Settings
from bot.conversation import Outcome, OwnerEvent
from bot.errors import ChatMoved, OutcomeUnknown, RetryLater, Stopping, Undeliverable
from bot.escalate import Desk
from bot.messages import Address, Dropped, Edited, InboundKind, OutboundKind, Platform, Rated, Rating, Receipt
from bot.store.jobs import JobKind
from bot.store.store import Clock, utc_now
from engine.types import OnText, Reply, Speaker, TextRole, Turn
from tests.conftest import AGENTS, inbound, until
from tests.house import House, working


async def test_a_calm_message_is_answered_and_nobody_is_called(house: House) -> None:
    assert await house.hears("几点开门？") is Receipt.ACCEPTED
    assert house.telegram.said() == ["answer to: 几点开门？"]
    assert house.slack.sent == []
    assert house.outcomes() == [Outcome.ANSWERED]


async def test_staff_can_ask_how_the_desk_fares_and_who_waits(house: House) -> None:
    desk = Desk(house.reader, house.writer, AGENTS)
    assert await desk("open", AGENTS) == say("desk_nobody", "en")
    await house.hears("太差了", event="1", customer="c1")
    await house.hears("awful", event="2", customer="c2")
    assert await desk(" Status ", AGENTS) == say("desk_status", "en", calls=2, jobs=0)
    first, second = (await desk("open", AGENTS)).splitlines()
    assert first.startswith("#1 An unhappy customer 0.95 · Li Wei · Telegram chat-c1 · ")
    assert second.startswith("#2 ")
    assert await desk("status", AGENTS, "zh-hans") == say("desk_status", "zh", calls=2, jobs=0)
    assert await desk("", AGENTS) == await desk("dance", AGENTS) == say("desk_help_slack", "en")


async def test_who_waits_is_told_to_agents_alone(house: House) -> None:
    await house.hears("太差了", event="1")
    elsewhere = Address(Platform.SLACK, "T1", "C0LUNCH")
    assert await Desk(house.reader, house.writer, AGENTS)("open", elsewhere) == say("desk_elsewhere", "en")
    assert await Desk(house.reader, house.writer, None)("open", elsewhere) == say("desk_elsewhere", "en")


async def test_what_a_preview_began_is_finished_by_the_reply(house: House) -> None:
    house.telegram.begins = "p77"
    await house.hears("hello", event="1")
    await house.hears("hello again", event="2")
    assert [(each.text, each.edits) for each in house.telegram.sent] == [
        ("answer to: hello", "p77"),
        ("answer to: hello again", "p77"),
    ]


async def test_what_a_preview_began_before_a_crash_is_finished_and_not_begun_again(house: House) -> None:
    await house.hears("hello", event="1")
    house.store.began(1, "p5")
    house.telegram.begins = "p6"
    await house.hears("太差了", event="2")
    assert ("answer to: 太差了", "p5") in [(each.text, each.edits) for each in house.telegram.sent]
    assert {each.begun for each in house.telegram.previews if "太差了" in each.text} == {"p5"}


async def test_when_the_model_fails_for_good_the_message_that_was_begun_says_so(house: House) -> None:
    await house.hears("hello", event="1")
    house.store.began(1, "p5")
    house.engine.failures = 100
    await house.hears("hello?", event="2")
    assert (house.telegram.sent[-1].text, house.telegram.sent[-1].edits) == (say("out_of_order", "en"), "p5")


async def test_who_writes_too_long_a_message_is_told_once(house: House) -> None:
    await house.hears("long " * 1_000, event="1")
    await house.hears("long " * 1_000, event="2")
    said = house.telegram.said()
    assert said.count(say("too_long", "en")) == 1
    assert len([each for each in said if each.startswith("answer to: long")]) == 2


async def test_agents_see_on_the_card_how_an_answer_was_rated(house: House) -> None:
    await house.hears("几点开门？", event="1")
    answer = house.telegram.sent[0]
    assert answer.rateable
    rated = Rated(Platform.TELEGRAM, "1", "c1", answer.id, Rating.DOWN)
    assert await house.intake.receive(rated) is Receipt.ACCEPTED
    await house.hears("太差了", event="2")
    assert "机器人: answer to: 几点开门？ 👎" in house.slack.sent[0].text
    assert b'frontdesk_ratings_total{platform="telegram",rating="down"} 1.0' in house.metrics.render()


async def test_an_angry_message_is_answered_and_a_card_with_everything_goes_to_the_agents(house: House) -> None:
    await house.hears("你们几点开门？", event="1")
    await house.hears("我的订单三天没到，太差了", event="2")
    assert house.telegram.said()[-2:] == ["answer to: 我的订单三天没到，太差了", say("human_called", "zh")]
    (card,) = house.slack.sent
    assert (card.kind, card.address) == (OutboundKind.CARD, AGENTS)
    for part in ("Li Wei", "c1", "Telegram", "0.95", "😢", "我的订单三天没到，太差了", "你们几点开门？", "#1"):
        assert part in card.text
    assert house.outcomes() == [Outcome.ANSWERED, Outcome.ESCALATED]


async def test_a_second_angry_message_edits_the_card_and_opens_no_second_call(house: House) -> None:
    await house.hears("太差了", event="1")
    await house.hears("还是差", event="2")
    first, second = house.slack.sent
    assert (first.edits, second.edits) == ("", "p1")
    assert "还是差" in second.text
    assert house.telegram.said().count(say("human_called", "zh")) == 1
    assert house.reader.load().open_escalations == 1


async def test_a_card_that_cannot_be_edited_any_more_is_posted_anew(house: House) -> None:
    await house.hears("太差了", event="1")
    house.slack.plan = [Undeliverable("message_not_found")]
    await house.hears("还是差", event="2")
    assert [card.edits for card in house.slack.sent] == ["", ""]


async def test_asking_for_a_person_needs_no_model(house: House) -> None:
    await house.hears("人工")
    assert house.telegram.said() == [say("human_called", "zh")]
    assert [name for name, _ in house.engine.asked] == ["sentiment"]
    assert house.outcomes() == [Outcome.ESCALATED]


async def test_commands_are_answered_in_the_customers_language_without_the_model(house: House) -> None:
    await house.hears("start", kind=InboundKind.COMMAND)
    assert house.telegram.said() == [say("start", "zh", shop="")]
    assert house.engine.asked == []


async def test_a_photo_without_words_gets_a_polite_sentence(house: House) -> None:
    await house.hears("photo", kind=InboundKind.MEDIA)
    assert house.telegram.said() == [say("media", "zh")]


async def test_a_burst_is_answered_once_and_every_message_is_judged(house: House) -> None:
    house.engine.hold = asyncio.Event()
    await house.intake.receive(inbound("wait for me", event="0"))
    await until(lambda: any(name == "reply" for name, _ in house.engine.asked))
    for number in range(3):
        await house.intake.receive(inbound(f"part {number}", event=f"b{number}"))
    house.engine.hold.set()
    await house.idle()
    assert house.telegram.said() == ["answer to: wait for me", "answer to: part 0\npart 1\npart 2"]
    assert sum(name == "sentiment" for name, _ in house.engine.asked) == 4
    assert house.outcomes() == [Outcome.ANSWERED] * 4


async def test_the_model_sees_the_history_without_our_fixed_sentences(house: House) -> None:
    await house.hears("start", event="0", kind=InboundKind.COMMAND)
    await house.hears("one", event="1")
    await house.hears("two", event="2")
    assert house.engine.asked[-1][1] == (
        Turn(Speaker.USER, "one"),
        Turn(Speaker.ASSISTANT, "answer to: one"),
        Turn(Speaker.USER, "two"),
    )


async def test_the_mood_is_previewed_before_the_text(house: House) -> None:
    await house.hears("awful")
    first_mood = next(index for index, each in enumerate(house.telegram.previews) if each.sentiment)
    assert not any(each.text for each in house.telegram.previews[:first_mood])


async def test_every_preview_of_a_reply_has_its_number_and_no_other_reply_has(house: House) -> None:
    await house.hears("one", event="1")
    await house.hears("two", event="2")
    numbers = [each.number for each in house.telegram.previews]
    assert 0 not in numbers
    assert len(set(numbers)) == 2
    assert numbers == sorted(numbers)


async def test_words_are_previewed_until_a_human_claims_the_conversation_and_never_after(house: House) -> None:
    shown, claimed = asyncio.Event(), asyncio.Event()

    async def write(role: TextRole, turns: object, on_text: OnText, conversation: str) -> Reply:
        on_text("Hel")
        await shown.wait()
        await claimed.wait()
        on_text("Hello")
        await asyncio.Event().wait()  # for ever: the job ends only because nobody wants the rest
        raise AssertionError

    house.engine.write = write  # type: ignore[assignment]  # one that stops in the middle
    await house.intake.receive(inbound("hi"))
    await until(lambda: any(each.text == "Hel" for each in house.telegram.previews))
    shown.set()
    await house.writer(house.store.change_owner, 1, OwnerEvent.CLAIM)
    claimed.set()
    await house.idle()
    assert {each.text for each in house.telegram.previews} == {"", "Hel"}
    assert house.telegram.previews[-1].over
    assert house.telegram.said() == []
    assert house.outcomes() == [Outcome.SILENT]
    await house.writer(house.store.change_owner, 1, OwnerEvent.RELEASE)
    del house.engine.write  # as it was
    await house.hears("太差了", event="2")
    assert "机器人: Hel …" in house.slack.sent[0].text, "agents see what the customer saw"


async def test_an_empty_answer_becomes_an_offer_to_call_a_person(house: House) -> None:
    house.engine.answer = lambda turns: "  \n "
    await house.hears("what?", event="1")
    assert house.telegram.said() == [say("unknown_person_offer", "en")]


async def test_a_model_that_fails_twice_is_asked_a_third_time(house: House) -> None:
    house.engine.failures = 2
    await house.hears("hello")
    assert house.telegram.said() == ["answer to: hello"]


async def test_a_model_that_fails_for_good_is_told_to_the_customer_and_to_the_agents(house: House) -> None:
    house.engine.failures = 99
    await house.hears("hello")
    assert house.telegram.said() == [say("out_of_order", "en")]
    assert say("reason_failed", "en") in house.slack.sent[0].text
    assert house.outcomes() == [Outcome.ESCALATED]


async def test_a_fault_of_our_own_on_every_attempt_is_told_to_the_customer_and_to_the_agents(house: House) -> None:
    house.engine.answer = lambda turns: str(1 // 0)
    await house.hears("hello")
    assert house.telegram.said() == [say("failed", "en")]
    assert say("reason_failed", "en") in house.slack.sent[0].text
    assert house.outcomes() == [Outcome.DEAD]
    assert not house.circuit.is_open


async def test_a_long_answer_is_sent_in_parts_in_order(house: House) -> None:
    house.telegram.limit = 4
    house.engine.answer = lambda turns: "abcdefghij"
    await house.hears("hello")
    assert house.telegram.said() == ["abcd", "efgh", "ij"]


async def test_what_the_platform_delays_is_sent_later_and_once(house: House) -> None:
    house.telegram.plan = [RetryLater("429", after=0.01)] * 5
    await house.hears("hello")
    assert house.telegram.said() == ["answer to: hello"]


async def test_an_unknown_outcome_is_resent_once_and_then_left_to_a_human(house: House) -> None:
    house.telegram.plan = [OutcomeUnknown("timed out")]
    await house.hears("one", event="1")
    assert [(message.text, message.maybe_sent) for message in house.telegram.sent] == [("answer to: one", True)]
    house.telegram.plan = [OutcomeUnknown("timed out"), OutcomeUnknown("timed out")]
    await house.hears("two", event="2")
    assert house.telegram.said() == ["answer to: one"]
    assert say("reason_undelivered", "en") in house.slack.sent[-1].text


async def test_a_blocked_customer_is_not_tried_again_and_a_human_is_told(house: House) -> None:
    house.telegram.plan = [Undeliverable("Forbidden: bot was blocked by the user")]
    await house.hears("hello")
    assert house.telegram.said() == []
    assert say("reason_undelivered", "en") in house.slack.sent[0].text


async def test_a_broken_escalation_channel_does_not_keep_the_customer_waiting(house: House) -> None:
    house.slack.plan = [Undeliverable("channel_not_found")]
    await house.hears("太差了")
    assert house.telegram.said()[0] == "answer to: 太差了"


async def test_a_claim_while_the_model_writes_drops_the_reply(house: House) -> None:
    house.engine.hold = asyncio.Event()
    await house.intake.receive(inbound("hello"))
    await until(lambda: any(name == "reply" for name, _ in house.engine.asked))
    house.store.change_owner(1, OwnerEvent.CLAIM)
    house.engine.hold.set()
    await house.idle()
    assert house.telegram.said() == []
    assert house.outcomes() == [Outcome.SILENT]
    await house.hears("are you there?", event="2")
    assert house.telegram.said() == []


async def test_redelivery_is_harmless(house: House) -> None:
    await house.hears("hello")
    assert await house.hears("hello") is Receipt.DUPLICATE
    assert house.telegram.said() == ["answer to: hello"]


@pytest.mark.parametrize("text", ["", "   ", "\x00", "\u202e", "\ufeff"])
async def test_a_message_without_words_is_dropped_and_the_cursor_moves(house: House, text: str) -> None:
    assert await house.hears(text, cursor=5) is Receipt.DROPPED
    assert await house.intake.cursor(Platform.TELEGRAM, "1") == 5
    assert house.telegram.sent == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x00b", "ab"),
        ("a\ud800b", "a?b"),
        ("\u202eabc\u2066", "abc"),
        ("👨‍👩‍👧 ok", "👨‍👩‍👧 ok"),
        ("one\r\ntwo", "one\ntwo"),
        ("x" * 65_536, "x" * 4_000),
    ],
)
async def test_hostile_text_is_cleaned_and_answered(house: House, text: str, kept: str) -> None:
    await house.hears(text)
    assert house.telegram.said(OutboundKind.REPLY) == [f"answer to: {kept}"]


async def test_a_dropped_event_moves_the_cursor_and_loses_no_neighbour(house: House) -> None:
    await house.intake.receive(Dropped(Platform.TELEGRAM, "1", "unknown update", cursor=8))
    await house.hears("hello", cursor=9)
    assert await house.intake.cursor(Platform.TELEGRAM, "1") == 9
    assert house.telegram.said() == ["answer to: hello"]


async def test_a_closing_desk_accepts_nothing_more(house: House) -> None:
    house.intake.close()
    with pytest.raises(Stopping):
        await house.intake.receive(inbound())
    assert house.reader.load().jobs == 0


async def test_what_is_being_answered_when_the_desk_stops_is_still_delivered(engine: Engine) -> None:
    house = House(engine)
    house.engine.hold = asyncio.Event()
    async with working(house):
        await house.intake.receive(inbound())
        await until(lambda: any(name == "reply" for name, _ in house.engine.asked))
        asyncio.get_running_loop().call_later(0.1, house.engine.hold.set)
    house.writer.close()
    assert house.telegram.said() == ["answer to: hello"]
    assert house.reader.load().jobs == 0


async def test_a_platform_that_was_switched_off_meanwhile_ends_with_a_human(engine: Engine) -> None:
    house = House(engine)
    del house.handlers[JobKind.DELIVER]._adapters[Platform.TELEGRAM]  # type: ignore[attr-defined]  # as if disabled
    async with working(house):
        await house.hears("hello")
    house.writer.close()
    assert Address(Platform.SLACK, "T1", "C0AGENTS") in {card.address for card in house.slack.sent}


async def test_a_message_to_a_chat_that_moved_follows_it(house: House) -> None:
    house.telegram.plan = [ChatMoved("it is a supergroup now", "-1005")]
    await house.hears("hello", chat="-5")
    assert [(each.text, each.address.chat) for each in house.telegram.sent] == [("answer to: hello", "-1005")]
    await house.hears("and?", event="2", chat="-1005")
    assert house.engine.asked[-1][1] == (
        Turn(Speaker.USER, "hello"),
        Turn(Speaker.ASSISTANT, "answer to: hello"),
        Turn(Speaker.USER, "and?"),
    )


# -- edits -----------------------------------------------------------------------------------------


async def test_an_edit_while_the_bot_writes_is_what_is_answered(house: House) -> None:
    house.engine.hold = asyncio.Event()
    await house.intake.receive(inbound("where is my odrer"))
    await until(lambda: len(house.engine.asked) == 2)
    await house.intake.receive(Edited(Platform.TELEGRAM, "1", "e1:2", "e1", "where is my order\x00"))
    house.engine.hold.set()
    await house.idle()
    assert house.telegram.said() == ["answer to: where is my order"]
    assert house.outcomes() == [Outcome.ANSWERED]


async def test_an_edit_after_the_answer_is_not_answered_again_nor_shown_to_the_model(house: House) -> None:
    await house.hears("helo")
    receipt = await house.intake.receive(Edited(Platform.TELEGRAM, "1", "e1:2", "e1", "hello"))
    assert receipt is Receipt.ACCEPTED
    await house.hears("and?", event="e2")
    assert house.telegram.said() == ["answer to: helo", "answer to: and?"]
    assert "hello" not in str(house.engine.asked)
    assert house.outcomes() == [Outcome.ANSWERED, Outcome.NOTED, Outcome.ANSWERED]


async def test_an_edit_that_leaves_nothing_is_dropped(house: House) -> None:
    await house.hears("hello")
    assert await house.intake.receive(Edited(Platform.TELEGRAM, "1", "e1:2", "e1", " \x00 ")) is Receipt.DROPPED


# -- too much, and from whom -----------------------------------------------------------------------


@asynccontextmanager
async def strict(database: Engine, clock: Clock = utc_now, **limits: object) -> AsyncIterator[House]:
    house = House(database, Settings.model_validate({"limits": limits}), clock)
    async with working(house):
        yield house
    house.writer.close()


async def test_who_writes_too_much_is_asked_once_to_slow_down_and_answered_again_later(engine: Engine) -> None:
    now = [utc_now()]
    async with strict(engine, lambda: now[0], messages_per_minute=2) as house:
        for number in range(5):
            await house.hears(f"第{number}条", event=str(number))
        assert house.telegram.said() == ["answer to: 第0条", "answer to: 第1条", say("too_fast", "zh")]
        assert house.outcomes() == [Outcome.ANSWERED] * 2 + [Outcome.SHED] * 3
        now[0] += timedelta(seconds=61)
        await house.hears("还在吗", event="later")
        assert house.telegram.said()[-1] == "answer to: 还在吗"


async def test_what_was_shed_was_not_read_and_is_no_part_of_the_history_the_model_sees(engine: Engine) -> None:
    now = [utc_now()]
    async with strict(engine, lambda: now[0], messages_per_minute=1) as house:
        await house.hears("one", event="1")
        await house.hears("太差了", event="2")
        assert house.slack.sent == []
        now[0] += timedelta(seconds=61)
        await house.hears("three", event="3")
        assert house.telegram.said()[-1] == "answer to: three"
        assert "太差了" not in str(house.engine.asked)


async def test_who_writes_too_much_still_reaches_a_person(engine: Engine) -> None:
    async with strict(engine, messages_per_minute=1) as house:
        await house.hears("one", event="1")
        await house.hears("人工", event="2")
        assert house.telegram.said()[-1] == say("human_called", "zh")
        assert len(house.slack.sent) == 1
        assert house.outcomes() == [Outcome.ANSWERED, Outcome.ESCALATED]


async def test_one_customers_haste_slows_no_other_and_counts_in_every_chat(engine: Engine) -> None:
    async with strict(engine, messages_per_minute=1) as house:
        await house.hears("one", event="1")
        await house.hears("two", event="2", customer="c2")
        assert house.telegram.said() == ["answer to: one", "answer to: two"]
        await house.hears("three", event="3", chat="another")
        assert house.telegram.said()[-1] == say("too_fast", "en")


async def test_a_loop_with_another_machine_ends(engine: Engine) -> None:
    async with strict(engine, replies_per_minute=3) as house:
        for number in range(6):
            await house.hears(f"beep {number}", event=str(number))
        assert house.telegram.said() == [f"answer to: beep {number}" for number in range(3)] + [say("too_fast", "en")]


@pytest.mark.parametrize(
    ("limits", "let_in"),
    [
        ({}, True),
        ({"block": ["telegram:c1"]}, False),
        ({"block": ["slack:c1", "telegram:c"]}, True),
        ({"allow": ["telegram:c2"]}, False),
        ({"allow": ["telegram:c1"]}, True),
        ({"allow": ["telegram:chat"]}, True),
        ({"allow": ["telegram:chat"], "block": ["telegram:c1"]}, False),
    ],
)
async def test_the_lists_say_who_is_answered(engine: Engine, limits: dict[str, object], let_in: bool) -> None:
    async with strict(engine, **limits) as house:
        receipt = await house.hears("hello", chat="chat")
        assert receipt is (Receipt.ACCEPTED if let_in else Receipt.DROPPED)
        assert house.telegram.said() == (["answer to: hello"] if let_in else [])


# -- commands --------------------------------------------------------------------------------------


async def test_a_chosen_language_holds_for_every_fixed_sentence_from_then_on_and_in_every_chat(house: House) -> None:
    await house.hears("language en", kind=InboundKind.COMMAND, event="1")
    await house.hears("太差了", event="2")
    await house.hears("help", kind=InboundKind.COMMAND, event="3", chat="another")
    notices = house.telegram.said(OutboundKind.NOTICE)
    assert notices == [say("language_set", "en"), say("human_called", "en"), say("help", "en")]


async def test_who_chooses_no_language_is_shown_which_there_are_in_the_platforms_own_way(house: House) -> None:
    await house.hears("language", kind=InboundKind.COMMAND)
    (said,) = house.telegram.said()
    assert "/language zh (中文)" in said
    assert "/language en (English)" in said


async def test_what_a_link_carried_stands_on_the_card(house: House) -> None:
    await house.hears("start flyer-7", kind=InboundKind.COMMAND, event="1")
    await house.hears("人工", event="2")
    assert say("card_origin", "zh", origin="flyer-7") in house.slack.sent[0].text


async def test_why_a_customer_cannot_be_reached_stands_on_the_card_until_they_write_again(house: House) -> None:
    house.telegram.plan = [Undeliverable("Forbidden: bot was blocked by the user")]
    await house.hears("几点开门？", event="1")
    assert "blocked by the user" in house.slack.sent[-1].text
    assert house.reader.unreachable() == {"Forbidden: bot was blocked by the user": 1}
    await house.hears("人工", event="2")
    assert "blocked by the user" not in house.slack.sent[-1].text
    assert house.reader.unreachable() == {}
