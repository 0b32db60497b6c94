"""Tokens and jobs: what is to be done has a token, whatever happens to transactions, connections and workers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.schema import SchemaManager
from sqlalchemy import Engine, select, text

from bot.config import Secrets, parse
from bot.errors import ConfigError
from bot.messages import OutboundKind
from bot.queue import procrastinate
from bot.queue.procrastinate import ProcrastinateQueue
from bot.queue.work import Knobs
from bot.store import jobs
from bot.store.database import Writer, open_engine, upgrade
from bot.store.jobs import Claim, JobKind
from bot.store.reader import Reader
from bot.store.schema import JobRow
from bot.store.store import Store, utc_now
from bot.store.tokens import TokenStore
from bot.store.values import Say, Settlement
from tests.conftest import inbound, until
from tests.unit.test_queue import Desk, Post

pytestmark = pytest.mark.parametrize("database_url", ["tokens"], indirect=True)

LEASE = timedelta(seconds=30)
KNOBS = Knobs(concurrency=4, lease=LEASE, max_attempts=3, max_backoff=timedelta(seconds=1))


@pytest.fixture
def live(engine: Engine) -> TokenStore:
    return TokenStore(engine)


@pytest.fixture
async def writer() -> AsyncIterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead workers are found sooner, and the database is asked sooner again."""
    monkeypatch.setattr(procrastinate, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(procrastinate, "STALLED_S", 1)
    monkeypatch.setattr(procrastinate, "SWEEP_S", 0.2)
    monkeypatch.setattr(procrastinate, "AGAIN_S", 0.1)


@asynccontextmanager
async def working(desk: Desk, post: Post | None = None, drain_s: float = 5) -> AsyncIterator[None]:
    assert isinstance(desk.store, TokenStore)
    stop, queue = asyncio.Event(), ProcrastinateQueue(desk.store, desk.writer, **KNOBS)
    handlers = {JobKind.ATTEND: desk} | ({JobKind.DELIVER: post} if post else {})
    run = asyncio.create_task(queue.run(handlers, stop, drain_s))  # type: ignore[arg-type]  # the values are handlers
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(run, 20)


def tokens(engine: Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        query = text("SELECT lock, status::text FROM procrastinate_jobs WHERE lock IS NOT NULL ORDER BY id")
        return [(lock, status) for lock, status in connection.execute(query)]


async def worked_off(engine: Engine, seconds: float = 10) -> None:
    await until(lambda: not tokens(engine) and not Reader(engine).load().jobs, seconds)


def say_in(store: Store, conversations: int, parts: int) -> None:
    """Leave that many things to deliver in each conversation's lane."""
    for number in range(conversations):
        store.accept(inbound(event=str(number), customer=str(number)))
        claim = store.claim(JobKind.ATTEND, LEASE)
        assert claim is not None
        store.finish(claim, Settlement(says=(Say(OutboundKind.REPLY, tuple(map(str, range(parts)))),)))


def test_a_job_and_its_token_are_there_together_or_not_at_all(live: TokenStore, engine: Engine) -> None:
    live.accept(inbound())
    assert tokens(engine) == [("attend:1", "todo")]
    with live._begin() as session:
        session.scalars(select(JobRow)).one().lane = "attend:0"
        jobs.enqueue_attend(session, 1, utc_now())
        session.flush()
        assert session.scalar(text("SELECT count(*) FROM procrastinate_jobs")) == 2
        session.rollback()
    assert tokens(engine) == [("attend:1", "todo")]


async def test_twelve_jobs_in_three_lanes_are_done_in_two_seconds_by_two_workers_and_in_order(
    live: TokenStore, writer: Writer, engine: Engine, database_url: str
) -> None:
    other, other_writer = open_engine(database_url), Writer()
    say_in(live, conversations=3, parts=4)
    posts = [Post(live, writer), Post(TokenStore(other), other_writer)]
    began = time.monotonic()
    async with working(Desk(live, writer), posts[0]), working(Desk(posts[1].store, other_writer), posts[1]):
        await worked_off(engine)
        took = time.monotonic() - began
    print(f"{took:.2f} s, by each {[len(post.sent) for post in posts]}")
    assert took < 2
    for lane in (1, 2, 3):
        said = [text for post in posts for conversation, text in post.sent if conversation == lane]
        assert sorted(said) == ["0", "1", "2", "3"]
        for post in posts:
            mine = [text for conversation, text in post.sent if conversation == lane]
            assert mine == sorted(mine)
    other_writer.close()
    other.dispose()


async def test_what_came_while_no_worker_ran_is_worked_off_later(
    live: TokenStore, writer: Writer, engine: Engine
) -> None:
    for number in range(5):
        live.accept(inbound(event=str(number), customer=str(number)))
    assert len(tokens(engine)) == 5
    desk = Desk(live, writer)
    async with working(desk):
        await worked_off(engine)
    assert len(desk.heard) == 5


async def test_jobs_that_another_queue_left_are_taken_up(live: TokenStore, writer: Writer, engine: Engine) -> None:
    plain = Store(engine)
    say_in(plain, conversations=2, parts=2)
    plain.accept(inbound("more", event="more"))
    with engine.begin() as connection:  # somebody else's
        connection.execute(text("INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('other', 'other')"))
    assert tokens(engine) == []
    desk, post = Desk(live, writer), Post(live, writer)
    async with working(desk, post):
        await worked_off(engine)
    assert (len(desk.heard), len(post.sent)) == (1, 4)


async def test_a_token_waits_as_long_as_its_job_and_no_longer(live: TokenStore, writer: Writer, engine: Engine) -> None:
    attempts: list[float] = []

    async def fail_once(claim: Claim) -> None:
        attempts.append(time.monotonic())
        if claim.attempt == 1:
            raise ValueError("no luck")

    live.accept(inbound())
    async with working(Desk(live, writer, fail_once)):
        await worked_off(engine)
    assert 1 <= attempts[1] - attempts[0] < 1.5


async def test_however_often_workers_stop_in_the_middle_the_token_stays(
    live: TokenStore, writer: Writer, engine: Engine
) -> None:
    attempts = []

    async def endless(claim: Claim) -> None:
        attempts.append(claim.attempt)
        await asyncio.sleep(60)

    live.accept(inbound())
    for stops in range(1, 5):
        async with working(Desk(live, writer, endless), drain_s=0):
            await until(lambda: len(attempts) == stops)  # noqa: B023 - awaited here
        assert tokens(engine) == [("attend:1", "todo")]
    assert attempts == [1, 1, 1, 1]
    desk = Desk(live, writer)
    async with working(desk):
        await worked_off(engine)


async def test_a_worker_whose_connections_are_cut_in_the_middle_of_a_job_works_on(
    live: TokenStore, writer: Writer, engine: Engine, quick: None
) -> None:
    async def cut(claim: Claim) -> None:
        if claim.conversation_id == 1:
            with engine.connect() as connection:
                others = "datname = current_database() AND pid != pg_backend_pid()"
                connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))

    live.accept(inbound(customer="a"))
    desk = Desk(live, writer, cut)
    async with working(desk):
        await until(lambda: bool(desk.heard))
        await writer(live.accept, inbound("and", event="2", customer="a"))
        await writer(live.accept, inbound("then", event="3", customer="b"))
        await worked_off(engine)
    assert sorted(text for _, text in desk.heard) == ["and", "hello", "then"]


async def test_a_worker_that_could_not_say_that_a_token_is_done_keeps_no_customer_waiting(
    live: TokenStore, writer: Writer, engine: Engine, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, cut = JobManager.finish_job, [True]

    async def finish_or_not(manager: JobManager, job: Job, status: Status, delete_job: bool) -> None:
        if cut and cut.pop():
            raise ConnectorException
        await finish(manager, job, status, delete_job)

    monkeypatch.setattr(JobManager, "finish_job", finish_or_not)
    live.accept(inbound())
    desk = Desk(live, writer)
    async with working(desk):
        await until(lambda: bool(desk.heard) and not cut)
        assert tokens(engine) == [("attend:1", "doing")]
        await writer(live.accept, inbound("and", event="2"))
        await worked_off(engine, 5)


async def test_a_token_that_a_dead_worker_holds_is_taken_up_again(
    live: TokenStore, writer: Writer, engine: Engine, quick: None
) -> None:
    live.accept(inbound())
    with engine.begin() as connection:
        dead = "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 hour') RETURNING id"
        worker = connection.scalar(text(dead))
        connection.execute(text(f"UPDATE procrastinate_jobs SET status = 'doing', worker_id = {worker}"))
    async with working(Desk(live, writer)):
        await worked_off(engine)


SLEEPER = """
import asyncio, sys
from bot.store import jobs
from bot.store.database import Writer, open_engine
from bot.store.tokens import TokenStore
from tests.unit.test_queue import Desk
from tests.unit.test_queue_procrastinate import working

async def main():
    async def sleep(claim):
        print("holds", claim.conversation_id, flush=True)
        await asyncio.sleep(600)
    async with working(Desk(TokenStore(open_engine(sys.argv[1])), Writer(), sleep)):
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_what_a_killed_worker_had_in_hand_moves_within_twenty_seconds(
    live: TokenStore, writer: Writer, engine: Engine, database_url: str
) -> None:
    live.accept(inbound())
    dead = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLEEPER, database_url, stdout=asyncio.subprocess.PIPE
    )
    assert dead.stdout is not None
    async with asyncio.timeout(30):
        assert await dead.stdout.readline() == b"holds 1\n"
    desk = Desk(live, writer)
    async with working(desk):
        await asyncio.sleep(5)
        assert desk.heard == [], "it lives"
        dead.kill()
        await dead.wait()
        killed = time.monotonic()
        await writer(live.accept, inbound("still there?", event="2"))
        await until(lambda: len(desk.heard) == 2, 30)
        took = time.monotonic() - killed
        await worked_off(engine)
    print(f"moved on {took:.1f} s after the kill")
    assert took < 20
    assert desk.heard == [(1, "hello"), (1, "still there?")]


# -- its tables ------------------------------------------------------------------------------------


def test_tables_of_an_older_procrastinate_are_brought_up_to_date(empty_postgres: str, database_url: str) -> None:
    old, new = open_engine(empty_postgres), open_engine(database_url)
    migrations = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    known = migrations[:-2]
    for each in known:
        with old.begin() as connection:
            connection.exec_driver_sql(each.read_text("utf-8").replace("%", "%%"))
    with old.begin() as connection:
        connection.exec_driver_sql(f"COMMENT ON TABLE procrastinate_jobs IS '{known[-1].name}'")
    before = functions(old)
    for _ in range(2):
        upgrade(empty_postgres, tokens=True)
        assert functions(old) == functions(new) != before
    old.dispose()
    new.dispose()


def functions(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        names = text("SELECT proname FROM pg_proc WHERE proname LIKE 'procrastinate%'")
        return set(connection.scalars(names))


def test_procrastinate_on_a_file_is_refused_with_what_to_do(database_url: str) -> None:
    with pytest.raises(ConfigError, match=r"needs PostgreSQL but database.url names a file: set database.url"):
        parse({"queue": {"backend": "procrastinate"}}, Secrets())
    parse({"queue": {"backend": "procrastinate"}, "database": {"url": database_url}}, Secrets())


def test_who_has_not_installed_procrastinate_is_told_so(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bot.store.tokens")
    monkeypatch.setitem(sys.modules, "procrastinate", None)
    with pytest.raises(ConfigError, match=r"procrastinate is not installed: pip install 'frontdesk\[postgres\]'"):
        upgrade(database_url, tokens=True)
