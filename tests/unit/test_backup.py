"""`frontdesk db backup`: a whole and private copy beside a running service, from which a service goes on."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from bot.cli import app
from bot.conversation import Outcome
from bot.errors import DatabaseUnavailable, FrontdeskError
from bot.messages import OutboundKind
from bot.store import database
from bot.store.database import back_up, open_engine, schema_drift, single_writer
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.values import Say, Settlement, Verdict
from tests.conftest import TurnableClock, inbound
from tests.house import House, working


def backup(url: str, file: Path) -> Result:
    config = file.parent / "config.toml"
    config.write_text(f'[database]\nurl = "{url}"\n', encoding="utf-8")
    return CliRunner().invoke(app, ["db", "backup", str(file), "--config", str(config)])


def quietly(_done: int, _all: int) -> None:
    pass


async def test_a_service_on_the_copy_sees_everything_and_goes_on_where_it_was(
    store: Store, clock: TurnableClock, database_url: str, tmp_path: Path
) -> None:
    store.accept(inbound("几点开门？", event="1"))
    claim = store.claim(JobKind.ATTEND, timedelta(seconds=30))
    assert claim is not None
    (line,) = store.waiting(claim).lines
    answer = Say(OutboundKind.REPLY, ("九点。",))
    store.finish(claim, Settlement((Verdict(line.id, Outcome.ANSWERED),), (answer,)))
    store.claim(JobKind.DELIVER, timedelta(seconds=30))  # it is being sent while the copy is made
    store.accept(inbound("谢谢", event="2"))
    with single_writer(database_url):
        result = backup(database_url, tmp_path / "copy.db")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"MB in {tmp_path / 'copy.db'}, which only you can read\n")

    engine = open_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    house = House(engine, clock=clock)
    async with working(house):
        await house.idle()
    house.writer.close()
    assert house.telegram.said() == ["九点。", "answer to: 谢谢"]
    history = [line.text for line in house.reader.history(inbound().address, "c1")]
    assert history == ["几点开门？", "九点。", "谢谢", "answer to: 谢谢"]
    engine.dispose()
    assert schema_drift(f"sqlite:///{tmp_path / 'copy.db'}") == []


def test_it_is_one_file_that_only_its_owner_can_read(store: Store, database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    back_up(database_url, folder / "copy.db", quietly)
    assert [each.name for each in folder.iterdir()] == ["copy.db"]
    assert stat.S_IMODE((folder / "copy.db").stat().st_mode) == 0o600


def test_what_is_written_meanwhile_neither_gets_in_nor_begins_it_anew(
    engine: Engine, store: Store, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PAGES_AT_ONCE", 1)
    store.accept(inbound("before", event="0"))
    shares = []

    def writing(done: int, all_of_it: int) -> None:
        store.accept(inbound("meanwhile", event=f"e{len(shares)}"))
        shares.append(done / all_of_it)

    back_up(database_url, tmp_path / "copy.db", writing)
    assert len(shares) > 2
    assert shares == sorted(set(shares)), "it never goes back"
    assert shares[-1] == 1
    copy = open_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    with copy.connect() as connection:
        assert connection.execute(text("SELECT text FROM messages")).scalars().all() == ["before"]
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    copy.dispose()


def test_a_file_that_exists_is_not_overwritten(store: Store, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.db"
    file.write_text("mine")
    result = backup(database_url, file)
    assert str(result.exception) == f"{file} exists already: name another file"
    assert file.read_text() == "mine"


def test_what_a_killed_backup_left_is_in_nobodys_way(store: Store, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "copy.db.part").write_text("half")
    assert back_up(database_url, tmp_path / "copy.db", quietly) > 0
    assert not (tmp_path / "copy.db.part").exists()


def test_a_backup_that_fails_leaves_nothing_behind(store: Store, database_url: str, tmp_path: Path) -> None:
    def fail(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(database_url, tmp_path / "copy.db", fail)
    assert list(tmp_path.glob("copy*")) == []


def test_a_folder_that_is_not_there_is_one_sentence(store: Store, database_url: str, tmp_path: Path) -> None:
    with pytest.raises(FrontdeskError, match=r"copy.db cannot be written: No such file"):
        back_up(database_url, tmp_path / "none" / "copy.db", quietly)


def test_where_there_is_no_database_a_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist yet"):
        back_up(f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "copy.db", quietly)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are my notes " * 100)
    with pytest.raises(FrontdeskError, match=r"cannot be copied to .*: file is not a database"):
        back_up(f"sqlite:///{tmp_path / 'notes.db'}", tmp_path / "copy.db", quietly)
    assert not (tmp_path / "copy.db").exists()


def test_a_database_of_an_older_version_can_be_copied_before_it_is_upgraded(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE before_us (id INTEGER)"))
    engine.dispose()
    assert back_up(f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "copy.db", quietly) > 0
