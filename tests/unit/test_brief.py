"""The brief: the customer's own sentences, those that an agent wants to read first."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from bot.brief import LETTERS, SENTENCES, brief
from bot.conversation import Author, Line
from bot.messages import InboundKind, Sentiment

NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)


def said(
    text: str, negative: float = 0.0, author: Author = Author.CUSTOMER, kind: InboundKind = InboundKind.TEXT
) -> Line:
    return Line(1, author, kind, text, NOW, sentiment=Sentiment("负面", negative, 0.8) if negative else None)


def test_anger_then_numbers_then_questions_in_the_order_in_which_they_were_said() -> None:
    lines = [
        said("你好，在吗？"),
        said("我想看看新款的包。订单号是 20260117。"),
        said("颜色挺多的"),
        said("什么时候能到？"),
        said("太差了，没人管！", negative=0.95),
    ]
    assert brief(lines) == ["订单号是 20260117。", "什么时候能到？", "太差了，没人管！"]


def test_only_the_customers_own_words_count() -> None:
    lines = [
        said("Where is order 1234 now?"),
        said("Your order 99 left today.", author=Author.BOT),
        said("photo of 5 things", kind=InboundKind.MEDIA),
        said("It was promised for Monday."),
    ]
    assert brief(lines) == ["Where is order 1234 now?", "It was promised for Monday."]


def test_what_a_single_sentence_says_needs_no_brief() -> None:
    assert brief([said("太差了，三天没到", negative=0.9)]) == []
    assert brief([said("太差了，三天没到"), said("太差了，三天没到"), said("ok")]) == []
    assert brief([]) == []


def test_a_sentence_without_an_end_is_cut() -> None:
    (first, second) = brief([said("x" * 500), said("and again")])
    assert len(first) == LETTERS
    assert first.endswith("…")
    assert second == "and again"


@given(st.lists(st.tuples(st.text(max_size=80), st.floats(0, 1)), max_size=8))
def test_every_sentence_of_a_brief_is_the_customers_own(texts: list[tuple[str, float]]) -> None:
    lines = [said(text, negative) for text, negative in texts]
    found = brief(lines)
    assert len(found) <= SENTENCES
    assert len(found) == len(set(found))
    whole = [" ".join(line.text.split()) for line in lines]
    assert all(any(sentence in each for each in whole) for sentence in found)
