"""Opening, locking and migrating the database, a file and a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from bot.errors import ConfigError, DatabaseUnavailable, FrontdeskError
from bot.messages import Platform, Receipt
from bot.store import database
from bot.store.database import (
    Writer,
    at_one_moment,
    back_up,
    name_of,
    open_engine,
    open_read_only,
    pending_migrations,
    schema_drift,
    single_writer,
    version_of,
)
from bot.store.reader import Reader
from bot.store.store import Store
from tests.conftest import inbound, only_postgres, only_sqlite

pytestmark = pytest.mark.contract


def test_the_migrations_make_exactly_what_the_models_say(tmp_path: Path) -> None:
    assert schema_drift(f"sqlite:///{tmp_path / 'fresh.db'}") == []


def test_on_a_server_as_well(empty_postgres: str) -> None:
    assert schema_drift(empty_postgres) == []


@only_sqlite
def test_a_drifted_database_is_noticed(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE messages ADD COLUMN surplus TEXT"))
        connection.execute(text("CREATE TABLE loose (id INTEGER)"))
    engine.dispose()
    drift = "\n".join(schema_drift(database_url))
    assert "surplus" in drift
    assert "loose is not STRICT" in drift


def test_a_drifted_database_on_a_server_is_noticed(empty_postgres: str) -> None:
    database.upgrade(empty_postgres)
    engine = open_engine(empty_postgres)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE messages ALTER COLUMN negative TYPE integer"))
    engine.dispose()
    assert "negative" in "\n".join(schema_drift(empty_postgres))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_older_database_is_brought_up_to_date_with_what_it_holds(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}" if kind == "sqlite" else request.getfixturevalue("empty_postgres")
    engine = open_engine(url)
    with engine.begin() as connection:
        command.upgrade(database._alembic(connection), "0001")
        connection.execute(text("INSERT INTO customers VALUES (1, 'telegram', '1', '42', 'Li', 'zh', 0)"))
        connection.execute(text("INSERT INTO conversations VALUES (1, 1, 'telegram', '1', '42', '', 'bot', 0)"))
    engine.dispose()
    database.upgrade(url)
    engine = open_engine(url)
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT name, chosen, owner, origin, unreachable FROM customers, conversations"))
        assert kept.all() == [("Li", "", "bot", "", "")]
    engine.dispose()


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    database.upgrade(database_url)
    assert not pending_migrations(database_url)


def test_processes_that_start_together_upgrade_one_after_the_other(empty_postgres: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(database.upgrade, [empty_postgres] * 4))
    assert not pending_migrations(empty_postgres)


@only_sqlite
@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000)]
)
def test_every_connection_is_durable_and_strict(engine: Engine, pragma: str, value: object) -> None:
    with engine.connect() as connection:
        assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == value


@only_sqlite
def test_concurrent_transactions_lose_no_update(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO cursors VALUES ('t', 'a', 0)"))

    def add_one(_: int) -> None:
        with engine.begin() as connection:
            value = connection.execute(text("SELECT value FROM cursors")).scalar_one()
            connection.execute(text("UPDATE cursors SET value = :value"), {"value": value + 1})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(40)))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT value FROM cursors")).scalar() == 40
    engine.dispose()


def test_a_second_process_may_look_but_not_write(database_url: str) -> None:
    engine = open_read_only(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM messages")).scalar() == 0
        with pytest.raises(DBAPIError, match=r"read-?only"):
            connection.execute(text("INSERT INTO cursors VALUES ('t', 'a', 0)"))
    engine.dispose()


def test_who_looks_sees_one_moment_whatever_is_written_meanwhile(database_url: str, engine: Engine) -> None:
    looking = open_read_only(database_url)
    with looking.connect() as connection:
        before = connection.execute(text("SELECT count(*) FROM messages")).scalar()
        Store(engine).accept(inbound())
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == before == 0
    looking.dispose()


def test_who_looks_and_who_writes_do_not_wait_for_each_other(engine: Engine) -> None:
    """Either would give up after seconds of waiting."""
    reader, store = Reader(engine), Store(engine)
    with engine.begin() as writing:
        writing.execute(text("INSERT INTO cursors (platform, account, value) VALUES ('t', 'a', 0)"))
        assert reader.load().jobs == 0
    with at_one_moment(engine).connect() as looking:
        looking.execute(text("SELECT count(*) FROM messages")).scalar()
        store.accept(inbound())
    assert reader.load().jobs == 1


def test_looking_at_what_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist yet"):
        open_read_only(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


@only_sqlite
def test_a_second_service_on_the_same_file_is_refused(database_url: str) -> None:
    code = f"from bot.store.database import single_writer; single_writer({database_url!r})"
    with single_writer(database_url):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use by another frontdesk" in second.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_is_no_database_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are my notes " * 100)
    with pytest.raises(DatabaseUnavailable, match="cannot be opened as a database"):
        database.upgrade(f"sqlite:///{file}")


@only_postgres
def test_any_number_may_write_to_a_server(database_url: str) -> None:
    with single_writer(database_url), single_writer(database_url):
        pass


@only_sqlite
def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseUnavailable, match="newer frontdesk"):
        database.upgrade(database_url)


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot be written"):
        single_writer(f"sqlite:///{blocker / 'frontdesk.db'}")


# -- servers that are not there, or not as they should be ------------------------------------------


@pytest.mark.parametrize("use", [database.upgrade, open_read_only, pending_migrations, version_of])
def test_a_server_that_does_not_answer_is_one_sentence(use: Callable[[str], object]) -> None:
    with pytest.raises(
        DatabaseUnavailable, match=r"postgresql\+psycopg://me@127.0.0.1:1/shop cannot be .* refused"
    ) as found:
        use("postgresql+psycopg://me@127.0.0.1:1/shop")
    assert "\n" not in str(found.value)


@only_postgres
def test_a_database_that_nobody_made_is_one_sentence(database_url: str) -> None:
    url = make_url(database_url).set(database="none").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable, match=r'none cannot be read: .* database "none" does not exist$'):
        open_read_only(url)


def test_an_empty_database_has_not_the_newest_schema(empty_postgres: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="has not the newest schema: run `frontdesk db upgrade`"):
        open_read_only(empty_postgres)


@only_postgres
def test_a_server_that_is_too_old_is_one_sentence_wherever_it_is_met(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "OLDEST_SERVER", 99)
    for use in (open_read_only, database.version_of, database.upgrade):
        with pytest.raises(
            ConfigError, match=r"is PostgreSQL \d+, and frontdesk needs 99 or newer: upgrade the server"
        ):
            use(database_url)


def test_without_the_driver_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"psycopg is not installed: pip install 'frontdesk\[postgres\]'"):
        open_engine("postgresql+psycopg://me@127.0.0.1/shop")


def test_no_password_is_in_a_sentence() -> None:
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/shop"
    assert name_of(url) == "postgresql+psycopg://me:***@127.0.0.1:1/shop"
    with pytest.raises(DatabaseUnavailable) as found:
        database.upgrade(url)
    assert "hunter2" not in str(found.value)


@only_postgres
def test_a_backup_of_a_server_is_pg_dump_s(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(FrontdeskError, match=r"`pg_dump --format=custom --file=.*copy.db frontdesk_test_\d+`"):
        back_up(database_url, tmp_path / "copy.db", lambda _done, _all: None)
    assert list(tmp_path.iterdir()) == []


@only_postgres
def test_a_connection_that_the_server_closed_is_replaced(database_url: str, engine: Engine) -> None:
    store = Store(engine)
    store.accept(inbound())
    other = open_engine(database_url)
    with other.connect() as connection:
        mine = "datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"))
    other.dispose()
    assert store.accept(inbound()).receipt is Receipt.DUPLICATE


@only_postgres
def test_who_stops_in_the_middle_of_a_transaction_does_not_stop_the_others(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(engine)
    store.accept(inbound())  # on a connection that is given the usual time
    monkeypatch.setattr(database, "STALLED_MS", 200)
    other = open_engine(database_url)
    with other.connect() as stalled:
        stalled.execute(text("SELECT id FROM customers FOR UPDATE"))
        assert store.accept(inbound("and again", event="2")).receipt is Receipt.ACCEPTED
        with pytest.raises(DBAPIError, match="terminating connection"):
            stalled.commit()
    other.dispose()


@only_postgres
def test_what_was_erased_is_in_no_row_of_its_files(database_url: str, engine: Engine) -> None:
    """Not even in one that is dead; the bytes of its pages that no row has are PostgreSQL's own affair."""
    store = Store(engine)
    store.accept(inbound("kanarienvogel"))
    store.erase_known(Platform.TELEGRAM, "c1")
    with engine.connect() as connection:
        pages = connection.execute(text("SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname = 'messages'"))
        assert pages.scalar() == 0


async def test_a_refusal_quotes_no_row(engine: Engine) -> None:
    writer = Writer()

    def broken() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO customers VALUES (1, 'telegram', '1', 'kanarienvogel', NULL)"))

    with pytest.raises(DatabaseUnavailable, match="the database refused: ") as found:
        await writer(broken)
    assert "kanarienvogel" not in str(found.value)
    writer.close()


async def test_what_the_database_refuses_becomes_one_of_our_errors(engine: Engine) -> None:
    writer = Writer()

    def broken() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    with pytest.raises(DatabaseUnavailable, match=r"no such table|does not exist"):
        await writer(broken)
    writer.close()
