"""Telegram: long polling in a loop of our own, so that an update is confirmed only after it is stored."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog
from telegram import (
    BotCommandScope,
    BotCommandScopeAllGroupChats,
    BotCommandScopeAllPrivateChats,
    BotCommandScopeChat,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    ReplyParameters,
)
from telegram.constants import ChatAction, ForumTopicLimit, MessageLimit
from telegram.error import (
    BadRequest,
    Conflict,
    InvalidToken,
    RetryAfter,
    TelegramError,
)

from adapters.pace import Limit, Pace
from adapters.telegram_bot import REFUSED, UPDATES, Bot, delay, delivery_error, in_words
from adapters.telegram_updates import (
    COMMANDS,
    DESK_COMMANDS,
    IN_GROUPS,
    Menus,
    Question,
    to_inbound,
    to_question,
)
from adapters.text import split, utf16_length
from bot.errors import (
    ConfigError,
    DatabaseUnavailable,
    FrontdeskError,
    RetryLater,
    Stopping,
)
from bot.messages import (
    DELIVERED,
    Address,
    Delivery,
    Desk,
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

HEARTBEAT_S = 60.0
"""Between two questions how the webhook fares."""
POLL_S = 30
"""How long Telegram holds a poll open when there is nothing new."""
MAX_BACKOFF_S = 30.0
CONFLICT_S = 30.0
"""Pause while somebody else receives this bot's updates: each poll of ours would cut theirs short."""
STORE_RETRY_S = 1.0
ANSWER_S = 60.0
"""How long the answer to an agent's question may be put off; whoever still wants it then asks again."""
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


class TelegramAdapter:
    """One bot. `api_url` is Telegram's, or a Bot API server of one's own; `webhook` our address, "" for polling."""

    platform = Platform.TELEGRAM
    asks_first = False  # the Bot API has no way to look for a message

    def __init__(
        self,
        token: str,
        api_url: str,
        webhook: str = "",
        desk: Desk | None = None,
        agents: str = "",
    ) -> None:
        """`desk` answers what is asked of it in `agents`, the chat of the cards, "" where they go elsewhere."""
        self._desk, self._agents = desk, agents
        self._bot = Bot.at(token, api_url)
        # the same in every process that Telegram may post to
        self._webhook, self._secret = webhook, hmac.digest(token.encode(), b"webhook", "sha256").hex()
        self._inbox: Inbox | None = None
        self._pace = Pace()
        self._typing: dict[Address, float] = {}
        self._topics: dict[str, str] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.last_contact: float | None = None

    async def run(self, inbox: Inbox) -> None:
        """Receive until cancelled. Raises ConfigError when the token is refused."""
        try:
            await self._patiently(self._bot.initialize)
            await self._show_commands()
            await (self._listen(inbox) if self._webhook else self._poll(inbox))
        finally:
            for answer in self._answering:
                answer.cancel()
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
            await self._take_in(self._inbox, update)
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
        if message.kind is OutboundKind.CARD:
            return await self._show_card(message)
        return Delivery(await self._once(self._edit(message) if message.edits else self._post(message)))

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
            try:
                stored = await self._take_in(inbox, update)
            except Stopping:
                await asyncio.Event().wait()  # until cancelled: nothing more is accepted, replies still go out
            except DatabaseUnavailable as error:
                log.error("cannot store, telegram keeps the messages", error=str(error))
                return cursor
            cursor = cursor if stored is None else stored
        return cursor

    async def _take_in(self, inbox: Inbox, update: object) -> int | None:
        """Store an update, then answer whoever waits for it. Returns its update_id. Raises DatabaseUnavailable."""
        question = to_question(update, self._account, self._bot.username, self._agents)
        if question and (desk := self._desk):
            event: Event = Dropped(self.platform, self._account, "asked of the desk", cursor=question.cursor)
            await self._store(inbox, event)
            self._beside(self._answer(desk, question))
        else:
            event = to_inbound(update, self._account, self._bot.username, self._agents)
            self._notice_press(update, await self._store(inbox, event))
        return event.cursor

    async def _answer(self, desk: Desk, question: Question) -> None:
        latest = time.monotonic() + ANSWER_S
        try:
            for part in self.split(await desk(question.words, question.place, question.language)):
                number, kind, reply_to = secrets.token_hex(16), OutboundKind.NOTICE, question.reply_to
                await self._send_by(OutboundMessage(number, kind, question.place, part, reply_to), latest)
        except Exception as error:  # a bug's own words may hold what somebody wrote
            words = str(error) if isinstance(error, FrontdeskError) else type(error).__name__
            log.warning("an agent's question was not answered", error=words)

    async def _send_by(self, message: OutboundMessage, latest: float) -> None:
        """Send, waiting out named delays that end by `latest` (of time.monotonic()). Raises DeliveryError."""
        while True:
            try:
                await self.send(message)
            except RetryLater as error:
                if error.after is None or time.monotonic() + error.after > latest:
                    raise
                await asyncio.sleep(error.after)
            else:
                return

    def _beside(self, answer: Coroutine[Any, Any, None]) -> None:
        """Let it go out while updates are taken on."""
        task = asyncio.create_task(answer)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _notice_press(self, update: Any, words: str) -> None:
        """Who pressed a button waits, with a spinning wheel, for us to say that we noticed."""
        pressed = update.get("callback_query") if isinstance(update, dict) else None
        if isinstance(pressed, dict) and isinstance(pressed.get("id"), str):
            self._beside(self._noticed(pressed["id"], words))

    async def _noticed(self, query: str, words: str) -> None:
        try:
            await self._bot.answer_callback_query(query, words[:MAX_TOAST], show_alert=len(words) > 1)
        except TelegramError as error:  # too late, or Telegram is away: the wheel stops by itself
            log.debug("a button's press was not answered", error=in_words(error))

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
                raise ConfigError(REFUSED) from None
            except TelegramError as error:
                await self._pause(error, attempt)
                attempt += 1
            else:
                self.last_contact = time.time()
                return result

    async def _pause(self, error: TelegramError, attempt: int) -> None:
        seconds, words = min(2.0 ** min(attempt, 10), MAX_BACKOFF_S), in_words(error)
        if isinstance(error, Conflict):
            seconds = CONFLICT_S
            log.error("telegram gives this bot's messages to another program: stop it", error=words, seconds=seconds)
        else:
            seconds = delay(error) if isinstance(error, RetryAfter) else seconds
            log.warning("telegram does not answer, trying again", error=words, seconds=seconds)
        await asyncio.sleep(seconds)

    async def _show_commands(self) -> None:
        in_groups = {language: {name: menu[name] for name in IN_GROUPS} for language, menu in COMMANDS.items()}
        menus: list[tuple[BotCommandScope, Menus]] = [(_PRIVATE, COMMANDS), (_GROUP_SCOPE, in_groups)]
        if re.fullmatch("-?[0-9]+", self._agents):  # the settings take anything, the library only numbers
            menus.append((BotCommandScopeChat(self._agents), DESK_COMMANDS))
        try:
            for scope, languages in menus:
                for language, menu in languages.items():
                    await self._bot.set_my_commands(list(menu.items()), scope, language)
        except TelegramError as error:  # a menu is a convenience
            log.warning("the command menu is not set", error=in_words(error))

    @property
    def _account(self) -> str:
        return str(self._bot.id)

    # -- sending -------------------------------------------------------------------------------

    async def _once(self, call: Awaitable[T]) -> T:
        try:
            result = await call
        except TelegramError as error:
            raise delivery_error(error) from None
        self.last_contact = time.time()
        return result

    async def _show_card(self, message: OutboundMessage) -> Delivery:
        """A new one gets a topic of its own, where the group has topics; with its escalation, that is closed."""
        address = message.address
        if not message.edits and not message.over:
            if message.id not in self._topics:  # of an attempt whose card did not arrive
                self._topics[message.id] = await self._once(self._open_topic(message))
            address = replace(address, thread=self._topics[message.id])
        message = replace(message, address=address)
        sent = await self._once(self._edit(message) if message.edits else self._post(message))
        self._topics.pop(message.id, None)
        if message.over and address.thread:
            await self._close_topic(address)
        return Delivery(sent, address.thread)

    async def _open_topic(self, message: OutboundMessage) -> str:
        """The id of a new topic; "" where the group has none, or the bot may not open any."""
        chat, title = message.address.chat, message.text.partition("\n")[0]
        if not (await self._bot.ask("getChat", chat_id=chat)).get("is_forum"):
            return ""
        try:
            name = _encodable(title)[: ForumTopicLimit.MAX_NAME_LENGTH]
            topic = await self._bot.ask("createForumTopic", chat_id=chat, name=name)
        except BadRequest as error:
            log.warning("no topic for this escalation: let the bot manage topics", error=in_words(error))
            return ""
        return str(topic.get("message_thread_id", ""))

    async def _close_topic(self, address: Address) -> None:
        try:
            await self._bot.close_forum_topic(address.chat, int(address.thread))
        except TelegramError as error:  # closed already, or deleted
            log.debug("a topic was not closed", error=in_words(error))

    async def _post(self, message: OutboundMessage) -> str:
        reply_to, address = _number(message.reply_to), message.address
        where: dict[str, Any] = {
            "message_thread_id": _number(address.thread),
            "reply_parameters": ReplyParameters(reply_to, allow_sending_without_reply=True) if reply_to else None,
        }
        try:
            if message.copies:
                chat, _, number = message.copies.rpartition(":")
                return str((await self._bot.copy_message(address.chat, chat, int(number), **where)).message_id)
            sent = await self._bot.send_message(
                address.chat,
                _encodable(message.text),
                link_preview_options=LinkPreviewOptions(is_disabled=True),
                reply_markup=_keyboard(message),
                **where,
            )
        except BadRequest as error:
            if not (message.kind is OutboundKind.RELAY and address.thread and "thread not found" in error.message):
                raise
            return await self._post(replace(message, address=replace(address, thread="")))  # agents deleted the topic
        return str(sent.message_id)

    async def _react(self, message: OutboundMessage) -> str:
        """Telegram's list of reactions has no check mark."""
        face = "👌" if message.text == DELIVERED else "👎"
        await self._bot.set_message_reaction(message.address.chat, int(message.reply_to), face)
        return message.reply_to

    async def _edit(self, message: OutboundMessage) -> str:
        chat, number, text = message.address.chat, int(message.edits), _encodable(message.text)
        try:
            if message.copies:
                await self._bot.edit_message_caption(chat, number, caption=text)
                return message.edits
            await self._bot.edit_message_text(
                text,
                chat,
                number,
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
