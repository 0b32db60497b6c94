"""One process among many: work that only one may do at a time, as long as it holds a lock of the database server.

A PostgreSQL advisory lock belongs to a connection and is free as soon as that is gone, so a process that dies leaves
nothing to clean up. Who holds one asks every second whether the connection still stands, and stops when it does not.
Whoever comes next gives it the time to notice, and the server takes longer than that to give a silent connection up, so
that two never work at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from bot.store.database import is_file, open_engine, why

log = structlog.get_logger(__name__)

TRY_S = 2.0
"""Between two tries to take the lead."""
LOOK_S, ANSWER_S = 1.0, 2.0
"""Between two looks at the connection, and how long its answer may take."""
_SERVER_GIVES_UP = {"tcp_keepalives_idle": 5, "tcp_keepalives_interval": 2, "tcp_keepalives_count": 3}
"""Seconds; of the server's side of the connection, which without them waits for hours."""


@dataclass(frozen=True, slots=True)
class _Lock:
    """It is let go by closing `driver`, on which `connection` stands: SQLAlchemy's close() waits for what
    still runs, and its invalidate() leaves a detached connection open until that is collected.
    """

    connection: Connection
    driver: Any


async def lead(url: str, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, until cancelled, whenever no other process does work of this name on the database.

    A file has one process, which works at once. `work` is cancelled when the lead is lost, and begun anew when it is
    won again. Raises what `work` raises; ConfigError as open_engine() does.
    """
    if is_file(url):
        await work()
        return
    engine, thread = open_engine(url), ThreadPoolExecutor(1)
    try:
        while True:
            async with _held(thread, engine, _key(name)) as held:
                if held is not None:
                    await asyncio.sleep(LOOK_S + ANSWER_S)  # who held it before may not know yet
                    log.info("leading", what=name)
                    await _work(held, work)
                    log.warning("no longer leading", what=name)
            await asyncio.sleep(TRY_S)
    finally:
        thread.shutdown(wait=False)
        engine.dispose()


@asynccontextmanager
async def _held(thread: Executor, engine: Engine, key: int) -> AsyncIterator[_Lock | None]:
    """As _take() says; the lock is free afterwards, also where it was won for somebody who had been cancelled."""
    taking = thread.submit(_take, engine, key)
    try:
        yield await asyncio.wrap_future(taking)
    finally:
        taking.add_done_callback(_let_go)  # at once, or by the thread, which nobody can stop


def _let_go(taken: Future[_Lock | None]) -> None:
    if not taken.cancelled() and taken.exception() is None and (held := taken.result()):
        held.driver.close()


async def _work(held: _Lock, work: Callable[[], Awaitable[None]]) -> None:
    working, watching = asyncio.ensure_future(work()), asyncio.ensure_future(_until_lost(held))
    both = (working, watching)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)


async def _until_lost(held: _Lock) -> None:
    try:
        while True:
            await asyncio.sleep(LOOK_S)
            async with asyncio.timeout(ANSWER_S):
                await asyncio.to_thread(held.connection.execute, text("SELECT 1"))
    except (SQLAlchemyError, TimeoutError):
        return


def _take(engine: Engine, key: int) -> _Lock | None:
    """A connection that holds the lock, None while another one does or the server is away."""
    try:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        for name, value in _SERVER_GIVES_UP.items():
            connection.exec_driver_sql(f"SET {name} = {value}")
        if connection.scalar(select(func.pg_try_advisory_lock(key))):
            return _Lock(connection, connection.connection.dbapi_connection)
        connection.close()
    except SQLAlchemyError as error:
        log.error("the database is away", error=why(error))
    return None


def _key(name: str) -> int:
    """64 bits, signed, as PostgreSQL numbers its advisory locks."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], signed=True)
