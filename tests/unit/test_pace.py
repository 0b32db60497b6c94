"""No limit is ever passed, and nobody waits longer than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.pace import Limit, Pace

CHAT, GROUP, ALL = Limit(1, 1.0), Limit(3, 20.0), Limit(2, 1.0)


def limits(chat: int) -> list[tuple[str, Limit]]:
    return [("", ALL), (str(chat), CHAT)] + [(str(chat), GROUP)] * (chat < 0)


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([-1, 1, 2, 3])), max_size=60))
def test_in_no_window_is_more_sent_than_a_limit_allows(tries: list[tuple[int, int]]) -> None:
    pace, now = Pace(), 0.0
    sent = list[tuple[float, int]]()
    for later, chat in tries:
        now += later / 1000
        if pace.wait(limits(chat), now) == 0:
            sent.append((now, chat))
    for name, limit in (("", ALL), *((str(chat), CHAT) for chat in (-1, 1, 2, 3)), ("-1", GROUP)):
        times = [at for at, chat in sent if name in ("", str(chat))]
        for start in times:
            assert sum(start <= at < start + limit.seconds for at in times) <= limit.messages


@given(st.lists(st.tuples(st.integers(0, 1_500), st.sampled_from([-1, 1, 2])), min_size=1, max_size=40))
def test_who_waits_as_long_as_told_may_send_then_if_nobody_else_did(tries: list[tuple[int, int]]) -> None:
    pace, now = Pace(), 0.0
    for later, chat in tries:
        now += later / 1000
        wait = pace.wait(limits(chat), now)
        if wait > 0:
            now += wait + 1e-9  # sums of floats
            assert pace.wait(limits(chat), now) == 0


def test_one_chat_does_not_hold_up_another() -> None:
    pace = Pace()
    assert pace.wait([("1", CHAT)], 0.0) == 0
    assert pace.wait([("1", CHAT)], 0.4) == 0.6
    assert pace.wait([("2", CHAT)], 0.4) == 0


def test_a_refused_try_counts_nowhere() -> None:
    pace = Pace()
    pace.wait([("", Limit(2, 1.0)), ("1", CHAT)], 0.0)
    pace.wait([("", Limit(2, 1.0)), ("1", CHAT)], 0.1)
    assert pace.wait([("", Limit(2, 1.0)), ("2", CHAT)], 0.2) == 0


def test_nothing_is_kept_of_chats_that_are_quiet() -> None:
    pace = Pace()
    for chat in range(100):
        pace.wait(limits(chat), chat * 2.0)
    assert len(pace._sent) <= 2
