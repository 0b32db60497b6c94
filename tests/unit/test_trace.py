"""`frontdesk trace`: what it prints, from a second process's point of view."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console

from bot.config import DatabaseSection, Settings
from bot.conversation import Call, Outcome, Reason
from bot.errors import FrontdeskError
from bot.messages import Delivery, OutboundKind, Sentiment
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.values import Say, Settlement, Verdict
from bot.trace import print_trace
from tests.conftest import TurnableClock, inbound


def printed(database_url: str, message_id: int) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_trace(Settings(database=DatabaseSection(url=database_url)), message_id, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_trace_shows_every_step_with_the_seconds_since_arrival(
    store: Store, clock: TurnableClock, database_url: str
) -> None:
    accepted = store.accept(inbound("太差了 [bold]"))
    assert accepted.message_id is not None
    claim = store.claim(JobKind.ATTEND, timedelta(seconds=30))
    assert claim is not None
    clock.advance(1.5)
    mood = Sentiment("负面", 0.93, 0.8)
    call = Call(Reason.NEGATIVE, accepted.message_id, mood)
    store.finish(
        claim,
        Settlement(
            (Verdict(accepted.message_id, Outcome.ESCALATED, mood),), (Say(OutboundKind.REPLY, ("抱歉",)),), call
        ),
    )
    clock.advance(0.5)
    delivery = store.claim(JobKind.DELIVER, timedelta(seconds=30))
    assert delivery is not None
    store.begin_send(delivery)
    store.sent(delivery, Delivery("p1"))
    text = printed(database_url, accepted.message_id)
    for part in (
        "太差了 [bold]",
        "1.50",
        "2.00",
        "负面, negative 0.930",
        "escalated",
        "抱歉",
        "#1 negative",
        "not yet",
    ):
        assert part in text


def test_a_message_that_waits_says_so(store: Store, database_url: str) -> None:
    accepted = store.accept(inbound())
    assert accepted.message_id is not None
    assert "waiting for the queue" in printed(database_url, accepted.message_id)


def test_an_unknown_message_is_refused_in_one_sentence(database_url: str) -> None:
    with pytest.raises(FrontdeskError, match="there is no message 99"):
        printed(database_url, 99)
