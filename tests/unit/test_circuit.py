"""The circuit before the engine: when it opens, who is let through, what closes it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.circuit import FAILURES, PROBE_EVERY_S, WITHIN_S, Circuit

Step = str | float
steps = st.lists(st.sampled_from(["ask", "fail", "succeed"]) | st.floats(0, 2 * WITHIN_S), max_size=60)
"""What happens one after the other: a word, or so many seconds in which nothing does."""


class Watched:
    """A circuit with the time, and a diary of all that happened to it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.circuit = Circuit(lambda: self.now)
        self.failures: list[float] = []
        self.probes: list[float] = []

    def take(self, step: Step) -> None:
        if isinstance(step, float):
            self.now += step
        elif step == "ask":
            was_open = self.circuit.is_open
            if self.circuit.lets_through() and was_open:
                self.probes.append(self.now)
        elif step == "fail":
            self.failures.append(self.now)
            self.circuit.failed()
        else:
            self.circuit.succeeded()

    def fail(self, times: int, every_s: float = 1) -> None:
        for _ in range(times):
            self.take("fail")
            self.now += every_s


@settings(max_examples=300)
@given(steps)
def test_it_never_opens_below_three_failures_in_a_minute(all_steps: list[Step]) -> None:
    watched = Watched()
    for step in all_steps:
        was_open = watched.circuit.is_open
        watched.take(step)
        if watched.circuit.is_open and not was_open:
            assert step == "fail"
            assert len([at for at in watched.failures if at >= watched.now - WITHIN_S]) >= FAILURES


@settings(max_examples=300)
@given(steps)
def test_it_is_closed_by_a_success_and_by_nothing_else(all_steps: list[Step]) -> None:
    watched = Watched()
    watched.fail(FAILURES)
    for step in all_steps:
        was_open = watched.circuit.is_open
        watched.take(step)
        if was_open:
            assert watched.circuit.is_open is (step != "succeed")


@settings(max_examples=300)
@given(steps)
def test_while_it_is_open_there_is_at_most_one_probe_in_30_seconds(all_steps: list[Step]) -> None:
    watched = Watched()
    watched.fail(FAILURES, every_s=0)
    for step in all_steps:
        if step != "succeed":
            watched.take(step)
    times = [0.0, *watched.probes]
    assert all(later - earlier >= PROBE_EVERY_S for earlier, later in pairwise(times))


@settings(max_examples=300)
@given(steps)
def test_while_it_is_closed_everybody_is_let_through(all_steps: list[Step]) -> None:
    watched = Watched()
    for step in all_steps:
        watched.take(step)
        assert watched.circuit.is_open or watched.circuit.lets_through()


@given(st.floats(0, WITHIN_S / 2), st.floats(0, WITHIN_S / 2))
def test_three_failures_in_a_minute_open_it(first: float, second: float) -> None:
    watched = Watched()
    for step in ("fail", first, "fail", second, "fail"):
        watched.take(step)
    assert watched.circuit.is_open


def test_failures_that_are_far_apart_do_not_open_it() -> None:
    watched = Watched()
    watched.fail(10, every_s=WITHIN_S / 2 + 0.1)
    assert not watched.circuit.is_open


def test_one_probe_is_let_through_after_30_seconds_and_the_next_after_30_more() -> None:
    watched = Watched()
    watched.fail(FAILURES, every_s=0)
    asked = []
    for _ in range(3):
        asked.append([watched.circuit.lets_through() for _ in range(2)])
        watched.now += PROBE_EVERY_S
    assert asked == [[False, False], [True, False], [True, False]]


def test_it_tells_once_that_it_opened_and_once_that_it_closed() -> None:
    circuit = Circuit(lambda: 0.0)
    assert [circuit.failed() for _ in range(5)] == [False, False, True, False, False]
    assert [circuit.succeeded() for _ in range(2)] == [True, False]


def test_once_closed_it_takes_three_new_failures_to_open_it() -> None:
    watched = Watched()
    watched.fail(FAILURES)
    watched.take("succeed")
    watched.fail(FAILURES - 1)
    assert not watched.circuit.is_open
    watched.fail(1)
    assert watched.circuit.is_open


def test_failures_among_successes_do_not_open_it() -> None:
    watched = Watched()
    for _ in range(10):
        watched.fail(FAILURES - 1, every_s=0)
        watched.take("succeed")
    assert not watched.circuit.is_open
