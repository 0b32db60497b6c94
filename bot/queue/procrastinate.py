"""Jobs handed out by Procrastinate, for many workers on many machines: a token of its says which lane to see to.

What is to be done stays in the table of jobs, with its lease and its fence; bot/store/tokens.py says how the two agree,
docs/decisions/0011-procrastinate-hands-out-tokens.md why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import structlog
from procrastinate import App, BaseRetryStrategy, PsycopgConnector, RetryDecision
from procrastinate.connector import BaseConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.worker import Worker

from bot.errors import DatabaseUnavailable
from bot.queue import Handler
from bot.queue.work import Work
from bot.store.database import GONE_IS_NOTICED
from bot.store.jobs import Claim, JobKind
from bot.store.tokens import TokenStore

log = structlog.get_logger(__name__)

POLL_S = 0.2
"""Nothing wakes a worker when a lock becomes free, or when a token's time has come; new tokens do."""
HEARTBEAT_S, STALLED_S, SWEEP_S = 2, 10, 5
"""A worker that was killed keeps the locks of its tokens until a sweep finds that its heart stopped."""
LONGEST_LEASE = timedelta(seconds=STALLED_S)
"""The job of a killed worker shall be free when its token is."""
OPEN_S, AGAIN_S = 5.0, 1.0
"""How long the database may take to answer a worker that starts; and between two tries."""


class ProcrastinateQueue(Work):
    """Runs handlers over the lanes that tokens name, `concurrency` of each kind at a time."""

    _store: TokenStore
    _drain_s: float

    def wake(self) -> None:
        """The database does, when a token is committed."""

    async def run(self, handlers: Mapping[JobKind, Handler], stop: asyncio.Event, drain_s: float) -> None:
        """As JobQueue says; of deliveries that other workers have in hand it waits for none."""
        self._lease, self._drain_s = min(self._lease, LONGEST_LEASE), drain_s
        await super().run(handlers, stop, drain_s)

    async def _serve(self, kind: JobKind, handler: Handler, closing: asyncio.Event) -> None:
        while not closing.is_set():
            await self._live(kind, handler, closing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await closing.wait()
        if kind is JobKind.DELIVER:
            await self._live(kind, handler, asyncio.Event(), wait=False)

    async def _live(self, kind: JobKind, handler: Handler, closing: asyncio.Event, *, wait: bool = True) -> None:
        """A worker of Procrastinate's, until `closing` or an error; or, not to `wait`, as long as there are tokens."""
        app = App(connector=PsycopgConnector(conninfo=self._store.server(), kwargs=GONE_IS_NOTICED, min_size=1))

        @app.task(name=kind.value, queue=kind.value, retry=_UntilDone())
        async def see_to(lane: str) -> None:
            await self._see_to(lane, kind, handler, closing)

        worker = Worker(
            app,
            [kind.value],
            concurrency=self._concurrency,
            wait=wait,
            fetch_job_polling_interval=POLL_S,
            shutdown_graceful_timeout=self._drain_s,
            delete_jobs="always",
            install_signal_handlers=False,
            update_heartbeat_interval=HEARTBEAT_S,
            stalled_worker_timeout=STALLED_S,
        )
        app.job_manager = _Manager(app.connector, worker)
        beside = list[asyncio.Task[None]]()
        try:
            async with asyncio.timeout(OPEN_S):
                await app.open_async()
            for each in (self._sweep(app.connector, kind), _stop(worker, closing)):
                beside.append(asyncio.create_task(each))
            await worker.run()
        except (ConnectorException, psycopg.Error, TimeoutError) as error:
            log.error("the queue cannot reach the database", error=str(error.__cause__ or error))
        finally:
            for task in beside:
                task.cancel()
            await app.close_async()

    async def _see_to(self, lane: str, kind: JobKind, handler: Handler, closing: asyncio.Event) -> None:
        """What a token asks for. Raises _Later when something is left that is not due, or that others may do."""
        while (wait := await self._writer(self._store.due, lane)) is not None:
            if wait > timedelta(0) or closing.is_set():
                raise _Later(wait)
            claim = await self._writer(self._store.claim_in, lane, kind, self._lease)
            if claim is None:
                raise _Later(timedelta(seconds=POLL_S))
            await self._hold(handler, claim)

    async def _hold(self, handler: Handler, claim: Claim) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - narrows the type, a coroutine runs in one
        self._working[claim] = task
        try:
            await self._work(handler, claim)
        finally:
            del self._working[claim]

    async def _sweep(self, connector: BaseConnector, kind: JobKind) -> None:
        """Free the tokens of dead workers, and see that no lane lacks one."""
        manager = JobManager(connector)
        while True:
            try:
                if given := await self._writer(self._store.hand_out, kind):
                    log.info("jobs of another queue are taken up", kind=kind, lanes=given)
                for token in await manager.get_stalled_jobs(queue=kind.value, seconds_since_heartbeat=STALLED_S):
                    log.warning("a token of a dead worker is taken up again", lane=token.lock)
                    await manager.retry_job(token)
            except (ConnectorException, DatabaseUnavailable) as error:  # or another process was first
                log.warning("not swept", error=str(error.__cause__ or error))
            await asyncio.sleep(SWEEP_S)


class _Manager(JobManager):
    """Ends the worker when it could not say what became of a token: no sweep takes one from a worker that lives."""

    def __init__(self, connector: BaseConnector, worker: Worker) -> None:
        super().__init__(connector)
        self._worker = worker

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        with self._said():
            await super().finish_job(job, status, delete_job)

    async def retry_job(self, job: Job, *args: Any, **how: Any) -> None:
        with self._said():
            await super().retry_job(job, *args, **how)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except ConnectorException:
            self._worker.stop()
            raise


class _Later(Exception):
    """The lane is to be seen to again in a while."""

    def __init__(self, wait: timedelta) -> None:
        super().__init__(f"again in {wait.total_seconds():.1f} s")
        self.wait = wait


class _UntilDone(BaseRetryStrategy):
    """Whatever happens to who sees to a lane, the token is there for the next one, as often as it takes."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        if isinstance(exception, _Later):
            return RetryDecision(retry_at=datetime.now(UTC) + exception.wait)
        if isinstance(exception, asyncio.CancelledError):
            return RetryDecision()
        return RetryDecision(retry_in={"seconds": 1})


async def _stop(worker: Worker, closing: asyncio.Event) -> None:
    await closing.wait()
    worker.stop()
