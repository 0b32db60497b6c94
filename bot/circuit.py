"""Whether the engine is asked at all: after repeated failures it is left alone, until a try succeeds. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAILURES, WITHIN_S = 3, 60.0
"""So many failures within so many seconds, and no success among them, open the circuit."""
PROBE_EVERY_S = 30.0
"""While it is open, how often the engine is tried."""


class Circuit:
    """Closed while the engine is asked. Open, it lets one try through now and then; only a success closes it.

    `clock` gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._now = clock
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._tried_at: float | None = None  # None while it is closed

    @property
    def is_open(self) -> bool:
        return self._tried_at is not None

    def lets_through(self) -> bool:
        """Whether the engine may be asked now. While it is open a yes is the probe: whoever gets it must ask."""
        now = self._now()
        if self._tried_at is None:
            return True
        if now - self._tried_at < PROBE_EVERY_S:
            return False
        self._tried_at = now
        return True

    def failed(self) -> bool:
        """The engine failed. Returns whether this opened the circuit."""
        now = self._now()
        self._failures.append(now)
        if self.is_open or len(self._failures) < FAILURES or now - self._failures[0] > WITHIN_S:
            return False
        self._tried_at = now
        return True

    def succeeded(self) -> bool:
        """The engine answered. Returns whether this closed the circuit."""
        closed = self.is_open
        self._tried_at = None
        self._failures.clear()  # one message that it fails on must not keep it from all that it answers
        return closed
