"""Slack: the Events API comes in, over Socket Mode or by webhook; chat.postMessage goes out.

Bolt (1.30) acknowledges some events that nobody has stored: the bot's own, and every event while auth.test fails. So
`before_authorize` hands them to the inbox, ahead of all that. What is not acknowledged, Slack delivers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import aiohttp
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

from adapters.pace import Limit, Pace
from adapters.slack_events import ident, mapping, to_inbound
from adapters.text import split as cut
from bot.errors import ConfigError, DatabaseUnavailable, DeliveryError, OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import (
    DELIVERED,
    Address,
    Button,
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
    Rating,
    rating_token,
)

log = structlog.get_logger(__name__)

MAX_CHARS, BLOCK_CHARS = 4_000, 3_000
"""Of one message, after escaping: Slack's advice for chat.postMessage, and the most that chat.update takes; and of one
block of text, which a reply with buttons under it is."""
ANSWER_S = 15
"""How long an answer of the Web API is waited for."""
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
STREAMS, APPEND_S, STATUS_S = Limit(20, 60.0), 1.0, 60.0
"""How many answers a minute are streamed, and the pauses between additions to one and between two statuses: Slack takes
20 and 100 calls a minute of these methods (tiers 2 and 4)."""
STREAMED_S = 600.0
"""After which a stream that nothing followed is forgotten."""

COMMAND = "/frontdesk"
OUTBOUND = "frontdesk_outbound"
"""The event_type of the metadata that carries our id."""
_CHANNELS = {f"{kind}:{right}" for kind in ("channels", "groups") for right in ("history", "read")}
SCOPES = frozenset({"app_mentions:read", "chat:write", "commands", "im:history", "reactions:write"} | _CHANNELS)
"""Of the bot token; docs/slack.md gives each its reason, slack_manifest.yaml asks for them."""

# -- what Slack's answers mean ---------------------------------------------------------------------

_REFUSALS = {
    "account_inactive": "the app was removed from the workspace: install it again and copy the new token",
    "cant_update_message": "the message is not the bot's own",
    "channel_not_found": "check the channel's id, and invite the bot if the channel is private",
    "invalid_auth": "the token is wrong: copy it again from the app's page at api.slack.com/apps",
    "is_archived": "unarchive the channel or choose another one",
    "message_not_found": "the message was deleted",
    "messages_tab_disabled": "turn the Messages tab on under App Home on the app's page at api.slack.com/apps",
    "missing_scope": "update the app's manifest and install it again",
    "msg_too_long": f"Slack takes {MAX_CHARS} characters at most",
    "not_allowed_token_type": "the bot token starts with xoxb-, the app-level token with xapp-",
    "not_authed": "no token was given",
    "not_in_channel": "invite the bot: write /invite @frontdesk in the channel",
    "restricted_action": "the workspace does not let the bot write there: ask its administrator",
    "thread_not_found": "the thread was deleted",
    "token_expired": "copy the new token from the app's page at api.slack.com/apps and turn token rotation off",
    "token_revoked": "install the app again and copy the new token",
}
_NOT_NOW = ("ratelimited", "rate_limited", "request_timeout", "service_unavailable", "team_added_to_org")
_PERHAPS_DONE = ("fatal_error", "internal_error")  # "some aspect of the operation" may have succeeded


@contextlib.contextmanager
def _verdicts(what: str) -> Iterator[None]:
    """Turn what the client raises into DeliveryError; `what` was asked of Slack, for the sentence."""
    try:
        yield
    except SlackApiError as error:
        raise _verdict(error.response, what) from None
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
        raise RetryLater(f"Slack cannot be reached: {type(error).__name__}") from None
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        raise OutcomeUnknown(f"Slack did not answer about {what}: {type(error).__name__}") from None
    except (AttributeError, ValueError):  # the library's, over an answer that is no JSON object
        raise OutcomeUnknown(f"Slack's answer about {what} cannot be read") from None


def _verdict(response: Any, what: str) -> DeliveryError:
    """`response` is the library's, or aiohttp's own where the body was no JSON.

    A 5xx counts as unknown, not as refused: Slack says of its internal errors that the operation may have been done,
    and it can be asked.
    """
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    data = response.data if isinstance(getattr(response, "data", None), dict) else {}
    code = str(data.get("error", f"HTTP {status}"))
    if status == 429 or code in _NOT_NOW:
        return RetryLater(f"Slack asks to wait: {code}", _seconds(response.headers.get("Retry-After")))
    if status >= 500 or code in _PERHAPS_DONE or (status < 400 and "error" not in data):
        return OutcomeUnknown(f"Slack failed on {what}: {code}")
    advice = f"docs.slack.dev explains {code}" if "error" in data else "was it Slack? Look at slack.api_url"
    scope = f" (the scope {data['needed']} is missing)" if data.get("needed") else ""
    return Undeliverable(f"Slack refused {what}: {code}{scope}; {_REFUSALS.get(code, advice)}")


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdecimal() else None


# -- the adapter -----------------------------------------------------------------------------------


def escape(words: str) -> str:
    """So that no text can raise <!channel>, mention anybody or hide where a link goes."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class _Quiet(logging.Filter):
    """The library's complaints without socket addresses, which let anybody in, or a traceback for each lost try."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"wss?://[^\s']+", "[socket]", record.getMessage()), ()
        if record.exc_info and isinstance(record.exc_info[1], (OSError, aiohttp.ClientError, SlackApiError)):
            record.exc_info = None
        return True


_library = logging.getLogger("slack_sdk.frontdesk")
_library.setLevel(logging.WARNING)  # at DEBUG it prints every message
_library.addFilter(_Quiet())


@dataclass(slots=True)
class _Stream:
    """An answer on its way: the message it is written into, what stands there, and since when."""

    ts: str
    text: str
    begun: float


Receive = Callable[[Mapping[str, Any]], Awaitable[BoltResponse]]


def _client(token: str, api_url: str) -> AsyncWebClient:
    # retry_handlers: without the empty list the library itself sends again after a reset, and so perhaps twice
    return AsyncWebClient(token, api_url, ANSWER_S, logger=_library, retry_handlers=[])


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
        self._client = _client(bot_token, api_url)
        self._contact: float | None = None
        self._storing: set[asyncio.Task[Any]] = set()
        self._streams: dict[int, _Stream] = {}
        self._pace = Pace()
        self._has_status = True

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
            with _verdicts("a word to an agent"):
                await self._client.chat_postEphemeral(channel=event.chat, user=event.agent.id, text=escape(words))
        except DeliveryError as error:
            log.info("an agent was not told what their button did", reason=str(error))

    async def _ask_desk(self, body: Mapping[str, Any], account: str) -> BoltResponse:
        """The answer to the slash command, which only who gave it sees."""
        words, place = str(body.get("text") or ""), Address(self.platform, account, ident(body, "channel_id"))
        try:
            answer = await self._desk(words, place) if self._desk else ""
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
        opener = _Opener(base_url=self._client.base_url, timeout=ANSWER_S, logger=_library, retry_handlers=[])
        client = _Handler(app, self._app_token, _library, opener, ping_interval=PING_S).client
        connecting = asyncio.create_task(client.connect())  # type: ignore[no-untyped-call]  # the library's
        try:
            await self._watch(client, opener)
        finally:
            await self._close(client, connecting)

    def _app(self, receive: Receive) -> AsyncApp:
        return AsyncApp(
            client=self._client,
            name="slack_bolt",
            logger=_library,
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
                with _verdicts("the bot token"):
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
        if message.maybe_sent and not message.edits and (found := await self._find(message)):
            return Delivery(found)
        if message.kind is OutboundKind.MARK:
            return Delivery(await self._react(message))
        if message.kind is OutboundKind.WITHDRAW:
            with _verdicts(f"taking back a message in {message.address.chat}"):
                await self._client.chat_delete(channel=message.address.chat, ts=message.reply_to)
            return Delivery(message.reply_to)
        with _verdicts(f"the message to {message.address.chat}"):
            answer = await self._write(message)
        self._contact = time.time()
        return Delivery(ident(answer.data, "ts"))

    async def _react(self, message: OutboundMessage) -> str:
        name = "white_check_mark" if message.text == DELIVERED else "x"
        try:
            with _verdicts(f"a reaction in {message.address.chat}"):
                await self._client.reactions_add(channel=message.address.chat, timestamp=message.reply_to, name=name)
        except Undeliverable as error:
            if "already_reacted" not in str(error):
                raise
        return message.reply_to

    async def _write(self, message: OutboundMessage) -> AsyncSlackResponse:
        words, chat = escape(message.text), message.address.chat
        metadata = {"event_type": OUTBOUND, "event_payload": {"id": message.id}}
        if message.kind is OutboundKind.CARD:
            words = re.sub("^(.+)", r"*\1*", words, count=1)
        if message.edits:
            if message.kind is not OutboundKind.CARD:  # a preview began it
                await self._stop(chat, message.edits, metadata=metadata)
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
        if message.kind is OutboundKind.CARD:
            return await write(blocks=_with_buttons(words, message.buttons))
        if message.rateable:
            try:
                return await write(blocks=_with_thumbs(words, message.id))
            except SlackApiError as error:
                if error.response.get("error") not in ("invalid_blocks", "invalid_blocks_format"):
                    raise
                log.warning("slack does not take thumbs here: the answer goes without")
        return await write()

    async def _find(self, message: OutboundMessage) -> str:
        """The ts under which Slack has `message`, "" when it has not. Nothing is sent, so nothing becomes unknown."""
        cursor = None
        for _ in range(MAX_PAGES):
            try:
                with _verdicts(f"the last messages of {message.address.chat}"):
                    page = await self._page(message, cursor)
            except OutcomeUnknown as error:
                raise RetryLater(str(error)) from None
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
        """In a thread the text so far, streamed into the message that the answer will be; until there is one, a status.

        Elsewhere nothing: Slack has neither there. A message that an earlier attempt began is left to send().
        """
        thread = preview.reply_to or preview.address.thread
        stream = self._streams.get(preview.number)
        if preview.over:
            if stream is not None:
                await self._stop(preview.address.chat, stream.ts)
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
            with _verdicts("the status"):
                await self._client.assistant_threads_setStatus(channel_id=channel, thread_ts=thread, status="✍️ …")
        except Undeliverable as error:
            self._has_status = False
            log.info("no status is shown", reason=str(error))

    async def _start(self, preview: Preview, thread: str) -> str:
        address, now = preview.address, time.monotonic()
        self._streams = {number: each for number, each in self._streams.items() if now - each.begun < STREAMED_S}
        if self._pace.wait([("streams", STREAMS)], now):
            return ""
        with _verdicts(f"the beginning of an answer to {address.chat}"):
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
        with _verdicts(f"more of an answer to {preview.address.chat}"):
            await self._client.chat_appendStream(channel=preview.address.chat, ts=stream.ts, markdown_text=escape(more))
        stream.text = preview.text

    async def _stop(self, channel: str, ts: str, **more: Any) -> None:
        """End a stream; one that Slack ended already is none."""
        try:
            await self._client.chat_stopStream(channel=channel, ts=ts, **more)
        except SlackApiError as error:
            if error.response.get("error") != "message_not_in_streaming_state":
                raise

    async def is_member(self, chat: str, person: str) -> bool:
        """Raises DeliveryError."""
        with _verdicts(f"who is in {chat}"):
            async for page in await self._client.conversations_members(channel=chat, limit=PAGE):
                if person in page["members"]:
                    return True
        return False

    def split(self, text: str) -> Sequence[str]:
        return cut(text, BLOCK_CHARS, lambda part: len(escape(part)))


def _with_thumbs(words: str, outbound_id: str) -> list[dict[str, Any]]:
    def button(face: str, rating: Rating) -> dict[str, Any]:
        return {"text": {"type": "plain_text", "text": face}, "value": rating_token(rating, outbound_id)}

    thumbs = {
        "type": "feedback_buttons",
        "action_id": "rating",
        "positive_button": button("👍", Rating.UP),
        "negative_button": button("👎", Rating.DOWN),
    }
    return [_section(words), {"type": "context_actions", "elements": [thumbs]}]


def _with_buttons(words: str, buttons: Sequence[Button]) -> list[dict[str, Any]]:
    found = [_section(part) for part in cut(words, BLOCK_CHARS)]
    elements = [
        {
            "type": "button",
            "action_id": each.token,
            "text": {"type": "plain_text", "text": each.label},
            "value": each.token,
        }
        for each in buttons
    ]
    return [*found, {"type": "actions", "elements": elements}] if elements else found


def _section(words: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": words, "verbatim": True}, "expand": True}


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
            verdict = _verdict(error.response, "the app-level token")
            if isinstance(verdict, Undeliverable):
                self.refusal = str(verdict)
            raise


# -- for `frontdesk init` and `frontdesk doctor` ---------------------------------------------------


async def check(bot_token: str, app_token: str, api_url: str, channel: str | None) -> list[Check]:
    """The tokens ("" for no app-level one), the scopes, and (a channel id) whether the bot may write there."""
    bot, app = _client(bot_token, api_url), _client(app_token, api_url)
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
        with _verdicts(f"the {what}"):
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
        return False, f"{name} is archived: {_REFUSALS['is_archived']}"
    if not channel.get("is_member"):
        return False, f"the bot is not in {name}: {_REFUSALS['not_in_channel']}"
    return True, name


async def find_channels(bot_token: str, api_url: str) -> list[tuple[str, str]]:
    """(id, name) of each channel the bot was invited to; needs channels:read and groups:read. Raises ConfigError."""
    found: list[tuple[str, str]] = []
    kinds = "public_channel,private_channel"
    try:
        with _verdicts("the list of channels"):
            client = _client(bot_token, api_url)
            async for page in await client.users_conversations(types=kinds, exclude_archived=True, limit=PAGE):
                found += [(ident(channel, "id"), str(channel.get("name"))) for channel in page["channels"]]
    except DeliveryError as error:
        raise ConfigError(str(error)) from None
    return found
