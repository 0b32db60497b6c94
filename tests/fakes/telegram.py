"""A Telegram of our own: the Bot API on a loopback port, which keeps the truth.

    async with FakeTelegram() as telegram:
        ...  # start an adapter, or a whole process, with telegram.url and telegram.token
        telegram.customer_writes(7, "hello")             # returns its update_id at once
        await telegram.confirmed()                       # the bot has confirmed every update
        answers = await telegram.answers(7, 1)           # waits for what the bot wrote there
        assert [answer.text for answer in answers] == ["good morning"]
        assert telegram.violations == []

Chats. A positive chat id is a private chat, which exists once its customer wrote; a negative one is a group, which
exists after add_group(). Elsewhere the bot may not write, and nowhere in a private chat in `telegram.blocked`.
customer_writes() puts a message there; push() any update at all.

Truth. `telegram.pending` holds the updates that are not confirmed, oldest first; like Telegram's own, they are
forgotten only when a later offset is asked for, so they outlive the bot's process. `telegram.offsets` holds the offset
of every poll. `telegram.sent(chat_id)` is what the bot wrote in a chat; an edit changes `text` and keeps the former
ones in `former`. `telegram.actions` holds (chat, thread, action) of every chat action, `telegram.commands` the menu by
scope ("all_group_chats", "chat -100" ...) and language code, `telegram.calls` (method, parameters) of every call,
`telegram.written` what people wrote. `telegram.violations` holds what no correct client does: unknown methods and
parameters, missing and mistyped ones; they are answered with a 400.

A message to a chat sooner than `telegram.pause_s` after the one before is a 429, which `telegram.floods` counts.

Two polls at a time are a conflict, which ends the older one; so is a poll while `telegram.webhook` is set. A token is
good while `telegram.revoked` is False, and the bot's privacy mode is on until `telegram.reads_all`. restart_numbers()
makes the next update_id any number, as after a quiet week.

Faults. `telegram.fail("sendMessage", Fault(...), ...)` breaks the next calls of a method, one fault a call; see Fault.
Leaving the `async with` and entering it again is an outage of Telegram: same port, same state.

customer_writes(), add_group(), push() and fail() may be called from another thread than the one that serves.
The address is plain HTTP on 127.0.0.1, so the environment of the bot must name no HTTP proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.fakes.telegram_chats import Chat, Chats, Params, Refused, Sent, about
from tests.fakes.telegram_schema import decode

TOKEN = "4242424242:CANARY-telegram-token"
PATIENCE_S = 10.0
"""How long any of the waiting methods waits before its TimeoutError fails the test."""
_QUEUE_SLACK = 10
"""An offset this far ahead of the newest update makes no sense to Telegram: it answers from the oldest one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken answer. `done` tells whether the call has its effect all the same.

    Fault(403, "Forbidden: bot was blocked by the user"), Fault(429, retry_after=7), Fault(502, body="<html>"),
    Fault(reset=True), Fault(silent=True, done=True) ...; `parameters` go into the answer beside the description.
    """

    status: int = 200
    description: str = ""
    retry_after: int = 0
    parameters: Params = field(default_factory=dict)
    body: str = ""
    reset: bool = False
    silent: bool = False
    done: bool = False


class FakeTelegram(Chats):
    """See the module; what chats hold is in Chats."""

    def __init__(self, token: str = TOKEN, username: str = "shop_bot") -> None:
        super().__init__(int(token.partition(":")[0]), username)
        self.token = token
        self.pending: list[dict[str, Any]] = []
        self.offsets: list[int | None] = []
        self.calls: list[tuple[str, Params]] = []
        self.violations: list[str] = []
        self.written: list[dict[str, Any]] = []
        self.webhook = self.secret = ""
        self.webhook_trouble: Params = {}
        self.revoked = False
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._update_ids = itertools.count(700_000_001)
        self._newest = 0
        self._arrived = asyncio.Event()
        self._poll = 0
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._methods: dict[str, Callable[[Params], Awaitable[Any] | Any]] = {
            "getMe": lambda params: {**self.me(), "can_read_all_group_messages": self.reads_all},
            "getUpdates": self._get_updates,
            "setWebhook": self._set_webhook,
            "deleteWebhook": self._delete_webhook,
            "getWebhookInfo": lambda params: {
                "url": self.webhook,
                "has_custom_certificate": False,
                "pending_update_count": len(self.pending),
                **self.webhook_trouble,
            },
            "setMyCommands": self.set_my_commands,
            "sendMessage": self.send_message,
            "editMessageText": self.edit_message_text,
            "deleteMessage": self.delete_message,
            "setMessageReaction": self.set_message_reaction,
            "answerCallbackQuery": self.answer_callback_query,
            "sendChatAction": self.send_chat_action,
            "sendMessageDraft": self.send_message_draft,
            "copyMessage": self.copy_message,
            "editMessageCaption": self.edit_message_caption,
            "createForumTopic": self.create_forum_topic,
            "closeForumTopic": self.close_forum_topic,
            "getChat": self.get_chat,
            "getChatMember": self.get_chat_member,
        }

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**22)
        app.router.add_post("/bot{token}/{method}", self._serve)
        self._loop = asyncio.get_running_loop()
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """What telegram.api_url is set to."""
        return f"http://127.0.0.1:{self._port}"

    # -- what people do --------------------------------------------------------------------------

    def customer_writes(
        self, chat_id: int, text: str = "", *, user_id: int = 0, name: str = "Li Wei", language: str = "zh", **more: Any
    ) -> int:
        """A person writes. `user_id` 0 is the chat's owner in a private chat, customer 1 in a group; `more` are
        further fields of Telegram's Message (photo, reply_to_message, message_thread_id ...). Returns the update_id."""
        if chat_id > 0:
            self.chats.setdefault(chat_id, Chat(chat_id, name, "private", "member", True))
        chat, message_id = self.chats[chat_id], next(self._message_ids)
        chat.messages.add(message_id)
        if more.get("is_topic_message"):
            chat.topics.setdefault(more["message_thread_id"], "")
        user = {"id": user_id or max(chat_id, 1), "is_bot": False, "first_name": name, "language_code": language}
        message = {"message_id": message_id, "date": int(time.time()), "chat": about(chat), "from": user}
        self.written.append(message | ({"text": text} if text else {}) | more)
        return self.push(message=self.written[-1])

    def presses(self, sent: Sent, label: str, *, user_id: int = 0) -> int:
        """A person presses the button `label` under a message of the bot. Returns the update_id."""
        rows = sent.params["reply_markup"]["inline_keyboard"]
        (button,) = [button for row in rows for button in row if button["text"] == label]
        query = {"id": str(next(self._message_ids)), "chat_instance": "1", "data": button["callback_data"]}
        user = {"id": user_id or max(sent.chat, 1), "is_bot": False, "first_name": "Li Wei"}
        self.open_queries.add(query["id"])
        message = {"message_id": sent.message_id, "date": int(time.time()), "chat": about(self.chats[sent.chat])}
        return self.push(callback_query=query | {"from": user, "message": message})

    def add_group(
        self,
        chat_id: int,
        title: str = "Staff",
        *,
        kind: str = "supergroup",
        status: str = "administrator",
        may_write: bool = True,
        forum: bool = False,
        manages_topics: bool = False,
    ) -> None:
        """A group (negative id) where the bot is a "member", "administrator", "restricted", "left" or "kicked".

        `forum`: it has topics, which members and the bot may open where `manages_topics`.
        """
        self.chats[chat_id] = Chat(chat_id, title, kind, status, may_write, forum, manages_topics)

    def push(self, **update: Any) -> int:
        """Queue any update; update_id is given to it unless it has one."""
        update.setdefault("update_id", next(self._update_ids))
        self.pending.append(update)
        if isinstance(update["update_id"], int):
            self._newest = update["update_id"]
        self._wake()
        return self._newest

    def restart_numbers(self, start: int) -> None:
        """The next update gets the number `start`."""
        self._update_ids, self._newest = itertools.count(start), start

    def fail(self, method: str, *faults: Fault) -> None:
        """Break the next calls of `method`."""
        self._faults[method].extend(faults)

    # -- what can be seen ------------------------------------------------------------------------

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _ in self.calls)

    async def answers(self, chat_id: int, count: int) -> list[Sent]:
        """Wait until the bot has written at least `count` messages in a chat."""
        await self.until(lambda: len(self.sent(chat_id)) >= count)
        return self.sent(chat_id)

    async def confirmed(self) -> None:
        """Wait until the bot has confirmed every update."""
        await self.until(lambda: not self.pending)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - tests look from outside, there is no event to wait for
                await asyncio.sleep(0.005)

    # -- the server ------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        if self.revoked or request.match_info["token"] != self.token:
            return _error(401, "Unauthorized")
        form = {name: str(value) for name, value in (await request.post()).items()}
        params, problems = decode(method, form)
        self.calls.append((method, params))
        if problems:
            self.violations += problems
            return _error(400, f"Bad Request: {'; '.join(problems)}")
        fault = self._faults[method].popleft() if self._faults[method] else None
        if fault and not fault.done:
            return await self._break(request, fault)
        answer = await self._answer(method, params)
        return await self._break(request, fault) if fault else answer

    async def _answer(self, method: str, params: Params) -> web.StreamResponse:
        if method not in self._methods:
            self.violations.append(f"{method}: this fake does not know it yet")
            return _error(501, "Not Implemented")
        try:
            result = self._methods[method](params)
            return web.json_response({"ok": True, "result": await result if asyncio.iscoroutine(result) else result})
        except Refused as refused:
            return _error(refused.status, str(refused), refused.parameters)

    async def _break(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.silent:
            await asyncio.Event().wait()
        if fault.reset:
            assert request.transport is not None
            request.transport.abort()
        if fault.body:
            return web.Response(status=fault.status, text=fault.body, content_type="text/html")
        flood = {"retry_after": fault.retry_after} if fault.retry_after else {}
        return _error(fault.status, fault.description, {**fault.parameters, **flood})

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._arrived.set)

    # -- methods: receiving ----------------------------------------------------------------------

    async def _get_updates(self, params: Params) -> list[dict[str, Any]]:
        if self.webhook:
            raise Refused(409, "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook first")
        self._poll += 1
        mine, ends = self._poll, time.monotonic() + params.get("timeout", 0)
        self._arrived.set()  # ends an older poll
        self._confirm(params.get("offset"))
        while not self.pending and (left := ends - time.monotonic()) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
            if self._poll != mine:
                raise Refused(409, "Conflict: terminated by other getUpdates request")
        return self.pending[: params.get("limit", 100)]

    def _confirm(self, offset: int | None) -> None:
        self.offsets.append(offset)
        if offset is not None and offset < 0:
            self.pending = self.pending[offset:]  # counts from the end; what is before that is lost
        elif offset is not None and offset <= self._newest + _QUEUE_SLACK:
            self.pending = [update for update in self.pending if not _before(update, offset)]

    def _set_webhook(self, params: Params) -> bool:
        self.webhook, self.secret = params["url"], params.get("secret_token", "")
        return True

    def _delete_webhook(self, params: Params) -> bool:
        self.webhook = ""
        if params.get("drop_pending_updates"):
            self.pending.clear()
        return True


def _error(status: int, description: str, parameters: Params | None = None) -> web.Response:
    answer = {"ok": False, "error_code": status, "description": description}
    return web.json_response(answer | ({"parameters": parameters} if parameters else {}), status=status)


def _before(update: Mapping[str, Any], offset: int) -> bool:
    return isinstance(update["update_id"], int) and update["update_id"] < offset
