"""A front desk in simulated time: an hour passes as fast as the work in it, and the same seed gives the same hour.

The event loop does not wait for the next timer, it moves the clock there; the database answers at once instead of on a
thread. All else is as in a running service: the intake, the queue and its leases, attending, delivering, agents.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from sqlalchemy import Engine, event

from bot.store.database import Writer, driver, open_engine
from bot.store.schema import Base
from tests.conftest import migrated

T = TypeVar("T")

START = datetime(2026, 1, 1, tzinfo=UTC)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Selector(selectors.DefaultSelector):
    """Sleeps by moving the clock. There is nothing to wait for but timers."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody"
        self.now += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time() is simulated, in seconds from 0."""

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.now


def simulate(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, in simulated time, without a word in the log: to render tracebacks takes seconds."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(_begun(begin))


async def _begun(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await begin()


class Clock:
    """What the parts take for the time of day: that of the loop, and as many seconds more as a test says."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time() + self.ahead)


async def _at_once(writer: Writer, call: Callable[..., T], *args: Any, **how: Any) -> T:
    await asyncio.sleep(0)  # others may come in between, as they may while a thread works
    return call(*args, **how)


Look = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[Engine, Look]]:
    """A database in memory, and a way to ask it past the store. Power is not cut here, so nothing is synced."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        file = Path(folder) / "frontdesk.db"
        file.write_bytes(migrated())
        engine = open_engine(f"sqlite:///{file}")
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        looking = driver().connect(file)
        yield engine, lambda query: looking.execute(query).fetchall()
        looking.close()
        engine.dispose()


@contextmanager
def emptied(engine: Engine) -> Iterator[Engine]:
    """The same database without a row, spoken to without a thread: a new one would compile every statement anew."""
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        connection.exec_driver_sql("DELETE FROM sqlite_sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "__call__", _at_once)
        yield engine
