"""What an outbound row says when it is sent. Functions on a session, so that they join a transaction."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.conversation import Owner
from bot.messages import Button, OutboundKind, OutboundMessage, score_token
from bot.store import jobs, rows
from bot.store.schema import ConversationRow, EscalationRow, JobRow, OutboundRow
from bot.store.values import OutboundState, Sending

_TO_CUSTOMERS = (OutboundKind.AGENT, OutboundKind.ASK)
"""Of what is about an escalation, what goes to its customer."""


def must_be_silent(session: Session, row: OutboundRow) -> bool:
    """Whether it is the model's, and a human owns the conversation now."""
    owner = session.get_one(ConversationRow, row.conversation_id).owner
    return row.kind == OutboundKind.REPLY and owner == Owner.HUMAN


def sending(session: Session, row: OutboundRow, job: JobRow, maybe_sent: bool) -> Sending:
    """The message of a row with all that is known only now: where the card is, what it edits, what it asks."""
    called = session.get(EscalationRow, row.escalation_id) if row.escalation_id is not None else None
    is_card, address, hangs_on = row.kind == OutboundKind.CARD, rows.address(row), ""
    if called and row.kind not in _TO_CUSTOMERS:
        address = replace(address, thread=called.topic)
        hangs_on = "" if is_card or called.topic else called.card_id
    message = OutboundMessage(
        id=row.id,
        kind=OutboundKind(row.kind),
        address=address,
        text=row.text,
        reply_to=row.reply_to or hangs_on,
        edits=called.card_id if called and is_card else _edits(session, row),
        maybe_sent=maybe_sent,
        rateable=row.kind == OutboundKind.REPLY and jobs.is_last_part(session, job, row),
        buttons=_scores(row) if row.kind == OutboundKind.ASK else (),
        copies=row.copies,
        only_for=row.only_for,
    )
    card = rows.escalation(session, called) if called and is_card else None
    return Sending(message, card, row.unknowns, row.created_at)


def _edits(session: Session, row: OutboundRow) -> str:
    """The message that a preview began; or where an agent's words arrived that were edited since."""
    if row.kind != OutboundKind.AGENT:
        return row.platform_id
    sent = select(OutboundRow.platform_id).filter_by(
        conversation_id=row.conversation_id,
        message_id=row.message_id,
        kind=OutboundKind.AGENT,
        state=OutboundState.SENT,
    )
    return session.scalar(sent.limit(1)) or ""


def _scores(row: OutboundRow) -> tuple[Button, ...]:
    return tuple(Button(str(score), score_token(score, row.escalation_id or 0)) for score in range(1, 6))
