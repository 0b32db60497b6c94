"""Putting messages into the line to be sent, within the transaction of what they are about."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.messages import COPYING, Address, OutboundKind
from bot.store import jobs
from bot.store.schema import EscalationRow, OutboundRow
from bot.store.values import OutboundState


class Outbox:
    """`agents` is where cards go and everything about them, None for nowhere."""

    def __init__(self, agents: Address | None, clock: Callable[[], datetime]) -> None:
        self._agents = agents
        self._now = clock

    def put(
        self,
        session: Session,
        conversation_id: int,
        kind: OutboundKind,
        to: Address,
        lane: str,
        *,
        text: str = "",
        reply_to: str = "",
        begun: str = "",
        message_id: int | None = None,
        escalation_id: int | None = None,
        copies: str = "",
        only_for: str = "",
    ) -> None:
        """Send it after everything that was put into the same lane before; into the message `begun`, "" for a new one.

        `message_id` is the line of the history that it says or is about, `copies` a message to be sent again,
        `only_for` the person who is to see it.
        """
        row = OutboundRow(
            id=uuid.uuid4().hex,
            conversation_id=conversation_id,
            message_id=message_id,
            escalation_id=escalation_id,
            kind=kind,
            platform=to.platform,
            account=to.account,
            chat=to.chat,
            thread=to.thread,
            reply_to=reply_to,
            text=text,
            state=OutboundState.PENDING,
            unknowns=0,
            created_at=self._now(),
            platform_id=begun,
            error="",
            copies=copies,
            only_for=only_for,
        )
        session.add(row)
        session.flush()
        jobs.enqueue_delivery(session, lane, conversation_id, row.id, row.created_at)

    def show_card(self, session: Session, escalation: EscalationRow) -> None:
        """A card is written when it is sent, so one that was not tried yet will show the newest state anyway."""
        pending = select(OutboundRow.id).filter_by(
            escalation_id=escalation.id, kind=OutboundKind.CARD, state=OutboundState.PENDING
        )
        if session.scalar(pending) is None:
            self.to_agents(session, escalation, OutboundKind.CARD)

    def to_agents(
        self,
        session: Session,
        escalation: EscalationRow,
        kind: OutboundKind,
        text: str = "",
        reply_to: str = "",
        message_id: int | None = None,
        copies: str = "",
        only_for: str = "",
    ) -> None:
        """Send something about an escalation, after its card; `reply_to` "" hangs it on the card."""
        if self._agents is not None:
            self.put(
                session,
                escalation.conversation_id,
                kind,
                self._agents,
                f"card:{escalation.id}",
                text=text,
                reply_to=reply_to,
                message_id=message_id,
                escalation_id=escalation.id,
                copies=copies,
                only_for=only_for,
            )

    def can_copy(self, platform: str) -> bool:
        """Whether agents and customers of that platform can see each other's media."""
        return self._agents is not None and self._agents.platform == platform and platform in COPYING
