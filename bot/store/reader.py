"""Looking without touching: what the web page, the metrics and other processes may ask."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Engine, distinct, func, select
from sqlalchemy.orm import Session

from bot.conversation import Author, Escalation, Line, Reason
from bot.messages import Address, AgentAction, Platform, Rating
from bot.store import erase, rows
from bot.store.database import at_one_moment
from bot.store.jobs import JobKind, JobState
from bot.store.schema import ConversationRow, CustomerRow, EscalationRow, JobRow, MessageRow, OutboundRow
from bot.store.values import Course, Kept, Load, OutboundState, Tally, Trace

_BEGUN = (OutboundState.SENDING, OutboundState.UNKNOWN, OutboundState.SENT)


class Reader:
    """Read-only questions; works on a read-only engine, beside a running service."""

    def __init__(self, engine: Engine) -> None:
        self._engine = at_one_moment(engine)

    def history(self, address: Address, customer_id: str, limit: int = 200) -> list[Line]:
        """The newest lines of one customer's conversation as the customer has seen it, oldest first."""
        with Session(self._engine) as session:
            conversation = session.scalar(
                select(ConversationRow.id)
                .join(CustomerRow, CustomerRow.id == ConversationRow.customer_id)
                .where(
                    ConversationRow.platform == address.platform,
                    ConversationRow.account == address.account,
                    ConversationRow.chat == address.chat,
                    ConversationRow.thread == address.thread,
                    CustomerRow.external_id == customer_id,
                )
            )
            begun = select(OutboundRow.id).where(OutboundRow.message_id == MessageRow.id, OutboundRow.state.in_(_BEGUN))
            lines = select(MessageRow).where(
                MessageRow.conversation_id == conversation,
                (MessageRow.author == Author.CUSTOMER) | begun.exists(),
            )
            newest = session.scalars(lines.order_by(MessageRow.id.desc()).limit(limit)).all()
            return [rows.to_line(row) for row in reversed(newest)]

    def load(self) -> Load:
        with Session(self._engine) as session:
            unfinished = select(func.count(), func.min(JobRow.run_at)).where(JobRow.state != JobState.DEAD)
            jobs, oldest = session.execute(unfinished).one()
            waited = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
            calls = select(func.count()).select_from(EscalationRow).where(EscalationRow.resolved_at.is_(None))
            return Load(jobs, max(0.0, waited), session.scalar(calls) or 0)

    def open_calls(self, limit: int = 20) -> list[Escalation]:
        """Who waits for a human: what nobody claimed, the longest wait first; of one hour, the angriest first."""
        with Session(self._engine) as session:
            waiting = select(EscalationRow).where(EscalationRow.resolved_at.is_(None))
            found = session.scalars(waiting.order_by(EscalationRow.opened_at, EscalationRow.id).limit(limit)).all()
            return sorted((rows.escalation(session, row) for row in found), key=_urgency)

    def corrections(self) -> list[str]:
        """Messages that agents said are not negative, oldest first."""
        with Session(self._engine) as session:
            found = select(MessageRow.text).where(MessageRow.corrected != 0).order_by(MessageRow.id)
            return list(session.scalars(found))

    def kept(self, platform: Platform, external_id: str) -> list[Kept]:
        """All that is stored about a customer, as the platform names them, one entry a conversation; none for an
        unknown one."""
        with Session(self._engine) as session:
            theirs = select(ConversationRow).where(
                ConversationRow.customer_id.in_(erase.known(session, platform, external_id)),
                ConversationRow.erased_at.is_(None),
            )
            return [_kept(session, row) for row in session.scalars(theirs.order_by(ConversationRow.id)).all()]

    def tally(self, since: datetime) -> Tally:
        """What happened from `since` on. Escalations that a customer had erased are left out: they soon are gone."""
        with Session(self._engine) as session:
            opened = (EscalationRow.opened_at >= since, EscalationRow.reason != Reason.ERASED)
            called = select(EscalationRow.conversation_id).where(*opened)
            each = func.count(distinct(MessageRow.conversation_id))
            wrote = select(each, each.filter(MessageRow.conversation_id.not_in(called)))
            wrote = wrote.where(MessageRow.author == Author.CUSTOMER, MessageRow.at >= since)
            conversations, alone = session.execute(wrote).one()
            rated = select(MessageRow.rating, func.count()).where(MessageRow.rating != "", MessageRow.at >= since)
            thumbs = {Rating(rating): int(n) for rating, n in session.execute(rated.group_by(MessageRow.rating))}
            courses = session.scalars(select(EscalationRow).where(*opened)).all()
            return Tally(conversations, alone, thumbs, tuple(map(_course, courses)))

    def unreachable(self) -> dict[str, int]:
        """How many conversations nothing arrives in any more, by reason."""
        with Session(self._engine) as session:
            why = ConversationRow.unreachable
            counted = select(why, func.count()).where(why != "").group_by(why)
            return {str(reason): int(count) for reason, count in session.execute(counted)}

    def trace(self, message_id: int) -> Trace | None:
        """One customer message's way; None when there is no such message."""
        with Session(self._engine) as session:
            row = session.get(MessageRow, message_id)
            if row is None:
                return None
            answers: Sequence[MessageRow] = []
            if row.turn:
                same = select(MessageRow).filter_by(conversation_id=row.conversation_id, turn=row.turn)
                answers = session.scalars(same.where(MessageRow.author != Author.CUSTOMER)).all()
            called = session.scalar(select(EscalationRow).filter_by(message_id=row.id).order_by(EscalationRow.id))
            about: ColumnElement[bool] = OutboundRow.message_id.in_([answer.id for answer in answers])
            if called is not None:
                about |= OutboundRow.escalation_id == called.id
            outbound = session.scalars(select(OutboundRow).where(about).order_by(OutboundRow.created_at)).all()
            error = select(JobRow.error).where(
                JobRow.conversation_id == row.conversation_id, JobRow.kind == JobKind.ATTEND
            )
            return Trace(
                rows.conversation(session, row.conversation_id),
                rows.to_line(row),
                row.settled_at,
                tuple(map(rows.to_line, answers)),
                tuple(map(rows.to_sent, outbound)),
                rows.escalation(session, called) if called else None,
                session.scalar(error.order_by(JobRow.id.desc())) or "",
            )


def _urgency(call: Escalation) -> tuple[bool, datetime, float, int]:
    mood = call.evidence.sentiment if call.evidence else None
    hour = call.opened_at.replace(minute=0, second=0, microsecond=0)
    return bool(call.claimed_by), hour, -mood.negative if mood else 0.0, call.id


def _kept(session: Session, row: ConversationRow) -> Kept:
    lines = select(MessageRow).filter_by(conversation_id=row.id).order_by(MessageRow.id)
    called = select(EscalationRow).filter_by(conversation_id=row.id).order_by(EscalationRow.id)
    sent = select(OutboundRow).filter_by(conversation_id=row.id).order_by(OutboundRow.created_at)
    return Kept(
        rows.conversation(session, row.id),
        row.opened_at,
        tuple(map(rows.to_line, session.scalars(lines))),
        tuple(rows.escalation(session, each) for each in session.scalars(called).all()),
        tuple(map(rows.to_sent, session.scalars(sent))),
    )


def _course(row: EscalationRow) -> Course:
    ended = AgentAction(row.ended) if row.ended else None
    return Course(Reason(row.reason), row.opened_at, row.claimed_at, row.resolved_at, ended, row.score)
