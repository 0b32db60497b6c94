"""Opening, locking and migrating the database."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, text

from bot.errors import DatabaseUnavailable
from bot.store import database
from bot.store.database import Writer, open_engine, open_read_only, pending_migrations, schema_drift, single_writer


def test_the_migrations_make_exactly_what_the_models_say(tmp_path: Path) -> None:
    assert schema_drift(f"sqlite:///{tmp_path / 'fresh.db'}") == []


def test_a_drifted_database_is_noticed(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE messages ADD COLUMN surplus TEXT"))
        connection.execute(text("CREATE TABLE loose (id INTEGER)"))
    engine.dispose()
    drift = "\n".join(schema_drift(database_url))
    assert "surplus" in drift
    assert "loose is not STRICT" in drift


def test_an_older_database_is_brought_up_to_date_with_what_it_holds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
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


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000)]
)
def test_every_connection_is_durable_and_strict(engine: Engine, pragma: str, value: object) -> None:
    with engine.connect() as connection:
        assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == value


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
        with pytest.raises(Exception, match="readonly"):
            connection.execute(text("INSERT INTO cursors VALUES ('t', 'a', 0)"))
    engine.dispose()


def test_looking_at_what_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist yet"):
        open_read_only(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


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


async def test_what_the_database_refuses_becomes_one_of_our_errors(engine: Engine) -> None:
    writer = Writer()

    def broken() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    with pytest.raises(DatabaseUnavailable, match="no such table"):
        await writer(broken)
    writer.close()
