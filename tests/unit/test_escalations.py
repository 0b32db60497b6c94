"""`frontdesk escalations`."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine

from bot.config import DatabaseSection, Settings
from bot.conversation import Call, Outcome, Reason
from bot.errors import DatabaseUnavailable
from bot.escalations import print_escalations
from bot.messages import AgentAction, Customer, Pressed, Sentiment
from bot.store.jobs import JobKind
from bot.store.reader import Reader
from bot.store.store import Store
from bot.store.values import Settlement, Verdict
from tests.conftest import AGENTS, TurnableClock, inbound


def printed(url: str) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_escalations(Settings(database=DatabaseSection(url=url)), console)
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_nobody_waits(engine: Engine, database_url: str) -> None:
    assert printed(database_url) == "Nobody waits for a colleague.\n"


def escalate(store: Store, number: int, negative: float) -> None:
    store.accept(inbound("awful", event=str(number), customer=f"c{number}"))
    claim = store.claim(JobKind.ATTEND, timedelta(seconds=30))
    assert claim is not None
    (line,) = store.waiting(claim).lines
    mood = Sentiment("负面", negative, 0.8)
    store.finish(claim, Settlement((Verdict(line.id, Outcome.ESCALATED, mood),), call=Call(Reason.NEGATIVE, line.id)))


def test_the_longest_wait_stands_first_and_of_one_hour_the_angriest(
    store: Store, engine: Engine, clock: TurnableClock
) -> None:
    for number, negative in enumerate((0.81, 0.85, 0.99), 1):
        escalate(store, number, negative)
        clock.advance(20 * 60)
    clock.advance(3600)
    escalate(store, 4, 1.0)
    assert [call.id for call in Reader(engine).open_calls()] == [3, 2, 1, 4]


def test_what_nobody_claimed_stands_before_what_somebody_did(store: Store, database_url: str) -> None:
    for number in (1, 2):
        escalate(store, number, 0.9 + number / 100)
    pressed = Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, Customer("U1", "anna"), 1, AgentAction.CLAIM)
    store.press(pressed, "a colleague is here")
    rows = [line for line in printed(database_url).splitlines() if "unhappy" in line]
    assert [("anna" in row, "0.91" in row, "0.92" in row) for row in rows] == [
        (False, False, True),
        (True, True, False),
    ]


def test_a_database_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch()
    with pytest.raises(DatabaseUnavailable, match="run `frontdesk db upgrade`"):
        printed(f"sqlite:///{tmp_path}/old.db")
