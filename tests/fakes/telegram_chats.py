"""What the Telegram of the tests holds: chats, what the bot wrote there, and the methods that read and change it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_TEXT, _MAX_TOPIC = 4096, 128

Params = Mapping[str, Any]


@dataclass(slots=True)
class Sent:
    """A message of the bot. Of a copy, `text` is what is written under it and `copied` names the message."""

    message_id: int
    chat: int
    text: str
    thread: int | None
    reply_to: int | None
    params: Params
    former: list[str] = field(default_factory=list)
    copied: tuple[int, int] | None = None


@dataclass(slots=True)
class Chat:
    """A place, the bot's standing there, and the messages it holds, of people and of the bot."""

    id: int
    title: str
    kind: str
    bot_status: str
    may_write: bool
    forum: bool = False
    manages_topics: bool = False
    messages: set[int] = field(default_factory=set)
    topics: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, description: str, retry_after: int = 0) -> None:
        super().__init__(description)
        self.status = status
        self.parameters: Params = {"retry_after": retry_after} if retry_after else {}


class Chats:
    """The truth about chats. Methods of the Bot API take its parameters, and raise Refused."""

    def __init__(self, bot_id: int, username: str) -> None:
        self.bot_id, self.username = bot_id, username
        self.chats: dict[int, Chat] = {}
        self.blocked: set[int] = set()
        self.actions: list[tuple[int, int | None, str]] = []
        self.drafts: list[tuple[int, int, str]] = []
        self.open_queries: set[str] = set()
        self.noticed: list[str] = []
        self.reactions: list[tuple[int, str]] = []
        self.people: dict[int, str] = {}
        self.reads_all = False
        self.pause_s, self.floods = 0.0, 0
        self._wrote_at: dict[int, float] = {}
        self.commands: dict[tuple[str, str], list[Params]] = {}
        self._sent: list[Sent] = []
        self._message_ids = itertools.count(1)

    def sent(self, chat_id: int) -> list[Sent]:
        """What the bot wrote in a chat, oldest first."""
        return [message for message in self._sent if message.chat == chat_id]

    def texts(self, chat_id: int) -> list[str]:
        return [message.text for message in self.sent(chat_id)]

    # -- methods: sending ------------------------------------------------------------------------

    def send_message(self, params: Params) -> Params:
        chat, text = self._writable(params), _checked(params["text"])
        self._keep_pause(chat)
        reply = params.get("reply_parameters", {})
        found = reply.get("message_id") if reply.get("message_id") in chat.messages else None
        if reply and not found and not reply.get("allow_sending_without_reply"):
            raise Refused(400, "Bad Request: message to be replied not found")
        sent = Sent(next(self._message_ids), chat.id, text, params.get("message_thread_id"), found, params)
        chat.messages.add(sent.message_id)
        self._sent.append(sent)
        return self._message(sent, chat)

    def copy_message(self, params: Params) -> Params:
        chat, source = self._writable(params), self._known({"chat_id": params["from_chat_id"]})
        if params["message_id"] not in source.messages:
            raise Refused(400, "Bad Request: message to copy not found")
        thread, copied = params.get("message_thread_id"), (source.id, params["message_id"])
        sent = Sent(next(self._message_ids), chat.id, "", thread, None, params, copied=copied)
        chat.messages.add(sent.message_id)
        self._sent.append(sent)
        return {"message_id": sent.message_id}

    def edit_message_caption(self, params: Params) -> Params:
        chat = self._writable(params)
        for sent in self.sent(chat.id):
            if sent.message_id == params["message_id"] and sent.copied:
                sent.former.append(sent.text)
                sent.text = params["caption"]
                return self._message(sent, chat)
        raise Refused(400, "Bad Request: message to edit not found")

    def create_forum_topic(self, params: Params) -> Params:
        chat = self._with_topics(params)
        if not 1 <= len(params["name"]) <= _MAX_TOPIC:
            raise Refused(400, "Bad Request: TOPIC_TITLE_EMPTY")
        topic = next(self._message_ids)
        chat.topics[topic] = params["name"]
        return {"message_thread_id": topic, "name": params["name"], "icon_color": 7322096}

    def close_forum_topic(self, params: Params) -> bool:
        chat, topic = self._with_topics(params), params["message_thread_id"]
        if topic not in chat.topics or topic in chat.closed:
            raise Refused(400, "Bad Request: TOPIC_NOT_MODIFIED")
        chat.closed.add(topic)
        return True

    def _with_topics(self, params: Params) -> Chat:
        chat = self._writable({"chat_id": params["chat_id"]})
        if not chat.forum:
            raise Refused(400, "Bad Request: the chat is not a forum")
        if chat.bot_status != "administrator" or not chat.manages_topics:
            raise Refused(400, "Bad Request: not enough rights to create a topic")
        return chat

    def _keep_pause(self, chat: Chat) -> None:
        now = time.monotonic()
        left = self._wrote_at.get(chat.id, -self.pause_s) + self.pause_s - now
        if left > 0:
            self.floods += 1
            raise Refused(429, f"Too Many Requests: retry after {math.ceil(left)}", math.ceil(left))
        self._wrote_at[chat.id] = now

    def edit_message_text(self, params: Params) -> Params:
        chat, text = self._writable(params), _checked(params["text"])
        for sent in self.sent(chat.id):
            if sent.message_id == params["message_id"]:
                if sent.text == text:
                    raise Refused(400, "Bad Request: message is not modified: the new content is the same")
                sent.former.append(sent.text)
                sent.text, sent.params = text, {**sent.params, "reply_markup": params.get("reply_markup", {})}
                return self._message(sent, chat)
        raise Refused(400, "Bad Request: message to edit not found")

    def send_chat_action(self, params: Params) -> bool:
        chat = self._writable(params)
        self.actions.append((chat.id, params.get("message_thread_id"), params["action"]))
        return True

    def send_message_draft(self, params: Params) -> bool:
        chat = self._writable(params)
        if chat.kind != "private":
            raise Refused(400, "Bad Request: message drafts can be sent only to private chats")
        if not params["draft_id"]:
            raise Refused(400, "Bad Request: draft_id must be non-zero")
        self.drafts.append((chat.id, params["draft_id"], _checked(params["text"])))
        return True

    def delete_message(self, params: Params) -> bool:
        found = [sent for sent in self.sent(params["chat_id"]) if sent.message_id == params["message_id"]]
        if not found:
            raise Refused(400, "Bad Request: message to delete not found")
        self._sent.remove(found[0])
        return True

    def set_message_reaction(self, params: Params) -> bool:
        chat = self._writable(params)
        if params["message_id"] not in chat.messages:
            raise Refused(400, "Bad Request: message to react not found")
        self.reactions.append((params["message_id"], params["reaction"][0]["emoji"]))
        return True

    def answer_callback_query(self, params: Params) -> bool:
        if params["callback_query_id"] not in self.open_queries:
            raise Refused(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
        self.open_queries.remove(params["callback_query_id"])
        self.noticed.append(params.get("text", ""))
        return True

    def set_my_commands(self, params: Params) -> bool:
        scope = params.get("scope", {"type": "default"})
        place = scope["type"]
        if place == "chat":
            place = f"chat {self._known(scope).id}"
        self.commands[place, params.get("language_code", "")] = params["commands"]
        return True

    def _writable(self, params: Params) -> Chat:
        chat = self._known(params)
        if chat.id in self.blocked:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if chat.bot_status in ("left", "kicked"):
            raise Refused(403, f"Forbidden: bot is not a member of the {chat.kind} chat")
        if not chat.may_write:
            raise Refused(400, "Bad Request: not enough rights to send text messages to the chat")
        if params.get("message_thread_id") not in (None, *chat.topics):
            raise Refused(400, "Bad Request: message thread not found")
        return chat

    # -- methods: about chats --------------------------------------------------------------------

    def _known(self, params: Params) -> Chat:
        if params["chat_id"] not in self.chats:
            raise Refused(400, "Bad Request: chat not found")
        return self.chats[params["chat_id"]]

    def get_chat(self, params: Params) -> Params:
        chat = self._known(params)
        if chat.kind == "private":
            return about(chat)
        rights = {"can_send_messages": chat.may_write, "can_manage_topics": chat.manages_topics}
        return {**about(chat), "permissions": rights}

    def get_chat_member(self, params: Params) -> Params:
        chat = self._known(params)
        if params["user_id"] != self.bot_id:
            user = {"id": params["user_id"], "is_bot": False, "first_name": "Somebody"}
            return {"user": user, "status": self.people.get(params["user_id"], "left")}
        rights = {
            "restricted": {"can_send_messages": chat.may_write, "can_manage_topics": chat.manages_topics},
            "administrator": {"can_manage_topics": chat.manages_topics},
        }.get(chat.bot_status, {})
        return {"user": self.me(), "status": chat.bot_status, **rights}

    def me(self) -> Params:
        return {"id": self.bot_id, "is_bot": True, "first_name": "Shop", "username": self.username}

    def _message(self, sent: Sent, chat: Chat) -> Params:
        now, place = int(time.time()), about(chat)
        return {"message_id": sent.message_id, "date": now, "chat": place, "from": self.me(), "text": sent.text}


def _checked(text: str) -> str:
    """What Telegram makes of a text: trimmed, counted in UTF-16 code units."""
    text = text.strip()
    if not text:
        raise Refused(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > _MAX_TEXT:
        raise Refused(400, "Bad Request: message is too long")
    return text


def about(chat: Chat) -> dict[str, Any]:
    """Telegram's Chat, as far as bots of this kind look."""
    name = "first_name" if chat.kind == "private" else "title"
    return {"id": chat.id, "type": chat.kind, name: chat.title} | ({"is_forum": True} if chat.forum else {})
