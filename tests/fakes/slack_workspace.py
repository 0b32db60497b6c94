"""What the fake Slack knows and answers, without a network: chats, messages and the methods of the Web API."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Channel:
    """A chat: a channel, or a direct message with one user (id "D" + user)."""

    id: str
    name: str
    member: bool = True
    private: bool = False
    archived: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def direct(self) -> bool:
        return self.id.startswith("D")


class Refused(Exception):
    """Slack's {"ok": false}."""

    def __init__(self, error: str, **fields: Any) -> None:
        self.answer = {"ok": False, "error": error, **fields}


class Flooded(Exception):
    """A 429."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after


# method -> (required parameters, optional ones); what frontdesk may use of the Web API
METHODS: Mapping[str, tuple[set[str], set[str]]] = {
    "apps.connections.open": (set(), set()),
    "auth.test": (set(), set()),
    "chat.postMessage": (
        {"channel", "text"},
        {
            "blocks",
            "thread_ts",
            "metadata",
            "unfurl_links",
            "unfurl_media",
            "mrkdwn",
            "parse",
            "link_names",
            "reply_broadcast",
        },
    ),
    "chat.update": ({"channel", "ts", "text"}, {"blocks", "metadata", "parse", "link_names"}),
    "chat.startStream": (
        {"channel", "thread_ts"},
        {"markdown_text", "chunks", "recipient_team_id", "recipient_user_id", "task_display_mode"},
    ),
    "chat.appendStream": ({"channel", "ts", "markdown_text"}, {"chunks"}),
    "chat.stopStream": ({"channel", "ts"}, {"markdown_text", "chunks", "blocks", "metadata"}),
    "conversations.history": (
        {"channel"},
        {"cursor", "limit", "oldest", "latest", "inclusive", "include_all_metadata"},
    ),
    "conversations.info": ({"channel"}, {"include_locale", "include_num_members"}),
    "chat.delete": ({"channel", "ts"}, set()),
    "chat.postEphemeral": ({"channel", "user", "text"}, {"thread_ts"}),
    "conversations.members": ({"channel"}, {"cursor", "limit"}),
    "reactions.add": ({"channel", "timestamp", "name"}, set()),
    "conversations.replies": (
        {"channel", "ts"},
        {"cursor", "limit", "oldest", "latest", "inclusive", "include_all_metadata"},
    ),
    "users.conversations": (set(), {"cursor", "limit", "types", "exclude_archived", "user", "team_id"}),
    "files.getUploadURLExternal": ({"filename", "length"}, {"alt_txt", "snippet_type"}),
    "files.completeUploadExternal": ({"files", "channel_id"}, {"thread_ts", "initial_comment", "blocks"}),
    "files.delete": ({"file"}, set()),
    "files.info": ({"file"}, {"count", "cursor", "limit", "page"}),
    "assistant.threads.setStatus": ({"channel_id", "thread_ts", "status"}, {"loading_messages"}),
}
PAGE = 100


class Workspace:
    """The state; answer() is the Web API on it."""

    bot_user, bot_id = "U0BOT", "B0BOT"

    def __init__(self, team: str) -> None:
        self.team = team
        self.channels: dict[str, Channel] = {}
        self.statuses: list[dict[str, Any]] = []
        self.whispers: list[dict[str, Any]] = []
        self.reactions: list[tuple[str, str]] = []
        self.members: dict[str, list[str]] = {}
        self.violations: list[str] = []
        self.pause_s, self.floods = 0.0, 0
        self._wrote_at: dict[str, float] = {}
        self._last_ts = 0.0

    def add_channel(
        self, channel: str, name: str = "", *, member: bool = True, private: bool = False, archived: bool = False
    ) -> Channel:
        """A channel that people see; `member` tells whether the bot was invited."""
        return self.channels.setdefault(channel, Channel(channel, name or channel.lower(), member, private, archived))

    def say(self, channel: str, user: str, text: str, thread_ts: str = "", **more: Any) -> dict[str, Any]:
        self._last_ts = max(time.time(), self._last_ts + 0.000_001)
        said = {"user": user, "text": text, "ts": f"{self._last_ts:.6f}", "channel": channel, "team": self.team, **more}
        if thread_ts:
            said["thread_ts"] = thread_ts
        self.add_channel(channel).messages.append(said)
        return said

    def _readable(self, channel: str) -> Channel:
        found = self.channels.get(channel)
        if found is None or (found.private and not found.member):
            raise Refused("channel_not_found")
        return found

    def _writable(self, channel: str) -> Channel:
        found = self._readable(channel)
        if found.archived:
            raise Refused("is_archived")
        if not found.member:
            raise Refused("not_in_channel")
        return found

    def by_bot(self, channel: str) -> list[dict[str, Any]]:
        known = self.channels.get(channel)
        return [message for message in known.messages if message["user"] == self.bot_user] if known else []

    def answer(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if method not in METHODS:
            self.violations.append(f"unknown method {method}")
            raise Refused("unknown_method")
        required, optional = METHODS[method]
        if missing := required - parameters.keys():
            self.violations.append(f"{method} without {', '.join(sorted(missing))}")
            raise Refused("invalid_arguments")
        if unknown := parameters.keys() - required - optional:
            self.violations.append(f"{method} does not know {', '.join(sorted(unknown))}")
        handler: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, f"_{method.replace('.', '_')}")
        return handler(parameters)

    def _auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "team": "Fake",
            "user": "frontdesk",
            "team_id": self.team,
            "user_id": self.bot_user,
            "bot_id": self.bot_id,
            "url": "https://fake.example/",
        }

    def _chat_postMessage(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        channel = self._writable(parameters["channel"])
        self._keep_pause(channel)
        thread = parameters.get("thread_ts", "")
        if thread and all(message["ts"] != thread for message in channel.messages):
            raise Refused("thread_not_found")
        said = self.say(channel.id, self.bot_user, _sized(parameters, 40_000), thread, bot_id=self.bot_id)
        said["metadata"] = parameters.get("metadata", {})
        said["blocks"] = _blocks(parameters)
        return {"channel": channel.id, "ts": said["ts"], "message": said}

    def _keep_pause(self, channel: Channel) -> None:
        now = time.monotonic()
        left = self._wrote_at.get(channel.id, -self.pause_s) + self.pause_s - now
        if left > 0:
            self.floods += 1
            raise Flooded(math.ceil(left))
        self._wrote_at[channel.id] = now

    def _chat_update(self, parameters: dict[str, Any]) -> dict[str, Any]:
        channel = self._writable(parameters["channel"])
        for message in channel.messages:
            if message["ts"] == parameters["ts"]:
                if message["user"] != self.bot_user:
                    raise Refused("cant_update_message")
                if message.get("streaming"):
                    raise Refused("streaming_state_conflict")
                message["text"], message["blocks"] = _sized(parameters, 4_000), _blocks(parameters)
                return {"channel": channel.id, "ts": message["ts"], "text": message["text"]}
        raise Refused("message_not_found")

    def _chat_startStream(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        channel, thread = self._writable(parameters["channel"]), parameters["thread_ts"]
        if not channel.direct and not (parameters.get("recipient_team_id") and parameters.get("recipient_user_id")):
            raise Refused("missing_recipient_user_id")
        if all(message["ts"] != thread for message in channel.messages):
            raise Refused("thread_not_found")
        words = parameters.get("markdown_text", "")
        said = self.say(channel.id, self.bot_user, words, thread, bot_id=self.bot_id, streaming=True)
        return {"channel": channel.id, "ts": said["ts"]}

    def _chat_appendStream(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        said = self._streaming(parameters)
        said["text"] += parameters["markdown_text"]
        return {"channel": said["channel"], "ts": said["ts"]}

    def _chat_stopStream(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        said = self._streaming(parameters)
        said["text"] += parameters.get("markdown_text", "")
        said["streaming"], said["metadata"] = False, parameters.get("metadata", {})
        return {"channel": said["channel"], "ts": said["ts"], "message": said}

    def _streaming(self, parameters: dict[str, Any]) -> dict[str, Any]:
        for message in self._writable(parameters["channel"]).messages:
            if message["ts"] == parameters["ts"]:
                if not message.get("streaming"):
                    raise Refused("message_not_in_streaming_state")
                return message
        raise Refused("message_not_found")

    def expire_streams(self) -> None:
        """Slack ends a stream that nothing was added to for a while."""
        for channel in self.channels.values():
            for message in channel.messages:
                message.pop("streaming", None)

    def _conversations_history(self, parameters: dict[str, Any]) -> dict[str, Any]:
        channel = self._readable(parameters["channel"])
        roots = [said for said in channel.messages if said.get("thread_ts", said["ts"]) == said["ts"]]
        return _page(roots[::-1], parameters)

    def _conversations_replies(self, parameters: dict[str, Any]) -> dict[str, Any]:
        channel, root = self._readable(parameters["channel"]), parameters["ts"]
        thread = [said for said in channel.messages if root in (said["ts"], said.get("thread_ts"))]
        if not thread:
            raise Refused("thread_not_found")
        return _page(thread, parameters)

    def _conversations_info(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {"channel": _shown(self._readable(parameters["channel"]))}

    def _conversations_members(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return _paged("members", self.members.get(self._readable(parameters["channel"]).id, []), parameters)

    def _chat_delete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        channel = self._writable(parameters["channel"])
        mine = [each for each in channel.messages if (each["ts"], each["user"]) == (parameters["ts"], self.bot_user)]
        if not mine:
            raise Refused("message_not_found")
        channel.messages.remove(mine[0])
        return {"channel": channel.id, "ts": parameters["ts"]}

    def _chat_postEphemeral(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        self._writable(parameters["channel"])
        self.whispers.append(parameters)
        return {"message_ts": "1.2"}

    def _reactions_add(self, parameters: dict[str, Any]) -> dict[str, Any]:
        channel = self._writable(parameters["channel"])
        if all(message["ts"] != parameters["timestamp"] for message in channel.messages):
            raise Refused("message_not_found")
        reaction = (parameters["timestamp"], parameters["name"])
        if reaction in self.reactions:
            raise Refused("already_reacted")
        self.reactions.append(reaction)
        return {}

    def _users_conversations(self, parameters: dict[str, Any]) -> dict[str, Any]:
        kinds = parameters.get("types", "public_channel").split(",")
        mine = [
            _shown(channel)
            for channel in self.channels.values()
            if channel.member and not channel.direct and not (channel.archived and parameters.get("exclude_archived"))
            if ("private_channel" if channel.private else "public_channel") in kinds
        ]
        return _paged("channels", mine, parameters)

    def _assistant_threads_setStatus(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        self._writable(parameters["channel_id"])
        self.statuses.append(parameters)
        return {}


def _blocks(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    found = parameters.get("blocks") or []
    blocks: list[dict[str, Any]] = json.loads(found) if isinstance(found, str) else found
    for block in blocks:
        if (
            block["type"] not in ("section", "context_actions", "actions")
            or len(block.get("text", {}).get("text", "")) > 3_000
        ):
            raise Refused("invalid_blocks")
    return blocks


def _sized(parameters: dict[str, Any], most: int) -> str:
    text = str(parameters["text"])
    if not text.strip():
        raise Refused("no_text")
    if len(text) > most:
        raise Refused("msg_too_long")
    return text


def _shown(channel: Channel) -> dict[str, Any]:
    return {
        "id": channel.id,
        "name": channel.name,
        "is_im": channel.direct,
        "is_private": channel.private,
        "is_member": channel.member,
        "is_archived": channel.archived,
    }


def _page(messages: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, Any]:
    oldest, latest = float(parameters.get("oldest", 0)), float(parameters.get("latest", math.inf))
    ends = (oldest, latest) if parameters.get("inclusive") in ("1", "true", True) else ()
    within = [said for said in messages if oldest < float(said["ts"]) < latest or float(said["ts"]) in ends]
    shown = [{**said, "type": "message"} for said in within]
    if parameters.get("include_all_metadata") not in ("1", "true", True):
        shown = [{key: value for key, value in said.items() if key != "metadata"} for said in shown]
    return _paged("messages", shown, parameters)


def _paged(key: str, items: Sequence[Any], parameters: dict[str, Any]) -> dict[str, Any]:
    start, limit = int(parameters.get("cursor") or 0), int(parameters.get("limit") or PAGE)
    following = start + limit
    cursor = str(following) if following < len(items) else ""
    return {key: items[start:following], "has_more": bool(cursor), "response_metadata": {"next_cursor": cursor}}
