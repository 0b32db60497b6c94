"""The store: one method is one transaction. Synchronous; callers go through the Writer's thread.

On PostgreSQL many processes have a store each. A transaction that changes what belongs to a customer first locks
that customer, and so finds things as if there were no other process: docs/decisions/0010-one-lock-a-customer.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects.postgresql import insert  # SQLite has the same ON CONFLICT
from sqlalchemy.orm import Session

from bot.conversation import Author, Call, Escalation, Outcome, Overdue, Owner, OwnerEvent, Reason, next_owner
from bot.messages import (
    Address,
    Delivery,
    Dropped,
    Edited,
    InboundKind,
    InboundMessage,
    Moved,
    OutboundKind,
    Platform,
    Pressed,
    Rated,
    Receipt,
    Scored,
)
from bot.store import erase, jobs, people, rows, sending
from bot.store.database import at_one_moment, leave_no_trace
from bot.store.handoff import Handoff
from bot.store.jobs import Claim, JobKind
from bot.store.outbox import Outbox
from bot.store.schema import ConversationRow, CursorRow, CustomerRow, EscalationRow, MessageRow, OutboundRow
from bot.store.settling import Settling
from bot.store.values import (
    Accepted,
    Erased,
    Heard,
    OutboundState,
    Pressing,
    Sending,
    Settlement,
    Waiting,
)

Clock = Callable[[], datetime]

MINUTE = timedelta(minutes=1)
HISTORY_LINES = 40
"""More than fits into any sensible token budget; the engine trims to the budget itself."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """History, outbound messages, escalations and jobs. `cards_to` is where escalation cards go, None for nowhere."""

    def __init__(self, engine: Engine, cards_to: Address | None = None, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._views = at_one_moment(engine)
        self._now = clock
        self._outbox = Outbox(cards_to, clock)
        self._handoff = Handoff(self._outbox, clock)
        self._settling = Settling(self._outbox, self._handoff, clock)

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _look(self) -> Iterator[Session]:
        with Session(self._views) as session:
            yield session

    # -- the way in ------------------------------------------------------------------------------

    def accept(self, message: InboundMessage) -> Accepted:
        """Keep a message, the platform's cursor and the job to attend to it; a redelivery changes nothing."""
        address = message.address
        with self._begin() as session:
            self._advance(session, address.platform, address.account, message.cursor)
            customer = people.find_or_add(session, message, self._now())
            seen = select(MessageRow.id).where(
                MessageRow.platform == address.platform,
                MessageRow.account == address.account,
                MessageRow.event_id == message.event_id,
            )
            if session.scalar(seen) is not None:
                return Accepted(Receipt.DUPLICATE)
            conversation = people.find_or_open(session, message, customer, self._now())
            conversation.unreachable = ""  # who writes can be answered,
            conversation.erased_at = None  # and is known again
            if message.kind is InboundKind.COMMAND and message.text.startswith("start "):
                conversation.origin = message.text.removeprefix("start ")
            row = rows.new_line(conversation, Author.CUSTOMER, message.text, self._now(), turn=0)
            row.event_id, row.kind, row.reply_to = message.event_id, message.kind, message.reply_to
            row.cut, row.media = int(message.cut), message.media
            session.add(row)
            session.flush()
            self._handoff.came_back(session, conversation, row.at)
            jobs.enqueue_attend(session, conversation.id, row.at)
            return Accepted(Receipt.ACCEPTED, row.id, conversation.id)

    def edit(self, event: Edited) -> Accepted:
        """What a message says now: one that waits is read anew; of a settled one the new words are kept beside the old.

        An edit of something unknown, or that changes nothing, only moves the cursor.
        """
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)
            place = {"platform": event.platform, "account": event.account}
            of = select(MessageRow.conversation_id).filter_by(**place, event_id=event.of)
            people.lock(session, ConversationRow.id.in_(of))
            heard = select(MessageRow).filter_by(**place)
            row = session.scalar(heard.filter_by(event_id=event.of))
            again = session.scalar(heard.filter_by(event_id=event.event_id)) is not None
            if row is None or again or row.text == event.text or row.kind == InboundKind.COMMAND:
                return Accepted(Receipt.DROPPED)
            if row.turn == 0:
                row.text, row.kind = event.text, InboundKind.TEXT
                jobs.restart_attend(session, row.conversation_id, self._now())
                return Accepted(Receipt.ACCEPTED, row.id, row.conversation_id)
            return Accepted(Receipt.ACCEPTED, self._note(session, row, event), row.conversation_id)

    def _note(self, session: Session, row: MessageRow, event: Edited) -> int:
        """Keep what a settled message says now, and show it where a human was called; the id of the new line."""
        conversation = session.get_one(ConversationRow, row.conversation_id)
        note = rows.new_line(conversation, Author.CUSTOMER, event.text, self._now(), row.turn)
        note.event_id, note.kind, note.outcome = event.event_id, InboundKind.EDIT, Outcome.NOTED
        session.add(note)
        session.flush()
        called = session.scalar(rows.open_escalation(conversation.id))
        if called is not None:
            self._outbox.show_card(session, called)
        if conversation.owner == Owner.HUMAN:
            self._handoff.relay(session, conversation, [(note.id, f"✏️ {note.text}")])
        return note.id

    def move(self, event: Moved) -> None:
        """Conversations of a chat, and what is still to be sent there, go on under its new id."""
        open_states = (OutboundState.PENDING, OutboundState.SENDING, OutboundState.UNKNOWN)
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)
            chat = {"platform": event.platform, "chat": event.chat}
            to_send = select(OutboundRow.conversation_id).filter_by(**chat).where(OutboundRow.state.in_(open_states))
            concerned = select(ConversationRow.id).filter_by(**chat).union(to_send)
            people.lock(session, ConversationRow.id.in_(concerned))
            for row in session.scalars(select(ConversationRow).filter_by(**chat)).all():
                place = {"account": row.account, "thread": row.thread, "customer_id": row.customer_id}
                there = select(ConversationRow.id).filter_by(platform=event.platform, chat=event.to, **place)
                if session.scalar(there) is None:  # who wrote there already goes on there
                    row.chat = event.to
            waiting = update(OutboundRow).filter_by(**chat)
            session.execute(waiting.where(OutboundRow.state.in_(open_states)).values(chat=event.to))

    def rate(self, event: Rated) -> Accepted:
        """What the customer thinks of a reply. Buttons can be pressed by anybody who sees them: only theirs counts."""
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)
            of = select(OutboundRow.conversation_id).filter_by(id=event.outbound_id)
            people.lock(session, ConversationRow.id.in_(of))
            row = session.get(OutboundRow, event.outbound_id)
            if row is None or row.message_id is None or not self._is_theirs(session, row.conversation_id, event):
                return Accepted(Receipt.DROPPED)
            session.get_one(MessageRow, row.message_id).rating = event.rating
            return Accepted(Receipt.ACCEPTED, row.message_id, row.conversation_id)

    def _is_theirs(self, session: Session, conversation_id: int, event: Rated | Scored) -> bool:
        who = rows.conversation(session, conversation_id)
        return (who.address.platform, who.customer.id) == (event.platform, event.customer_id)

    def drop(self, event: Dropped) -> None:
        """Only the cursor moves."""
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)

    def cursor(self, platform: Platform, account: str) -> int | None:
        with self._look() as session:
            row = session.get(CursorRow, (platform, account))
            return row.value if row else None

    def _advance(self, session: Session, platform: Platform, account: str, cursor: int | None) -> None:
        if cursor is None:
            return
        moved = insert(CursorRow).values(platform=platform, account=account, value=cursor)
        # also to a lower one: after a quiet week Telegram counts on from a random number
        session.execute(moved.on_conflict_do_update(index_elements=["platform", "account"], set_={"value": cursor}))

    # -- attending -------------------------------------------------------------------------------

    def waiting(self, claim: Claim) -> Waiting:
        """What the claimed conversation waits for, and what was said before. Raises LeaseLost."""
        with self._begin() as session:
            jobs.held(session, claim)
            lines = select(MessageRow).where(MessageRow.conversation_id == claim.conversation_id)
            fresh = session.scalars(lines.where(MessageRow.turn == 0).order_by(MessageRow.id)).all()
            newest_first = lines.where(MessageRow.turn > 0).order_by(MessageRow.turn.desc(), MessageRow.id.desc())
            settled = session.scalars(newest_first.limit(HISTORY_LINES)).all()
            return Waiting(
                rows.conversation(session, claim.conversation_id),
                tuple(map(rows.to_line, fresh)),
                tuple(map(rows.to_line, reversed(settled))),
                rows.pace(session, claim.conversation_id, since=self._now() - MINUTE),
            )

    def was_told(self, conversation_id: int, sentences: Sequence[str], since: datetime) -> bool:
        """Whether the customer was told one of `sentences`, from `since` on, however much was said after it."""
        with self._look() as session:
            return rows.was_told(session, conversation_id, sentences, since)

    def finish(self, claim: Claim, settlement: Settlement) -> Sequence[int]:
        """Store what attending produced; nothing is said if a human claimed the conversation meanwhile.

        Returns the conversations that were erased. Raises LeaseLost.
        """
        with self._begin() as session:
            job, erased = jobs.held(session, claim), list[int]()
            if settlement.forget:
                erased = self._settling.erase(session, claim.conversation_id, settlement, job)
            else:
                self._settling.settle(session, claim.conversation_id, settlement)
            session.delete(job)
        if erased:
            leave_no_trace(self._engine)
        return erased

    def bury_attend(self, claim: Claim, settlement: Settlement, error: str) -> None:
        """The same for a job that failed for good: the settlement says so to the customer and calls a human."""
        with self._begin() as session:
            job = jobs.held(session, claim)
            self._settling.settle(session, claim.conversation_id, settlement)
            jobs.bury(job, error)

    # -- escalation ------------------------------------------------------------------------------

    def call(self, escalation_id: int) -> Escalation | None:
        """A call for a human, as agents see it; None for an unknown one."""
        with self._look() as session:
            row = session.get(EscalationRow, escalation_id)
            return rows.escalation(session, row) if row else None

    def press(self, event: Pressed, notice: str, asked: str = "") -> Pressing:
        """Do what a button on a card says, once; `notice` tells the customer, `asked` asks them how it was. Pressed
        again, it changes nothing."""
        with self._begin() as session:
            people.lock_called(session, event.escalation_id)
            return self._handoff.press(session, event, notice, asked)

    def score(self, event: Scored) -> Accepted:
        """What the customer thinks of a colleague's help; only theirs counts, and the last."""
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)
            people.lock_called(session, event.escalation_id)
            row = session.get(EscalationRow, event.escalation_id)
            if row is None or row.resolved_at is None or not self._is_theirs(session, row.conversation_id, event):
                return Accepted(Receipt.DROPPED)
            row.score = event.score
            session.flush()
            self._outbox.show_card(session, row)
            return Accepted(Receipt.ACCEPTED, row.message_id, row.conversation_id)

    def overdue(self, patience: Mapping[Overdue, timedelta]) -> list[tuple[Overdue, Escalation]]:
        """Escalations that waited longer than `patience`, for what."""
        with self._look() as session:
            return self._handoff.overdue(session, patience)

    def bring_up(self, escalation_id: int, what: Overdue, text: str) -> None:
        """See to an escalation that waited too long; `text` is what the agents or the customer are told. Each once."""
        with self._begin() as session:
            people.lock_called(session, escalation_id)
            self._handoff.bring_up(session, escalation_id, what, text)

    def hear_agent(self, message: InboundMessage, told: str, no_way: str = "") -> Heard:
        """Take what was written among the agents to the customer, or tell its writer to claim first, or that media do
        not get there (`no_way`)."""
        address = message.address
        with self._begin() as session:
            self._advance(session, address.platform, address.account, message.cursor)
            return self._handoff.hear(session, message, told, no_way)

    def edit_agent(self, event: Edited) -> bool:
        """What a message of an agent says now, the customer shall see. False for what was not for them."""
        with self._begin() as session:
            self._advance(session, event.platform, event.account, event.cursor)
            return self._handoff.edit(session, event)

    def may_speak(self, conversation_id: int) -> bool:
        """Whether the bot may: no human owns the conversation, and it was not erased meanwhile."""
        with self._look() as session:
            row = session.get(ConversationRow, conversation_id)
            return row is not None and row.owner != Owner.HUMAN

    def began(self, conversation_id: int, platform_id: str) -> None:
        """A preview began a message: whatever is said next finishes it, also after a crash."""
        with self._begin() as session:
            people.lock(session, ConversationRow.id == conversation_id)
            row = session.get(ConversationRow, conversation_id)
            if row is not None:
                row.begun = platform_id

    def change_owner(self, conversation_id: int, event: OwnerEvent) -> Owner:
        """Apply an ownership event; a release also resolves the open escalation."""
        with self._begin() as session:
            people.lock(session, ConversationRow.id == conversation_id)
            row = session.get_one(ConversationRow, conversation_id)
            row.owner = next_owner(Owner(row.owner), event)
            escalation = session.scalar(rows.open_escalation(conversation_id))
            if event is OwnerEvent.RELEASE and escalation is not None:
                escalation.resolved_at = self._now()
            return Owner(row.owner)

    # -- delivering ------------------------------------------------------------------------------

    def begin_send(self, claim: Claim) -> Sending | None:
        """Mark the claimed message as being sent; None when it must not be (a human owns the conversation now).

        Raises LeaseLost.
        """
        with self._begin() as session:
            job = jobs.held(session, claim)
            row = session.get_one(OutboundRow, claim.outbound_id)
            state = OutboundState(row.state)
            if state is OutboundState.PENDING and sending.must_be_silent(session, row):
                row.state, row.settled_at = OutboundState.DROPPED, self._now()
                session.delete(job)
                return None
            if state is OutboundState.SENDING:  # the process died in the middle of an attempt
                row.unknowns += 1
            row.state = OutboundState.SENDING
            return sending.sending(session, row, job, maybe_sent=state is not OutboundState.PENDING)

    def sent(self, claim: Claim, delivery: Delivery) -> None:
        """The platform has it. Raises LeaseLost."""
        with self._begin() as session:
            job = jobs.held(session, claim)
            row = session.get_one(OutboundRow, claim.outbound_id)
            row.state, row.settled_at, row.platform_id = OutboundState.SENT, self._now(), delivery.platform_id
            if row.kind == OutboundKind.CARD:
                called = session.get_one(EscalationRow, row.escalation_id)
                called.card_id, called.topic = delivery.platform_id, delivery.thread
            elif row.kind == OutboundKind.AGENT:
                self._handoff.mark(session, row)
            session.delete(job)
            gone = self._remove(session, row)
        if gone:
            leave_no_trace(self._engine)

    def postpone(self, claim: Claim, delay: timedelta, error: str, *, unknown: bool) -> None:
        """Try again later. Only an `unknown` attempt counts as one; otherwise the message certainly did not arrive."""
        with self._begin() as session:
            job = jobs.held(session, claim)
            row = session.get_one(OutboundRow, claim.outbound_id)
            row.unknowns += unknown
            row.state = OutboundState.UNKNOWN if row.unknowns else OutboundState.PENDING
            row.error = error
            jobs.again(job, self._now() + delay, error, counts=unknown)

    def bury_delivery(self, claim: Claim, error: str, left: str = "") -> None:
        """Give up on a message. A human is called, or told where they wrote it. Raises LeaseLost.

        `left` is what agents are told where it was to take away what they see of somebody who is erased.
        """
        with self._begin() as session:
            job = jobs.held(session, claim)
            row = session.get_one(OutboundRow, claim.outbound_id)
            row.state, row.settled_at, row.error = OutboundState.FAILED, self._now(), error
            jobs.bury(job, error)
            conversation = session.get_one(ConversationRow, row.conversation_id)
            erased = conversation.erased_at is not None
            called = session.get(EscalationRow, row.escalation_id) if row.escalation_id is not None else None
            if row.kind == OutboundKind.AGENT:
                self._handoff.mark(session, row, error)
            elif called is None:
                conversation.unreachable = error
                if not erased:  # else a human would be called about nobody
                    self._settling.call_human(session, conversation, Call(Reason.UNDELIVERED, row.message_id))
            elif erased and row.kind in erase.WITHOUT_TEXT:
                self._outbox.to_agents(session, called, OutboundKind.NOTICE, left, row.reply_to)
            elif not erased and row.kind == OutboundKind.RELAY:
                self._outbox.show_card(session, called)  # it shows what the customer said, too
            gone = self._remove(session, row)
        if gone:
            leave_no_trace(self._engine)

    def _remove(self, session: Session, row: OutboundRow) -> bool:
        """What was erased, where this was the last to be said about it."""
        conversation = session.get_one(ConversationRow, row.conversation_id)
        return conversation.erased_at is not None and erase.remove(session, conversation.customer_id)

    # -- erasing without being asked by the customer ---------------------------------------------

    def silent(self, before: datetime, limit: int) -> list[int]:
        """The first `limit` customers to whom and by whom nothing was said since `before`, and who wait for nothing."""
        with self._look() as session:
            return list(session.scalars(erase.silent(before).limit(limit)))

    def erase_silent(self, customer_id: int, before: datetime) -> list[int]:
        """Erase one of them, unless something was said meanwhile. Returns the conversations that were erased.

        What was erased is in the write-ahead log until leave_no_trace().
        """
        with self._begin() as session:
            people.lock(session, ConversationRow.customer_id == customer_id)
            if session.scalar(erase.silent(before).where(ConversationRow.customer_id == customer_id)) is None:
                return []
            erased = self._settling.erase_customer(session, customer_id)
            erase.remove(session, customer_id)
            return erased

    def erase_known(self, platform: Platform, external_id: str) -> Erased | None:
        """Erase a customer as the platform names them, on every account of ours there; None for an unknown one.

        Whoever works on one of their conversations holds nothing any more.
        """
        with self._begin() as session:
            them = select(CustomerRow.id).filter_by(platform=platform, external_id=external_id)
            people.lock(session, ConversationRow.customer_id.in_(them))
            known = erase.known(session, platform, external_id)
            receipts = [self._erase_and_count(session, customer_id) for customer_id in known]
        if not receipts:
            return None
        leave_no_trace(self._engine)
        return Erased(*map(sum, zip(*map(astuple, receipts), strict=True)))

    def _erase_and_count(self, session: Session, customer_id: int) -> Erased:
        before = erase.count(session, customer_id)
        self._settling.erase_customer(session, customer_id)
        erase.remove(session, customer_id)
        left = erase.count(session, customer_id)
        return replace(before, cards=left.cards, relayed=left.relayed)

    def leave_no_trace(self) -> None:
        """Take what was erased out of the write-ahead log as well."""
        leave_no_trace(self._engine)

    # -- jobs ------------------------------------------------------------------------------------

    def claim(self, kind: JobKind, lease: timedelta, in_hand: Collection[int] = ()) -> Claim | None:
        with self._begin() as session:
            return jobs.claim(session, kind, self._now(), lease, in_hand=in_hand)

    def renew(self, claims: Sequence[Claim], lease: timedelta) -> list[Claim]:
        """Returns the claims that were lost."""
        return [claim for claim in claims if not self._renew(claim, lease)]

    def _renew(self, claim: Claim, lease: timedelta) -> bool:
        """A transaction of its own: two that change many jobs, in any order, could wait for each other."""
        with self._begin() as session:
            return jobs.renew(session, claim, self._now(), lease)

    def retry(self, claim: Claim, delay: timedelta, error: str) -> None:
        """Put a failed job back. Raises LeaseLost."""
        with self._begin() as session:
            jobs.again(jobs.held(session, claim), self._now() + delay, error, counts=True)

    def release(self, claim: Claim) -> None:
        """Put a job back because we stop; not an attempt. Raises LeaseLost."""
        with self._begin() as session:
            jobs.again(jobs.held(session, claim), self._now(), "", counts=False)

    def recover(self) -> int:
        """Free what a process that died held. To be called at start, before any worker.

        Where other processes may be at work, what the dead one held is free once its leases have run out.
        """
        if self._engine.dialect.name != "sqlite":
            return 0
        with self._begin() as session:
            return jobs.recover(session)
