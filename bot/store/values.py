"""What goes into the store and comes out of it: frozen values, no SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bot.conversation import Call, Conversation, Escalation, Line, Outcome, Pace, Reason
from bot.messages import Address, AgentAction, OutboundKind, OutboundMessage, Rating, Receipt, Sentiment


class OutboundState(StrEnum):
    """Where an outbound message stands."""

    PENDING = "pending"  # never tried, or known not to have arrived
    SENDING = "sending"  # an attempt began; its end was not recorded
    UNKNOWN = "unknown"  # an attempt ended without an answer
    SENT = "sent"  # the platform confirmed it
    FAILED = "failed"  # the platform refused it for good
    DROPPED = "dropped"  # a human took over before it was sent


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an inbound message; the ids are None unless it was accepted."""

    receipt: Receipt
    message_id: int | None = None
    conversation_id: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A conversation and what it waits for: `lines` in order of acceptance, `history` the settled lines before them."""

    conversation: Conversation
    lines: tuple[Line, ...]
    history: tuple[Line, ...]
    pace: Pace


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about one customer message."""

    message_id: int
    outcome: Outcome
    sentiment: Sentiment | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """One thing to say: a line of the history, sent as one outbound message per part."""

    kind: OutboundKind
    parts: tuple[str, ...]
    reply_to: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Everything an attend job produced; stored as a whole or not at all.

    `language` is what the customer chose now. `forget`: everything is erased, and then said what is to be said.
    `own`: it is about the customer's own data, and so is said whoever owns the conversation. `seen` is what the
    customer saw of a reply while it was written. `relays` shows the agents each message, where a human owns the
    conversation.
    """

    verdicts: tuple[Verdict, ...] = ()
    says: tuple[Say, ...] = ()
    call: Call | None = None
    language: str = ""
    forget: bool = False
    own: bool = False
    seen: str = ""
    relays: tuple[tuple[int, str], ...] = ()


class Pressing(StrEnum):
    """What came of a button on a card."""

    DONE = "done"
    YOURS = "yours"  # who pressed "claim" has it already
    TAKEN = "taken"  # somebody else was first
    OVER = "over"  # it is resolved


class Heard(StrEnum):
    """What came of a message among the agents."""

    RELAYED = "relayed"
    DUPLICATE = "duplicate"
    NOT_CLAIMED = "not claimed"  # its writer has not claimed the conversation
    NO_WAY = "no way"  # it is no text, and the customer's platform is another
    ELSEWHERE = "elsewhere"  # not in the thread of an escalation


@dataclass(frozen=True, slots=True)
class Sending:
    """An outbound message that may be sent now. A card comes with its escalation and still without text."""

    message: OutboundMessage
    escalation: Escalation | None
    unknowns: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Sent:
    """How one outbound message fared, for `frontdesk trace`."""

    id: str
    kind: OutboundKind
    address: Address
    state: OutboundState
    created_at: datetime
    settled_at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class Erased:
    """How much was erased. `cards` are still to be emptied on the agents' side, `relayed` messages to be taken back
    there, by a running service; `lost` may be there, but the platform did not tell where."""

    conversations: int = 0
    messages: int = 0
    escalations: int = 0
    outbound: int = 0
    cards: int = 0
    relayed: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is stored of one conversation, oldest first."""

    conversation: Conversation
    opened_at: datetime
    lines: tuple[Line, ...]
    escalations: tuple[Escalation, ...]
    sent: tuple[Sent, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """One message's way through the house."""

    conversation: Conversation
    line: Line
    settled_at: datetime | None
    answers: tuple[Line, ...]
    sent: tuple[Sent, ...]
    escalation: Escalation | None
    job_error: str


@dataclass(frozen=True, slots=True)
class Load:
    """What waits right now: unfinished jobs, the age in seconds of the oldest due one, open calls for a human."""

    jobs: int
    oldest_job_s: float
    open_escalations: int


@dataclass(frozen=True, slots=True)
class Course:
    """How one escalation went. `ended` is None while it is open, and where it ended without an agent's button."""

    reason: Reason
    opened_at: datetime
    claimed_at: datetime | None
    resolved_at: datetime | None
    ended: AgentAction | None
    score: int | None


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened since a moment, for `frontdesk stats`; names nobody.

    `conversations` are those in which a customer wrote, `alone` those of them in which no escalation was opened.
    """

    conversations: int
    alone: int
    thumbs: dict[Rating, int]
    courses: tuple[Course, ...]
