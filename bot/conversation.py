"""A conversation and who owns it: values, and the ownership state machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bot.messages import Address, AgentAction, Customer, InboundKind, Rating, Sentiment


class Owner(StrEnum):
    """Who answers the customer."""

    BOT = "bot"  # the model answers
    WAITING = "waiting"  # a human was called; the model still answers
    HUMAN = "human"  # a human claimed it; the bot is silent


class OwnerEvent(StrEnum):
    """What can change the owner."""

    CALL = "call"  # an escalation was opened
    CLAIM = "claim"  # an agent took over
    RELEASE = "release"  # resolved, or handed back to the bot


_TRANSITIONS = {
    (Owner.BOT, OwnerEvent.CALL): Owner.WAITING,
    (Owner.BOT, OwnerEvent.CLAIM): Owner.HUMAN,
    (Owner.WAITING, OwnerEvent.CLAIM): Owner.HUMAN,
    (Owner.WAITING, OwnerEvent.RELEASE): Owner.BOT,
    (Owner.HUMAN, OwnerEvent.RELEASE): Owner.BOT,
}


def next_owner(owner: Owner, event: OwnerEvent) -> Owner:
    """The owner after `event`; an event that means nothing in this state changes nothing."""
    return _TRANSITIONS.get((owner, event), owner)


class Author(StrEnum):
    """Who wrote a line of the history."""

    CUSTOMER = "customer"
    BOT = "bot"  # written by the model
    NOTICE = "notice"  # a fixed sentence of ours; the model never sees it
    AGENT = "agent"  # a human of the business


class Outcome(StrEnum):
    """What became of a customer's message; None in the history means that it still waits."""

    ANSWERED = "answered"  # a reply or a fixed sentence was stored for it
    ESCALATED = "escalated"  # the same, and a human was called because of it
    SILENT = "silent"  # a human owns the conversation
    DEAD = "dead"  # every attempt failed; a human was called
    NOTED = "noted"  # an edit of what was settled before: kept, and on the card where a human was called
    SHED = "shed"  # too much in one minute, or its turn came too late: neither read nor answered


@dataclass(frozen=True, slots=True)
class Conversation:
    """One customer on one chat. `origin` is what a link to us carried, `unreachable` why nothing arrives, if so, and
    `begun` the platform's id of a message that a preview began to write and nothing finished yet."""

    id: int
    address: Address
    customer: Customer
    owner: Owner
    origin: str = ""
    unreachable: str = ""
    begun: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the history.

    `sentiment` is None for what was never judged, `outcome` for what still waits, `rating` for what nobody rated.
    `cut`: the end is missing. `corrected`: an agent said that it is not negative, whatever the model thought. `media`:
    InboundMessage has it.
    """

    id: int
    author: Author
    kind: InboundKind
    text: str
    at: datetime
    reply_to: str = ""
    sentiment: Sentiment | None = None
    outcome: Outcome | None = None
    rating: Rating | None = None
    cut: bool = False
    corrected: bool = False
    media: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """The last minute: what the customer wrote, anywhere, what we replied here, whether something was shed here."""

    messages: int = 0
    replies: int = 0
    shed: bool = False


class Reason(StrEnum):
    """Why a human was called."""

    NEGATIVE = "negative"  # a message was judged negative
    ASKED = "asked"  # the customer asked for a person
    FAILED = "failed"  # the model failed on every attempt, or so often that it is not asked
    OVERLOAD = "overload"  # a message waited too long for its turn
    UNDELIVERED = "undelivered"  # a reply could not be delivered
    ERASED = "erased"  # nobody is called any more: the customer had everything erased


class Overdue(StrEnum):
    """What time asks for in an escalation."""

    REMIND = "remind"  # nobody claimed it: the agents hear of it again
    APOLOGISE = "apologise"  # nobody claimed it for long: so does the customer
    IDLE = "idle"  # claimed, and nobody said anything for long: the bot goes on


@dataclass(frozen=True, slots=True)
class Call:
    """A wish to have a human: why, and which message shows it."""

    reason: Reason
    message_id: int | None
    sentiment: Sentiment | None = None


@dataclass(frozen=True, slots=True)
class Escalation:
    """A call for a human, with what an agent wants to see first.

    `times` counts the calls it stands for. `claimed_by` is the agent's name, "" for nobody yet; `ended` how it was
    resolved, None while it is open; `came_back_at` when the customer first wrote after that, `score` (1 to 5) what they
    thought of it.
    """

    id: int
    reason: Reason
    conversation: Conversation
    evidence: Line | None
    recent: tuple[Line, ...]
    opened_at: datetime
    times: int
    claimed_by: str = ""
    claimed_at: datetime | None = None
    ended: AgentAction | None = None
    resolved_at: datetime | None = None
    came_back_at: datetime | None = None
    score: int | None = None
