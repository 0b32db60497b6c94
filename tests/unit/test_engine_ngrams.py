"""The linear judge that the bundled model learns from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.bundled.ngrams import Judge

GLAD = ["very good tea", "I love it", "很好喝", "非常满意", "good service"]
SAD = ["very bad tea", "I hate it", "很难喝", "非常失望", "bad service"]
JUDGE = Judge.of([(1.0, [(text, text in SAD) for text in (GLAD + SAD) * 2])])


def odds(text: str) -> NDArray[np.float32]:
    """After each letter."""
    return JUDGE.read(text)[0]


@pytest.mark.parametrize("text", GLAD)
def test_it_finds_what_it_learned_happy(text: str) -> None:
    assert odds(text)[-1] < 0


@pytest.mark.parametrize("text", ["so bad", "HATE", "这个很难喝"])
def test_it_finds_unseen_texts_with_unhappy_words_unhappy(text: str) -> None:
    assert odds(text)[-1] > 0


@given(st.text(max_size=40), st.text(max_size=10))
def test_it_thinks_one_thing_before_the_first_letter_and_one_after_each(text: str, more: str) -> None:
    for thought in JUDGE.read(f"{text}{more}"):
        assert len(thought) == len(f"{text}{more}".lower()) + 1
        assert np.isfinite(thought).all()


def test_what_comes_later_changes_nothing_that_was_thought_before() -> None:
    whole, half = odds("good tea, bad service"), odds("good tea, ")
    np.testing.assert_allclose(whole[: len(half)], half)


def test_each_word_has_an_effect_of_its_own() -> None:
    _, effects = JUDGE.read("bad good")
    before, between, after = effects[0], effects[len("bad")], effects[-1]
    assert before == 0
    assert between > 0
    assert after - between < 0


def test_a_groups_weight_does_not_grow_with_its_messages() -> None:
    few = Judge.of([(1.0, [("ab", False), ("ab", False), ("cd", True), ("cd", True)])])
    many = Judge.of([(1.0, [("ab", False)] * 40 + [("cd", True)] * 2)])
    assert abs(few.read("ef")[0][-1]) == pytest.approx(0, abs=0.05)
    assert abs(many.read("ef")[0][-1]) == pytest.approx(0, abs=0.05)
