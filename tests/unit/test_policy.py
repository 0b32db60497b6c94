"""decide(): answer, escalate, or both."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bot.conversation import Author, Line, Owner, Pace, Reason
from bot.messages import InboundKind, Sentiment
from bot.policy import OUT_OF_ORDER, TOO_LATE, Heard, Limits, asks_for_human, decide, shed, stand_in

KEYWORDS = ("人工", "human", "agent")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def heard(text: str, negative: float = 0.1, kind: InboundKind = InboundKind.TEXT, number: int = 1) -> Heard:
    mood = Sentiment("负面" if negative > 0.5 else "正面", negative, 0.8) if kind is InboundKind.TEXT else None
    return Heard(Line(number, Author.CUSTOMER, kind, text, NOW), mood)


def test_a_calm_message_is_answered_and_nobody_is_called() -> None:
    decision = decide([heard("几点开门？")], Owner.BOT, KEYWORDS)
    assert (decision.answer, decision.call, decision.before, decision.after) == (True, None, (), ())


def test_a_negative_message_is_answered_and_a_human_called() -> None:
    decision = decide([heard("太差了", 0.93)], Owner.BOT, KEYWORDS)
    assert decision.answer
    assert decision.call is not None
    assert (decision.call.reason, decision.call.message_id) == (Reason.NEGATIVE, 1)
    assert decision.after == ("human_called",)


def test_the_threshold_itself_is_negative_enough() -> None:
    assert decide([heard("hm", 0.8)], Owner.BOT, KEYWORDS).call is not None
    assert decide([heard("hm", 0.7999)], Owner.BOT, KEYWORDS).call is None


def test_the_angriest_message_of_a_burst_is_the_evidence() -> None:
    burst = [heard("bad", 0.85, number=1), heard("awful", 0.99, number=2), heard("so", 0.1, number=3)]
    call = decide(burst, Owner.BOT, KEYWORDS).call
    assert call is not None
    assert call.message_id == 2


def test_while_a_human_is_awaited_a_negative_message_updates_the_call_without_saying_so_again() -> None:
    decision = decide([heard("still waiting", 0.95)], Owner.WAITING, KEYWORDS)
    assert decision.call is not None
    assert decision.after == ()
    assert decide([heard("人工")], Owner.WAITING, KEYWORDS).after == ("human_already_called",)


def test_the_bot_is_silent_once_a_human_owns_the_conversation() -> None:
    decision = decide([heard("太差了", 0.99), heard("human", kind=InboundKind.COMMAND)], Owner.HUMAN, KEYWORDS)
    assert (decision.answer, decision.call, decision.before, decision.after) == (False, None, (), ())


@pytest.mark.parametrize("text", ["人工", "人工！", "Human", "agent?"])
def test_a_bare_call_for_a_person_needs_no_model(text: str) -> None:
    decision = decide([heard(text)], Owner.BOT, KEYWORDS)
    assert not decision.answer
    assert decision.call is not None
    assert decision.call.reason is Reason.ASKED
    assert decision.after == ("human_called",)


def test_a_sentence_that_asks_for_a_person_is_also_answered() -> None:
    decision = decide([heard("我的订单没到，我要转人工客服")], Owner.BOT, KEYWORDS)
    assert decision.answer
    assert decision.call is not None
    assert decision.call.reason is Reason.ASKED


@pytest.mark.parametrize("text", ["a humane price", "reagents", "the agency", "humanity"])
def test_an_english_keyword_is_a_whole_word(text: str) -> None:
    assert not asks_for_human(text, KEYWORDS)


@pytest.mark.parametrize("text", ["an AGENT please", "我要human", "转人工", "agent,now"])
def test_a_keyword_is_found_in_any_case_and_beside_chinese(text: str) -> None:
    assert asks_for_human(text, KEYWORDS)


def test_commands_and_media_get_their_fixed_sentences_once() -> None:
    command, media = InboundKind.COMMAND, InboundKind.MEDIA
    decision = decide(
        [heard("start", kind=command), heard("photo", kind=media), heard("photo", kind=media)], Owner.BOT, KEYWORDS
    )
    assert (decision.answer, decision.before, decision.call) == (False, ("start", "media"), None)
    assert decide([heard("human", kind=command)], Owner.BOT, KEYWORDS).call is not None


def test_words_beside_a_photo_are_answered() -> None:
    decision = decide([heard("photo", kind=InboundKind.MEDIA), heard("is this yours?")], Owner.BOT, KEYWORDS)
    assert (decision.answer, decision.before) == (True, ("media",))


# -- too much at once ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pace", "too_much"),
    [(Pace(3, 1), False), (Pace(4, 0), True), (Pace(1, 2), True), (Pace(), False)],
    ids=["as many as allowed", "one message more", "answered as often as allowed", "nothing"],
)
def test_a_minute_has_its_limits(pace: Pace, too_much: bool) -> None:
    assert Limits(messages=3, replies=2).passed(pace) is too_much


def test_who_writes_too_much_is_told_once_and_answered_no_more() -> None:
    lines = [heard("太差了", 0.99, number=1).line, heard("hello", number=2).line]
    first, later = shed(lines, Owner.BOT, KEYWORDS, told=False), shed(lines, Owner.BOT, KEYWORDS, told=True)
    assert (first.answer, first.before, first.after, first.call) == (False, ("too_fast",), (), None)
    assert (later.answer, later.before, later.after, later.call) == (False, (), (), None)


@pytest.mark.parametrize("told", [True, False])
def test_who_writes_too_much_still_reaches_a_person(told: bool) -> None:
    decision = shed([heard("again").line, heard("人工", number=2).line], Owner.BOT, KEYWORDS, told)
    assert decision.call is not None
    assert (decision.call.reason, decision.call.message_id) == (Reason.ASKED, 2)
    assert (decision.answer, decision.before, decision.after) == (False, (), ("human_called",))


# -- without the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [Owner.BOT, Owner.WAITING])
def test_without_the_model_a_human_is_called_and_the_customer_told_so_once(owner: Owner) -> None:
    lines = [heard("几点开门？", number=1).line, heard("太差了", 0.99, number=2).line]
    first, later = (stand_in(lines, owner, KEYWORDS, OUT_OF_ORDER, told) for told in (False, True))
    assert (first.answer, first.before, first.after) == (False, (), ("out_of_order",))
    assert (later.answer, later.before, later.after) == (False, (), ())
    for decision in (first, later):
        assert decision.call is not None
        assert (decision.call.reason, decision.call.message_id) == (Reason.FAILED, 2)


@pytest.mark.parametrize("text", ["人工", "我的订单没到，我要转人工客服"])
def test_without_the_model_who_asks_for_a_person_hears_what_they_always_hear(text: str) -> None:
    decision = stand_in([heard(text).line, heard("so?", number=2).line], Owner.BOT, KEYWORDS, OUT_OF_ORDER, told=False)
    assert decision.call is not None
    assert (decision.call.reason, decision.call.message_id) == (Reason.ASKED, 1)
    assert (decision.answer, decision.before, decision.after) == (False, (), ("human_called",))


def test_agents_can_tell_a_queue_that_is_too_long_from_a_model_that_fails() -> None:
    decision = stand_in([heard("hello").line], Owner.BOT, KEYWORDS, TOO_LATE, told=False)
    assert decision.call is not None
    assert (decision.call.reason, decision.after) == (Reason.OVERLOAD, ("too_late",))


def test_without_the_model_a_command_calls_nobody_and_words_beside_it_do() -> None:
    command, words = heard("help", kind=InboundKind.COMMAND, number=2).line, heard("hello", number=1).line
    alone, beside = (
        stand_in(lines, Owner.BOT, KEYWORDS, OUT_OF_ORDER, False) for lines in ([command], [words, command])
    )
    assert (alone.answer, alone.before, alone.after, alone.call) == (False, ("help",), (), None)
    assert (beside.before, beside.after) == (("help",), ("out_of_order",))
    assert beside.call is not None
    assert beside.call.message_id == 1, "the words are what is to be answered"


# -- what customers ask of us ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "owner", "notice", "language"),
    [
        ("help", Owner.BOT, "help", ""),
        ("start flyer", Owner.BOT, "start", ""),
        ("status", Owner.BOT, "status_bot", ""),
        ("status", Owner.WAITING, "status_waiting", ""),
        ("language", Owner.BOT, "language_which", ""),
        ("language xx", Owner.BOT, "language_which", ""),
        ("language ZH", Owner.BOT, "language_set", "zh"),
    ],
)
def test_a_command_is_answered_with_its_sentence(text: str, owner: Owner, notice: str, language: str) -> None:
    decision = decide([heard(text, kind=InboundKind.COMMAND)], owner, KEYWORDS)
    assert (decision.answer, decision.before, decision.language) == (False, (notice,), language)


def test_the_last_of_two_choices_counts() -> None:
    lines = [heard(f"language {code}", kind=InboundKind.COMMAND, number=n) for n, code in enumerate(("zh", "en"))]
    assert decide(lines, Owner.BOT, KEYWORDS).language == "en"
