"""An answer on its way to Slack: a status first, then the words, streamed into the message that the answer will be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from adapters.pace import Limit, Pace
from adapters.slack_api import tolerating, verdicts
from adapters.slack_blocks import escape
from adapters.slack_events import ident
from bot.errors import Undeliverable
from bot.messages import Preview

log = structlog.get_logger(__name__)

STREAMS, APPEND_S, STATUS_S = Limit(20, 60.0), 1.0, 60.0
"""How many answers a minute are streamed, and the pauses between additions to one and between two statuses: Slack takes
20 and 100 calls a minute of these methods (tiers 2 and 4)."""
STREAMED_S = 600.0
"""After which a stream that nothing followed is forgotten."""


@dataclass(slots=True)
class _Stream:
    """An answer on its way: the message it is written into, what stands there, and since when."""

    ts: str
    text: str
    begun: float


class Previews:
    """The streams of one workspace, and its statuses."""

    def __init__(self, client: AsyncWebClient) -> None:
        self._client = client
        self._streams: dict[int, _Stream] = {}
        self._pace = Pace()
        self._has_status = True

    async def show(self, preview: Preview) -> str:
        """In a thread the text so far, streamed into the message that the answer will be; until there is one, a status.

        Elsewhere nothing: Slack has neither there. A message that an earlier attempt began is left as it is. Returns
        the id of a message that begins now, else "". Raises DeliveryError.
        """
        thread = preview.reply_to or preview.address.thread
        stream = self._streams.get(preview.number)
        if preview.over:
            if stream is not None:
                with verdicts(f"the end of an answer to {preview.address.chat}"):
                    await self.stop(preview.address.chat, stream.ts)
                del self._streams[preview.number]
        elif not thread or preview.begun:
            pass
        elif not preview.text.strip():
            await self._show_status(preview.address.chat, thread)
        elif stream is None:
            return await self._start(preview, thread)
        else:
            await self._append(preview, stream)
        return ""

    async def _show_status(self, channel: str, thread: str) -> None:
        """Slack keeps it until something is written. Not every workspace has it: then it is not asked for again."""
        if not self._has_status or self._pace.wait(
            [(f"status {channel} {thread}", Limit(1, STATUS_S))], time.monotonic()
        ):
            return
        try:
            with verdicts("the status"):
                await self._client.assistant_threads_setStatus(channel_id=channel, thread_ts=thread, status="✍️ …")
        except Undeliverable as error:
            self._has_status = False
            log.info("no status is shown", reason=str(error))

    async def _start(self, preview: Preview, thread: str) -> str:
        address, now = preview.address, time.monotonic()
        self._streams = {number: each for number, each in self._streams.items() if now - each.begun < STREAMED_S}
        if self._pace.wait([("streams", STREAMS)], now):
            return ""
        with verdicts(f"the beginning of an answer to {address.chat}"):
            started = await self._client.chat_startStream(
                channel=address.chat,
                thread_ts=thread,
                markdown_text=escape(preview.text),
                recipient_team_id=address.account,
                recipient_user_id=preview.customer_id,
            )
        self._streams[preview.number] = _Stream(ident(started.data, "ts"), preview.text, now)
        return self._streams[preview.number].ts

    async def _append(self, preview: Preview, stream: _Stream) -> None:
        now, more = time.monotonic(), preview.text.removeprefix(stream.text)
        if more == preview.text or not more or self._pace.wait([(f"stream {stream.ts}", Limit(1, APPEND_S))], now):
            return
        with verdicts(f"more of an answer to {preview.address.chat}"):
            await self._client.chat_appendStream(channel=preview.address.chat, ts=stream.ts, markdown_text=escape(more))
        stream.text = preview.text

    async def stop(self, channel: str, ts: str, **more: Any) -> None:
        """End a stream; one that Slack ended already is none. Raises the library's errors."""
        with tolerating("message_not_in_streaming_state"):
            await self._client.chat_stopStream(channel=channel, ts=ts, **more)
