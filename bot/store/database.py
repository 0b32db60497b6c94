"""Opening the database: driver, pragmas, locking, the one writer thread, migrations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bot.errors import DatabaseInUse, DatabaseUnavailable, FrontdeskError

try:  # a newer SQLite than most Pythons are built with, where there is a wheel
    _driver: Any = import_module("pysqlite3.dbapi2")
except ImportError:
    _driver = import_module("sqlite3")

Database: TypeAlias = Engine
"""What open_engine() gives, under a name for those who only pass it on."""

P = ParamSpec("P")
R = TypeVar("R")

BUSY_TIMEOUT_MS = 5_000
PAGES_AT_ONCE = 1_000
"""Copied between two looks at the progress of a backup; 4 MB."""
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")
"""The last one overwrites what is deleted."""


def driver() -> Any:
    """The SQLite driver in use: pysqlite3 where it has a wheel, else the standard library's."""
    return _driver


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def open_engine(url: str) -> Engine:
    """A sync engine whose every transaction starts with BEGIN IMMEDIATE.

    The driver's own transaction handling is switched off: it starts transactions late and so loses updates.
    """
    engine = create_engine(url, module=_driver, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in (*_PRAGMAS, f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def leave_no_trace(engine: Engine) -> None:
    """Empty the write-ahead log, which still holds what was deleted: it begins anew once nobody reads the old one."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.close()
    finally:
        connection.close()


def open_read_only(url: str) -> Engine:
    """An engine for a second process that only looks.

    Raises DatabaseUnavailable when there is no database, or one of another version.
    """
    if pending_migrations(url):
        raise DatabaseUnavailable(f"{file_of(url)} has not the newest schema: run `frontdesk db upgrade`")
    return _open_any(url)


def _open_any(url: str) -> Engine:
    file = file_of(url)
    if not file.exists():
        raise DatabaseUnavailable(f"{file} does not exist yet: `frontdesk run` or `frontdesk db upgrade` creates it")
    return create_engine(
        "sqlite://", module=_driver, creator=lambda: _driver.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    )


def single_writer(url: str) -> AbstractContextManager[Any]:
    """Held for as long as a process writes: two writers would poll the same accounts and answer twice.

    Raises DatabaseInUse when another process holds it, DatabaseUnavailable when it cannot be taken.
    """
    file = file_of(url)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{file}.lock", timeout=0).acquire()
    except Timeout:
        raise DatabaseInUse(
            f"{file} is in use by another frontdesk: stop that one, or name another file in database.url"
        ) from None
    except OSError as error:
        raise DatabaseUnavailable(
            f"{file} cannot be written: {error.strerror}; name another file in database.url"
        ) from error


def back_up(url: str, to: Path, report: Callable[[int, int], None]) -> int:
    """Copy the database as it is now to the new file `to`, beside a running service; returns its bytes.

    `report` is told the bytes that are done, and all of them. Only the owner of the file can read it. Raises
    FrontdeskError when it exists or cannot be written, DatabaseUnavailable when there is no database.
    """
    engine = _open_any(url)
    part = to.with_name(f"{to.name}.part")
    if to.exists():
        raise FrontdeskError(f"{to} exists already: name another file")
    try:
        part.unlink(missing_ok=True)  # of a backup that was killed
        os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o600))
        _copy(engine, part, report)
        part.rename(to)
    except OSError as error:
        raise FrontdeskError(f"{to} cannot be written: {error.strerror}") from None
    except _driver.Error as error:
        raise FrontdeskError(f"{file_of(url)} cannot be copied to {to}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
        engine.dispose()
    return to.stat().st_size


def _copy(engine: Engine, to: Path, report: Callable[[int, int], None]) -> None:
    pooled, target = engine.raw_connection(), _driver.connect(to)
    source: Any = pooled.driver_connection
    try:
        # One transaction sees one state. Without it SQLite begins the copy anew after every write of the service.
        source.execute("BEGIN")
        (page,) = source.execute("PRAGMA page_size").fetchone()
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()

        def progress(_status: int, left: int, pages: int) -> None:
            report((pages - left) * page, pages * page)

        source.backup(target, pages=PAGES_AT_ONCE, progress=progress)
    finally:
        target.close()
        pooled.close()


class Writer:
    """The one thread that talks to the database: `await writer(store.accept, message)`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one store method. Raises DatabaseUnavailable when the database refuses; nothing is stored then."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))
        except DBAPIError as error:
            raise DatabaseUnavailable(f"the database refused: {error.orig}") from error

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def upgrade(url: str) -> None:
    """Bring the database to the newest schema, creating it when there is none. Raises DatabaseUnavailable."""
    from alembic import command
    from alembic.util.exc import CommandError

    engine = open_engine(url)
    try:
        file_of(url).parent.mkdir(parents=True, exist_ok=True)
        with engine.begin() as connection:
            command.upgrade(_alembic(connection), "head")
    except CommandError as error:
        raise DatabaseUnavailable(
            f"{file_of(url)} was written by a newer frontdesk ({error}): install that version, or restore a backup"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        reason = getattr(error, "orig", error)
        raise DatabaseUnavailable(f"{file_of(url)} cannot be opened as a database: {reason}") from error
    finally:
        engine.dispose()


def pending_migrations(url: str) -> bool:
    """Whether the (existing) database is older than this program."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = _open_any(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            return current != ScriptDirectory.from_config(_alembic(connection)).get_current_head()
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"{file_of(url)} cannot be read: {getattr(error, 'orig', error)}") from error
    finally:
        engine.dispose()


def schema_drift(url: str) -> list[str]:
    """What the models say and the migrated database does not, one line a difference; empty when they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from bot.store.schema import Base

    upgrade(url)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            drift = [str(item) for item in compare_metadata(MigrationContext.configure(connection), Base.metadata)]
            rows = connection.exec_driver_sql("SELECT name FROM pragma_table_list WHERE schema = 'main' AND strict = 0")
            loose = {name for (name,) in rows} - {"sqlite_schema", "sqlite_sequence", "alembic_version"}
            return drift + [f"table {name} is not STRICT" for name in sorted(loose)]
    finally:
        engine.dispose()


def _alembic(connection: Any) -> Any:
    from alembic.config import Config

    import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
