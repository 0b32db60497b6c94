"""Whether a bot can do its work, and where its agents' group is: for `frontdesk doctor` and `frontdesk init`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from telegram.error import TelegramError

from adapters.telegram_bot import Bot, in_words
from adapters.telegram_updates import GROUPS, find_here
from bot.errors import ConfigError
from bot.messages import Check

_TOKEN, _GROUP = "Telegram token", "Telegram escalation group"
_MAX_BATCH = 100
"""What getUpdates gives at most."""


async def check(token: str, api_url: str, escalation_chat: str | None) -> list[Check]:
    """Whether Telegram takes the token, and whether the bot can do its work in the escalation group."""
    try:
        async with Bot.at(token, api_url) as bot:
            found = [Check(_TOKEN, True, f"@{bot.username}")]
            return [*found, await _check_group(bot, escalation_chat)] if escalation_chat else found
    except TelegramError as error:
        return [Check(_TOKEN, False, in_words(error))]


async def _check_group(bot: Bot, chat_id: str) -> Check:
    try:
        chat = await bot.ask("getChat", chat_id=chat_id)
        if chat.get("type") not in GROUPS:
            return Check(_GROUP, False, f"{chat_id} is a {chat.get('type')} chat: escalation.channel needs a group")
        member = await bot.ask("getChatMember", chat_id=chat_id, user_id=bot.id)
    except TelegramError as error:
        return Check(_GROUP, False, f"{in_words(error)}: is the bot in the group, and is {chat_id} its id?")
    found = trouble(chat, member, bool(bot.can_read_all_group_messages))
    return Check(_GROUP, not found, found or chat.get("title", chat_id))


async def find_group(token: str, api_url: str, timeout_s: float) -> tuple[str, str]:
    """Wait until somebody writes /here in a group with the bot. Returns the group's id and title.

    Nothing is confirmed: whatever customers wrote in the meantime is still there for `frontdesk run`.
    Raises ConfigError.
    """
    try:
        async with asyncio.timeout(timeout_s), Bot.at(token, api_url) as bot:
            await bot.delete_webhook()
            return await _wait_for_here(bot)
    except TimeoutError:
        raise ConfigError(
            f"nobody wrote /here within {timeout_s:.0f} s: add the bot to the group, write /here there, try again"
        ) from None
    except TelegramError as error:
        raise ConfigError(f"Telegram did not let us look for /here: {in_words(error)}") from None


async def _wait_for_here(bot: Bot) -> tuple[str, str]:
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


def trouble(chat: Mapping[str, Any], member: Mapping[str, Any], reads_all: bool) -> str:
    """What keeps the bot, which is `member`, from its work in the group `chat`, and what to do; "" when nothing does.

    `reads_all`: its privacy mode is off.
    """
    title, status = chat.get("title", chat.get("id")), str(member.get("status"))
    if status in ("left", "kicked"):
        return f'the bot is not in "{title}": add it there'
    rights = {"restricted": member, "member": chat.get("permissions", {})}.get(status, {})
    if not rights.get("can_send_messages", True):
        return f'the bot may not write in "{title}": make it an administrator'
    if chat.get("is_forum") and not _manages_topics(member, status):  # first, for its cure is one for blindness, too
        return (
            f'the bot needs the right to manage topics in "{title}", so that each escalation gets its topic: '
            "make it an administrator with that right"
        )
    if status not in ("administrator", "creator") and not reads_all:
        return (
            f'the bot does not see what agents write in "{title}": make it an administrator; or turn its privacy mode '
            "off (@BotFather, /setprivacy), remove it from the group and add it anew"
        )
    return ""


def _manages_topics(member: Mapping[str, Any], status: str) -> bool:
    """Others may have the right to open topics by hand, but Telegram lets only administrators do it as bots."""
    return status == "creator" or (status == "administrator" and bool(member.get("can_manage_topics")))
