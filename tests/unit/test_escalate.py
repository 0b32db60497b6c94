"""The card: who, where, why, the message, its probability, the last turns."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bot.conversation import Author, Conversation, Escalation, Line, Owner, Reason
from bot.escalate import MAX_QUOTE, CardWriter
from bot.messages import Address, AgentAction, Customer, InboundKind, Platform, Sentiment

NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)


def line(
    text: str, author: Author = Author.CUSTOMER, kind: InboundKind = InboundKind.TEXT, negative: float = 0.0
) -> Line:
    mood = Sentiment("负面", negative, 0.8) if negative else None
    return Line(1, author, kind, text, NOW, sentiment=mood)


def card(
    *lines: Line, reason: Reason = Reason.NEGATIVE, name: str = "王芳", evidence: bool = True, **state: Any
) -> str:
    conversation = Conversation(
        3, Address(Platform.TELEGRAM, "1", "77", "5"), Customer("42", name, "zh"), Owner.WAITING
    )
    escalation = Escalation(9, reason, conversation, lines[-1] if evidence else None, lines, NOW, 2)
    return CardWriter({"正面": "😊", "负面": "😢"}.__getitem__).text(replace(escalation, **state))


def test_a_card_says_who_where_why_when_and_how_often() -> None:
    text = card(line("你好"), line("请问有什么可以帮您", Author.BOT), line("太差了", negative=0.93))
    assert text.splitlines()[0] == "🔔 #9 客户不满意 0.93"
    for part in (
        "王芳（42）",
        "Telegram 77 / 5",
        "2026-11-24 08:30 UTC",
        "2 次",
        "😢 0.93 客户: 太差了",
        "机器人: 请问",
    ):
        assert part in text


def test_a_card_is_written_in_the_language_of_the_customers_words() -> None:
    assert "An unhappy customer" in card(line("awful", negative=0.9))


def test_long_lines_are_cut_and_line_breaks_folded() -> None:
    quoted = card(line("x\n" * 1000, negative=0.9)).splitlines()[-1]
    assert len(quoted) < MAX_QUOTE + 40
    assert quoted.endswith("…")


def test_commands_and_media_are_shown_as_what_they_are() -> None:
    text = card(line("photo", kind=InboundKind.MEDIA), line("human", kind=InboundKind.COMMAND), reason=Reason.ASKED)
    assert "[photo]" in text
    assert "/human" in text


def test_a_card_without_evidence_or_name_still_says_who() -> None:
    assert "42" in card(line("hello"), name="", evidence=False, reason=Reason.FAILED)


def test_the_course_of_the_moods_is_a_line_of_faces_the_newest_last() -> None:
    calm = Line(1, Author.CUSTOMER, InboundKind.TEXT, "好的", NOW, sentiment=Sentiment("正面", 0.1, 0.8))
    text = card(calm, line("不行", negative=0.85), line("太差了", negative=0.9))
    assert "情绪：😊😢😢" in text
    assert "情绪" not in card(line("太差了", negative=0.9)), "one mood is no course"


def test_a_card_says_who_answers_and_how_long_the_customer_had_waited() -> None:
    text = card(line("awful", negative=0.9), claimed_by="Anna", claimed_at=NOW + timedelta(minutes=7))
    assert "✋ Anna is answering, since 2026-11-24 08:37 UTC (after 7 minutes)" in text


def test_a_card_says_that_the_customer_came_back_and_what_they_thought_of_the_help() -> None:
    done = NOW + timedelta(hours=1)
    text = card(line("awful", negative=0.9), ended=AgentAction.RESOLVE, resolved_at=done, came_back_at=done, score=4)
    assert "↩️ The customer wrote again, 2026-11-24 09:30 UTC" in text
    assert "rating: 4 of 5" in text
