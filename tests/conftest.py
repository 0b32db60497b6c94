"""Fixtures every test may use: a migrated store on both databases, and a clock that tests turn."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import structlog
from sqlalchemy import Engine, create_engine, delete, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError

from bot.messages import Address, Customer, InboundKind, InboundMessage, Platform
from bot.store.database import file_of, open_engine, upgrade
from bot.store.schema import Base
from bot.store.store import Store
from tests.fakes.telegram import FakeTelegram

if "PYTEST_XDIST_WORKER" in os.environ:  # who tests side by side computes on one core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# how long an example takes says more about the machine than about the code
hypothesis.settings.register_profile("frontdesk", deadline=None)
hypothesis.settings.load_profile("frontdesk")

GROUP = -1000
"""Of the agents, on Telegram."""
AGENTS = Address(Platform.SLACK, "T1", "C0AGENTS")
_GIVEN = make_url(os.environ.get("FRONTDESK_TEST_POSTGRES") or "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
SERVER = _GIVEN._replace(password=None)
"""Where tests make databases of their own, which they drop."""
if _GIVEN.password:
    os.environ["PGPASSWORD"] = _GIVEN.password  # config.toml may hold none

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For a test about the file."""
only_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
"""For a test about many processes, or about the server."""


class TurnableClock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def inbound(
    text: str = "hello",
    *,
    event: str = "e1",
    customer: str = "c1",
    kind: InboundKind = InboundKind.TEXT,
    cursor: int | None = None,
    chat: str = "",
) -> InboundMessage:
    """A message on Telegram; one chat per customer unless told otherwise."""
    address = Address(Platform.TELEGRAM, "1", chat or f"chat-{customer}")
    return InboundMessage(address, Customer(customer, "Li Wei", "zh-hans"), event, text, kind, cursor=cursor)


def rows(engine: Engine) -> dict[str, int]:
    """How many rows each table holds, those without any left out."""
    with engine.begin() as connection:
        counts = {name: len(connection.execute(select(table)).all()) for name, table in Base.metadata.tables.items()}
    return {name: count for name, count in counts.items() if count}


def on_disk(url: str) -> bytes:
    file = file_of(url)
    return b"".join(each.read_bytes() for each in sorted(Path(file.parent).glob(f"{file.name}*")))


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something to become true; a TimeoutError is the failure."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - tests look from outside, there is no event to wait for
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A test that sets up the program's logging leaves it to no other, in whatever order they run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # as by default, but for tracebacks: drawing one with all its variables takes half a second
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock()


@cache
def migrated() -> bytes:
    """A migrated, empty database file; migrating once is enough for a run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "template.db"
        upgrade(f"sqlite:///{file}")
        return file.read_bytes()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a tiny Qwen2 whose weights are random."""
    from tests.fakes.random_model import make  # imports torch and transformers

    return make(tmp_path_factory.mktemp("random-model"))


@contextmanager
def new_postgres(name: str) -> Iterator[str]:
    """A new, empty database on the server; the tests are skipped where none answers, except under CI."""
    name = f"frontdesk_{name}_{os.getpid()}"
    server = create_engine(SERVER, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    try:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
            # nothing here outlives a power cut anyway
            connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    except OperationalError as error:
        why = f"no PostgreSQL answers at {server.url!r}: {error.orig}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield SERVER.set(database=name).render_as_string()
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


@pytest.fixture(scope="session")
def migrated_postgres() -> Iterator[str]:
    """Migrating once is enough for a run."""
    with new_postgres("test") as url:
        upgrade(url)
        yield url


@pytest.fixture(scope="session")
def postgres_with_tokens() -> Iterator[str]:
    """The same with what Procrastinate needs."""
    with new_postgres("tokens") as url:
        upgrade(url, tokens=True)
        yield url


def empty(engine: Engine) -> None:
    """Take every row away, and on PostgreSQL give ids from 1 on; a thousand times faster than a new database."""
    tables = Base.metadata.sorted_tables
    numbered = [table.name for table in tables if table.autoincrement_column is not None]
    with engine.begin() as connection:
        for table in reversed(tables):
            connection.execute(delete(table))
        if engine.dialect.name == "postgresql":
            connection.execute(text(";".join(f"SELECT setval('{name}_id_seq', 1, false)" for name in numbered)))
        if inspect(connection).has_table("procrastinate_jobs"):
            connection.execute(text("DELETE FROM procrastinate_jobs; DELETE FROM procrastinate_workers"))


@pytest.fixture
def empty_postgres() -> Iterator[str]:
    """A database without tables."""
    with new_postgres("empty") as url:
        yield url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs on both databases: of those that are no contract, on PostgreSQL by `make test-long`."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "database_url" in metafunc.fixturenames and not any("database_url" in mark.args[0] for mark in marks):
        later = () if metafunc.definition.get_closest_marker("contract") else pytest.mark.slow
        metafunc.parametrize("database_url", ["sqlite", pytest.param("postgresql", marks=later)], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty database."""
    if request.param in ("postgresql", "tokens"):
        fixture = "postgres_with_tokens" if request.param == "tokens" else "migrated_postgres"
        url = str(request.getfixturevalue(fixture))
        engine = open_engine(url)
        empty(engine)
        engine.dispose()
        return url
    file = tmp_path / "frontdesk.db"
    file.write_bytes(migrated())
    return f"sqlite:///{file}"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine, clock: TurnableClock) -> Store:
    return Store(engine, AGENTS, clock)


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    """With a group of agents, for the program in a process of its own."""
    async with FakeTelegram() as telegram:
        telegram.add_group(GROUP, "agents")
        yield telegram
    assert telegram.violations == []
