"""A Slack workspace of our own: the Web API and Socket Mode on one loopback port, which keep the truth.

    async with FakeSlack() as slack:
        slack.add_channel("C0AGENTS", "agents")
        ...  # start an adapter, or a whole process, with slack.url, slack.bot_token and slack.app_token
        await slack.connected()
        event = await slack.direct_message("U1", "hello")       # returns at once; Slack's envelope is on its way
        await slack.acked(event)                                # the app has acknowledged it
        messages = await slack.posted("DU1")                    # waits for what the bot wrote there
        assert slack.violations == []

Truth. `slack.channels[id].messages` holds everything said in a chat, by people and by the bot, oldest first;
`slack.said(id)` the bot's texts alone. `slack.events` holds every event with its deliveries and acknowledgement.
An event without acknowledgement is delivered again, under the same event_id and with retry_attempt counting up, when
an app connects, or on redeliver(). `slack.calls` holds (method, parameters) of every Web API call, and
`slack.violations` what no correct client does: unknown methods and parameters, missing ones, unknown envelope ids.

A message to a chat sooner than `slack.pause_s` after the one before is a 429, which `slack.floods` counts.

Faults. `slack.fail("chat.postMessage", Fault(...), ...)` breaks the next calls, one fault a call; see Fault. "download"
and "upload" break the transfers of files, which `slack.put_file()` makes and `slack.shown(id)` shows.
`await slack.disconnect()` ends the sockets, abruptly or as Slack announces it; `slack.refuse_sockets` makes a number of
them fail in the handshake, and an address is good for one attempt, as at Slack. `slack.alive_tokens` holds the good
tokens. Leaving the `async with` and entering it again is an outage of Slack: same port, same state.

The address of the Web API is plain HTTP on 127.0.0.1, so the environment of the app must name no HTTP proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web

from tests.fakes.slack_files import NEEDS, Files
from tests.fakes.slack_workspace import Flooded, Refused

PATIENCE_S = 10.0
"""How long any of the waiting methods waits before its TimeoutError fails the test."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken answer. `done` tells whether the call has its effect all the same.

    Fault(error="is_archived"), Fault(retry_after=7), Fault(status=500), Fault(reset=True), Fault(silent=True),
    Fault(reset=True, done=True) ...; `fields` go into the answer beside `error`;
    `content_type` is that of an answer without an error code.
    """

    error: str = ""
    status: int = 200
    retry_after: int | None = None
    reset: bool = False
    silent: bool = False
    done: bool = False
    content_type: str = "text/html"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Event:
    """Something that happened in the workspace, and how often the app was told."""

    body: dict[str, Any]
    envelopes: list[str] = field(default_factory=list)
    acks: list[dict[str, Any]] = field(default_factory=list)
    kind: str = "events_api"

    @property
    def id(self) -> str:
        return str(self.body["event_id"])

    @property
    def ts(self) -> str:
        return str(self.body["event"]["ts"])


SCOPES = (
    "app_mentions:read,channels:history,channels:read,chat:write,commands,files:read,files:write,"
    "groups:history,groups:read,im:history,reactions:write"
)


class FakeSlack(Files):
    """See the module's docstring. Runs on the loop of the test."""

    def __init__(
        self, bot_token: str = "xoxb-fake", app_token: str = "xapp-fake", team: str = "T0FAKE", scopes: str = SCOPES
    ) -> None:
        super().__init__(team)
        self.bot_token, self.app_token, self.scopes = bot_token, app_token, scopes
        self.alive_tokens = {bot_token, app_token}
        self.refuse_sockets = self.connections = 0
        self.events: list[Event] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.port = 0
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._sockets: list[tuple[web.WebSocketResponse, asyncio.Transport | None]] = []
        self._tickets: set[str] = set()
        self._by_envelope: dict[str, Event] = {}
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"{self.origin}/api/"

    async def __aenter__(self) -> Self:
        self._closing = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/api/{method}", self._api)
        app.router.add_get("/files/{id}", self._download)
        app.router.add_post("/upload/{id}", self._upload)
        app.router.add_get("/link/{ticket}", self._link)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.origin = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self.disconnect(announced=False)
        await self._runner.cleanup()

    # -- what people do ----------------------------------------------------------------------------

    async def direct_message(self, user: str, text: str, thread_ts: str = "", **more: Any) -> Event:
        """`user` writes to the bot, in the chat "D" + user. `more` goes into the event (subtype, files ...)."""
        said = self.say(f"D{user}", user, text, thread_ts, **more)
        return await self.deliver({"type": "message", "channel_type": "im", **said})

    async def mention(self, channel: str, user: str, text: str, thread_ts: str = "", **more: Any) -> Event:
        """`user` writes "<@BOT> " + text in a channel; the twin `message` event is deliver(twin_of(event))."""
        said = self.say(channel, user, f"<@{self.bot_user}> {text}", thread_ts, **more)
        return await self.deliver({"type": "app_mention", **said})

    async def press(self, message: Mapping[str, Any], user: str, *, up: bool) -> Event:
        """`user` presses a thumb under a message of the bot."""
        (thumbs,) = [each for block in message["blocks"] for each in block.get("elements", [])]
        button = thumbs["positive_button" if up else "negative_button"]
        pressed = {"type": "feedback_buttons", "action_id": thumbs["action_id"], "value": button["value"]}
        return await self._pressed(message, user, pressed)

    async def _pressed(self, message: Mapping[str, Any], user: str, action: Mapping[str, Any]) -> Event:
        body = {
            "type": "block_actions",
            "team": {"id": self.team, "domain": "fake"},
            "user": {"id": user, "username": user.lower(), "team_id": self.team},
            "api_app_id": "A0FAKE",
            "channel": {"id": message["channel"], "name": "directmessage"},
            "message": {"ts": message["ts"], "text": message["text"]},
            "actions": [action],
        }
        happened = Event(body, kind="interactive")
        self.events.append(happened)
        await self._tell(happened)
        return happened

    async def thread_message(self, channel: str, user: str, text: str, thread_ts: str, **more: Any) -> Event:
        """`user` writes into a thread of a channel, without a mention."""
        said = self.say(channel, user, text, thread_ts, **more)
        return await self.deliver({"type": "message", "channel_type": "channel", **said})

    async def press_button(self, message: Mapping[str, Any], user: str, label: str) -> Event:
        """`user` presses the button `label` of a message of the bot."""
        elements = [each for block in message["blocks"] for each in block.get("elements", [])]
        (button,) = [each for each in elements if each["text"]["text"] == label]
        return await self._pressed(message, user, {key: button[key] for key in ("type", "action_id", "value")})

    async def command(self, channel: str, user: str, words: str) -> Event:
        """`user` writes "/frontdesk " + words. The answer comes with the acknowledgement."""
        body = {
            "command": "/frontdesk",
            "text": words,
            "team_id": self.team,
            "channel_id": channel,
            "user_id": user,
            "user_name": user.lower(),
            "api_app_id": "A0FAKE",
            "trigger_id": "1.2",
            "response_url": f"{self.url}response",
        }
        happened = Event(body, kind="slash_commands")
        self.events.append(happened)
        await self._tell(happened)
        return happened

    def twin_of(self, mention: Event) -> dict[str, Any]:
        """The `message` event of the same message, for apps that subscribed to message.channels."""
        return {**mention.body["event"], "type": "message", "channel_type": "channel"}

    async def deliver(self, event: Any, /, **envelope: Any) -> Event:
        """Any event at all; `envelope` overrides fields of the event_callback around it."""
        number = next(self._numbers)
        body = {
            "token": "legacy",
            "team_id": self.team,
            "api_app_id": "A0FAKE",
            "event": event,
            "type": "event_callback",
            "event_id": f"Ev{number:08d}",
            "event_time": int(time.time()),
            "authorizations": [{"team_id": self.team, "user_id": self.bot_user, "is_bot": True}],
            "is_ext_shared_channel": False,
            **envelope,
        }
        happened = Event(body)
        self.events.append(happened)
        await self._tell(happened)
        return happened

    async def redeliver(self, event: Event) -> None:
        """Slack got no acknowledgement in time, or believes so."""
        await self._tell(event)

    async def send_raw(self, text: str) -> None:
        """Any text on the open sockets."""
        for socket in self._open():
            await socket.send_str(text)

    # -- what tests look at ------------------------------------------------------------------------

    async def connected(self, times: int = 1) -> None:
        """A socket is open, and it is at least the `times`-th in all (2: the app came back)."""
        await self._until(lambda: self.connections >= times and self.is_connected)

    @property
    def is_connected(self) -> bool:
        return bool(self._open())

    async def acked(self, event: Event) -> None:
        await self._until(lambda: bool(event.acks))

    async def posted(self, channel: str, count: int = 1) -> list[dict[str, Any]]:
        """The bot's messages in a chat, oldest first, once there are `count`."""
        await self._until(lambda: len(self.by_bot(channel)) >= count)
        return self.by_bot(channel)

    def said(self, channel: str) -> list[str]:
        """The bot's texts in a chat as they stand now."""
        return [message["text"] for message in self.by_bot(channel)]

    def called(self, method: str) -> list[dict[str, Any]]:
        """The parameters of each call of one method."""
        return [parameters for name, parameters in self.calls if name == method]

    def fail(self, method: str, *faults: Fault) -> None:
        self._faults[method].extend(faults)

    async def disconnect(self, *, announced: bool = True, abrupt: bool = False) -> None:
        """End every socket: with Slack's announcement first, or by cutting the connection."""
        for socket, transport in list(self._sockets):
            if announced and not abrupt and not socket.closed:
                await socket.send_json({"type": "disconnect", "reason": "refresh_requested"})
            if abrupt and transport is not None:
                transport.abort()
            await socket.close()

    # -- Socket Mode -------------------------------------------------------------------------------

    async def _link(self, request: web.Request) -> web.StreamResponse:
        ticket = request.match_info["ticket"]
        if ticket not in self._tickets or self.refuse_sockets > 0:
            self.refuse_sockets = max(0, self.refuse_sockets - 1)
            self._tickets.discard(ticket)
            return web.Response(status=404)
        self._tickets.discard(ticket)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "hello", "num_connections": 1, "connection_info": {"app_id": "A0FAKE"}})
        self._sockets.append(link := (socket, request.transport))
        self.connections += 1
        for event in [event for event in self.events if not event.acks]:
            await self._tell(event)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                self._take_ack(json.loads(message.data))
        self._sockets.remove(link)
        return socket

    def _take_ack(self, ack: dict[str, Any]) -> None:
        event = self._by_envelope.get(ack.get("envelope_id", ""))
        if event is None:
            self.violations.append(f"acknowledged an unknown envelope: {ack}")
        else:
            event.acks.append(ack)

    async def _tell(self, event: Event) -> None:
        if not self._open():
            return  # it waits for the next socket
        envelope_id = f"envelope-{next(self._numbers)}"
        self._by_envelope[envelope_id] = event
        envelope = {
            "envelope_id": envelope_id,
            "type": event.kind,
            "payload": event.body,
            "accepts_response_payload": False,
            "retry_attempt": len(event.envelopes),
            "retry_reason": "timeout" if event.envelopes else "",
        }
        event.envelopes.append(envelope_id)
        with contextlib.suppress(ConnectionError):  # the socket died just now: nobody heard
            await self._open()[-1].send_json(envelope)

    def _open(self) -> list[web.WebSocketResponse]:
        return [socket for socket, _ in self._sockets if not socket.closed]

    def _apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        ticket = f"ticket-{next(self._numbers)}"
        self._tickets.add(ticket)
        return {"url": f"ws://127.0.0.1:{self.port}/link/{ticket}"}

    # -- the Web API -------------------------------------------------------------------------------

    async def _api(self, request: web.Request) -> web.StreamResponse:
        method, parameters = request.match_info["method"], await _parameters(request)
        self.calls.append((method, parameters))
        fault = self._faults[method].popleft() if self._faults[method] else None
        answer: dict[str, Any] = {"ok": True}
        if fault is None or fault.done:
            try:
                self._authorise(method, request)
                answer |= self.answer(method, parameters)
            except Refused as refused:
                answer = refused.answer
            except Flooded as flooded:
                return _broken(request, Fault(retry_after=flooded.retry_after))
        if fault is not None and fault.silent:
            await self._closing.wait()
        if fault is not None:
            return _broken(request, fault)
        return web.json_response(answer, headers={"x-oauth-scopes": self.scopes})

    def _authorise(self, method: str, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refused("not_authed")
        if token not in self.alive_tokens:
            raise Refused("invalid_auth")
        if (token == self.app_token) is not (method == "apps.connections.open"):
            raise Refused("not_allowed_token_type")
        if (needed := NEEDS.get(method)) and needed not in self.scopes.split(","):
            raise Refused("missing_scope", needed=needed, provided=self.scopes)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        id = request.match_info["id"]
        self.downloads.append(id)
        if self._faults["download"]:
            return _broken(request, self._faults["download"].popleft())
        may_read = request.headers.get("Authorization") == f"Bearer {self.bot_token}" and "files:read" in self.scopes
        if not may_read:
            return web.Response(status=302, headers={"Location": f"{self.origin}/?redir=%2Ffiles%2F{id}"})
        if id not in self.contents:
            return web.Response(status=404)
        return web.Response(body=self.contents[id], content_type=self.files[id]["mimetype"])

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        if request.content_length is None:
            self.violations.append("an upload that does not say how long it is")
        content = await request.read()
        if self._faults["upload"]:
            return _broken(request, self._faults["upload"].popleft())
        taken = self.take(request.match_info["id"], content)
        return web.Response(status=200 if taken else 400, text=f"OK - {len(content)}")

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - looked at from outside, there is no event to wait for
                await asyncio.sleep(0.005)


async def _parameters(request: web.Request) -> dict[str, Any]:
    found: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        found |= await request.json()
    else:
        found |= dict(await request.post())
    return found


def _broken(request: web.Request, fault: Fault) -> web.StreamResponse:
    if (fault.reset or fault.silent) and request.transport is not None:
        request.transport.abort()
    if fault.retry_after is not None:
        headers = {"Retry-After": str(fault.retry_after)}
        return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers=headers)
    if fault.error:
        return web.json_response({"ok": False, "error": fault.error, **fault.fields}, status=fault.status)
    return web.Response(status=fault.status, text="<html>broken</html>", content_type=fault.content_type)
