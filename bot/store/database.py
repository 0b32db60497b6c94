"""Opening the database, a SQLite file or a PostgreSQL server: drivers, locking, the one writer thread, migrations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bot.errors import ConfigError, DatabaseInUse, DatabaseUnavailable, FrontdeskError
from bot.store.schema import Base

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
_READS = "frontdesk_reads"
"""An execution option: the transaction changes nothing."""
GONE_IS_NOTICED = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A server that does not answer is given up after some ten seconds; libpq's own words, seconds and milliseconds."""
STALLED_MS = 15_000
"""Whoever stops in the middle of a transaction loses it, and with it the locks that others wait for."""
OLDEST_SERVER = 15
"""PostgreSQL's version from which on the tests are run."""
_UPGRADING = 0x66726F6E74
"""The lock of who brings a PostgreSQL database up to date; any number that nobody else uses."""


def driver() -> Any:
    """The SQLite driver in use: pysqlite3 where it has a wheel, else the standard library's."""
    return _driver


def is_file(url: str) -> bool:
    """Whether the database is a file of one process, not a server for many."""
    return url.startswith("sqlite:")


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def is_missing(url: str) -> bool:
    """Whether the file is yet to be made; a server's database never is, somebody else makes it."""
    return is_file(url) and not file_of(url).exists()


def name_of(url: str) -> str:
    """What to call the database in a sentence; without a password."""
    return str(file_of(url)) if is_file(url) else make_url(url).render_as_string(hide_password=True)


def version_of(url: str) -> str:
    """What the database is, and its version. Raises DatabaseUnavailable when a server does not answer."""
    if is_file(url):
        return f"SQLite {_driver.sqlite_version} ({_driver.__name__.partition('.')[0]})"
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            return f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one().partition(' ')[0]}"
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"{name_of(url)} cannot be read: {why(error)}") from error
    finally:
        engine.dispose()


def open_engine(url: str) -> Engine:
    """A sync engine on which no update is lost, if transactions on PostgreSQL lock what they change (people.lock).

    Raises ConfigError when the driver for PostgreSQL is not installed; connecting does so when the server is too old.
    """
    return _open_file(url) if is_file(url) else _open_server(url)


def _open_server(url: str) -> Engine:
    try:
        engine = create_engine(url, isolation_level="READ COMMITTED", pool_pre_ping=True, connect_args=GONE_IS_NOTICED)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database.url names PostgreSQL but {error.name} is not installed: pip install 'frontdesk[postgres]'"
        ) from None

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        if (found := connection.info.server_version // 10_000) < OLDEST_SERVER:
            raise ConfigError(
                f"{name_of(url)} is PostgreSQL {found}, and frontdesk needs {OLDEST_SERVER} or newer: "
                "upgrade the server, or name another one in database.url"
            )
        connection.execute(f"SET idle_in_transaction_session_timeout = {STALLED_MS}")
        connection.commit()

    return engine


def _open_file(url: str) -> Engine:
    """Every transaction starts with BEGIN IMMEDIATE, unless it only reads: then no one waits for another.

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
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def leave_no_trace(engine: Engine) -> None:
    """Take what was deleted out of what is kept of it.

    On SQLite, empty the write-ahead log: it begins anew once nobody reads the old one. On PostgreSQL, free the rows'
    places, so that no query finds them: its files, write-ahead log and replicas hold the bytes until they are reused.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as vacuuming:
            vacuuming.execute(text(f"VACUUM {', '.join(Base.metadata.tables)}"))
        return
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.close()
    finally:
        connection.close()


def at_one_moment(engine: Engine) -> Engine:
    """The same engine for who only reads, from several tables, and must not see others' changes come in between."""
    if engine.dialect.name == "sqlite":  # where a transaction sees one moment anyway
        return engine.execution_options(**{_READS: True})
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def open_read_only(url: str) -> Engine:
    """An engine for a second process that only looks.

    Raises DatabaseUnavailable when there is no database, or one of another version.
    """
    if pending_migrations(url):
        raise DatabaseUnavailable(f"{name_of(url)} has not the newest schema: run `frontdesk db upgrade`")
    return _open_any(url)


def _open_any(url: str) -> Engine:
    if not is_file(url):
        return at_one_moment(open_engine(url))
    file = file_of(url)
    if is_missing(url):
        raise DatabaseUnavailable(f"{file} does not exist yet: `frontdesk run` or `frontdesk db upgrade` creates it")
    uri = f"{file.absolute().as_uri()}?mode=ro"
    engine = create_engine(
        "sqlite://", module=_driver, creator=lambda: _driver.connect(uri, uri=True, isolation_level=None)
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))  # one moment of all tables
    return engine


def single_writer(url: str) -> AbstractContextManager[Any]:
    """Held for as long as a process writes to a file: two writers would poll the same accounts and answer twice.

    On PostgreSQL any number may. Raises DatabaseInUse when another process holds it, DatabaseUnavailable when it cannot
    be taken.
    """
    if not is_file(url):
        return nullcontext()
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
    FrontdeskError when it exists or cannot be written, and for PostgreSQL, which has a command of its own for that;
    DatabaseUnavailable when there is no database.
    """
    if not is_file(url):
        raise FrontdeskError(
            f"{name_of(url)} is not a file of frontdesk's: copy it with PostgreSQL's own `pg_dump --format=custom "
            f"--file={to} {make_url(url).database}`, also while the service runs"
        )
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
            raise DatabaseUnavailable(f"the database refused: {why(error)}") from error

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def why(error: Exception) -> str:
    """What the driver said, in one line. PostgreSQL's further lines quote the row, and with it a customer's words."""
    said = getattr(error, "orig", None) or error
    return " ".join(str(getattr(getattr(said, "diag", None), "message_primary", None) or said).split())


def upgrade(url: str, *, tokens: bool = False) -> None:
    """Bring the database to the newest schema, creating the file when there is none; with what `tokens` need.

    Raises DatabaseUnavailable; ConfigError when what it takes is not installed.
    """
    from alembic import command
    from alembic.util.exc import CommandError

    engine = open_engine(url)
    try:
        if is_file(url):
            file_of(url).parent.mkdir(parents=True, exist_ok=True)
        with engine.begin() as connection:
            if not is_file(url):  # processes that start together come one after the other
                connection.execute(select(func.pg_advisory_xact_lock(_UPGRADING)))
            command.upgrade(_alembic(connection), "head")
            if tokens:
                _upgrade_tokens(engine)
    except CommandError as error:
        raise DatabaseUnavailable(
            f"{name_of(url)} was written by a newer frontdesk ({error}): install that version, or restore a backup"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnavailable(f"{name_of(url)} cannot be opened as a database: {why(error)}") from error
    finally:
        engine.dispose()


def _upgrade_tokens(engine: Engine) -> None:
    try:
        from bot.store.tokens import upgrade as upgrade_tokens
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"queue.backend is procrastinate but {error.name} is not installed: pip install 'frontdesk[postgres]'"
        ) from None
    upgrade_tokens(engine)


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
        raise DatabaseUnavailable(f"{name_of(url)} cannot be read: {why(error)}") from error
    finally:
        engine.dispose()


def schema_drift(url: str) -> list[str]:
    """What the models say and the migrated database does not, one line a difference; empty when they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    upgrade(url)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            drift = [str(item) for item in compare_metadata(MigrationContext.configure(connection), Base.metadata)]
            if not is_file(url):
                return drift
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
