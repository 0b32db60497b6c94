"""A platform in memory: records what is sent and previewed, and fails as a test plans it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bot.messages import Delivery, Inbox, OutboundKind, OutboundMessage, Platform, Preview


class RecordingAdapter:
    """`plan` holds an exception or None for each of the next sends, `begins` the id of the message previews begin.

    While a test holds `lock`, nothing is sent.
    """

    asks_first = False
    last_contact: float | None = None

    def __init__(self, platform: Platform = Platform.TELEGRAM, limit: int = 4096) -> None:
        self.platform = platform
        self.limit = limit
        self.sent: list[OutboundMessage] = []
        self.previews: list[Preview] = []
        self.plan: list[Exception | None] = []
        self.begins = ""
        self.members: set[str] | Exception = set()
        self.inbox: Inbox | None = None
        self.lock = asyncio.Lock()

    async def run(self, inbox: Inbox) -> None:
        self.inbox = inbox
        await asyncio.Event().wait()

    async def send(self, message: OutboundMessage) -> Delivery:
        async with self.lock:
            fault = self.plan.pop(0) if self.plan else None
        if fault is not None:
            raise fault
        self.sent.append(message)
        return Delivery(message.edits or f"p{len(self.sent)}")

    async def preview(self, preview: Preview) -> str:
        self.previews.append(preview)
        return self.begins if preview.text and not preview.begun else ""

    async def is_member(self, chat: str, person: str) -> bool:
        if isinstance(self.members, Exception):
            raise self.members
        return person in self.members

    def split(self, text: str) -> Sequence[str]:
        return [text[start : start + self.limit] for start in range(0, len(text), self.limit)]

    def said(self, kind: OutboundKind | None = None) -> list[str]:
        """The texts that were sent, cards excluded unless asked for."""
        wanted = {kind} if kind else {OutboundKind.REPLY, OutboundKind.NOTICE}
        return [message.text for message in self.sent if message.kind in wanted]
