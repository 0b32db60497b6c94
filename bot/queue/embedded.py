"""The queue in the store's own tables: claims with a lease and a fencing token, retries with a capped back-off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from datetime import timedelta

import structlog

from bot.errors import DatabaseUnavailable, LeaseLost
from bot.queue import Handler
from bot.store.database import Writer
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store

Task = asyncio.Task[None]

log = structlog.get_logger(__name__)

IDLE_POLL_S = 0.5
"""How long a due retry may go unnoticed; new jobs wake the queue at once."""


def backoff(attempt: int, cap: timedelta) -> timedelta:
    """1, 2, 4 ... seconds after attempt 1, 2, 3 ..., never more than `cap`."""
    return min(cap, timedelta(seconds=2.0 ** min(attempt - 1, 30)))


class EmbeddedQueue:
    """Runs handlers over the jobs of one SQLite store, `concurrency` of each kind at a time."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        *,
        concurrency: int,
        lease: timedelta,
        max_attempts: int,
        max_backoff: timedelta,
    ) -> None:
        self._store = store
        self._writer = writer
        self._concurrency = concurrency
        self._lease = lease
        self._max_attempts = max_attempts
        self._max_backoff = max_backoff
        self._wakers = {kind: asyncio.Event() for kind in JobKind}
        self._working: dict[Claim, Task] = {}

    def wake(self) -> None:
        """There may be something to do. To be called on the event loop."""
        for waker in self._wakers.values():
            waker.set()

    async def run(self, handlers: Mapping[JobKind, Handler], stop: asyncio.Event, drain_s: float) -> None:
        """Work until `stop`; then finish what runs within `drain_s` seconds and release the rest.

        What was answered while stopping is still delivered; what was not begun waits for the next start.
        """
        freed = await self._writer(self._store.recover)
        if freed:
            log.warning("jobs of a dead process are taken up again", jobs=freed)
        closing = {kind: asyncio.Event() for kind in handlers}
        async with asyncio.TaskGroup() as tasks:
            serving = {kind: tasks.create_task(self._serve(kind, handlers[kind], closing[kind])) for kind in handlers}
            keeper = tasks.create_task(self._keep_leases())
            await stop.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._drain(closing, serving)
            await self._release(serving.values())
            keeper.cancel()

    async def _serve(self, kind: JobKind, handler: Handler, closing: asyncio.Event) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        while True:
            await slots.acquire()
            claim = await self._next(kind, closing)
            if claim is None:
                return
            self._start(handler, claim, slots)

    def _start(self, handler: Handler, claim: Claim, slots: asyncio.Semaphore) -> None:
        def done(_: Task) -> None:
            del self._working[claim]
            slots.release()
            self.wake()  # the lane is free

        task = asyncio.create_task(self._work(handler, claim), name=f"{claim.kind} {claim.conversation_id}")
        self._working[claim] = task
        task.add_done_callback(done)

    async def _next(self, kind: JobKind, closing: asyncio.Event) -> Claim | None:
        """The next claim; None once closing, for deliveries only when none is due any more.

        A database that is away for a while is waited for.
        """
        waker = self._wakers[kind]
        while True:
            waker.clear()
            if closing.is_set() and kind is JobKind.ATTEND:
                return None
            try:
                claim = await self._writer(self._store.claim, kind, self._lease)
            except DatabaseUnavailable as error:
                log.error("the queue cannot reach the database", error=str(error))
                claim = None
            if claim is not None or closing.is_set():
                return claim
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_POLL_S):
                    await waker.wait()

    async def _work(self, handler: Handler, claim: Claim) -> None:
        with structlog.contextvars.bound_contextvars(
            job=claim.job_id, kind=claim.kind, conversation=claim.conversation_id, attempt=claim.attempt
        ):
            try:
                await self._attempt(handler, claim)
            except LeaseLost as error:
                log.warning("result thrown away", error=str(error))
            except DatabaseUnavailable as error:
                log.error("the database is away; the lease will run out", error=str(error))

    async def _attempt(self, handler: Handler, claim: Claim) -> None:
        if claim.attempt > self._max_attempts:  # the process died in the middle of the last one
            await handler.bury(claim, "the process died during every attempt")
            return
        try:
            await handler(claim)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._writer(self._store.release, claim))
            raise
        except Exception as error:  # whatever it was, the job must go on or be buried
            await self._failed(handler, claim, error)

    async def _failed(self, handler: Handler, claim: Claim, error: Exception) -> None:
        what = f"{type(error).__name__}: {error}"
        if claim.attempt >= self._max_attempts:
            log.error("failed for good", error=what, exc_info=error)
            await handler.bury(claim, what)
            return
        delay = backoff(claim.attempt, self._max_backoff)
        log.warning("failed, will be tried again", error=what, seconds=delay.total_seconds(), exc_info=error)
        await self._writer(self._store.retry, claim, delay, what)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            with contextlib.suppress(DatabaseUnavailable):
                for claim in await self._writer(self._store.renew, list(self._working), self._lease):
                    log.warning("lease lost", job=claim.job_id)

    async def _drain(self, closing: Mapping[JobKind, asyncio.Event], serving: Mapping[JobKind, Task]) -> None:
        """Attending ends before delivering does."""
        if self._working:
            log.info("finishing what runs", jobs=len(self._working))
        for kind in closing:
            closing[kind].set()
            self.wake()
            await asyncio.wait([serving[kind]])
            while running := [task for claim, task in self._working.items() if claim.kind is kind]:
                await asyncio.wait(running)

    async def _release(self, serving: Iterable[Task]) -> None:
        left = list(self._working.values())
        for task in (*serving, *left):
            task.cancel()
        if left:
            await asyncio.wait(left)
            log.info("released", jobs=len(left))
