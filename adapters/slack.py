"""Slack: the Events API comes in, over Socket Mode or by webhook; chat.postMessage goes out.

Bolt (1.30) acknowledges some events that nobody has stored: the bot's own, and every event while auth.test fails. So
`before_authorize` hands them to the inbox, ahead of all that. What is not acknowledged, Slack delivers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import structlog
from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.app.async_app import AsyncApp
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_bolt.response import BoltResponse
from slack_sdk.errors import SlackApiError
from slack_sdk.signature import SignatureVerifier
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from adapters import slack_api
from adapters.slack_api import REFUSALS, asking, library, tolerating, verdict, verdicts, web_client
from adapters.slack_blocks import BLOCK_CHARS, escape, with_buttons, with_thumbs
from adapters.slack_events import ident, mapping, to_inbound
from adapters.slack_files import Files
from adapters.slack_preview import Previews
from adapters.text import split as cut
from bot.errors import ConfigError, DatabaseUnavailable, DeliveryError, OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import (
    DELIVERED,
    Address,
    Check,
    Delivery,
    Desk,
    Event,
    Inbox,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Preview,
)

log = structlog.get_logger(__name__)

PING_S = 10.0
"""Between pings of the socket; also the library's pause between attempts to connect."""
WATCH_S = 1.0
HEARTBEAT_S = 60.0
"""Between two questions whether Slack still knows us, where it posts."""
LAST_ACKS_S = CLOSE_S = 2.0
"""For events that are being stored while the adapter is cancelled, and then for the socket to say goodbye."""
LOOK_BACK_S = 2 * 86_400.0
"""How far back a message that may have been sent is looked for; nothing is retried for longer."""
PAGE, MAX_PAGES = 200, 20
COMMAND = "/frontdesk"
OUTBOUND = "frontdesk_outbound"
"""The event_type of the metadata that carries our id."""
_CHANNELS = {f"{kind}:{right}" for kind in ("channels", "groups") for right in ("history", "read")}
_FILES = {"files:read", "files:write"}
SCOPES = _FILES | _CHANNELS | {"app_mentions:read", "chat:write", "commands", "im:history", "reactions:write"}
"""Of the bot token; docs/slack.md gives each its reason, slack_manifest.yaml asks for them."""

Receive = Callable[[Mapping[str, Any]], Awaitable[BoltResponse]]


class SlackAdapter:
    """One workspace: over Socket Mode, or with a `signing_secret` by what Slack posts to hear()."""

    platform = Platform.SLACK
    asks_first = True

    def __init__(
        self,
        bot_token: str,
        app_token: str,
        api_url: str = AsyncWebClient.BASE_URL,
        signing_secret: str = "",
        desk: Desk | None = None,
        agents: str = "",
    ) -> None:
        """`desk` answers the slash command; `agents` is the channel of the cards, "" where they go elsewhere."""
        self._desk, self._agents = desk, agents
        self._app_token = app_token
        self._verifier = SignatureVerifier(signing_secret) if signing_secret else None
        self._receive: Receive | None = None
        self._client = web_client(bot_token, api_url)
        self._contact: float | None = None
        self._storing: set[asyncio.Task[Any]] = set()
        self._previews, self._files = Previews(self._client), Files(self._client)

    @property
    def last_contact(self) -> float | None:
        return self._contact

    async def run(self, inbox: Inbox) -> None:
        who = await self._introduce()
        account, bot_user_id = ident(who.data, "team_id"), ident(who.data, "user_id")

        async def receive(body: Mapping[str, Any]) -> BoltResponse:
            if task := asyncio.current_task():
                self._storing.add(task)
                task.add_done_callback(self._storing.discard)
            if ident(body, "command") == COMMAND:
                return await self._ask_desk(body, account)
            event = to_inbound(body, account, bot_user_id, self._agents)
            return await (self._press(inbox, event) if isinstance(event, Pressed) else _store(inbox, event))

        await (self._listen(receive) if self._verifier else self._connect(receive))

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """What was posted. 200 only for what is stored; 503 makes Slack post it again."""
        if not self._is_slacks(headers, body):
            return 401, ""
        try:
            posted = _read(headers, body)
        except (ValueError, RecursionError):
            return 400, ""
        if isinstance(posted, dict) and posted.get("type") == "url_verification":
            return 200, str(posted.get("challenge", ""))
        if self._receive is None:
            return 503, ""
        self._contact = time.time()
        answer = await self._receive(posted if isinstance(posted, dict) else {})
        return answer.status, answer.body

    async def _press(self, inbox: Inbox, event: Pressed) -> BoltResponse:
        """Whoever pressed a card's button is told what came of it, and nobody else."""
        try:
            words = await inbox.press(event)
        except DatabaseUnavailable as error:
            log.warning("not stored, so not acknowledged", platform=Platform.SLACK, error=str(error))
            return BoltResponse(status=503)
        telling = asyncio.create_task(self._tell(event, words))
        self._storing.add(telling)
        telling.add_done_callback(self._storing.discard)
        return BoltResponse(status=200)

    async def _tell(self, event: Pressed, words: str) -> None:
        try:
            with verdicts("a word to an agent"):
                await self._client.chat_postEphemeral(channel=event.chat, user=event.agent.id, text=escape(words))
        except DeliveryError as error:
            log.info("an agent was not told what their button did", reason=str(error))

    async def _ask_desk(self, body: Mapping[str, Any], account: str) -> BoltResponse:
        """The answer to the slash command, which only who gave it sees."""
        words, place = str(body.get("text") or ""), Address(self.platform, account, ident(body, "channel_id"))
        try:
            answer = await self._desk(words, place, "") if self._desk else ""
        except DatabaseUnavailable as error:
            answer = str(error)
        said = {"response_type": "ephemeral", "text": escape(answer)}
        return BoltResponse(status=200, body=said, headers={"content-type": "application/json"})

    def _is_slacks(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether it was signed with our secret in the last five minutes."""
        signature, at = headers.get("x-slack-signature", ""), headers.get("x-slack-request-timestamp", "")
        if self._verifier is None or not (signature.isascii() and re.fullmatch("[0-9]{1,15}", at)):
            return False
        return self._verifier.is_valid(body, at, signature)

    async def _listen(self, receive: Receive) -> None:
        """Let Slack post; and see now and then that it still knows us. Raises ConfigError when it does not."""
        self._receive = receive
        log.info("connected", platform=self.platform, webhook=True)
        while True:
            self._contact = time.time()
            await asyncio.sleep(HEARTBEAT_S)
            await self._introduce()

    async def _connect(self, receive: Receive) -> None:
        app = self._app(receive)
        opener = _Opener(base_url=self._client.base_url, timeout=slack_api.ANSWER_S, logger=library, retry_handlers=[])
        client = _Handler(app, self._app_token, library, opener, ping_interval=PING_S).client
        connecting = asyncio.create_task(client.connect())  # type: ignore[no-untyped-call]  # the library's
        try:
            await self._watch(client, opener)
        finally:
            await self._close(client, connecting)

    def _app(self, receive: Receive) -> AsyncApp:
        return AsyncApp(
            client=self._client,
            name="slack_bolt",
            logger=library,
            process_before_response=True,
            before_authorize=receive,
            request_verification_enabled=False,  # for HTTP only: nobody but Slack writes to the socket
            ssl_check_enabled=False,
        )

    async def _introduce(self) -> AsyncSlackResponse:
        """Who we are, once Slack answers. Raises ConfigError when it refuses the token."""
        wait = 1.0
        while True:
            try:
                with verdicts("the bot token"):
                    return await self._client.auth_test()
            except Undeliverable as error:
                raise ConfigError(str(error)) from None
            except (RetryLater, OutcomeUnknown) as error:
                log.warning("waiting for slack", error=str(error), seconds=wait)
                await asyncio.sleep(getattr(error, "after", None) or wait)
                wait = min(2 * wait, 60.0)

    async def _watch(self, client: SocketModeClient, opener: _Opener) -> None:
        connected = False
        while not opener.refusal:
            if connected != (connected := await client.is_connected()):
                log.info("connected" if connected else "disconnected", platform=self.platform)
            if connected:
                self._contact = time.time()
            else:
                client.wss_uri = None  # good for one attempt, but the library tries the same one for ever
            await asyncio.sleep(WATCH_S)
        raise ConfigError(opener.refusal)

    async def _close(self, client: SocketModeClient, connecting: asyncio.Task[None]) -> None:
        if self._storing:
            await asyncio.wait(self._storing, timeout=LAST_ACKS_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await client.close()  # type: ignore[no-untyped-call]  # the library's
        tasks = {connecting, client.message_processor, client.current_session_monitor, client.message_receiver}
        rest = [task for task in tasks | self._storing if task is not None]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await client.aiohttp_client_session.close()

    async def send(self, message: OutboundMessage) -> Delivery:
        """Raises RetryLater, OutcomeUnknown, Undeliverable."""
        if message.copies and not message.edits:
            return Delivery(await self._files.copy(message, _thread(message)))
        if message.maybe_sent and not message.edits and (found := await self._find(message)):
            return Delivery(found)
        if message.kind is OutboundKind.MARK:
            return Delivery(await self._react(message))
        if message.kind is OutboundKind.WITHDRAW:
            await self._files.delete(message.address.chat, message.reply_to)
            # of one that held nothing but files, nothing may be left
            with verdicts(f"taking back a message in {message.address.chat}"), tolerating("message_not_found"):
                await self._client.chat_delete(channel=message.address.chat, ts=message.reply_to)
            return Delivery(message.reply_to)
        with verdicts(f"the message to {message.address.chat}"):
            answer = await self._write(message)
        self._contact = time.time()
        return Delivery(ident(answer.data, "ts"))

    async def _react(self, message: OutboundMessage) -> str:
        chat, name = message.address.chat, "white_check_mark" if message.text == DELIVERED else "x"
        with verdicts(f"a reaction in {chat}"), tolerating("already_reacted"):
            await self._client.reactions_add(channel=chat, timestamp=message.reply_to, name=name)
        return message.reply_to

    async def _write(self, message: OutboundMessage) -> AsyncSlackResponse:
        words, chat = escape(message.text), message.address.chat
        if message.only_for:
            whisper = self._client.chat_postEphemeral
            return await whisper(channel=chat, user=message.only_for, text=words, thread_ts=_thread(message))
        metadata = {"event_type": OUTBOUND, "event_payload": {"id": message.id}}
        if message.kind is OutboundKind.CARD:
            words = re.sub("^(.+)", r"*\1*", words, count=1)
        if message.edits:
            if message.kind in (OutboundKind.REPLY, OutboundKind.NOTICE):  # a preview began it
                await self._previews.stop(chat, message.edits, metadata=metadata)
            write = partial(self._client.chat_update, channel=chat, ts=message.edits, text=words)
        else:
            write = partial(
                self._client.chat_postMessage,
                channel=chat,
                text=words,
                thread_ts=_thread(message),
                unfurl_links=False,
                unfurl_media=False,
                metadata=metadata,
            )
        if message.kind in (OutboundKind.CARD, OutboundKind.ASK):
            return await write(blocks=with_buttons(words, message.buttons))
        if message.rateable:
            with tolerating("invalid_blocks", "invalid_blocks_format"):
                return await write(blocks=with_thumbs(words, message.id))
            log.warning("slack does not take thumbs here: the answer goes without")
        return await write()

    async def _find(self, message: OutboundMessage) -> str:
        """The ts under which Slack has `message`, "" when it has not."""
        cursor = None
        for _ in range(MAX_PAGES):
            with asking(f"the last messages of {message.address.chat}"):
                page = await self._page(message, cursor)
            for said in page["messages"] or []:
                if mapping(mapping(said, "metadata"), "event_payload").get("id") == message.id:
                    return ident(said, "ts")
            cursor = mapping(page.data, "response_metadata").get("next_cursor")
            if not cursor:
                break
        return ""

    async def _page(self, message: OutboundMessage, cursor: str | None) -> AsyncSlackResponse:
        channel, oldest = message.address.chat, str(time.time() - LOOK_BACK_S)
        if thread := _thread(message):
            return await self._client.conversations_replies(
                channel=channel, ts=thread, oldest=oldest, limit=PAGE, cursor=cursor, include_all_metadata=True
            )
        return await self._client.conversations_history(
            channel=channel, oldest=oldest, limit=PAGE, cursor=cursor, include_all_metadata=True
        )

    async def preview(self, preview: Preview) -> str:
        return await self._previews.show(preview)

    async def is_member(self, chat: str, person: str) -> bool:
        """Raises DeliveryError."""
        with verdicts(f"who is in {chat}"):
            async for page in await self._client.conversations_members(channel=chat, limit=PAGE):
                if person in page["members"]:
                    return True
        return False

    def split(self, text: str) -> Sequence[str]:
        return cut(text, BLOCK_CHARS, lambda part: len(escape(part)))


def _read(headers: Mapping[str, str], body: bytes) -> Any:
    """Events are posted as JSON, what people press as a form with JSON in it, a slash command as a form."""
    if "form" not in headers.get("content-type", ""):
        return json.loads(body)
    form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    return json.loads(form["payload"]) if "payload" in form else form


def _thread(message: OutboundMessage) -> str | None:
    return message.reply_to or message.address.thread or None


async def _store(inbox: Inbox, event: Event) -> BoltResponse:
    try:
        await inbox.receive(event)
    except DatabaseUnavailable as error:
        log.warning("not stored, so not acknowledged", platform=Platform.SLACK, error=str(error))
        return BoltResponse(status=503)
    return BoltResponse(status=200)


class _Handler(AsyncSocketModeHandler):
    """Bolt's, except that a payload which Bolt cannot read is dropped by us instead of coming back."""

    async def handle(self, client: SocketModeClient, req: SocketModeRequest) -> None:  # type: ignore[override]  # Bolt's own
        try:
            AsyncBoltRequest(body=req.payload, mode="socket_mode")
        except Exception:  # it reads tenant and user without looking: any junk raises anything
            req.payload = {}
        await super().handle(client, req)


class _Opener(AsyncWebClient):
    """Asks for the socket's address. The library asks for ever; `refusal` is what only a person can mend."""

    refusal = ""

    async def apps_connections_open(self, *, app_token: str, **kwargs: Any) -> AsyncSlackResponse:
        try:
            return await super().apps_connections_open(app_token=app_token, **kwargs)
        except SlackApiError as error:
            meant = verdict(error.response, "the app-level token")
            if isinstance(meant, Undeliverable):
                self.refusal = str(meant)
            raise


# -- for `frontdesk init` and `frontdesk doctor` ---------------------------------------------------


async def check(bot_token: str, app_token: str, api_url: str, channel: str | None) -> list[Check]:
    """The tokens ("" for no app-level one), the scopes, and (a channel id) whether the bot may write there."""
    bot, app = web_client(bot_token, api_url), web_client(app_token, api_url)
    checks = [await _check("Slack bot token", bot.auth_test(), _scopes)]
    if app_token:
        opened = app.apps_connections_open(app_token=app_token)
        checks.append(await _check("Slack app-level token", opened, lambda _: (True, "")))
    if channel:
        checks.append(await _check("Slack channel", bot.conversations_info(channel=channel), _membership))
    return checks


async def _check(
    what: str, call: Awaitable[AsyncSlackResponse], judge: Callable[[AsyncSlackResponse], tuple[bool, str]]
) -> Check:
    try:
        with verdicts(f"the {what}"):
            answer = await call
    except DeliveryError as error:
        return Check(what, False, str(error))
    return Check(what, *judge(answer))


def _scopes(who: AsyncSlackResponse) -> tuple[bool, str]:
    if not who.get("bot_id"):
        return False, "this is a person's token: the bot token starts with xoxb-"
    granted = who.headers.get("x-oauth-scopes")
    missing = SCOPES - set(granted.split(",")) if granted else ()
    if missing:
        return False, f"scopes missing: {', '.join(sorted(missing))}; update the app's manifest and install it again"
    return True, f"{who.get('user')} in {who.get('team')}"


def _membership(answer: AsyncSlackResponse) -> tuple[bool, str]:
    channel = mapping(answer.data, "channel")
    name = f"#{channel.get('name')}"
    if channel.get("is_archived"):
        return False, f"{name} is archived: {REFUSALS['is_archived']}"
    if not channel.get("is_member"):
        return False, f"the bot is not in {name}: {REFUSALS['not_in_channel']}"
    return True, name


async def find_channels(bot_token: str, api_url: str) -> list[tuple[str, str]]:
    """(id, name) of each channel the bot was invited to; needs channels:read and groups:read. Raises ConfigError."""
    found: list[tuple[str, str]] = []
    kinds = "public_channel,private_channel"
    try:
        with verdicts("the list of channels"):
            client = web_client(bot_token, api_url)
            async for page in await client.users_conversations(types=kinds, exclude_archived=True, limit=PAGE):
                found += [(ident(channel, "id"), str(channel.get("name"))) for channel in page["channels"]]
    except DeliveryError as error:
        raise ConfigError(str(error)) from None
    return found
