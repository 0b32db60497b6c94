"""Fixtures every test may use: a migrated store on a real SQLite file, and a clock that tests turn."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine, select

from bot.messages import Address, Customer, InboundKind, InboundMessage, Platform
from bot.store.database import file_of, open_engine, upgrade
from bot.store.schema import Base
from bot.store.store import Store

AGENTS = Address(Platform.SLACK, "T1", "C0AGENTS")


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


@pytest.fixture
def database_url(tmp_path: Path) -> str:
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
