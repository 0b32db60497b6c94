"""Who works off the jobs. A handler does one kind of job; the queue decides when, how often, and when to give up."""

from __future__ import annotations

from typing import Protocol

from bot.store.jobs import Claim


class Handler(Protocol):
    """Does one kind of job."""

    async def __call__(self, claim: Claim) -> None:
        """Do it, and settle the job in the transaction that stores the result. Any exception means a retry."""
        ...

    async def bury(self, claim: Claim, error: str) -> None:
        """The last attempt failed: end the job without silence."""
        ...
