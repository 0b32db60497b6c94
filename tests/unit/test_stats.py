"""`frontdesk stats`: what is counted, over which time, and how it reads."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine
from typer.testing import CliRunner

from bot.cli import app
from bot.config import DatabaseSection, Settings
from bot.conversation import Call, Outcome, Reason
from bot.errors import DatabaseUnavailable
from bot.messages import AgentAction, Customer, OutboundKind, Platform, Pressed, Rated, Rating, Scored
from bot.stats import print_stats
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store
from bot.store.values import Say, Settlement, Verdict
from tests.conftest import AGENTS, TurnableClock, inbound


def printed(url: str, days: int = 0, as_json: bool = False) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_stats(Settings(database=DatabaseSection(url=url)), days, as_json, console)
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def figures(url: str, days: int = 0) -> dict[str, Any]:
    return json.loads(printed(url, days, as_json=True))


def rows(text: str) -> dict[str, str]:
    """A printed table of two columns."""
    cells = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    return {what: figure for _, what, figure, _ in cells}


def claimed(store: Store, kind: JobKind = JobKind.ATTEND) -> Claim:
    claim = store.claim(kind, timedelta(seconds=30))
    assert claim is not None
    return claim


def write(store: Store, customer: str, reason: Reason | None = None) -> None:
    """A customer writes once and is answered; with a `reason`, a human is called."""
    store.accept(inbound("太差了", event=customer, customer=customer))
    claim = claimed(store)
    (line,) = store.waiting(claim).lines
    verdict = Verdict(line.id, Outcome.ESCALATED if reason else Outcome.ANSWERED)
    reply = Say(OutboundKind.REPLY, ("抱歉",))
    store.finish(claim, Settlement((verdict,), (reply,), Call(reason, line.id) if reason else None))


def press(store: Store, escalation_id: int, action: AgentAction) -> None:
    agent = Customer("UANNA", "anna")
    store.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, agent, escalation_id, action), "")


def score(store: Store, customer: str, escalation_id: int, value: int) -> None:
    store.score(Scored(Platform.TELEGRAM, "1", customer, escalation_id, value))


def test_where_nobody_wrote_a_sentence_says_so(engine: Engine, database_url: str) -> None:
    assert printed(database_url) == "No customer wrote yet.\n"
    assert printed(database_url, days=1) == "No customer wrote in the last day.\n"
    assert printed(database_url, days=30) == "No customer wrote in the last 30 days.\n"


def test_where_nobody_wrote_the_json_has_the_same_keys_with_zeros_and_nulls(engine: Engine, database_url: str) -> None:
    assert figures(database_url, days=30) == {
        "days": 30,
        "conversations": 0,
        "solved": 0,
        "solved_share": None,
        "thumbs_up": 0,
        "thumbs_down": 0,
        "escalations": 0,
        "by_reason": {"negative": 0, "asked": 0, "failed": 0, "overload": 0, "undelivered": 0},
        "open": 0,
        "resolved": 0,
        "handed_back": 0,
        "to_claim": {"median_s": None, "p90_s": None},
        "to_resolve": {"median_s": None, "p90_s": None},
        "scores": 0,
        "mean_score": None,
        "by_score": {"1": 0, "2": 0, "3": 0, "4": 0, "5": 0},
    }


def test_a_conversation_was_solved_where_no_human_was_called(store: Store, database_url: str) -> None:
    for customer in ("c1", "c2", "c3"):
        write(store, customer)
    write(store, "c4", Reason.NEGATIVE)
    store.accept(inbound("还有", event="again", customer="c1"))
    found = figures(database_url)
    assert (found["conversations"], found["solved"], found["solved_share"]) == (4, 3, 0.75)


def test_escalations_are_told_apart_by_reason_and_by_how_they_ended(store: Store, database_url: str) -> None:
    for number, reason in enumerate((Reason.NEGATIVE, Reason.ASKED, Reason.NEGATIVE, Reason.FAILED)):
        write(store, f"c{number}", reason)
    press(store, 1, AgentAction.CLAIM)
    press(store, 2, AgentAction.RESOLVE)
    press(store, 3, AgentAction.RETURN)
    found = figures(database_url)
    assert found["escalations"] == 4
    assert found["by_reason"] == {"negative": 2, "asked": 1, "failed": 1, "overload": 0, "undelivered": 0}
    assert (found["open"], found["resolved"], found["handed_back"]) == (2, 1, 1)


def test_times_count_from_the_opening_and_what_was_handed_back_was_not_resolved(
    store: Store, clock: TurnableClock, database_url: str
) -> None:
    for number in range(1, 12):
        write(store, f"c{number}", Reason.ASKED)
    for number in range(1, 12):
        clock.advance(60)
        press(store, number, AgentAction.CLAIM)
    clock.advance(3600)
    press(store, 1, AgentAction.RESOLVE)
    clock.advance(3600)
    press(store, 2, AgentAction.RETURN)
    found = figures(database_url)
    assert found["to_claim"] == {"median_s": 360.0, "p90_s": 600.0}
    assert found["to_resolve"] == {"median_s": 4260.0, "p90_s": 4260.0}, "one is its own median and percentile"


def test_thumbs_are_counted_by_reply(store: Store, database_url: str) -> None:
    for customer, ratings in (("c1", [Rating.UP]), ("c2", [Rating.UP, Rating.DOWN]), ("c3", [])):
        write(store, customer)
        sending = store.begin_send(claimed(store, JobKind.DELIVER))
        assert sending is not None
        for rating in ratings:
            store.rate(Rated(Platform.TELEGRAM, "1", customer, sending.message.id, rating))
    found = figures(database_url)
    assert (found["thumbs_up"], found["thumbs_down"]) == (1, 1)


def test_scores_are_counted_and_averaged(store: Store, database_url: str) -> None:
    for number, value in enumerate((5, 5, 2, None), start=1):
        write(store, f"c{number}", Reason.ASKED)
        press(store, number, AgentAction.RESOLVE)
        if value is not None:
            score(store, f"c{number}", number, value)
    found = figures(database_url)
    assert (found["scores"], found["mean_score"]) == (3, 4.0)
    assert found["by_score"] == {"1": 0, "2": 1, "3": 0, "4": 0, "5": 2}


def test_what_was_before_these_days_is_left_out(store: Store, clock: TurnableClock, database_url: str) -> None:
    clock.now = datetime.now(UTC) - timedelta(days=8)
    write(store, "c1", Reason.NEGATIVE)
    clock.advance(timedelta(days=2).total_seconds())
    write(store, "c2")
    press(store, 1, AgentAction.RESOLVE)
    store.accept(inbound("谢谢", event="again", customer="c1"))
    found = figures(database_url, days=7)
    assert (found["conversations"], found["solved"], found["escalations"]) == (2, 2, 0)
    found = figures(database_url, days=9)
    assert (found["conversations"], found["solved"], found["escalations"]) == (2, 1, 1)
    assert printed(database_url, days=5) == "No customer wrote in the last 5 days.\n"


def test_a_call_of_somebody_who_had_everything_erased_is_not_counted(store: Store, database_url: str) -> None:
    write(store, "c1", Reason.NEGATIVE)
    for _ in range(2):
        store.begin_send(claimed(store, JobKind.DELIVER))
    store.accept(inbound("forget yes", event="forget", customer="c1"))
    claim = claimed(store)
    (line,) = store.waiting(claim).lines
    store.finish(claim, Settlement((Verdict(line.id, Outcome.ANSWERED),), forget=True))
    assert store.call(1) is not None, "it stays until the emptied card is delivered"
    assert figures(database_url)["escalations"] == 0


def test_the_table_reads_as_people_say_it_and_names_nobody(
    store: Store, clock: TurnableClock, database_url: str
) -> None:
    write(store, "c1", Reason.NEGATIVE)
    write(store, "c2")
    write(store, "c3")
    clock.advance(20)
    press(store, 1, AgentAction.CLAIM)
    clock.advance(2 * 3600 + 5 * 60)
    press(store, 1, AgentAction.RESOLVE)
    score(store, "c1", 1, 4)
    text = printed(database_url)
    found = rows(text)
    assert found["solved without a human"] == "2 (67%)"
    assert found["An unhappy customer"] == "1"
    assert found["time to claim, median / 90th percentile"] == "less than a minute / less than a minute"
    assert found["time to resolve, median / 90th percentile"] == "2 h 5 min / 2 h 5 min"
    assert (found["customers' scores of it"], found["mean"], found["4"]) == ("1", "4.0", "1")
    everything = text + printed(database_url, as_json=True)
    assert [each for each in ("Li Wei", "c1", "chat-", "anna", "UANNA", "太差了") if each in everything] == []


def test_what_never_happened_is_a_dash_and_no_number(store: Store, database_url: str) -> None:
    write(store, "c1")
    found = rows(printed(database_url))
    assert {found[f"time to {what}, median / 90th percentile"] for what in ("claim", "resolve")} == {"–"}
    assert (found["customers' scores of it"], found["mean"]) == ("0", "–")


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "does not exist yet"), (b"", "frontdesk db upgrade"), (b"these are my notes " * 100, "cannot be read")],
)
def test_a_database_that_is_none_or_not_of_this_version_is_refused(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = tmp_path / "shop.db"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatabaseUnavailable, match=why):
        printed(f"sqlite:///{file}")


def test_the_command_prints_30_days_unless_told_otherwise(store: Store, database_url: str, tmp_path: Path) -> None:
    write(store, "c1")
    config = tmp_path / "config.toml"
    config.write_text(f'[database]\nurl = "{database_url}"\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["stats", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert result.output == "No customer wrote in the last 30 days.\n"
    result = CliRunner().invoke(app, ["stats", "--days", "0", "--json", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["conversations"] == 1
