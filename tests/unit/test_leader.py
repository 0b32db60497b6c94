"""One of many processes leads, on a real PostgreSQL; who loses the connection stops, and another takes over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from bot.store import leader
from bot.store.database import open_engine
from bot.store.leader import lead
from tests.conftest import only_postgres, only_sqlite

HELD = """FROM pg_locks WHERE locktype = 'advisory' AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRY_S", "LOOK_S"):  # not ANSWER_S: a busy machine is no lost connection
        monkeypatch.setattr(f"bot.store.leader.{name}", getattr(leader, name) / 4)


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What holds a lock is not collected before the test ends, so that a lock is free only where it is let go."""
    taken, take = [], leader._take
    monkeypatch.setattr(leader, "_take", lambda engine, key: taken.append(take(engine, key)) or taken[-1])
    yield
    taken.clear()


class Worker:
    """Notes when it begins and ends."""

    def __init__(self) -> None:
        self.working = asyncio.Event()
        self.began = 0

    async def __call__(self) -> None:
        self.began += 1
        self.working.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.working.clear()


async def until(worker: Worker) -> None:
    async with asyncio.timeout(15):
        await worker.working.wait()


async def cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@only_sqlite
async def test_on_a_file_the_one_process_works_at_once(database_url: str) -> None:
    worker = Worker()
    task = asyncio.create_task(lead(database_url, "poll", worker))
    await until(worker)
    await cancel(task)


@only_postgres
async def test_one_works_and_the_other_waits_until_it_ends(database_url: str) -> None:
    one, other, different = Worker(), Worker(), Worker()
    first = asyncio.create_task(lead(database_url, "poll", one))
    await until(one)
    second = asyncio.create_task(lead(database_url, "poll", other))
    third = asyncio.create_task(lead(database_url, "sweep", different))
    await until(different)
    await asyncio.sleep(0.3)
    assert not other.working.is_set()
    await cancel(first)
    assert not one.working.is_set()
    await until(other)
    await cancel(second, third)


@only_postgres
async def test_who_loses_the_connection_stops_and_another_takes_over(database_url: str) -> None:
    one, other = Worker(), Worker()
    first = asyncio.create_task(lead(database_url, "poll", one))
    await until(one)
    second = asyncio.create_task(lead(database_url, "poll", other))
    engine = open_engine(database_url)
    with engine.begin() as connection:
        assert connection.execute(text(f"SELECT pg_terminate_backend(pid) {HELD}")).all()
    engine.dispose()
    cut = time.monotonic()
    async with asyncio.timeout(15):
        while one.began + other.began < 2:  # noqa: ASYNC110 - whichever of them is first
            await asyncio.sleep(0.02)
    print(f"the lead was taken over after {time.monotonic() - cut:.1f} s")
    assert one.working.is_set() != other.working.is_set()
    await cancel(first, second)


@only_postgres
async def test_what_the_work_raises_ends_the_lead(database_url: str) -> None:
    async def fails() -> None:
        raise ValueError("mend me")

    for _ in range(2):  # the second finds the lock free
        with pytest.raises(ValueError, match="mend me"):
            await asyncio.wait_for(lead(database_url, "poll", fails), 15)


@only_postgres
@pytest.mark.parametrize("moment", ["the lock is being asked for", "it was just won"])
async def test_who_is_cancelled_before_it_works_leaves_no_lock(
    database_url: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered, taken, take = threading.Event(), threading.Event(), threading.Event(), leader._take

    def slowly(engine: Engine, key: int) -> object:
        asked.set()
        answered.wait(30)
        try:
            return take(engine, key)
        finally:
            taken.set()

    monkeypatch.setattr(leader, "_take", slowly)
    task = asyncio.create_task(lead(database_url, "poll", Worker()))
    await asyncio.to_thread(asked.wait)
    engine = open_engine(database_url)

    def locks() -> int:
        with engine.begin() as connection:
            return int(connection.scalar(text(f"SELECT count(*) {HELD}")) or 0)

    if moment == "it was just won":
        answered.set()
        async with asyncio.timeout(15):
            while not locks():  # noqa: ASYNC110 - the server cannot tell
                await asyncio.sleep(0.02)
    await cancel(task)
    answered.set()
    await asyncio.to_thread(taken.wait)
    async with asyncio.timeout(15):
        while locks():  # noqa: ASYNC110 - it notices a closed connection a moment later
            await asyncio.sleep(0.02)
    assert task.cancelled()
    engine.dispose()
