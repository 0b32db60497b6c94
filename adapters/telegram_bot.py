"""The library's client as we use it, and what its errors mean to us."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.ext import ExtBot
from telegram.request import HTTPXRequest

from bot.errors import ChatMoved, DeliveryError, OutcomeUnknown, RetryLater, Undeliverable

UPDATES = ["message", "edited_message", "callback_query"]
SEND_S = 15.0
"""How long a call may stay unanswered. Generous: giving up too early means not knowing whether a message arrived."""
REFUSED = (
    "Telegram refused the bot's token, it was revoked or mistyped: "
    "copy the current one from @BotFather into FRONTDESK_TELEGRAM_TOKEN"
)

os.environ["PTB_TIMEDELTA"] = "true"  # else each flood limit prints a deprecation warning

# httpx writes every URL at INFO, and the token is a part of it; ExtBot writes URLs and what people say at DEBUG
for _name in ("httpx", "telegram.ext.ExtBot"):
    logging.getLogger(_name).addFilter(lambda record: False)


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


class Bot(ExtBot[None]):
    """The library's client, and updates as they came: parsed, one that the library cannot read loses the batch."""

    @classmethod
    def at(cls, token: str, api_url: str) -> Bot:
        """Polls have connections of their own, so that no send waits behind one."""
        trust = {"verify": httpx.create_ssl_context()}  # as httpx would by itself, which takes 50 ms for each of them
        return cls(
            token,
            f"{api_url.rstrip('/')}/bot",
            request=_Request(32, read_timeout=SEND_S, write_timeout=SEND_S, pool_timeout=SEND_S, httpx_kwargs=trust),
            get_updates_request=_Request(2, pool_timeout=SEND_S, httpx_kwargs=trust),
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


# -- what errors mean ------------------------------------------------------------------------------

_ANY_TOKEN = re.compile(r"\d{5,}:[\w-]{8,}", re.ASCII)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def delivery_error(error: TelegramError) -> DeliveryError:
    words = in_words(error)
    if isinstance(error, RetryAfter):
        return RetryLater(words, delay(error))
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


def in_words(error: TelegramError) -> str:
    """What happened, in Telegram's words where there are any; no token, no URL, nothing that somebody wrote."""
    if isinstance(error, InvalidToken):
        return REFUSED
    if error.message.startswith("Unknown error in HTTP implementation"):
        return f"the request failed: {type(error.__cause__).__name__}"
    return _ANY_TOKEN.sub("[token]", error.message.partition(". Parsing the server response")[0])[:300]


def delay(error: RetryAfter) -> float:
    after = error.retry_after
    return after.total_seconds() if isinstance(after, timedelta) else float(after)
