"""Who computes: torch's helpers belong to the thread that called them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Found = TypeVar("Found")


def apart(work: Callable[[], Found]) -> Found:
    """What `work` returns, done on a thread that ends with it, and torch's helpers with the thread.

    Each thread that computes keeps helpers of its own, as long as it lives. Once all threads together have more of them
    than the machine has cores, OpenMP lets every one sleep between two pieces of work instead of waiting awake
    (gomp_managed_threads in libgomp), and a step of the engine took 1.8 times as long. So in the process that serves,
    nothing but the engine's thread may go on living after it has computed. What it has freed goes back to the system.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work).result()
    finally:
        give_back()


def give_back() -> None:
    """Return what was freed to the system. glibc keeps it for later: 200 to 600 MB after a model was loaded, 280 MB
    after 16 conversations at once. Takes milliseconds; does nothing where another library gives memory out.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
