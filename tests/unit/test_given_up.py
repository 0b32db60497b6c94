"""What is given up on its way to the agents reaches them another way."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import pytest

from bot.conversation import Call, Outcome, Overdue, Reason
from bot.messages import AgentAction, Customer, Delivery, OutboundKind, Pressed
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.values import Settlement, Verdict
from tests.conftest import AGENTS, inbound

pytestmark = pytest.mark.contract

LEASE = timedelta(seconds=30)


def called(store: Store) -> None:
    """An angry customer, and a card on its way."""
    store.accept(inbound("awful", event="1"))
    claim = store.claim(JobKind.ATTEND, LEASE)
    assert claim is not None
    line = store.waiting(claim).lines[-1]
    store.finish(claim, Settlement((Verdict(line.id, Outcome.ESCALATED),), (), Call(Reason.NEGATIVE, line.id)))


def deliver(store: Store, give_up: Collection[OutboundKind] = ()) -> list[OutboundKind]:
    """Send what is to be sent, or give it up; the kinds in order."""
    kinds = []
    while (claim := store.claim(JobKind.DELIVER, LEASE)) is not None:
        sending = store.begin_send(claim)
        assert sending is not None
        kinds.append(sending.message.kind)
        if sending.message.kind in give_up:
            store.bury_delivery(claim, "no answer")
        else:
            store.sent(claim, Delivery(f"p{claim.job_id}"))
    return kinds


def test_the_reminder_of_a_call_whose_card_did_not_arrive_brings_the_card(store: Store) -> None:
    called(store)
    assert deliver(store, {OutboundKind.CARD}) == [OutboundKind.CARD]
    store.bring_up(1, Overdue.REMIND, "somebody waits")
    assert deliver(store) == [OutboundKind.CARD, OutboundKind.NOTICE]


def test_what_a_customer_says_to_a_colleague_and_does_not_arrive_is_shown_on_the_card(store: Store) -> None:
    called(store)
    deliver(store)
    store.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, Customer("a"), 1, AgentAction.CLAIM), "here")
    deliver(store)
    store.accept(inbound("and now?", event="2"))
    claim = store.claim(JobKind.ATTEND, LEASE)
    assert claim is not None
    line = store.waiting(claim).lines[-1]
    store.finish(claim, Settlement((Verdict(line.id, Outcome.SILENT),), relays=((line.id, "and now?"),)))
    assert deliver(store, {OutboundKind.RELAY}) == [OutboundKind.RELAY, OutboundKind.CARD]
