"""Slack's Events API read as messages. Pure, and free of Slack's libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapters.text import as_command
from bot.messages import (
    MARKS,
    Address,
    Customer,
    Dropped,
    Edited,
    Event,
    InboundKind,
    InboundMessage,
    Left,
    Platform,
    Pressed,
    Rated,
    Scored,
    read_action,
    read_rating,
    read_score,
)

_KEPT_SUBTYPES = ("", None, "file_share", "thread_broadcast")  # the last: a reply in a thread, also shown in the chat
_MEDIA = {"image": "photo", "audio": "voice", "video": "video"}
_MARKUP = re.compile(r"<([^<>]*)>")
_ENTITY = re.compile("&(amp|lt|gt);")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">"}


def to_inbound(body: Mapping[str, Any], account: str, bot_user_id: str, agents: str = "") -> Event:
    """Read the body of an event_callback; any JSON shape ends in a value, never in an exception.

    A message in a channel comes as two events, `app_mention` and (where subscribed) `message`, with two event ids:
    so the message's own id is channel and ts. A Dropped keeps Slack's event id and cannot stand in the way. In the
    channel `agents`, threads are read without a mention, too.
    """
    if ident(body, "type") == "block_actions":
        return _pressed(body, account)
    event = mapping(body, "event")
    if event and body.get("type") == "event_callback" and (edited := _edited(event, account, bot_user_id)):
        return edited
    if event.get("type") == "member_left_channel" and body.get("type") == "event_callback":
        return Left(Platform.SLACK, account, ident(event, "channel"), ident(event, "user"))
    if reason := _not_for_us(body, event, bot_user_id, agents):
        return Dropped(Platform.SLACK, account, reason, ident(body, "event_id"))
    channel, ts, private = ident(event, "channel"), ident(event, "ts"), _is_direct(event)
    thread = ident(event, "thread_ts") or ("" if private else ts)
    kind, words = _words(event, bot_user_id)
    return InboundMessage(
        address=Address(Platform.SLACK, account, channel, "" if private else thread),
        customer=Customer(ident(event, "user")),
        event_id=f"{channel}:{ts}",
        text=words,
        kind=kind,
        reply_to=thread,
        answers=ident(event, "thread_ts"),
        media=" ".join(filter(None, (_media(event), *_links(event)))),
    )


def _pressed(body: Mapping[str, Any], account: str) -> Event:
    """A button under a message of ours was pressed: its value is what we gave it."""
    actions, user = body.get("actions"), mapping(body, "user")
    token, who = ident(actions[0] if isinstance(actions, list) and actions else None, "value"), ident(user, "id")
    if who and (rating := read_rating(token)):
        return Rated(Platform.SLACK, account, who, rating[1], rating[0])
    if who and (score := read_score(token)):
        return Scored(Platform.SLACK, account, who, score[1], score[0])
    if who and (action := read_action(token)):
        agent, chat = Customer(who, ident(user, "username")), ident(mapping(body, "channel"), "id")
        return Pressed(Platform.SLACK, account, chat, agent, action[1], action[0])
    return Dropped(Platform.SLACK, account, "not a button of ours")


def _not_for_us(body: Mapping[str, Any], event: Mapping[str, Any], bot_user_id: str, agents: str) -> str:
    kind = event.get("type")
    if not event or body.get("type") != "event_callback":
        return "not an event"
    if kind not in ("message", "app_mention"):
        return "not a message"
    if event.get("bot_id"):
        return "written by a bot"
    if event.get("subtype") not in _KEPT_SUBTYPES:
        return "not a new message"
    if not all(ident(event, key) for key in ("user", "channel", "ts")):
        return "malformed"
    if event["user"] == bot_user_id:
        return "written by us"
    among_agents = bool(agents) and event["channel"] == agents and ident(event, "thread_ts")
    if kind == "message" and not _is_direct(event) and not among_agents:
        return "in a channel, without a mention"
    return ""


def _edited(event: Mapping[str, Any], account: str, bot_user_id: str) -> Edited | None:
    """An edit by a person. Slack also calls it a change when it shows what a link leads to."""
    if event.get("subtype") != "message_changed":
        return None
    message, channel = mapping(event, "message"), ident(event, "channel")
    ts, when = ident(message, "ts"), ident(mapping(message, "edited"), "ts")
    kind, words = _words(message, bot_user_id)
    if message.get("bot_id") or kind is not InboundKind.TEXT or not (words and channel and ts and when):
        return None
    return Edited(
        Platform.SLACK, account, f"{channel}:{ts}:{when}", f"{channel}:{ts}", words, by=ident(message, "user")
    )


def _is_direct(event: Mapping[str, Any]) -> bool:
    return event.get("channel_type") == "im" or ident(event, "channel").startswith("D")


def _words(event: Mapping[str, Any], bot_user_id: str) -> tuple[InboundKind, str]:
    said = event.get("text")
    words = plain(said, bot_user_id) if isinstance(said, str) else ""
    if command := as_command(words, MARKS[Platform.SLACK]):
        return InboundKind.COMMAND, command
    if not words and (media := _media(event)):
        return InboundKind.MEDIA, media
    return InboundKind.TEXT, words


def _media(event: Mapping[str, Any]) -> str:
    files = event.get("files")
    if not isinstance(files, list) or not files:
        return "attachment" if event.get("attachments") else ""  # a forwarded message
    first = files[0].get("mimetype") if isinstance(files[0], Mapping) else None
    return _MEDIA.get(str(first).partition("/")[0], "document")


def _links(event: Mapping[str, Any]) -> list[str]:
    """Where members of the workspace see the files."""
    files = event.get("files")
    found = [ident(each, "permalink") for each in files] if isinstance(files, list) else []
    return [link for link in found if link.startswith("https://") and " " not in link]


def plain(marked: str, bot_user_id: str) -> str:
    """Slack's markup as a person reads it: no leading mention of the bot, links and names by their label."""
    words = re.sub(rf"^\s*<@{re.escape(bot_user_id)}(\|[^<>]*)?>[\s:,，：]*", "", marked)
    words = _MARKUP.sub(_label, words)
    return _ENTITY.sub(lambda entity: _ENTITIES[entity[1]], words).strip()


def _label(markup: re.Match[str]) -> str:
    target, _, label = markup[1].partition("|")
    if target.startswith(("@", "#")):
        return target[0] + (label or target[1:])
    if target.startswith("!"):  # <!here>, <!subteam^S1|@team>, <!date^...|tomorrow>
        return label or "@" + target[1:].partition("^")[0]
    return f"{label} ({target})" if label and label not in target else label or target


def mapping(value: object, key: str) -> Mapping[str, Any]:
    """value[key] where that is an object, else an empty one."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def ident(value: object, key: str) -> str:
    """value[key] where it can be one of Slack's ids, else ""."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) and found.isascii() and found.isprintable() and len(found) < 256 else ""
