"""What attending to a conversation comes to, in the transaction that ends its job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from bot.conversation import Author, Call, Outcome, Owner, OwnerEvent, next_owner
from bot.messages import OutboundKind
from bot.store import erase, rows
from bot.store.handoff import Handoff
from bot.store.outbox import Outbox
from bot.store.schema import ConversationRow, CustomerRow, EscalationRow, JobRow, MessageRow
from bot.store.values import Say, Settlement, Verdict


class Settling:
    """Functions on a session, so that they join a transaction."""

    def __init__(self, outbox: Outbox, handoff: Handoff, clock: Callable[[], datetime]) -> None:
        self._outbox = outbox
        self._handoff = handoff
        self._now = clock

    def settle(self, session: Session, conversation_id: int, settlement: Settlement) -> None:
        """Keep what became of the messages, and say what is to be said, unless a human owns the conversation."""
        conversation = session.get_one(ConversationRow, conversation_id)
        silent = conversation.owner == Owner.HUMAN
        turn = rows.next_turn(session, conversation_id)
        for verdict in settlement.verdicts:
            self._judge(session.get_one(MessageRow, verdict.message_id), verdict, turn, silent)
        begun, conversation.begun = conversation.begun, ""
        if silent and settlement.seen:
            session.add(rows.new_line(conversation, Author.BOT, f"{settlement.seen} …", self._now(), turn))
        if silent:
            self._handoff.relay(session, conversation, settlement.relays)
        if silent and not settlement.own:
            return
        into = _finishing(settlement.says)
        for say in settlement.says:
            self._say(session, conversation, say, turn, begun if say is into else "")
        if settlement.language:
            session.get_one(CustomerRow, conversation.customer_id).chosen = settlement.language
        if settlement.call is not None:
            self.call_human(session, conversation, settlement.call)

    def erase(self, session: Session, conversation_id: int, settlement: Settlement, job: JobRow) -> list[int]:
        """Erase the customer who asked for it, all but what they are told of it; the conversations that were theirs."""
        conversation = session.get_one(ConversationRow, conversation_id)
        asked = max(verdict.message_id for verdict in settlement.verdicts)
        erased = self.erase_customer(session, conversation.customer_id, asked, job)
        for say in settlement.says:
            self._say(session, conversation, say, turn=1)
        erase.remove(session, conversation.customer_id)
        return erased

    def erase_customer(
        self, session: Session, customer_id: int, asked: int | None = None, besides: JobRow | None = None
    ) -> list[int]:
        """What erase() does, and the agents' side; without a message that `asked` for it, all they wrote."""
        erased, seen = erase.erase(session, customer_id, self._now(), asked, besides)
        for escalation, relayed in seen:
            self._outbox.show_card(session, escalation)
            for shown in relayed:
                self._outbox.to_agents(session, escalation, OutboundKind.WITHDRAW, reply_to=shown)
        return erased

    def _judge(self, row: MessageRow, verdict: Verdict, turn: int, silent: bool) -> None:
        row.turn, row.settled_at = turn, self._now()
        row.outcome = Outcome.SILENT if silent else verdict.outcome
        if verdict.sentiment is not None:
            row.label, row.negative = verdict.sentiment.label, verdict.sentiment.negative
            row.threshold = verdict.sentiment.threshold

    def _say(self, session: Session, conversation: ConversationRow, say: Say, turn: int, begun: str = "") -> None:
        """`begun` is the message that its first part is written into, "" for a new one."""
        author = Author.BOT if say.kind is OutboundKind.REPLY else Author.NOTICE
        line = rows.new_line(conversation, author, "".join(say.parts), self._now(), turn)
        session.add(line)
        session.flush()
        to, lane = rows.address(conversation), str(conversation.id)
        for part in say.parts:
            self._outbox.put(
                session,
                conversation.id,
                say.kind,
                to,
                lane,
                text=part,
                reply_to=say.reply_to,
                begun=begun,
                message_id=line.id,
            )
            begun = ""

    def call_human(self, session: Session, conversation: ConversationRow, call: Call) -> None:
        """Open an escalation, or bring up the one that is open, and show its card."""
        now = self._now()
        row = session.scalar(rows.open_escalation(conversation.id))
        if row is None:
            row = EscalationRow(conversation_id=conversation.id, times=0, opened_at=now, card_id="")
            session.add(row)
        row.reason, row.updated_at, row.times = call.reason, now, row.times + 1
        row.message_id = call.message_id
        conversation.owner = next_owner(Owner(conversation.owner), OwnerEvent.CALL)
        session.flush()
        self._outbox.show_card(session, row)


def _finishing(says: Sequence[Say]) -> Say | None:
    """What is written into a message that a preview began: the reply, or what is said in its place."""
    replies = [say for say in says if say.kind is OutboundKind.REPLY]
    return next(iter([*replies, *says]), None)
