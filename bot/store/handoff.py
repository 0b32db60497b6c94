"""What agents do to an escalation and say to its customer. Methods take a session, so that they join a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bot.conversation import Author, Escalation, Overdue, Owner, OwnerEvent, next_owner
from bot.messages import (
    DELIVERED,
    NOT_DELIVERED,
    WITH_BUTTONS,
    AgentAction,
    Customer,
    Edited,
    InboundKind,
    InboundMessage,
    OutboundKind,
    Pressed,
)
from bot.store import people, rows
from bot.store.outbox import Outbox
from bot.store.schema import ConversationRow, EscalationRow, MessageRow, OutboundRow
from bot.store.values import Heard, OutboundState, Pressing


class Handoff:
    """The agents' side of the store."""

    def __init__(self, outbox: Outbox, clock: Callable[[], datetime]) -> None:
        self._outbox = outbox
        self._now = clock

    def press(self, session: Session, event: Pressed, notice: str, asked: str) -> Pressing:
        """Do what a button says, once; `notice` tells the customer, `asked` asks them how it was. Pressed again, or too
        late, nothing changes."""
        row = session.get(EscalationRow, event.escalation_id)
        if row is not None and event.action is AgentAction.CORRECT:
            return self._correct(session, row)
        if row is None or row.resolved_at is not None:
            return Pressing.OVER
        if event.action is not AgentAction.CLAIM:
            self._end(session, row, event.action, notice)
            conversation = session.get_one(ConversationRow, row.conversation_id)
            helped = row.claimed_by and event.action is AgentAction.RESOLVE
            if asked and helped and conversation.platform in WITH_BUTTONS:
                line = self._line(session, conversation, Author.NOTICE, asked)
                self._send(session, conversation, OutboundKind.ASK, line, row.id)
        elif row.claimed_by:
            return Pressing.YOURS if row.claimed_by == event.agent.id else Pressing.TAKEN
        else:
            self._claim(session, row, event.agent, notice)
        return Pressing.DONE

    def _claim(self, session: Session, row: EscalationRow, agent: Customer, notice: str) -> None:
        row.claimed_by, row.claimed_name, row.claimed_at = agent.id, agent.name, self._now()
        self._tell(session, self._hand_over(session, row, OwnerEvent.CLAIM), notice)

    def _end(self, session: Session, row: EscalationRow, action: AgentAction, notice: str) -> None:
        """The customer of what nobody claimed knows of no colleague, and so is told of none who leaves."""
        row.ended, row.resolved_at = action, self._now()
        conversation = self._hand_over(session, row, OwnerEvent.RELEASE)
        if row.claimed_by:
            self._tell(session, conversation, notice)

    def _hand_over(self, session: Session, row: EscalationRow, event: OwnerEvent) -> ConversationRow:
        conversation = session.get_one(ConversationRow, row.conversation_id)
        conversation.owner, row.updated_at = next_owner(Owner(conversation.owner), event), self._now()
        session.flush()
        self._outbox.show_card(session, row)
        return conversation

    def _correct(self, session: Session, row: EscalationRow) -> Pressing:
        line = session.get(MessageRow, row.message_id) if row.message_id is not None else None
        if line is None:
            return Pressing.OVER
        line.corrected = 1
        session.flush()
        self._outbox.show_card(session, row)
        return Pressing.DONE

    def hear(self, session: Session, message: InboundMessage, told: str, no_way: str) -> Heard:
        """What was written in the thread of an escalation.

        Only what the claimer says reaches the customer; anybody else is `told`, once, to claim first. Media reach
        customers of the same platform only: else it is marked as not delivered, and `no_way` says why.
        """
        escalation_id = self._escalation_of(session, message)
        people.lock_called(session, escalation_id)
        row = session.get(EscalationRow, escalation_id) if escalation_id is not None else None
        if row is None:
            return Heard.ELSEWHERE
        conversation = session.get_one(ConversationRow, row.conversation_id)
        event_id = f"agent:{message.event_id}"
        if session.scalar(select(MessageRow.id).filter_by(conversation_id=conversation.id, event_id=event_id)):
            return Heard.DUPLICATE
        if row.resolved_at is not None or row.claimed_by != message.customer.id:
            self._hint(session, row, message, told)
            return Heard.NOT_CLAIMED
        copied = bool(message.media) and self._outbox.can_copy(conversation.platform)
        if message.media and not copied:
            self._outbox.to_agents(session, row, OutboundKind.MARK, NOT_DELIVERED, _own_id(message))
            self._outbox.to_agents(session, row, OutboundKind.NOTICE, no_way, _own_id(message))
            return Heard.NO_WAY
        line = self._line(session, conversation, Author.AGENT, message.text)
        line.event_id, line.reply_to, line.kind, line.media = event_id, _own_id(message), message.kind, message.media
        self._send(session, conversation, OutboundKind.AGENT, line, row.id, message.event_id if copied else "")
        return Heard.RELAYED

    def edit(self, session: Session, event: Edited) -> bool:
        """Change what an agent said, before or after the customer saw it. False for what was not said to a customer."""
        said = {"author": Author.AGENT, "event_id": f"agent:{event.of}"}
        people.lock(session, ConversationRow.id.in_(select(MessageRow.conversation_id).filter_by(**said)))
        line = session.scalar(select(MessageRow).filter_by(**said))
        if line is None or line.text == event.text:
            return False
        line.text, line.kind = event.text, InboundKind.TEXT
        sent = select(OutboundRow).filter_by(conversation_id=line.conversation_id, message_id=line.id)
        sent = sent.where(OutboundRow.kind == OutboundKind.AGENT)
        last = session.scalars(sent.order_by(OutboundRow.created_at.desc()).limit(1)).one()
        if last.state == OutboundState.PENDING:
            last.text = event.text
            return True
        conversation = session.get_one(ConversationRow, line.conversation_id)
        self._send(session, conversation, OutboundKind.AGENT, line, last.escalation_id, last.copies)
        return True

    def overdue(self, session: Session, patience: Mapping[Overdue, timedelta]) -> list[tuple[Overdue, Escalation]]:
        """What waited longer than `patience`; what is not in it never does."""
        now, row, found = self._now(), EscalationRow, list[tuple[Overdue, Escalation]]()
        said = select(func.max(MessageRow.at)).where(MessageRow.conversation_id == row.conversation_id)
        unclaimed, last_said = row.claimed_by == "", said.scalar_subquery()
        conditions = {
            Overdue.REMIND: (unclaimed & row.reminded_at.is_(None), (row.opened_at,)),
            Overdue.APOLOGISE: (unclaimed & row.apologised_at.is_(None), (row.opened_at,)),
            Overdue.IDLE: (~unclaimed, (row.claimed_at, last_said)),
        }
        for what, time in patience.items():
            which, since = conditions[what]
            long_ago = [each <= now - time for each in since]
            waiting = select(row).where(row.resolved_at.is_(None), which, *long_ago)
            found += [(what, rows.escalation(session, each)) for each in session.scalars(waiting).all()]
        return found

    def bring_up(self, session: Session, escalation_id: int, what: Overdue, text: str) -> None:
        """See to what is overdue, unless somebody did meanwhile; `text` is what agents or customer are told.

        Agents are reminded once, and the customer is told once; an idle claim ends.
        """
        row = session.get(EscalationRow, escalation_id)
        if row is None or row.resolved_at is not None:
            return
        if what is Overdue.IDLE:
            self._end(session, row, AgentAction.RETURN, text)
        elif row.claimed_by:
            return
        elif what is Overdue.REMIND and row.reminded_at is None:
            row.reminded_at = self._now()
            if not row.card_id:  # it did not arrive
                self._outbox.show_card(session, row)
            self._outbox.to_agents(session, row, OutboundKind.NOTICE, text)
        elif what is Overdue.APOLOGISE and row.apologised_at is None:
            row.apologised_at = self._now()
            self._tell(session, session.get_one(ConversationRow, row.conversation_id), text)

    def came_back(self, session: Session, conversation: ConversationRow, at: datetime) -> None:
        """The customer wrote again: the card of what was resolved last says so, once."""
        latest = select(EscalationRow).filter_by(conversation_id=conversation.id).order_by(EscalationRow.id.desc())
        row = session.scalar(latest.limit(1))
        if row is not None and row.resolved_at is not None and row.came_back_at is None and row.card_id:
            row.came_back_at = at
            session.flush()
            self._outbox.show_card(session, row)

    def relay(self, session: Session, conversation: ConversationRow, texts: Iterable[tuple[int, str]]) -> None:
        """Show the agents what a customer wrote: (message, as it is shown)."""
        row = session.scalar(rows.open_escalation(conversation.id))
        if row is not None:
            for message_id, text in texts:
                self._outbox.to_agents(session, row, OutboundKind.RELAY, text, message_id=message_id)
                line = session.get_one(MessageRow, message_id)
                if line.media and self._outbox.can_copy(conversation.platform):
                    copied = line.event_id or ""
                    self._outbox.to_agents(session, row, OutboundKind.RELAY, message_id=message_id, copies=copied)

    def mark(self, session: Session, outbound: OutboundRow, error: str = "") -> None:
        """Show at an agent's words whether they arrived; where not, why."""
        row, line = session.get(EscalationRow, outbound.escalation_id), session.get(MessageRow, outbound.message_id)
        if row is None or line is None:
            return
        self._outbox.to_agents(session, row, OutboundKind.MARK, NOT_DELIVERED if error else DELIVERED, line.reply_to)
        if error:
            self._outbox.to_agents(session, row, OutboundKind.NOTICE, error, line.reply_to)

    def _escalation_of(self, session: Session, message: InboundMessage) -> int | None:
        """By the place opened for it; else by the card, or a customer's words, that the message answers."""
        address = message.address
        if address.thread:
            here = select(EscalationRow.id).filter_by(topic=address.thread).order_by(EscalationRow.id.desc())
            if (found := session.scalar(here.limit(1))) is not None:
                return found
        if not message.answers:
            return None
        sent = select(OutboundRow.escalation_id).where(
            OutboundRow.platform == address.platform,
            OutboundRow.chat == address.chat,
            OutboundRow.platform_id == message.answers,
            OutboundRow.kind.in_((OutboundKind.CARD, OutboundKind.RELAY)),
        )
        return session.scalar(sent.limit(1))

    def _hint(self, session: Session, row: EscalationRow, message: InboundMessage, told: str) -> None:
        before = select(OutboundRow.id).filter_by(escalation_id=row.id, kind=OutboundKind.NOTICE, text=told)
        if session.scalar(before.limit(1)) is None:
            who = message.customer.id
            self._outbox.to_agents(session, row, OutboundKind.NOTICE, told, _own_id(message), only_for=who)

    def _tell(self, session: Session, conversation: ConversationRow, notice: str) -> None:
        """Say a fixed sentence to the customer."""
        line = self._line(session, conversation, Author.NOTICE, notice)
        self._send(session, conversation, OutboundKind.NOTICE, line)

    def _send(
        self,
        session: Session,
        conversation: ConversationRow,
        kind: OutboundKind,
        line: MessageRow,
        escalation_id: int | None = None,
        copies: str = "",
    ) -> None:
        """Say something to the customer, where they wrote last."""
        session.add(line)
        session.flush()
        wrote = select(MessageRow.reply_to).filter_by(conversation_id=conversation.id, author=Author.CUSTOMER)
        self._outbox.put(
            session,
            conversation.id,
            kind,
            rows.address(conversation),
            str(conversation.id),
            text=line.text,
            reply_to=session.scalar(wrote.order_by(MessageRow.id.desc()).limit(1)) or "",
            message_id=line.id,
            escalation_id=escalation_id,
            copies=copies,
        )

    def _line(self, session: Session, conversation: ConversationRow, author: Author, text: str) -> MessageRow:
        return rows.new_line(conversation, author, text, self._now(), rows.next_turn(session, conversation.id))


def _own_id(message: InboundMessage) -> str:
    """The platform's id of a message, by which it can be answered: event ids are "chat:id"."""
    return message.event_id.rpartition(":")[2]
