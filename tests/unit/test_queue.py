"""What every queue promises, on a real store: order, exclusion, retries, burial, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from bot.conversation import Outcome
from bot.messages import Delivery, OutboundKind, Receipt
from bot.queue import Handler, JobQueue
from bot.queue.embedded import EmbeddedQueue
from bot.queue.procrastinate import ProcrastinateQueue
from bot.queue.work import Knobs, backoff
from bot.store.database import Writer
from bot.store.jobs import Claim, JobKind
from bot.store.reader import Reader
from bot.store.store import Store
from bot.store.tokens import TokenStore
from bot.store.values import Say, Settlement, Verdict
from tests.conftest import inbound, until

both_queues = pytest.mark.parametrize(
    ("database_url", "embedded"), [("sqlite", True), ("postgresql", True), ("tokens", False)], indirect=["database_url"]
)
QUICK = timedelta(seconds=0.02)


class Desk:
    """A handler that answers every waiting line, and keeps a diary of what it did and what ran beside it."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        before: Callable[[Claim], Awaitable[None]] | None = None,
        says: tuple[Say, ...] = (),
    ) -> None:
        self.store, self.writer, self.before, self.says = store, writer, before, says
        self.heard: list[tuple[int, str]] = []
        self.running: list[int] = []
        self.together: set[frozenset[int]] = set()
        self.buried: list[tuple[int, str]] = []

    async def __call__(self, claim: Claim) -> None:
        assert claim.conversation_id not in self.running, "two jobs of one conversation at once"
        self.running.append(claim.conversation_id)
        self.together.add(frozenset(self.running))
        try:
            if self.before:
                await self.before(claim)
            waiting = await self.writer(self.store.waiting, claim)
            verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in waiting.lines)
            await self.writer(self.store.finish, claim, Settlement(verdicts, self.says))
            self.heard += [(claim.conversation_id, line.text) for line in waiting.lines]
        finally:
            self.running.remove(claim.conversation_id)

    async def bury(self, claim: Claim, error: str) -> None:
        waiting = await self.writer(self.store.waiting, claim)
        verdicts = tuple(Verdict(line.id, Outcome.DEAD) for line in waiting.lines)
        await self.writer(self.store.bury_attend, claim, Settlement(verdicts), error)
        self.buried.append((claim.attempt, error))


@pytest.fixture
def live(engine: Engine, embedded: bool) -> Store:
    return Store(engine) if embedded else TokenStore(engine)


@pytest.fixture
async def writer() -> AsyncIterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


class Post:
    """A handler that delivers, and keeps what it delivered."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self.store, self.writer = store, writer
        self.sent: list[tuple[int, str]] = []

    async def __call__(self, claim: Claim) -> None:
        sending = await self.writer(self.store.begin_send, claim)
        assert sending is not None
        await self.writer(self.store.sent, claim, Delivery("p"))
        self.sent.append((claim.conversation_id, sending.message.text))

    async def bury(self, claim: Claim, error: str) -> None:
        raise AssertionError(error)


@asynccontextmanager
async def working(
    desk: Desk,
    drain_s: float = 5,
    lease: timedelta = timedelta(seconds=30),
    post: Post | None = None,
    concurrency: int = 4,
) -> AsyncIterator[JobQueue]:
    knobs = Knobs(concurrency=concurrency, lease=lease, max_attempts=3, max_backoff=QUICK)
    make = ProcrastinateQueue if isinstance(desk.store, TokenStore) else EmbeddedQueue
    queue: JobQueue = make(desk.store, desk.writer, **knobs)
    stop = asyncio.Event()
    handlers: dict[JobKind, Handler] = {JobKind.ATTEND: desk} | ({JobKind.DELIVER: post} if post else {})
    run = asyncio.create_task(queue.run(handlers, stop, drain_s))
    try:
        yield queue
    finally:
        stop.set()
        await asyncio.wait_for(run, 20)


@both_queues
async def test_different_conversations_run_side_by_side_and_one_never_twice(live: Store, writer: Writer) -> None:
    both = asyncio.Barrier(2)

    async def meet(claim: Claim) -> None:
        async with asyncio.timeout(5):
            await both.wait()

    for customer in ("a", "b"):
        live.accept(inbound(event=customer, customer=customer))
    desk = Desk(live, writer, meet)
    async with working(desk):
        await until(lambda: len(desk.heard) == 2)
    assert frozenset({1, 2}) in desk.together


@both_queues
async def test_a_failing_job_is_tried_three_times_and_then_buried(live: Store, writer: Writer, engine: Engine) -> None:
    attempts = []

    async def fail(claim: Claim) -> None:
        attempts.append(claim.attempt)
        raise ValueError("no luck")

    live.accept(inbound())
    desk = Desk(live, writer, fail)
    async with working(desk):
        await until(lambda: bool(desk.buried))
    assert attempts == [1, 2, 3]
    assert desk.buried == [(3, "ValueError: no luck")]
    assert Reader(engine).load().jobs == 0


@both_queues
async def test_a_job_that_kills_its_process_every_time_is_buried_without_a_fourth_attempt(
    live: Store, writer: Writer
) -> None:
    live.accept(inbound())
    for _ in range(3):
        live.claim(JobKind.ATTEND, timedelta(0))
        live.recover()
    desk = Desk(live, writer)
    async with working(desk):
        await until(lambda: bool(desk.buried))
    assert desk.heard == []
    assert desk.buried[0][0] == 4


@both_queues
async def test_a_neighbour_of_a_failing_job_is_served(live: Store, writer: Writer) -> None:
    async def fail_one(claim: Claim) -> None:
        if claim.conversation_id == 1:
            raise ValueError("only this one")

    live.accept(inbound("bad", event="1", customer="a"))
    live.accept(inbound("good", event="2", customer="b"))
    desk = Desk(live, writer, fail_one)
    async with working(desk):
        await until(lambda: desk.heard == [(2, "good")] and bool(desk.buried))


@both_queues
async def test_stopping_waits_for_what_runs(live: Store, writer: Writer) -> None:
    started = asyncio.Event()

    async def slow(claim: Claim) -> None:
        started.set()
        await asyncio.sleep(0.2)

    live.accept(inbound())
    desk = Desk(live, writer, slow)
    async with working(desk):
        await started.wait()
    assert desk.heard == [(1, "hello")]


@both_queues
async def test_what_does_not_end_in_time_is_released_and_that_is_not_an_attempt(live: Store, writer: Writer) -> None:
    started = asyncio.Event()

    async def endless(claim: Claim) -> None:
        started.set()
        await asyncio.sleep(60)

    live.accept(inbound())
    desk = Desk(live, writer, endless)
    async with working(desk, drain_s=0.05):
        await started.wait()
    again = await writer(live.claim, JobKind.ATTEND, timedelta(seconds=30))  # after what it still has to do
    assert again is not None
    assert again.attempt == 1


@both_queues
async def test_what_was_answered_while_stopping_is_still_delivered_and_nothing_else_is_begun(
    live: Store, writer: Writer, engine: Engine
) -> None:
    started = asyncio.Event()

    async def while_another_writes(claim: Claim) -> None:
        await writer(live.accept, inbound(event="2", customer="b"))
        started.set()
        await asyncio.sleep(0.3)

    live.accept(inbound())
    parts = tuple(map(str, range(6)))
    desk = Desk(live, writer, while_another_writes, (Say(OutboundKind.REPLY, parts),))
    async with working(desk, post=(post := Post(live, writer)), concurrency=1):
        await started.wait()
    assert desk.heard == [(1, "hello")]
    assert post.sent == [(1, part) for part in parts]
    assert Reader(engine).load().jobs == 1


@both_queues
async def test_what_is_written_to_busy_conversations_is_attended_to_in_order(live: Store, writer: Writer) -> None:
    desk = Desk(live, writer)
    async with working(desk) as queue:
        for number in range(30):
            await writer(live.accept, inbound(str(number), event=str(number), customer="abc"[number % 3]))
            queue.wake()
            await asyncio.sleep(0.005)
        await until(lambda: len(desk.heard) == 30)
    for conversation in (1, 2, 3):
        heard = [int(text) for number, text in desk.heard if number == conversation]
        assert heard == sorted(heard)


@both_queues
async def test_a_long_job_keeps_its_lease(live: Store, writer: Writer) -> None:
    async def longer_than_the_lease(claim: Claim) -> None:
        await asyncio.sleep(0.6)

    live.accept(inbound())
    desk = Desk(live, writer, longer_than_the_lease)
    async with working(desk, lease=timedelta(seconds=0.2)):
        await until(lambda: bool(desk.heard))
    assert desk.heard == [(1, "hello")]


@both_queues
async def test_a_waked_queue_does_not_wait_for_its_poll(
    live: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.queue.embedded.IDLE_POLL_S", 60)
    monkeypatch.setattr("bot.queue.procrastinate.POLL_S", 60)
    desk = Desk(live, writer)
    async with working(desk) as queue:
        await asyncio.sleep(0.05)
        assert (await writer(live.accept, inbound())).receipt is Receipt.ACCEPTED
        queue.wake()
        await until(lambda: bool(desk.heard), 5)


@settings(max_examples=100)
@given(st.integers(1, 1000), st.integers(1, 3600))
def test_back_off_grows_and_is_capped(attempt: int, cap: int) -> None:
    limit = timedelta(seconds=cap)
    assert timedelta(0) < backoff(attempt, limit) <= backoff(attempt + 1, limit) <= limit
