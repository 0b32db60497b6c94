"""What the platforms inside this process have in common: nothing connects, and nothing comes by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from bot.messages import Inbox


class LocalAdapter:
    """Half of an adapter; the other half says where words go. `emoji` shows a label's mood."""

    asks_first = False

    def __init__(self, emoji: Callable[[str], str]) -> None:
        self._emoji = emoji
        self._inbox: asyncio.Future[Inbox] | None = None

    @property
    def last_contact(self) -> float | None:
        return time.time()

    async def run(self, inbox: Inbox) -> None:
        """Nothing comes from outside: whoever is local is handed the inbox."""
        self._given().set_result(inbox)
        await asyncio.Event().wait()

    async def inbox(self) -> Inbox:
        """The way in, once the front desk runs."""
        return await self._given()

    def split(self, text: str) -> Sequence[str]:
        return [text]

    def _given(self) -> asyncio.Future[Inbox]:
        if self._inbox is None:
            self._inbox = asyncio.get_running_loop().create_future()
        return self._inbox
