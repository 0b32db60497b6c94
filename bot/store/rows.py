"""From rows to values, and the few queries that more than one part needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from bot.conversation import Author, Conversation, Escalation, Line, Outcome, Owner, Pace, Reason
from bot.messages import Address, AgentAction, Customer, InboundKind, OutboundKind, Platform, Rating, Sentiment
from bot.store.schema import ConversationRow, CustomerRow, EscalationRow, MessageRow, OutboundRow
from bot.store.values import OutboundState, Sent

CARD_LINES = 30
"""How much of the history a card is written from."""


def open_escalation(conversation_id: int) -> Select[EscalationRow]:
    return select(EscalationRow).where(
        EscalationRow.conversation_id == conversation_id, EscalationRow.resolved_at.is_(None)
    )


def next_turn(session: Session, conversation_id: int) -> int:
    """The number of a conversation's next exchange."""
    last = select(func.max(MessageRow.turn)).where(MessageRow.conversation_id == conversation_id)
    return 1 + (session.scalar(last) or 0)


def new_line(conversation: ConversationRow, author: Author, text: str, at: datetime, turn: int) -> MessageRow:
    """A line for the history, not added yet; `turn` 0 for what still waits."""
    return MessageRow(
        conversation_id=conversation.id,
        platform=conversation.platform,
        account=conversation.account,
        author=author,
        kind=InboundKind.TEXT,
        text=text,
        reply_to="",
        at=at,
        settled_at=at if turn else None,
        turn=turn,
    )


def address(row: ConversationRow | OutboundRow) -> Address:
    return Address(Platform(row.platform), row.account, row.chat, row.thread)


def to_line(row: MessageRow) -> Line:
    sentiment = None
    if row.label is not None and row.negative is not None and row.threshold is not None:
        sentiment = Sentiment(row.label, row.negative, row.threshold)
    return Line(
        row.id,
        Author(row.author),
        InboundKind(row.kind),
        row.text,
        row.at,
        row.reply_to,
        sentiment,
        Outcome(row.outcome) if row.outcome else None,
        Rating(row.rating) if row.rating else None,
        bool(row.cut),
        bool(row.corrected),
        row.media,
    )


def to_sent(row: OutboundRow) -> Sent:
    return Sent(
        row.id,
        OutboundKind(row.kind),
        address(row),
        OutboundState(row.state),
        row.created_at,
        row.settled_at,
        row.error,
    )


def escalation(session: Session, row: EscalationRow) -> Escalation:
    newest_first = (
        select(MessageRow)
        .where(MessageRow.conversation_id == row.conversation_id)
        .order_by(MessageRow.id.desc())
        .limit(CARD_LINES)
    )
    evidence = session.get(MessageRow, row.message_id) if row.message_id is not None else None
    return Escalation(
        row.id,
        Reason(row.reason),
        conversation(session, row.conversation_id),
        to_line(evidence) if evidence else None,
        tuple(map(to_line, reversed(session.scalars(newest_first).all()))),
        row.opened_at,
        row.times,
        row.claimed_name or row.claimed_by,
        row.claimed_at,
        AgentAction(row.ended) if row.ended else None,
        row.resolved_at,
        row.came_back_at,
        row.score,
    )


def conversation(session: Session, conversation_id: int) -> Conversation:
    row = session.get_one(ConversationRow, conversation_id)
    customer = session.get_one(CustomerRow, row.customer_id)
    who = Customer(customer.external_id, customer.name, customer.language, customer.chosen)
    return Conversation(row.id, address(row), who, Owner(row.owner), row.origin, row.unreachable, row.begun)


def was_told(session: Session, conversation_id: int, sentences: Sequence[str], since: datetime) -> bool:
    """Whether a notice that begins with one of `sentences` was said, from `since` on."""
    notices = select(MessageRow.id).filter_by(conversation_id=conversation_id, author=Author.NOTICE)
    begins = or_(*(MessageRow.text.startswith(sentence, autoescape=True) for sentence in sentences))
    return session.scalar(notices.where(MessageRow.at >= since, begins).limit(1)) is not None


def pace(session: Session, conversation_id: int, since: datetime) -> Pace:
    """How fast the customer of a conversation writes, and we answer, counted from `since` on."""
    count = select(func.count(MessageRow.id)).where(MessageRow.at > since)
    customer = select(ConversationRow.customer_id).where(ConversationRow.id == conversation_id).scalar_subquery()
    theirs = select(ConversationRow.id).where(ConversationRow.customer_id == customer)
    here = MessageRow.conversation_id == conversation_id
    written = count.where(MessageRow.conversation_id.in_(theirs), MessageRow.author == Author.CUSTOMER)
    shed = select(MessageRow.id).where(here, MessageRow.outcome == Outcome.SHED, MessageRow.settled_at > since)
    return Pace(
        session.scalar(written) or 0,
        session.scalar(count.where(here, MessageRow.author == Author.BOT)) or 0,
        session.scalar(shed.limit(1)) is not None,
    )
