"""Who works off the jobs. A handler does one kind of job; the queue decides when, how often, and when to give up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from bot.store.jobs import Claim, JobKind


class Handler(Protocol):
    """Does one kind of job."""

    async def __call__(self, claim: Claim) -> None:
        """Do it, and settle the job in the transaction that stores the result. Any exception means a retry."""
        ...

    async def bury(self, claim: Claim, error: str) -> None:
        """The last attempt failed: end the job without silence."""
        ...


class JobQueue(Protocol):
    """Hands the jobs of the store to handlers: of each lane one at a time, and in order."""

    def wake(self) -> None:
        """There may be something to do. To be called on the event loop."""
        ...

    async def run(self, handlers: Mapping[JobKind, Handler], stop: asyncio.Event, drain_s: float) -> None:
        """Work until `stop`; then finish what runs within `drain_s` seconds and release the rest.

        What was answered while stopping is still delivered; what was not begun waits for the next start.
        """
        ...
