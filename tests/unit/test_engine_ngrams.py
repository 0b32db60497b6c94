"""The linear judge that the bundled model learns from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bundled.ngrams import Judge

GLAD = ["very good tea", "I love it", "很好喝", "非常满意", "good service"]
SAD = ["very bad tea", "I hate it", "很难喝", "非常失望", "bad service"]
JUDGE = Judge.of([(1.0, [(text, text in SAD) for text in (GLAD + SAD) * 2])])


@pytest.mark.parametrize("text", GLAD)
def test_it_finds_what_it_learned_happy(text: str) -> None:
    assert JUDGE.running(text)[-1] < 0


@pytest.mark.parametrize("text", ["so bad", "HATE", "这个很难喝"])
def test_it_finds_unseen_texts_with_unhappy_words_unhappy(text: str) -> None:
    assert JUDGE.running(text)[-1] > 0


@given(st.text(max_size=40), st.text(max_size=10))
def test_it_thinks_one_thing_before_the_first_letter_and_one_after_each(text: str, more: str) -> None:
    thought = JUDGE.running(text)
    assert len(thought) == len(text.lower()) + 1
    assert np.isfinite(thought).all()


def test_what_comes_later_changes_nothing_that_was_thought_before() -> None:
    whole, half = JUDGE.running("good tea, bad service"), JUDGE.running("good tea, ")
    np.testing.assert_allclose(whole[: len(half)], half)


def test_a_groups_weight_does_not_grow_with_its_messages() -> None:
    few = Judge.of([(1.0, [("ab", False), ("ab", False), ("cd", True), ("cd", True)])])
    many = Judge.of([(1.0, [("ab", False)] * 40 + [("cd", True)] * 2)])
    assert abs(few.running("ef")[-1]) == pytest.approx(0, abs=0.05)
    assert abs(many.running("ef")[-1]) == pytest.approx(0, abs=0.05)
