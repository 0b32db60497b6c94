"""Keeping what customers said no longer than the shop wants to: a sweep beside the service's other work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from bot.store.database import Writer
from bot.store.store import Clock, Store, utc_now
from engine.types import Engine

log = structlog.get_logger(__name__)

EVERY = timedelta(days=1)
AT_ONCE = 20
"""Customers erased by one call: those who are here wait for the database meanwhile, and live cards for old ones."""


class Retention:
    """Erases customers who have been silent for longer than `keep`, as if each had written /forget. `on_change` wakes
    the queue: agents' cards are to be emptied."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        engine: Engine | None,
        keep: timedelta,
        on_change: Callable[[], None],
        clock: Clock = utc_now,
    ) -> None:
        """`keep` of 0 is for ever."""
        self._store = store
        self._writer = writer
        self._engine = engine
        self._keep = keep
        self._on_change = on_change
        self._now = clock
        self._next: datetime | None = None

    async def sweep(self) -> None:
        """Erase some of those who are due, once a day all of them. To be called now and then.

        Raises DatabaseUnavailable.
        """
        now = self._now()
        if not self._keep or (self._next is not None and now < self._next):
            return
        before = now - self._keep
        due = await self._writer(self._store.silent, before, AT_ONCE)
        for customer in due:
            for conversation in await self._writer(self._store.erase_silent, customer, before):
                if self._engine is not None and self._engine.alive:
                    await self._engine.forget(str(conversation))
        # also where nothing was due: a crash may have come between the last erasing and this
        await self._writer(self._store.leave_no_trace)
        if len(due) < AT_ONCE:
            self._next = now + EVERY
        if due:
            log.info("erased, silent for too long", customers=len(due))
            self._on_change()
