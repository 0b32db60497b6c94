"""What the queue costs: messages a minute from accepted to outcome stored, by 1, 2 and 4 worker processes.

    python -m tests.promises.bench_workers

On PostgreSQL, with both queues, in one run. The model is a handler that answers every waiting line at once with one
reply, and sending costs nothing. All messages, each in a conversation of its own, wait when the workers begin, which
have imported everything by then; answers are delivered meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from datetime import timedelta
from itertools import product
from statistics import median

from sqlalchemy import text

from bot.messages import OutboundKind
from bot.queue import Handler, JobQueue
from bot.queue.embedded import EmbeddedQueue
from bot.queue.procrastinate import ProcrastinateQueue
from bot.queue.work import Knobs
from bot.store.database import Writer, open_engine, upgrade
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.tokens import TokenStore
from bot.store.values import Say
from tests.conftest import empty, inbound, new_postgres
from tests.unit.test_queue import Desk, Post

MESSAGES, ROUNDS = 500, 3
BACKENDS, WORKERS = ("embedded", "procrastinate"), (1, 2, 4)
KNOBS = Knobs(concurrency=8, lease=timedelta(seconds=20), max_attempts=3, max_backoff=timedelta(seconds=30))


async def work(url: str, backend: str) -> None:
    """One worker process, until its input ends."""
    engine, writer, stop = open_engine(url), Writer(), asyncio.Event()
    queue: JobQueue
    if backend == "embedded":
        store = Store(engine)
        queue = EmbeddedQueue(store, writer, **KNOBS)
    else:
        store = TokenStore(engine)
        queue = ProcrastinateQueue(store, writer, **KNOBS)
    desk = Desk(store, writer, says=(Say(OutboundKind.REPLY, ("answer",)),))
    handlers: dict[JobKind, Handler] = {JobKind.ATTEND: desk, JobKind.DELIVER: Post(store, writer)}
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    running = asyncio.create_task(queue.run(handlers, stop, 5))
    await asyncio.to_thread(sys.stdin.readline)
    stop.set()
    await running
    writer.close()


async def measure(url: str, backend: str, workers: int) -> float:
    """Messages a minute, until all have an outcome."""
    engine = open_engine(url)
    empty(engine)
    store = Store(engine) if backend == "embedded" else TokenStore(engine)
    for number in range(MESSAGES):
        store.accept(inbound(event=str(number), customer=str(number)))
    command = (sys.executable, "-m", __spec__.name, url, backend)
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    processes = [await asyncio.create_subprocess_exec(*command, **pipes) for _ in range(workers)]
    for process in processes:
        await process.stdout.readline()
    began = time.monotonic()
    for process in processes:
        process.stdin.write(b"go\n")
    left = text("SELECT count(*) FROM messages WHERE outcome IS NULL AND author = 'customer'")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(left):  # noqa: ASYNC110 - other processes' work
            await asyncio.sleep(0.05)
    took = time.monotonic() - began
    for process in processes:
        process.stdin.write(b"end\n")
        process.stdin.close()
        await process.wait()
    engine.dispose()
    return MESSAGES / took * 60


async def main() -> None:
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with new_postgres("bench") as url:
        upgrade(url, tokens=True)
        for _ in range(ROUNDS):
            for backend, workers in product(BACKENDS, WORKERS):
                rates[backend, workers].append(await measure(url, backend, workers))
    print(f"messages a minute; {MESSAGES} messages, median of {ROUNDS} rounds (least to most)")
    print("| queue | 1 worker | 2 workers | 4 workers |")
    for backend in BACKENDS:
        shown = [rates[backend, workers] for workers in WORKERS]
        cells = [f"{median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in shown]
        print(f"| {backend} | {' | '.join(cells)} |")


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]) if len(sys.argv) > 1 else main())
