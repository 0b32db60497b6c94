"""`frontdesk db copy`: a SQLite deployment goes on, on PostgreSQL, where it was."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from typer.testing import CliRunner, Result

from bot.cli import app
from bot.conversation import Call, Outcome, Reason
from bot.errors import DatabaseInUse, DatabaseUnavailable, FrontdeskError
from bot.messages import Delivery, Dropped, OutboundKind, Platform, Sentiment
from bot.store import copy as copying
from bot.store.database import open_engine, schema_drift, single_writer, upgrade
from bot.store.jobs import JobKind
from bot.store.schema import Base
from bot.store.store import Store
from bot.store.values import Say, Settlement, Verdict
from tests.conftest import AGENTS, TurnableClock, inbound, only_sqlite, rows

LEASE = timedelta(seconds=30)


def everything(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            name: sorted(tuple(row) for row in connection.execute(select(table)))
            for name, table in Base.metadata.tables.items()
        }


def db_copy(database_url: str, to: str, tmp_path: Path) -> Result:
    config = tmp_path / "config.toml"
    config.write_text(f'[database]\nurl = "{database_url}"\n', encoding="utf-8")
    return CliRunner().invoke(app, ["db", "copy", "--to", to, "--config", str(config)])


@pytest.fixture
def busy(store: Store) -> None:
    """A conversation with a call for a human and a reply that is being sent, and one that still waits."""
    store.accept(inbound("太差了 😢", event="1", cursor=9_000_000_000))
    claim = store.claim(JobKind.ATTEND, LEASE)
    assert claim is not None
    (line,) = store.waiting(claim).lines
    mood = Sentiment("负面", 0.9312345678901234, 0.8)
    verdict, reply = Verdict(line.id, Outcome.ESCALATED, mood), Say(OutboundKind.REPLY, ("one", "two"))
    store.finish(claim, Settlement((verdict,), (reply,), Call(Reason.NEGATIVE, line.id, mood)))
    sending = store.claim(JobKind.DELIVER, LEASE)
    assert sending is not None
    store.begin_send(sending)
    store.accept(inbound("and I?", event="2", customer="c2"))


@only_sqlite
def test_every_row_is_there_and_the_desk_goes_on(
    busy: None, engine: Engine, clock: TurnableClock, database_url: str, empty_postgres: str, tmp_path: Path
) -> None:
    result = db_copy(database_url, empty_postgres, tmp_path)
    assert result.exit_code == 0, result.output
    before = everything(engine)
    assert f"{sum(map(len, before.values()))} rows are in {empty_postgres}: name it in database.url" in result.output
    target = open_engine(empty_postgres)
    assert everything(target) == before
    assert schema_drift(empty_postgres) == []

    clock.advance(LEASE.total_seconds())
    store = Store(target, AGENTS, clock)
    store.accept(inbound("me, too", event="3", customer="c3"))
    said = []
    while claim := store.claim(JobKind.DELIVER, LEASE):
        sending = store.begin_send(claim)
        assert sending is not None
        said.append((sending.message.kind, sending.message.text, sending.message.maybe_sent))
        store.sent(claim, Delivery("p"))
    assert sorted(said) == [("card", "", False), ("reply", "one", True), ("reply", "two", False)]
    claims = [claim for _ in "23" if (claim := store.claim(JobKind.ATTEND, LEASE))]
    assert [line.text for claim in claims for line in store.waiting(claim).lines] == ["and I?", "me, too"]
    target.dispose()


@only_sqlite
def test_a_database_that_is_in_use_is_refused_and_left_alone(
    busy: None, database_url: str, empty_postgres: str, tmp_path: Path
) -> None:
    upgrade(empty_postgres)
    target = open_engine(empty_postgres)
    Store(target).accept(inbound("mine", event="1"))
    before = everything(target)
    result = db_copy(database_url, empty_postgres, tmp_path)
    assert str(result.exception) == f"{empty_postgres} is in use already: name an empty database"
    assert everything(target) == before
    target.dispose()


@only_sqlite
def test_a_copy_that_fails_leaves_nothing_behind(busy: None, database_url: str, empty_postgres: str) -> None:
    def fail(done: int, _all: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copying.copy(database_url, empty_postgres, fail)
    target = open_engine(empty_postgres)
    assert rows(target) == {}
    target.dispose()


@only_sqlite
def test_who_writes_there_meanwhile_makes_it_fail(busy: None, database_url: str, empty_postgres: str) -> None:
    target = open_engine(empty_postgres)

    def intrude(_done: int, _all: int) -> None:
        Store(target).drop(Dropped(Platform.SLACK, "T1", "nothing", cursor=1))

    with pytest.raises(FrontdeskError, match="stop whoever writes there"):
        copying.copy(database_url, empty_postgres, intrude)
    assert rows(target) == {"cursors": 1}
    target.dispose()


@only_sqlite
def test_while_a_service_runs_on_the_file_it_is_refused(
    busy: None, database_url: str, empty_postgres: str, tmp_path: Path
) -> None:
    with single_writer(database_url):
        result = db_copy(database_url, empty_postgres, tmp_path)
    assert isinstance(result.exception, DatabaseInUse)


@only_sqlite
@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("sqlite:///other.db", "only a SQLite file is copied, and only to PostgreSQL"),
        ("postgresql+psycopg://me:hunter2@host/db", "--to: database.url: holds a password"),
        ("mysql://host/db", "--to: database.url: use "),
        ("postgresql+psycopg://me@127.0.0.1:1/db", "cannot be opened as a database: connection failed"),
    ],
)
def test_what_cannot_be_a_target_is_one_sentence(
    busy: None, database_url: str, tmp_path: Path, to: str, sentence: str
) -> None:
    error = str(db_copy(database_url, to, tmp_path).exception)
    assert sentence in error
    assert "\n" not in error
    assert "hunter2" not in error


def test_where_there_is_nothing_to_copy_a_sentence_says_so(empty_postgres: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist yet"):
        copying.copy(f"sqlite:///{tmp_path / 'none.db'}", empty_postgres, lambda _done, _all: None)
