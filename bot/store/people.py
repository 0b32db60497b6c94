"""Who writes, and where. Functions on a session, so that they join a transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.dialects.postgresql import insert  # SQLite has the same ON CONFLICT
from sqlalchemy.orm import Session

from bot.conversation import Owner
from bot.messages import InboundMessage
from bot.store.schema import ConversationRow, CustomerRow, EscalationRow


def lock(session: Session, *conversations: ColumnElement[bool]) -> None:
    """Until the transaction ends, nobody else changes anything of the customers whose conversations these are.

    For every transaction that does, before it reads what it changes. Only a platform's cursor may be locked earlier.
    SQLite has but one writer, and ignores it.
    """
    owners = select(ConversationRow.customer_id).where(*conversations)
    # in order of id: two that lock several customers never wait for each other
    locked = select(CustomerRow.id).where(CustomerRow.id.in_(owners)).order_by(CustomerRow.id)
    session.execute(locked.with_for_update()).all()


def lock_called(session: Session, escalation_id: int | None) -> None:
    """As lock(), the customer about whom a human was called; nobody for an unknown escalation."""
    lock(session, ConversationRow.id.in_(select(EscalationRow.conversation_id).filter_by(id=escalation_id)))


def find_or_add(session: Session, message: InboundMessage, now: datetime) -> CustomerRow:
    """Who wrote a message, locked as lock() does; new where they never wrote to this account."""
    who = {
        "platform": message.address.platform,
        "account": message.address.account,
        "external_id": message.customer.id,
    }
    customer = select(CustomerRow).filter_by(**who).with_for_update()
    row = session.scalar(customer)
    if row is None:
        new = insert(CustomerRow).values(**who, name="", language="", created_at=now)
        session.execute(new.on_conflict_do_nothing())  # another process may have been first
        row = session.scalars(customer).one()
    return row


def find_or_open(session: Session, message: InboundMessage, customer: CustomerRow, now: datetime) -> ConversationRow:
    """The conversation of who wrote a message, and what is known of them; new where they never wrote there."""
    address = message.address
    customer.name = message.customer.name or customer.name
    customer.language = message.customer.language or customer.language
    row = session.scalar(
        select(ConversationRow).filter_by(
            platform=address.platform,
            account=address.account,
            chat=address.chat,
            thread=address.thread,
            customer_id=customer.id,
        )
    )
    if row is None:
        row = ConversationRow(
            customer_id=customer.id,
            platform=address.platform,
            account=address.account,
            chat=address.chat,
            thread=address.thread,
            owner=Owner.BOT,
            opened_at=now,
        )
        session.add(row)
        session.flush()
    return row
