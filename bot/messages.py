"""The common event: what people say and what we say, whatever the platform; and the port to a platform."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Platform(StrEnum):
    """Where a conversation takes place."""

    TELEGRAM = "telegram"
    SLACK = "slack"
    WEB = "web"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class Address:
    """A place words can be sent to. `account` is our own identity there (bot id, team id).

    `thread` is "" where the chat as a whole is meant (every direct message).
    """

    platform: Platform
    account: str
    chat: str
    thread: str = ""

    def is_chat(self, platform: Platform, chat: str) -> bool:
        """Whether it is that chat, or a thread in it."""
        return (self.platform, self.chat) == (platform, chat)


@dataclass(frozen=True, slots=True)
class Customer:
    """The person who writes. `language` is the platform's code ("zh-hans"), `chosen` their wish; "" when unknown."""

    id: str
    name: str = ""
    language: str = ""
    chosen: str = ""


COMMANDS = ("start", "help", "human", "language", "status", "forget")
"""What a customer can ask of frontdesk itself, on every platform."""
MARKS = {Platform.TELEGRAM: "/", Platform.SLACK: "!", Platform.WEB: "/", Platform.CONSOLE: "/"}
"""What a command begins with. Slack keeps the slash to itself."""
WITH_ARGUMENT = ("start", "language", "forget")
MAX_ARGUMENT = 64


class InboundKind(StrEnum):
    """What kind of thing was said."""

    TEXT = "text"  # words for the model
    COMMAND = "command"  # text is the command's name, without its mark, and its argument where it takes one
    MEDIA = "media"  # a photo, voice note, sticker ... without words; text names the kind
    EDIT = "edit"  # what a message that was settled before says now; kept, not answered


@dataclass(frozen=True, slots=True)
class InboundMessage:
    """What one person said on one platform, normalised.

    (address, customer.id) identifies the conversation. `event_id` is unique per platform and
    account and stays the same when the platform delivers again. `reply_to` is the platform's
    handle for where the answer goes (a message id, a thread ts), "" when the chat is enough.
    `cursor` is the platform's position to store together with this event (Telegram's update_id).
    `cut`: the end of a text that was too long is missing. `answers` is the platform's id of the message that this one
    answers, "" for none. `media` names what came besides words or instead of them, "" for nothing: its kind, and links
    to it where the platform has any ("photo https://...").
    """

    address: Address
    customer: Customer
    event_id: str
    text: str
    kind: InboundKind = InboundKind.TEXT
    reply_to: str = ""
    cursor: int | None = None
    cut: bool = False
    answers: str = ""
    media: str = ""


@dataclass(frozen=True, slots=True)
class Edited:
    """What a message says now. `of` is the event_id it was received under, `event_id` this edit's own, `by` the id of
    its writer."""

    platform: Platform
    account: str
    event_id: str
    of: str
    text: str
    cursor: int | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """The chat `chat` goes on under the id `to`."""

    platform: Platform
    account: str
    chat: str
    to: str
    cursor: int | None = None


class Rating(StrEnum):
    """What somebody thinks of a reply."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Rated:
    """A button under one of our replies was pressed. `outbound_id` is the reply's OutboundMessage.id."""

    platform: Platform
    account: str
    customer_id: str
    outbound_id: str
    rating: Rating
    cursor: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A customer said how a colleague did, from 1 (bad) to 5 (great)."""

    platform: Platform
    account: str
    customer_id: str
    escalation_id: int
    score: int
    cursor: int | None = None


class AgentAction(StrEnum):
    """What a button on a card does."""

    CLAIM = "claim"  # this agent answers the customer, the bot is silent
    RESOLVE = "resolve"  # done; the bot answers again
    RETURN = "return"  # not done, but the bot shall go on
    CORRECT = "correct"  # the message was not negative: kept as an example of that


@dataclass(frozen=True, slots=True)
class Pressed:
    """A button on a card was pressed in the chat `chat`. `agent` is who did it."""

    platform: Platform
    account: str
    chat: str
    agent: Customer
    escalation_id: int
    action: AgentAction
    cursor: int | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """Somebody is not in a chat any more."""

    platform: Platform
    account: str
    chat: str
    person: str
    cursor: int | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """An event that is not for us (a bot's message, an unknown update type). It still moves the cursor.

    `reason` is a short constant phrase for the log; it never holds what anybody wrote.
    """

    platform: Platform
    account: str
    reason: str
    event_id: str = ""
    cursor: int | None = None


Event = InboundMessage | Edited | Moved | Rated | Scored | Pressed | Left | Dropped


class Receipt(StrEnum):
    """What became of an event handed to the inbox; every value means that it is stored or need not be."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    DROPPED = "dropped"


class OutboundKind(StrEnum):
    """Why we speak."""

    REPLY = "reply"  # the model's answer; never sent once a human owns the conversation
    NOTICE = "notice"  # a fixed sentence of the catalogue
    ASK = "ask"  # the same, with buttons from 1 to 5 under it
    AGENT = "agent"  # what a human of the business says to a customer
    CARD = "card"  # an escalation, to the agents
    RELAY = "relay"  # what a customer of theirs says, to the agents
    MARK = "mark"  # a reaction to an agent's message: whether it arrived
    WITHDRAW = "withdraw"  # takes a RELAY back, which `reply_to` names


COPYING = frozenset({Platform.TELEGRAM, Platform.SLACK})
"""Platforms that send a message again, whatever it holds, by naming it."""
WITH_BUTTONS = frozenset({Platform.TELEGRAM, Platform.SLACK})
"""Platforms that show buttons under what we say."""
DELIVERED, NOT_DELIVERED = "delivered", "not delivered"
"""The texts of a MARK."""


@dataclass(frozen=True, slots=True)
class Button:
    """What it says, and what comes back when it is pressed."""

    label: str
    token: str


@dataclass(frozen=True, slots=True)
class OutboundMessage:
    """What we say to one address. `id` is ours, unique for ever, and travels with the message where it can.

    `edits` is the platform's id of an earlier message, or of one begun by a preview, that this one
    replaces in place ("" for a new one). `maybe_sent` says that an earlier attempt ended without an
    answer: ask the platform first where it can be asked. `rateable`: it goes out with a thumb up and
    a thumb down, which come back as Rated; `buttons` come back as Pressed or Scored. A MARK is no message: `text`
    is "delivered" or not, `reply_to` the message it is put to. `copies` is the event_id of a message that is sent
    again, whatever it holds, in place of the text. `over`: the escalation of a card has ended. `only_for`
    is the id of the one person who is to see it, where the platform can hide it from others; "" for everybody.
    """

    id: str
    kind: OutboundKind
    address: Address
    text: str
    reply_to: str = ""
    edits: str = ""
    maybe_sent: bool = False
    rateable: bool = False
    buttons: tuple[Button, ...] = ()
    copies: str = ""
    over: bool = False
    only_for: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Proof of arrival: the platform's own id of the message, and of the place that was opened for it, "" for none."""

    platform_id: str
    thread: str = ""


@dataclass(frozen=True, slots=True)
class Sentiment:
    """The mood of a message: its label, the probability that it is negative, and the threshold it was judged by."""

    label: str
    negative: float
    threshold: float

    @property
    def is_negative(self) -> bool:
        return self.negative >= self.threshold


@dataclass(frozen=True, slots=True)
class Preview:
    """What the customer may see before the reply is stored: that we work on it, the mood, the text so far.

    `number` is the same for every preview of one reply, and another for each reply; never 0. `begun` is the platform's
    id of a message that an earlier attempt began to write. `over`: a human took over, so nothing follows what is shown.
    """

    address: Address
    customer_id: str
    number: int
    reply_to: str = ""
    sentiment: Sentiment | None = None
    text: str = ""
    begun: str = ""
    over: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `frontdesk doctor`: what was looked at, whether it is well, and what to do when it is not."""

    what: str
    ok: bool
    detail: str = ""


def rating_token(rating: Rating, outbound_id: str) -> str:
    """What a button carries: 64 bytes at most, as Telegram wants it."""
    return f"{rating}:{outbound_id}"


def action_token(action: AgentAction, escalation_id: int) -> str:
    return f"{action}:{escalation_id}"


def read_action(token: str) -> tuple[AgentAction, int] | None:
    """The action and the escalation of a button's token; None for anything else."""
    found = re.fullmatch(f"({'|'.join(AgentAction)}):([0-9]{{1,18}})", token)
    return (AgentAction(found[1]), int(found[2])) if found else None


def score_token(score: int, escalation_id: int) -> str:
    return f"score{score}:{escalation_id}"


def read_score(token: str) -> tuple[int, int] | None:
    """The score and the escalation of a button's token; None for anything else."""
    found = re.fullmatch("score([1-5]):([0-9]{1,18})", token)
    return (int(found[1]), int(found[2])) if found else None


def read_rating(token: str) -> tuple[Rating, str] | None:
    """The rating and the outbound id of a button's token; None for anything else."""
    found = re.fullmatch(f"({'|'.join(Rating)}):([0-9a-f]{{32}})", token)
    return (Rating(found[1]), found[2]) if found else None


Desk = Callable[[str, Address, str], Awaitable[str]]
"""What staff ask of frontdesk itself, where, and in which language of the platform's ("" when unknown); gives the
answer. Raises DatabaseUnavailable."""


class Inbox(Protocol):
    """The way in, as adapters see it."""

    async def receive(self, event: Event) -> Receipt:
        """Store the event durably. When this returns, and only then, the platform may be told that we have it.

        Raises DatabaseUnavailable when nothing was stored: do not acknowledge, the platform will deliver again.
        """
        ...

    async def press(self, event: Pressed) -> str:
        """Do what a button on a card says. Returns what to tell whoever pressed it. Raises DatabaseUnavailable."""
        ...

    async def cursor(self, platform: Platform, account: str) -> int | None:
        """The last cursor stored for this account, None when there is none."""
        ...


class Adapter(Protocol):
    """One platform.

    `asks_first` tells that send() looks for a `maybe_sent` message before sending it again;
    `last_contact` is the time.time() of the last successful exchange with the platform, None before the first.
    """

    @property
    def platform(self) -> Platform: ...
    @property
    def asks_first(self) -> bool: ...
    @property
    def last_contact(self) -> float | None: ...

    async def run(self, inbox: Inbox) -> None:
        """Receive until cancelled. Outages of the platform are waited out; raises ConfigError for what only a person
        can mend (a revoked token)."""
        ...

    async def send(self, message: OutboundMessage) -> Delivery:
        """Send once, without retrying. Raises RetryLater, ChatMoved, OutcomeUnknown, Undeliverable."""
        ...

    async def preview(self, preview: Preview) -> str:
        """Show progress (typing, mood, text so far) as the platform allows. Best effort; raises DeliveryError.

        Returns the platform's id of the message that the reply is written into from now on, which send() is given as
        `edits`; "" where a preview is no message.
        """
        ...

    async def is_member(self, chat: str, person: str) -> bool:
        """Whether somebody is in a chat where the bot is. Raises DeliveryError."""
        ...

    def split(self, text: str) -> Sequence[str]:
        """Cut a text into parts that the platform takes; each part becomes a message of its own."""
        ...
