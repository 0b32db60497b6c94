"""What Telegram's updates mean to us: pure functions on its JSON, which may hold anything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bot.messages import (
    MAX_ARGUMENT,
    WITH_ARGUMENT,
    Address,
    Customer,
    Dropped,
    Edited,
    Event,
    InboundKind,
    InboundMessage,
    Left,
    Moved,
    Platform,
    Pressed,
    Rated,
    Scored,
    read_action,
    read_rating,
    read_score,
)

Menus = Mapping[str | None, Mapping[str, str]]
"""What each command does, by language code; None is for every other language."""
COMMANDS: Menus = {
    None: {
        "start": "Say hello",
        "help": "What I can do",
        "human": "Talk to a person",
        "language": "Choose a language",
        "status": "Who is answering me?",
        "forget": "Erase what I wrote",
    },
    "zh": {
        "start": "打个招呼",
        "help": "我能做什么",
        "human": "转人工",
        "language": "选择语言",
        "status": "现在谁在回复我？",
        "forget": "删除我的记录",
    },
}
"""What customers can ask."""
IN_GROUPS = ("help", "human", "status")
"""Of these, what the menu offers in a group; the others work there all the same."""
DESK_COMMANDS: Menus = {
    None: {"open": "Who waits for a colleague", "status": "How the desk fares", "help": "What I answer here"},
    "zh": {"open": "谁在等同事", "status": "当前状况", "help": "这里能用的命令"},
}
"""What agents can ask of the desk itself, in their group."""
_HERE = "here"
"""The command that shows us the escalation group."""
_COMMAND = re.compile(r"/(\w{1,32})(?:@(\w+))?(?:\s|$)", re.ASCII)
GROUPS = ("group", "supergroup")
_EDITED = "edited_message"
_OTHER_UPDATES = {
    "channel_post": "channel post",
    "edited_channel_post": "channel post",
}
_MEDIA = (
    *("live_photo", "photo", "voice", "audio", "video", "video_note", "animation", "document", "sticker"),
    *("venue", "location", "contact", "poll", "checklist", "dice", "game", "story", "paid_media", "rich_message"),
)
"""The more telling name first: an animation comes as a document too, a venue as a location, a live photo as a photo."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the desk itself, by somebody whose platform speaks `language`; the answer goes to `place`, under
    the message `reply_to`."""

    words: str
    language: str
    place: Address
    reply_to: str
    cursor: int | None


def to_question(update: object, account: str, bot_username: str, agents: str) -> Question | None:
    """The command of the desk's that is written in the chat `agents`; None for any other update. Never raises."""
    message = _table(update, "message")
    chat, (name, target) = str(_whole(_table(message, "chat"), "id")), _command(message)
    if _unusable(update, message) or chat != agents or name not in DESK_COMMANDS[None]:
        return None
    if target not in ("", bot_username.lower()):
        return None
    place = Address(Platform.TELEGRAM, account, chat, _thread(message))
    message_id, cursor = str(_whole(message, "message_id")), _whole(update, "update_id")
    return Question(name, _customer(_table(message, "from")).language, place, message_id, cursor)


def to_inbound(update: object, account: str, bot_username: str, agents: str = "") -> Event:
    """One element of getUpdates, whatever it holds; never raises. In the chat `agents` all is read that is in a topic.

    The event is named by chat and message, not by update_id: Telegram starts again at a random update_id after a quiet
    week, and a number met twice would look like a redelivery. `cursor` is the update_id, None only when there is none.
    """
    pressed = _table(update, "callback_query")
    if pressed and "data" in pressed:
        return _pressed(pressed, _whole(update, "update_id"), account)
    edited = isinstance(update, Mapping) and _EDITED in update
    cursor, message = _whole(update, "update_id"), _table(update, _EDITED if edited else "message")
    here = _whole(_table(message, "chat"), "id")
    if cursor is not None and here is not None:
        if (there := _whole(message, "migrate_to_chat_id")) is not None:
            return Moved(Platform.TELEGRAM, account, str(here), str(there), cursor)
        if (gone := _whole(_table(message, "left_chat_member"), "id")) is not None:
            return Left(Platform.TELEGRAM, account, str(here), str(gone), cursor)
    reason = _unusable(update, message) or ("" if edited else _not_for_us(message, account, bot_username, agents))
    if reason:
        return Dropped(Platform.TELEGRAM, account, reason, cursor=cursor)
    chat, message_id = str(_whole(_table(message, "chat"), "id")), str(_whole(message, "message_id"))
    kind, text = _content(message)
    if edited:
        if kind is not InboundKind.TEXT:  # a command means what it meant; a live location moves
            return Dropped(Platform.TELEGRAM, account, "edited, not in words", cursor=cursor)
        original, when = f"{chat}:{message_id}", _whole(message, "edit_date")
        by = _customer(_table(message, "from")).id
        return Edited(Platform.TELEGRAM, account, f"{original}:{when}", original, text, cursor, by)
    return InboundMessage(
        address=Address(Platform.TELEGRAM, account, chat, _thread(message)),
        customer=_customer(_table(message, "from")),
        event_id=f"{chat}:{message_id}",
        text=text,
        kind=kind,
        reply_to=message_id if _in_group(message) else "",
        cursor=cursor,
        answers=str(_whole(_table(message, "reply_to_message"), "message_id") or ""),
        media=_media(message),
    )


def _pressed(pressed: Mapping[str, object], cursor: int | None, account: str) -> Event:
    """A button was pressed: data is what we gave it, unless somebody else made it up."""
    data, sender = _string(pressed, "data"), _table(pressed, "from")
    chat = _whole(_table(_table(pressed, "message"), "chat"), "id")
    if _whole(sender, "id") is not None and cursor is not None:
        if rating := read_rating(data):
            return Rated(Platform.TELEGRAM, account, _customer(sender).id, rating[1], rating[0], cursor)
        if score := read_score(data):
            return Scored(Platform.TELEGRAM, account, _customer(sender).id, score[1], score[0], cursor)
        if action := read_action(data):
            agent = _customer(sender)
            return Pressed(Platform.TELEGRAM, account, str(chat), agent, action[1], action[0], cursor)
    return Dropped(Platform.TELEGRAM, account, "not a button of ours", cursor=cursor)


def find_here(updates: Sequence[object], bot_username: str) -> tuple[str, str] | None:
    """Id and title of the group where /here was written last, None if nowhere."""
    for update in reversed(updates):
        message = _table(update, "message")
        chat, (name, target) = _table(message, "chat"), _command(message)
        if _in_group(message) and name == _HERE and target in ("", bot_username.lower()):
            return str(_whole(chat, "id")), _string(chat, "title")
    return None


def _unusable(update: object, message: Mapping[str, object]) -> str:
    if _whole(update, "update_id") is None or not isinstance(update, Mapping):
        return "malformed update"
    if "message" not in update and _EDITED not in update:
        return next((reason for key, reason in _OTHER_UPDATES.items() if key in update), "unknown update type")
    chat, sender = _table(message, "chat"), _table(message, "from")
    if None in (_whole(message, "message_id"), _whole(chat, "id"), _whole(sender, "id")):
        return "malformed message"
    if sender.get("is_bot") or "sender_chat" in message:
        return "not from a person"
    if _string(chat, "type") not in ("private", *GROUPS):
        return "not a chat with people"
    return ""


def _not_for_us(message: Mapping[str, object], account: str, username: str, agents: str) -> str:
    name, target = _command(message)
    if target and target != username.lower():
        return "command for another bot"
    if not _content(message)[1]:
        return "service message"
    if not _in_group(message):
        return ""
    if name == _HERE:
        return "set-up command"
    if _thread(message) and str(_whole(_table(message, "chat"), "id")) == agents:
        return ""
    ours = target or name in COMMANDS[None] or _mentions(message, username) or _answers(message, account)
    return "" if ours else "not addressed to the bot"


def _content(message: Mapping[str, object]) -> tuple[InboundKind, str]:
    name, _ = _command(message)
    if name in COMMANDS[None]:
        argument = _string(message, "text").partition(" ")[2].strip()[:MAX_ARGUMENT] if name in WITH_ARGUMENT else ""
        return InboundKind.COMMAND, f"{name} {argument}".strip()
    words = _string(message, "text") or _string(message, "caption")
    if words:
        return InboundKind.TEXT, words
    return InboundKind.MEDIA, _media(message)


def _media(message: Mapping[str, object]) -> str:
    return next((kind for kind in _MEDIA if message.get(kind)), "")


def _command(message: Mapping[str, object]) -> tuple[str, str]:
    """The command's name and the bot it is meant for, each "" when there is none."""
    found = _COMMAND.match(_string(message, "text"))
    return (found[1].lower(), (found[2] or "").lower()) if found else ("", "")


def _mentions(message: Mapping[str, object], username: str) -> bool:
    words = _string(message, "text") or _string(message, "caption")
    return re.search(rf"(?<!\w)@{re.escape(username)}(?!\w)", words, re.IGNORECASE | re.ASCII) is not None


def _answers(message: Mapping[str, object], account: str) -> bool:
    return str(_whole(_table(_table(message, "reply_to_message"), "from"), "id")) == account


def _in_group(message: Mapping[str, object]) -> bool:
    return _string(_table(message, "chat"), "type") in GROUPS


def _thread(message: Mapping[str, object]) -> str:
    """The forum topic; outside of forums Telegram numbers reply chains, which are not places to write to."""
    thread = _whole(message, "message_thread_id")
    return str(thread) if thread is not None and message.get("is_topic_message") is True else ""


def _customer(user: Mapping[str, object]) -> Customer:
    name = f"{_string(user, 'first_name')} {_string(user, 'last_name')}".strip()
    return Customer(str(_whole(user, "id")), name, _string(user, "language_code"))


def _table(data: object, key: str) -> Mapping[str, object]:
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _string(data: Mapping[str, object], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _whole(data: object, key: str) -> int | None:
    """An integer that a database column holds, else None."""
    value: object = data.get(key) if isinstance(data, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    return None
