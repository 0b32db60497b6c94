"""Who computes: torch's helpers belong to the thread that called them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Found = TypeVar("Found")


def apart(work: Callable[[], Found]) -> Found:
    """What `work` returns, done on a thread that ends with it, and torch's helpers with the thread.

    Each thread that computes keeps helpers of its own, as long as it lives. Once all threads together have more of them
    than the machine has cores, OpenMP lets every one sleep between two pieces of work instead of waiting awake
    (gomp_managed_threads in libgomp), and a step of the engine took 1.8 times as long. So in the process that serves,
    nothing but the engine's thread may go on living after it has computed.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
