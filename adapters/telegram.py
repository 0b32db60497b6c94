"""Telegram: long polling in a loop of our own, so that an update is confirmed only after it is stored."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import httpx
import structlog
from telegram import (
    BotCommandScopeAllGroupChats,
    BotCommandScopeAllPrivateChats,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    ReplyParameters,
)
from telegram.constants import ChatAction, MessageLimit
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
)
from telegram.ext import ExtBot
from telegram.request import HTTPXRequest

from adapters.pace import Limit, Pace
from adapters.telegram_updates import COMMANDS, GROUPS, IN_GROUPS, find_here, to_inbound
from adapters.text import split, utf16_length
from bot.errors import (
    ChatMoved,
    ConfigError,
    DatabaseUnavailable,
    DeliveryError,
    OutcomeUnknown,
    RetryLater,
    Stopping,
    Undeliverable,
)
from bot.messages import (
    DELIVERED,
    Address,
    Check,
    Delivery,
    Dropped,
    Event,
    Inbox,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Preview,
    Rated,
    Rating,
    Scored,
    rating_token,
)

T = TypeVar("T")

log = structlog.get_logger(__name__)

UPDATES = ["message", "edited_message", "callback_query"]
HEARTBEAT_S = 60.0
"""Between two questions how the webhook fares."""
POLL_S = 30
"""How long Telegram holds a poll open when there is nothing new."""
SEND_S = 15.0
"""How long a call may stay unanswered. Generous: giving up too early means not knowing whether a message arrived."""
MAX_BACKOFF_S = 30.0
CONFLICT_S = 30.0
"""Pause while somebody else receives this bot's updates: each poll of ours would cut theirs short."""
STORE_RETRY_S = 1.0
MAX_TOAST = 200
"""Letters of what is told to whoever pressed a button."""
OVERALL, IN_A_CHAT, IN_A_GROUP = Limit(30, 1.0), Limit(1, 1.0), Limit(20, 60.0)
"""What Telegram takes of one bot (core.telegram.org/bots/faq)."""
DRAFT_S = 0.35
"""Between two drafts of a reply in one chat; the text in between is in the next one."""
TYPING_S = 3.0
"""Telegram shows "typing" for five seconds: it is renewed after three, never sooner."""

_PRIVATE, _GROUP_SCOPE = BotCommandScopeAllPrivateChats(), BotCommandScopeAllGroupChats()
_PROOF = "x-telegram-bot-api-secret-token"
"""The header that shows that a post comes from Telegram."""
_REFUSED = (
    "Telegram refused the bot's token, it was revoked or mistyped: "
    "copy the current one from @BotFather into FRONTDESK_TELEGRAM_TOKEN"
)

os.environ["PTB_TIMEDELTA"] = "true"  # else each flood limit prints a deprecation warning

# httpx writes every URL at INFO, and the token is a part of it; ExtBot writes URLs and what people say at DEBUG
for _name in ("httpx", "telegram.ext.ExtBot"):
    logging.getLogger(_name).addFilter(lambda record: False)


class TelegramAdapter:
    """One bot. `api_url` is Telegram's, or a Bot API server of one's own; `webhook` our address, "" for polling."""

    platform = Platform.TELEGRAM
    asks_first = False  # the Bot API has no way to look for a message

    def __init__(self, token: str, api_url: str, webhook: str = "") -> None:
        self._bot = _Bot.at(token, api_url)
        self._webhook, self._secret = webhook, secrets.token_urlsafe(32)
        self._inbox: Inbox | None = None
        self._pace = Pace()
        self._typing: dict[Address, float] = {}
        self._noticing: set[asyncio.Task[None]] = set()
        self.last_contact: float | None = None

    async def run(self, inbox: Inbox) -> None:
        """Receive until cancelled. Raises ConfigError when the token is refused."""
        try:
            await self._patiently(self._bot.initialize)
            await self._show_commands()
            await (self._listen(inbox) if self._webhook else self._poll(inbox))
        finally:
            await self._bot.shutdown()

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """What was posted to the webhook. 200 only for what is stored; 503 makes Telegram post it again."""
        given = headers.get(_PROOF, "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self._secret.encode()):
            return 403, ""
        if self._inbox is None:
            return 503, ""
        try:
            update = json.loads(body)
        except (ValueError, RecursionError):
            return 400, ""
        try:
            words = await self._store(self._inbox, to_inbound(update, self._account, self._bot.username))
            self._notice_press(update, words)
        except DatabaseUnavailable as error:
            log.error("cannot store, telegram keeps the messages", error=str(error))
            return 503, ""
        self.last_contact = time.time()
        return 200, ""

    async def send(self, message: OutboundMessage) -> Delivery:
        """Send once, plain text. Raises RetryLater, ChatMoved, OutcomeUnknown, Undeliverable."""
        self._keep_pace(message.address)
        self._typing.pop(message.address, None)  # a new message ends "typing" on the customer's screen
        if message.kind is OutboundKind.MARK:
            return Delivery(await self._once(self._react(message)))
        if message.kind is OutboundKind.WITHDRAW:
            await self._once(self._bot.delete_message(message.address.chat, int(message.reply_to)))
            return Delivery(message.reply_to)
        send = self._edit if message.edits else self._post
        return Delivery(await self._once(send(message)))

    async def preview(self, preview: Preview) -> str:
        """In a private chat the text so far, as a draft; until there is one, and elsewhere, "typing".

        At most every DRAFT_S and TYPING_S in one place. Raises DeliveryError.
        """
        now, address = time.monotonic(), preview.address
        words = preview.text.strip() if _is_private(address) else ""
        if preview.over:
            return ""  # a draft goes by itself
        if words:
            if not self._pace.wait([(f"draft {address.chat} {address.thread}", Limit(1, DRAFT_S))], now):
                await self._once(self._draft(preview, words))
            return ""
        self._typing = {place: at for place, at in self._typing.items() if now - at < TYPING_S}
        if address not in self._typing:
            self._typing[address] = now
            await self._once(self._type(address))
        return ""

    async def is_member(self, chat: str, person: str) -> bool:
        """Raises DeliveryError."""
        member = await self._once(self._bot.ask("getChatMember", chat_id=chat, user_id=int(person)))
        restricted = member.get("status") == "restricted" and not member.get("is_member", True)
        return member.get("status") not in ("left", "kicked") and not restricted

    def split(self, text: str) -> Sequence[str]:
        return split(text, MessageLimit.MAX_TEXT_LENGTH, utf16_length)

    def _keep_pace(self, address: Address) -> None:
        """Raises RetryLater when Telegram would refuse a message there now."""
        limits = [("", OVERALL), (address.chat, IN_A_CHAT)]
        if not _is_private(address):
            limits.append((address.chat, IN_A_GROUP))
        if seconds := self._pace.wait(limits, time.monotonic()):
            raise RetryLater("a message to this chat would come too soon for Telegram", seconds)

    async def _type(self, address: Address) -> None:
        await self._bot.send_chat_action(address.chat, ChatAction.TYPING, message_thread_id=_number(address.thread))

    async def _draft(self, preview: Preview, words: str) -> None:
        address, beginning = preview.address, _encodable(self.split(words)[0])
        await self._bot.send_message_draft(
            int(address.chat), preview.number, beginning, message_thread_id=_number(address.thread)
        )

    # -- receiving -----------------------------------------------------------------------------

    async def _listen(self, inbox: Inbox) -> None:
        """Let Telegram post, one update after another, so that their order holds; and ask now and then how it goes."""
        self._inbox = inbox
        post = partial(
            self._bot.set_webhook,
            self._webhook,
            secret_token=self._secret,
            allowed_updates=UPDATES,
            max_connections=1,
        )
        await self._patiently(post)
        log.info("telegram connected", bot=self._bot.username, webhook=self._webhook)
        while True:
            state = await self._patiently(partial(self._bot.ask, "getWebhookInfo"))
            if state.get("url") != self._webhook:
                log.error("another program took this bot's messages: stop it", url=state.get("url"))
                await self._patiently(post)
            elif state.get("last_error_date", 0) > time.time() - HEARTBEAT_S:
                log.error("telegram cannot reach the webhook", error=state.get("last_error_message"))
            await asyncio.sleep(HEARTBEAT_S)

    async def _poll(self, inbox: Inbox) -> None:
        await self._patiently(self._bot.delete_webhook)  # with one set, every poll is refused; updates are kept
        log.info("telegram connected", bot=self._bot.username)
        cursor = await self._stored(inbox)
        while True:
            offset = None if cursor is None else cursor + 1
            updates = await self._patiently(partial(self._bot.raw_updates, offset, POLL_S))
            reached = await self._take(inbox, updates, cursor)
            if updates and reached == cursor:
                await asyncio.sleep(STORE_RETRY_S)  # the same ones come back at once
            cursor = reached

    async def _take(self, inbox: Inbox, updates: Sequence[object], cursor: int | None) -> int | None:
        """Store a batch in order, as far as the database lets us. Returns the last update_id stored.

        It may be lower than before: Telegram answers an offset that lies ahead of its numbers from the oldest update.
        """
        for update in updates:
            event = to_inbound(update, self._account, self._bot.username)
            try:
                words = await self._store(inbox, event)
            except Stopping:
                await asyncio.Event().wait()  # until cancelled: nothing more is accepted, replies still go out
            except DatabaseUnavailable as error:
                log.error("cannot store, telegram keeps the messages", error=str(error))
                return cursor
            self._notice_press(update, words)
            cursor = cursor if event.cursor is None else event.cursor
        return cursor

    def _notice_press(self, update: Any, words: str) -> None:
        """Who pressed a button waits, with a spinning wheel, for us to say that we noticed."""
        pressed = update.get("callback_query") if isinstance(update, dict) else None
        if isinstance(pressed, dict) and isinstance(pressed.get("id"), str):
            task = asyncio.create_task(self._noticed(pressed["id"], words))
            self._noticing.add(task)
            task.add_done_callback(self._noticing.discard)

    async def _noticed(self, query: str, words: str) -> None:
        try:
            await self._bot.answer_callback_query(query, words[:MAX_TOAST], show_alert=len(words) > 1)
        except TelegramError as error:  # too late, or Telegram is away: the wheel stops by itself
            log.debug("a button's press was not answered", error=_words(error))

    async def _store(self, inbox: Inbox, event: Event) -> str:
        """Returns what to tell whoever pressed a button."""
        try:
            if isinstance(event, Pressed):
                return await inbox.press(event)
            await inbox.receive(event)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # one update that nobody can store must not hold up all behind it
            log.error("update skipped, it cannot be stored", update=event.cursor, error=type(error).__name__)
            await inbox.receive(Dropped(self.platform, self._account, "cannot be stored", cursor=event.cursor))
        return "🙏" if isinstance(event, Rated | Scored) else ""

    async def _stored(self, inbox: Inbox) -> int | None:
        while True:
            try:
                return await inbox.cursor(self.platform, self._account)
            except DatabaseUnavailable as error:
                log.error("cannot read how far telegram's updates are stored", error=str(error))
                await asyncio.sleep(STORE_RETRY_S)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until Telegram answers. Raises ConfigError when it refuses the token."""
        attempt = 0
        while True:
            try:
                result = await call()
            except InvalidToken:
                raise ConfigError(_REFUSED) from None
            except TelegramError as error:
                await self._pause(error, attempt)
                attempt += 1
            else:
                self.last_contact = time.time()
                return result

    async def _pause(self, error: TelegramError, attempt: int) -> None:
        seconds, words = min(2.0 ** min(attempt, 10), MAX_BACKOFF_S), _words(error)
        if isinstance(error, Conflict):
            seconds = CONFLICT_S
            log.error("telegram gives this bot's messages to another program: stop it", error=words, seconds=seconds)
        else:
            seconds = _delay(error) if isinstance(error, RetryAfter) else seconds
            log.warning("telegram does not answer, trying again", error=words, seconds=seconds)
        await asyncio.sleep(seconds)

    async def _show_commands(self) -> None:
        try:
            for language, commands in COMMANDS.items():
                for scope, menu in ((_PRIVATE, commands), (_GROUP_SCOPE, {name: commands[name] for name in IN_GROUPS})):
                    await self._bot.set_my_commands(list(menu.items()), scope, language)
        except TelegramError as error:  # a menu is a convenience
            log.warning("the command menu is not set", error=_words(error))

    @property
    def _account(self) -> str:
        return str(self._bot.id)

    # -- sending -------------------------------------------------------------------------------

    async def _once(self, call: Awaitable[T]) -> T:
        try:
            result = await call
        except TelegramError as error:
            raise _delivery_error(error) from None
        self.last_contact = time.time()
        return result

    async def _post(self, message: OutboundMessage) -> str:
        reply_to, address = _number(message.reply_to), message.address
        sent = await self._bot.send_message(
            address.chat,
            _encodable(message.text),
            message_thread_id=_number(address.thread),
            reply_parameters=ReplyParameters(reply_to, allow_sending_without_reply=True) if reply_to else None,
            link_preview_options=LinkPreviewOptions(is_disabled=True),
            reply_markup=_keyboard(message),
        )
        return str(sent.message_id)

    async def _react(self, message: OutboundMessage) -> str:
        """Telegram's list of reactions has no check mark."""
        face = "👌" if message.text == DELIVERED else "👎"
        await self._bot.set_message_reaction(message.address.chat, int(message.reply_to), face)
        return message.reply_to

    async def _edit(self, message: OutboundMessage) -> str:
        try:
            await self._bot.edit_message_text(
                _encodable(message.text),
                message.address.chat,
                int(message.edits),
                link_preview_options=LinkPreviewOptions(is_disabled=True),
                reply_markup=_keyboard(message),
            )
        except BadRequest as error:
            if "message is not modified" not in error.message.lower():
                raise
        return message.edits


def _keyboard(message: OutboundMessage) -> InlineKeyboardMarkup | None:
    """A row of buttons: a card's, or the thumbs of a reply."""
    if message.rateable:
        return _thumbs(message.id)
    buttons = [InlineKeyboardButton(each.label, callback_data=each.token) for each in message.buttons]
    return InlineKeyboardMarkup([buttons]) if buttons else None


def _thumbs(outbound_id: str) -> InlineKeyboardMarkup:
    faces = {Rating.UP: "👍", Rating.DOWN: "👎"}
    buttons = [
        InlineKeyboardButton(face, callback_data=rating_token(rating, outbound_id)) for rating, face in faces.items()
    ]
    return InlineKeyboardMarkup([buttons])


def _is_private(address: Address) -> bool:
    return not address.chat.startswith("-")  # groups and channels have negative ids


def _number(text: str) -> int | None:
    return int(text) if text else None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would fail inside the HTTP client


# -- what errors mean ------------------------------------------------------------------------------

_ANY_TOKEN = re.compile(r"\d{5,}:[\w-]{8,}", re.ASCII)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def _delivery_error(error: TelegramError) -> DeliveryError:
    words = _words(error)
    if isinstance(error, RetryAfter):
        return RetryLater(words, _delay(error))
    if isinstance(error, ChatMigrated):
        return ChatMoved(f"the group became a supergroup, its id is {error.new_chat_id} now", str(error.new_chat_id))
    if isinstance(error, Forbidden | BadRequest | InvalidToken):
        return Undeliverable(words)
    return RetryLater(words) if _left_nothing(error) else OutcomeUnknown(words)


def _left_nothing(error: TelegramError) -> bool:
    """Whether the message cannot have arrived: the request never left, or a server said that it failed.

    Telegram's outages are minutes of 500 and 502: taken for "unknown", they would use up the one resend that is allowed
    and lose the message. A 504 is a gateway that waited in vain for an answer, as a read timeout is.
    """
    cause = error.__cause__
    answered = isinstance(error, NetworkError) and (cause is None or isinstance(cause, TelegramError))
    return isinstance(cause, _NOT_SENT) or (answered and "Gateway Time" not in error.message)


def _words(error: TelegramError) -> str:
    """What happened, in Telegram's words where there are any; no token, no URL, nothing that somebody wrote."""
    if isinstance(error, InvalidToken):
        return _REFUSED
    if error.message.startswith("Unknown error in HTTP implementation"):
        return f"the request failed: {type(error.__cause__).__name__}"
    return _ANY_TOKEN.sub("[token]", error.message.partition(". Parsing the server response")[0])[:300]


def _delay(error: RetryAfter) -> float:
    after = error.retry_after
    return after.total_seconds() if isinstance(after, timedelta) else float(after)


# -- the client ------------------------------------------------------------------------------------


_FOREIGN = "the answer is not Telegram's"


class _Request(HTTPXRequest):
    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        """As the original, without logging an answer that cannot be read: it may hold what customers wrote."""
        try:
            answer = json.loads(payload.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not ("result" in answer or answer.get("ok") is False):
            raise TelegramError(_FOREIGN)
        return answer


class _Bot(ExtBot[None]):
    """The library's client, and updates as they came: parsed, one that the library cannot read loses the batch."""

    @classmethod
    def at(cls, token: str, api_url: str) -> _Bot:
        """Polls have connections of their own, so that no send waits behind one."""
        return cls(
            token,
            f"{api_url.rstrip('/')}/bot",
            request=_Request(32, read_timeout=SEND_S, write_timeout=SEND_S, pool_timeout=SEND_S),
            get_updates_request=_Request(2, pool_timeout=SEND_S),
        )

    async def raw_updates(self, offset: int | None, wait_s: int) -> list[object]:
        """Updates from `offset` on, which confirms all before it. Raises TelegramError."""
        question = {"offset": offset, "timeout": wait_s, "allowed_updates": UPDATES}
        updates = await self._post("getUpdates", question, read_timeout=wait_s + SEND_S)
        if not isinstance(updates, list):
            raise TelegramError(_FOREIGN)
        return updates

    async def ask(self, method: str, **parameters: object) -> Mapping[str, Any]:
        """The bare answer of a method that gives an object. Raises TelegramError."""
        answer = await self._post(method, parameters)
        if not isinstance(answer, Mapping):
            raise TelegramError(_FOREIGN)
        return answer


# -- set-up ----------------------------------------------------------------------------------------

_TOKEN, _GROUP = "Telegram token", "Telegram escalation group"
_MAX_BATCH = 100
"""What getUpdates gives at most."""


async def check(token: str, api_url: str, escalation_chat: str | None) -> list[Check]:
    """Whether Telegram takes the token, and whether the bot may post in the escalation group."""
    try:
        async with _Bot.at(token, api_url) as bot:
            found = [Check(_TOKEN, True, f"@{bot.username}")]
            return [*found, await _check_group(bot, escalation_chat)] if escalation_chat else found
    except TelegramError as error:
        return [Check(_TOKEN, False, _words(error))]


async def _check_group(bot: _Bot, chat_id: str) -> Check:
    try:
        chat = await bot.ask("getChat", chat_id=chat_id)
        if chat.get("type") not in GROUPS:
            return Check(_GROUP, False, f"{chat_id} is a {chat.get('type')} chat: escalation.channel needs a group")
        member = await bot.ask("getChatMember", chat_id=chat_id, user_id=bot.id)
    except TelegramError as error:
        return Check(_GROUP, False, f"{_words(error)}: is the bot in the group, and is {chat_id} its id?")
    title, status = chat.get("title", chat_id), member.get("status")
    if status in ("left", "kicked"):
        return Check(_GROUP, False, f'the bot is not in "{title}": add it there')
    rights = {"restricted": member, "member": chat.get("permissions", {})}.get(str(status), {})
    if not rights.get("can_send_messages", True):
        return Check(_GROUP, False, f'the bot may not write in "{title}": make it an administrator')
    return Check(_GROUP, True, title)


async def find_group(token: str, api_url: str, timeout_s: float) -> tuple[str, str]:
    """Wait until somebody writes /here in a group with the bot. Returns the group's id and title.

    Nothing is confirmed: whatever customers wrote in the meantime is still there for `frontdesk run`.
    Raises ConfigError.
    """
    try:
        async with asyncio.timeout(timeout_s), _Bot.at(token, api_url) as bot:
            await bot.delete_webhook()
            return await _wait_for_here(bot)
    except TimeoutError:
        raise ConfigError(
            f"nobody wrote /here within {timeout_s:.0f} s: add the bot to the group, write /here there, try again"
        ) from None
    except TelegramError as error:
        raise ConfigError(f"Telegram did not let us look for /here: {_words(error)}") from None


async def _wait_for_here(bot: _Bot) -> tuple[str, str]:
    while True:
        updates = await bot.raw_updates(None, 10)
        if found := find_here(updates, bot.username):
            return found
        if len(updates) >= _MAX_BATCH:
            raise ConfigError(
                "too many messages wait for the bot to see a /here behind them: "
                "let `frontdesk run` answer them first, then try again"
            )
        await asyncio.sleep(1 if updates else 0)  # what waits there comes back at once
