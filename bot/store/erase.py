"""Erasing what a customer wrote and what was said to them. Functions on a session, so that they join a transaction.

What was written goes at once. Where it went (the ids of chat and customer) stays for as long as something is still to
be sent: that it is done, to the customer, and the emptied cards, to the agents. Then remove() takes away the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from bot.conversation import Owner, Reason
from bot.messages import OutboundKind
from bot.store import jobs
from bot.store.jobs import JobState
from bot.store.schema import ConversationRow, CustomerRow, EscalationRow, JobRow, MessageRow, OutboundRow
from bot.store.values import Erased, OutboundState

WITHOUT_TEXT = (OutboundKind.CARD, OutboundKind.WITHDRAW)
"""What is sent of an erased conversation all the same."""
_BEGUN = (OutboundState.SENDING, OutboundState.UNKNOWN, OutboundState.SENT)
"""What may have arrived."""


def known(session: Session, platform: str, external_id: str) -> list[int]:
    """Who that is, on every account of ours on the platform. Who is erased but for what is to be sent is nobody."""
    theirs = select(ConversationRow.id).where(ConversationRow.customer_id == CustomerRow.id)
    them = select(CustomerRow.id).filter_by(platform=platform, external_id=external_id)
    return list(session.scalars(them.where(theirs.where(ConversationRow.erased_at.is_(None)).exists())))


def silent(before: datetime) -> Select[int]:
    """Customers to whom and by whom nothing was said since `before`, anywhere, and about whom nothing is open."""
    here, row = ConversationRow.id, ConversationRow
    said = select(MessageRow.id).where(MessageRow.conversation_id == here, MessageRow.at >= before)
    called = select(EscalationRow.id).where(EscalationRow.conversation_id == here, EscalationRow.resolved_at.is_(None))
    to_do = select(JobRow.id).where(JobRow.conversation_id == here, JobRow.state != JobState.DEAD)
    kept = or_(row.opened_at >= before, row.owner == Owner.HUMAN, said.exists(), called.exists(), to_do.exists())
    # one pass over all conversations: they have no index by customer
    each = select(row.customer_id).group_by(row.customer_id)
    return each.having(func.max(case((kept, 1), else_=0)) == 0, func.count() > func.count(row.erased_at))


def count(session: Session, customer_id: int) -> Erased:
    """What is stored about a customer; `cards`, `relayed` and `lost` are what of it agents see, or may see."""
    theirs = select(ConversationRow.id).filter_by(customer_id=customer_id)

    def number(table: type[MessageRow | EscalationRow | OutboundRow], **which: str) -> int:
        rows = select(func.count()).select_from(table).filter_by(**which)
        return session.scalar(rows.where(table.conversation_id.in_(theirs))) or 0

    return Erased(
        session.scalar(select(func.count()).select_from(theirs.subquery())) or 0,
        number(MessageRow),
        number(EscalationRow),
        number(OutboundRow),
        number(OutboundRow, kind=OutboundKind.CARD, state=OutboundState.PENDING),
        number(OutboundRow, kind=OutboundKind.WITHDRAW, state=OutboundState.PENDING),
        sum(number(OutboundRow, kind=OutboundKind.RELAY, platform_id="", state=state) for state in _BEGUN),
    )


def erase(
    session: Session, customer_id: int, now: datetime, asked: int | None, besides: JobRow | None
) -> tuple[list[int], list[tuple[EscalationRow, list[str]]]]:
    """Everything a customer wrote up to the message `asked`, and all that was said to them, in every conversation.

    None for all they wrote. Whoever works on one of them holds nothing any more, except for the job `besides`. Returns
    the conversations, and the escalations whose cards agents have seen, which are to be shown anew, emptied; each with
    the ids of the customer's words among them.
    """
    theirs = session.scalars(select(ConversationRow).filter_by(customer_id=customer_id)).all()
    ids = [row.id for row in theirs]
    for row in theirs:
        row.owner, row.origin, row.unreachable, row.erased_at = Owner.BOT, "", "", now
    session.execute(update(CustomerRow).filter_by(id=customer_id).values(name="", language="", chosen=""))
    seen = [(row, _relayed(session, row)) for row in _empty_escalations(session, ids, now)]
    _forget_what_was_said(session, ids, besides)
    wrote = delete(MessageRow).where(MessageRow.conversation_id.in_(ids))
    session.execute(wrote if asked is None else wrote.where(MessageRow.id <= asked))
    unread = select(MessageRow.conversation_id).where(MessageRow.conversation_id.in_(ids), MessageRow.turn == 0)
    waiting = set(session.scalars(unread))
    for row in theirs:
        if row.id in waiting:  # written while the wish was read: it goes on
            row.erased_at = None
            jobs.enqueue_attend(session, row.id, now)
    return ids, seen


def remove(session: Session, customer_id: int) -> bool:
    """Erased conversations themselves, where nothing is to be sent any more and nothing was written since.

    With the last one goes who it was. Returns whether anything went.
    """
    session.flush()
    to_do = select(JobRow.id).where(JobRow.conversation_id == ConversationRow.id, JobRow.state != JobState.DEAD)
    theirs = select(ConversationRow.id).filter_by(customer_id=customer_id)
    done = session.scalars(theirs.where(ConversationRow.erased_at.is_not(None), ~to_do.exists())).all()
    for table in (JobRow, OutboundRow, EscalationRow, MessageRow):
        session.execute(delete(table).where(table.conversation_id.in_(done)))
    session.execute(delete(ConversationRow).where(ConversationRow.id.in_(done)))
    if done and session.scalar(theirs.limit(1)) is None:
        session.execute(delete(CustomerRow).filter_by(id=customer_id))
    return bool(done)


def _empty_escalations(session: Session, conversations: Sequence[int], now: datetime) -> list[EscalationRow]:
    begun = select(OutboundRow.id).where(
        OutboundRow.escalation_id == EscalationRow.id, OutboundRow.state != OutboundState.PENDING
    )
    called = select(EscalationRow).where(EscalationRow.conversation_id.in_(conversations))
    seen = list(session.scalars(called.where(or_(EscalationRow.card_id != "", begun.exists()))).all())
    for row in seen:
        row.reason, row.message_id, row.resolved_at = Reason.ERASED, None, row.resolved_at or now
    session.flush()
    unseen = [row.id for row in session.scalars(called).all() if row not in seen]
    waiting = select(OutboundRow.id).where(OutboundRow.escalation_id.in_(unseen))
    session.execute(delete(JobRow).where(JobRow.outbound_id.in_(waiting)))
    session.execute(delete(OutboundRow).where(OutboundRow.escalation_id.in_(unseen)))
    session.execute(delete(EscalationRow).where(EscalationRow.id.in_(unseen)))
    return seen


def _relayed(session: Session, escalation: EscalationRow) -> list[str]:
    shown = select(OutboundRow.platform_id).filter_by(escalation_id=escalation.id, kind=OutboundKind.RELAY)
    return list(session.scalars(shown.where(OutboundRow.platform_id != "")).all())


def _forget_what_was_said(session: Session, conversations: Sequence[int], besides: JobRow | None) -> None:
    """A card holds no text of its own: one that is on its way arrives, and is emptied by the next."""
    said = select(OutboundRow.id).where(
        OutboundRow.conversation_id.in_(conversations), OutboundRow.kind.not_in(WITHOUT_TEXT)
    )
    at_work = JobRow.conversation_id.in_(conversations) & JobRow.outbound_id.is_(None)
    if besides is not None:
        at_work &= JobRow.id != besides.id
    session.execute(delete(JobRow).where(or_(JobRow.outbound_id.in_(said), at_work)))
    session.execute(delete(OutboundRow).where(OutboundRow.id.in_(said)))
