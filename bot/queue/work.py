"""What every queue does with a claim: it is held, attempted, retried with a capped back-off, buried or released."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TypedDict, Unpack

import structlog

from bot.errors import DatabaseUnavailable, LeaseLost
from bot.queue import Handler
from bot.store.database import Writer
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store

Task = asyncio.Task[None]

log = structlog.get_logger(__name__)


def backoff(attempt: int, cap: timedelta) -> timedelta:
    """1, 2, 4 ... seconds after attempt 1, 2, 3 ..., never more than `cap`."""
    return min(cap, timedelta(seconds=2.0 ** min(attempt - 1, 30)))


class Knobs(TypedDict):
    """How a queue works: `concurrency` of each kind at a time, a job is buried after `max_attempts`."""

    concurrency: int
    lease: timedelta
    max_attempts: int
    max_backoff: timedelta


class Work(ABC):
    """Works off the jobs of one store; a subclass says where they come from."""

    def __init__(self, store: Store, writer: Writer, **knobs: Unpack[Knobs]) -> None:
        self._store = store
        self._writer = writer
        self._concurrency = knobs["concurrency"]
        self._lease = knobs["lease"]
        self._max_attempts = knobs["max_attempts"]
        self._max_backoff = knobs["max_backoff"]
        self._working: dict[Claim, Task] = {}

    @abstractmethod
    def wake(self) -> None:
        """As JobQueue says."""

    @abstractmethod
    async def _serve(self, kind: JobKind, handler: Handler, closing: asyncio.Event) -> None:
        """Work on one kind of job until `closing`, what runs then may go on; or until cancelled."""

    async def run(self, handlers: Mapping[JobKind, Handler], stop: asyncio.Event, drain_s: float) -> None:
        """As JobQueue says."""
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
