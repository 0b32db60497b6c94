"""The queue in the store's own tables: it looks there for what is due, and is woken by what is new."""

from __future__ import annotations

import asyncio
import contextlib
from functools import cached_property

import structlog

from bot.errors import DatabaseUnavailable
from bot.queue import Handler
from bot.queue.work import Task, Work
from bot.store.jobs import Claim, JobKind

log = structlog.get_logger(__name__)

IDLE_POLL_S = 0.2
"""How long a due retry, or another process's job, may go unnoticed; new jobs of this one wake the queue at once."""


class EmbeddedQueue(Work):
    """Runs handlers over the jobs of one store, `concurrency` of each kind at a time."""

    @cached_property
    def _wakers(self) -> dict[JobKind, asyncio.Event]:
        return {kind: asyncio.Event() for kind in JobKind}

    def wake(self) -> None:
        """There may be something to do. To be called on the event loop."""
        for waker in self._wakers.values():
            waker.set()

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
                in_hand = [each.job_id for each in self._working]
                claim = await self._writer(self._store.claim, kind, self._lease, in_hand)
            except DatabaseUnavailable as error:
                log.error("the queue cannot reach the database", error=str(error))
                claim = None
            if claim is not None or closing.is_set():
                return claim
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_POLL_S):
                    await waker.wait()
