"""Who writes, and where. Functions on a session, so that they join a transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.conversation import Owner
from bot.messages import InboundMessage
from bot.store.schema import ConversationRow, CustomerRow


def find_or_open(session: Session, message: InboundMessage, now: datetime) -> ConversationRow:
    """The conversation of who wrote a message, and what is known of them; new where they never wrote there."""
    address, customer = message.address, _customer(session, message, now)
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


def _customer(session: Session, message: InboundMessage, now: datetime) -> CustomerRow:
    address, customer = message.address, message.customer
    row = session.scalar(
        select(CustomerRow).filter_by(platform=address.platform, account=address.account, external_id=customer.id)
    )
    if row is None:
        row = CustomerRow(
            platform=address.platform,
            account=address.account,
            external_id=customer.id,
            name="",
            language="",
            created_at=now,
        )
        session.add(row)
    row.name = customer.name or row.name
    row.language = customer.language or row.language
    session.flush()
    return row
