"""A message's files sent again elsewhere on Slack: it is read once more, its files are downloaded and uploaded."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import aiohttp
from slack_sdk.web.async_client import AsyncWebClient

from adapters import slack_api
from adapters.slack_api import REFUSALS, asking, tolerating, verdict, verdicts
from adapters.slack_blocks import escape
from adapters.slack_events import ident, mapping
from bot.errors import DeliveryError, OutcomeUnknown, Undeliverable
from bot.messages import OutboundMessage

MAX_BYTES = 50_000_000
"""Of one file."""
TRANSFER_S, CHUNK = 300.0, 2**16
"""How long one file may take each way, while something moves, and how many bytes are taken at once."""
SHARED_AFTER_S = (0.5, 1.0, 2.0, 4.0)
"""The pauses before each question where a file was shared: Slack answers before it has shared it."""

_GONE = "the file was deleted, or the message with it"
_NO_FILES = "the message holds no files, or none any more, and nothing else of it can be copied"
_OUTSIDE = "the file is kept outside of Slack: send a link to it"
_NOT_SHOWN = f"Slack does not show the bot the file: the scope files:read is missing; {REFUSALS['missing_scope']}"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be downloaded."""

    url: str
    name: str
    title: str
    mimetype: str


def sources(message: Mapping[str, Any], api_url: str) -> list[Source]:
    """The files of a message of Slack's, at least one. Raises Undeliverable where one of them cannot be copied."""
    files = message.get("files")
    found = [_source(each, api_url) for each in files if isinstance(each, Mapping)] if isinstance(files, list) else []
    if not found:
        raise Undeliverable(_NO_FILES)
    return found


def _source(file: Mapping[str, Any], api_url: str) -> Source:
    url, size = file.get("url_private_download") or file.get("url_private"), file.get("size")
    if not isinstance(url, str):
        raise Undeliverable(_GONE)
    if not is_slacks(url, api_url):
        raise Undeliverable(_OUTSIDE)
    if isinstance(size, int) and size > MAX_BYTES:
        raise _too_large()
    name = str(file.get("name") or "file")
    return Source(url, name, str(file.get("title") or name), str(file.get("mimetype")))


def is_slacks(url: str, api_url: str) -> bool:
    """Whether the bot's token may be shown there. The host must end where every parser of addresses ends it."""
    own = url.startswith(urljoin(api_url, "/"))
    return own or re.match(r"https://([a-z0-9-]+\.)*slack(-files)?\.com/", url) is not None


def shared_ts(file: Mapping[str, Any], channel: str) -> str:
    """The ts of the message that shows a file in a channel, "" for none (yet)."""
    for kind in ("public", "private"):
        shares = mapping(mapping(file, "shares"), kind).get(channel)
        if isinstance(shares, list) and shares:
            return ident(shares[0], "ts")
    return ""


def _too_large() -> Undeliverable:
    return Undeliverable(f"the file is larger than {MAX_BYTES // 1_000_000} MB: send a link to it")


class Files:
    """Copies files with one workspace's client."""

    def __init__(self, client: AsyncWebClient) -> None:
        self._client = client
        self._one_at_a_time = asyncio.Lock()  # so that one file at most is in memory

    async def copy(self, message: OutboundMessage, thread: str | None) -> str:
        """Send the files of the message `message.copies` with the words of `message`.

        Returns the ts of the message that shows them, "" where Slack does not tell. Raises DeliveryError.
        """
        said, chat = await self._read(message.copies), message.address.chat
        files = [await self._carry(each) for each in sources(said, self._client.base_url)]
        words = escape(message.text) if said.get("text") else ""  # of files alone, the text only names the kind
        unknown: OutcomeUnknown | None = None
        try:
            with verdicts(f"the files to {chat}"):
                await self._client.files_completeUploadExternal(
                    files=files, channel_id=chat, thread_ts=thread, initial_comment=words or None
                )
        except OutcomeUnknown as error:
            unknown = error
        ts = await self._shared(files[0]["id"] or "", chat)
        if unknown and not ts:
            # it has no metadata by which it could be found before it is sent a third time
            raise Undeliverable(f"{unknown}, twice: it may have arrived") if message.maybe_sent else unknown
        return ts

    async def delete(self, chat: str, ts: str) -> None:
        """Delete the files of a message of ours: Slack keeps them when it is deleted. Raises DeliveryError."""
        said = await self._find(chat, ts)
        for each in (said or {}).get("files") or ():
            with asking("the deletion of a file"), tolerating("file_not_found", "file_deleted"):
                await self._client.files_delete(file=ident(each, "id"))

    async def _read(self, event_id: str) -> Mapping[str, Any]:
        channel, _, ts = event_id.rpartition(":")
        if (said := await self._find(channel, ts)) is None:
            raise Undeliverable(_GONE)
        return said

    async def _find(self, channel: str, ts: str) -> Mapping[str, Any] | None:
        """A message; unlike conversations.history, conversations.replies also has it where it is part of a thread."""
        found: Any = []
        with asking("a message with files"), tolerating("thread_not_found"):
            answer = await self._client.conversations_replies(
                channel=channel, ts=ts, oldest=ts, latest=ts, inclusive=True
            )
            found = answer["messages"] or []
        for said in found:
            if isinstance(said, Mapping) and ident(said, "ts") == ts:
                return said
        return None

    async def _carry(self, source: Source) -> dict[str, str | None]:
        """Download a file and upload it, where nobody sees it yet: its new id, and its title."""
        async with self._one_at_a_time:
            content = await self._download(source)
            with asking("an upload"):
                place = await self._client.files_getUploadURLExternal(filename=source.name, length=content.tell())
                content.seek(0)
                async with self._transfer("POST", str(place.get("upload_url")), data=content) as answer:
                    if answer.status != 200:
                        raise verdict(answer, "a file")
        return {"id": ident(place.data, "file_id"), "title": source.title}

    async def _download(self, source: Source) -> io.BytesIO:
        """What the file holds, written to its end."""
        content, headers = io.BytesIO(), {"Authorization": f"Bearer {self._client.token}"}
        with asking("a file"):
            async with self._transfer("GET", source.url, headers=headers) as answer:
                if answer.status in (404, 410):
                    raise Undeliverable(_GONE)
                if answer.status in (401, 403) or _is_login_page(answer, source):
                    raise Undeliverable(_NOT_SHOWN)
                if answer.status != 200:
                    raise verdict(answer, "a file")
                async for chunk in answer.content.iter_chunked(CHUNK):
                    if content.write(chunk) and content.tell() > MAX_BYTES:
                        raise _too_large()
        return content

    @contextlib.asynccontextmanager
    async def _transfer(self, method: str, url: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The way the library goes, with time for a large file, and to no other host than the one that was asked."""
        patience = aiohttp.ClientTimeout(TRANSFER_S, sock_connect=slack_api.ANSWER_S, sock_read=slack_api.ANSWER_S)
        more |= {"proxy": self._client.proxy, "ssl": self._client.ssl or True, "allow_redirects": False}
        async with aiohttp.ClientSession(timeout=patience) as session, session.request(method, url, **more) as answer:
            yield answer

    async def _shared(self, file: str, channel: str) -> str:
        """Best effort: who cannot be asked has the file all the same."""
        for pause in SHARED_AFTER_S:
            await asyncio.sleep(pause)
            with contextlib.suppress(DeliveryError), verdicts("a shared file"):
                answer = await self._client.files_info(file=file)
                if ts := shared_ts(mapping(answer.data, "file"), channel):
                    return ts
        return ""


def _is_login_page(answer: aiohttp.ClientResponse, source: Source) -> bool:
    """Slack leads there who may not read a file."""
    shown = answer.status == 200 and answer.content_type == "text/html" != source.mimetype
    return shown or 300 <= answer.status < 400
