from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.history import GAP, cut, fit
from engine.types import Speaker, Turn

SYSTEM = 10
MARKS = 4

turns_of_a_conversation = st.lists(
    st.builds(Turn, st.sampled_from(Speaker), st.text("ab ", max_size=30)), max_size=12
).map(lambda turns: [*turns, Turn(Speaker.USER, "the newest message")])
budgets = st.integers(SYSTEM + MARKS + len(GAP) + 2, 200)


def count(turns: Sequence[Turn]) -> int:
    return SYSTEM + sum(MARKS + len(turn.text) for turn in turns)


@given(turns_of_a_conversation, budgets)
def test_what_is_kept_fits_and_begins_with_the_customer(turns: list[Turn], budget: int) -> None:
    kept = fit(turns, count, budget)
    assert count(kept) <= budget
    assert kept[0].speaker is Speaker.USER


@given(turns_of_a_conversation, budgets)
def test_the_oldest_turns_go_first_and_none_goes_needlessly(turns: list[Turn], budget: int) -> None:
    kept = fit(turns, count, budget)
    if kept[-1] != turns[-1]:
        assert len(kept) == 1
        return
    start = len(turns) - len(kept)
    assert kept == turns[start:]
    older = [index for index in range(start) if turns[index].speaker is Speaker.USER]
    assert all(count(turns[index:]) > budget for index in older)


@given(st.text("abc", max_size=60), budgets)
def test_a_message_that_is_too_long_alone_keeps_its_head_and_its_tail(text: str, budget: int) -> None:
    (kept,) = fit([Turn(Speaker.USER, text)], count, budget)
    if count([Turn(Speaker.USER, text)]) <= budget:
        assert kept.text == text
        return
    head, tail = kept.text.split(GAP)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) - len(tail) in (0, 1)
    assert count([kept]) == budget


def test_a_greeting_of_ours_is_not_kept_at_the_start() -> None:
    turns = [Turn(Speaker.ASSISTANT, "welcome"), Turn(Speaker.USER, "hello")]
    assert fit(turns, count, 1000) == turns[1:]


def test_a_burst_of_messages_is_kept_together_when_it_fits() -> None:
    turns = [Turn(Speaker.USER, "one"), Turn(Speaker.USER, "two"), Turn(Speaker.USER, "three")]
    assert fit(turns, count, 1000) == turns


def test_nothing_is_left_of_a_text_where_not_even_the_gap_fits() -> None:
    assert cut("something", len, 1) == ""


def test_finding_what_fits_asks_for_few_counts() -> None:
    asked = 0

    def counting(turns: Sequence[Turn]) -> int:
        nonlocal asked
        asked += 1
        return count(turns)

    fit([Turn(Speaker.USER, "x" * 50)] * 200, counting, 300)
    assert asked <= 10
