"""The jobs table under every order of accepting, claiming, crashing, stalling and retrying, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from bot.conversation import Outcome
from bot.errors import LeaseLost
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store
from bot.store.values import Settlement, Verdict
from tests.conftest import TurnableClock, empty, inbound

pytestmark = pytest.mark.contract

LEASE = timedelta(seconds=30)


class AttendJobs(RuleBasedStateMachine):
    """Never two owners of one conversation, order of acceptance kept, nothing lost, nothing answered twice."""

    claims = Bundle("claims")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        empty(engine)
        self.clock = TurnableClock()
        self.store = Store(engine, clock=self.clock)
        self.accepted: dict[str, list[int]] = {}
        self.answered: dict[int, list[int]] = {}
        self.holders: dict[int, Claim] = {}
        self.until: dict[Claim, datetime] = {}
        self.events = 0

    @rule(customer=st.sampled_from("abc"), again=st.booleans())
    def accept(self, customer: str, again: bool) -> None:
        self.events += 1
        message = inbound(event=str(self.events), customer=customer)
        accepted = self.store.accept(message)
        if again:
            self.store.accept(message)
        assert accepted.message_id is not None
        self.accepted.setdefault(customer, []).append(accepted.message_id)

    @rule(target=claims)
    def claim(self) -> object:
        claim = self.store.claim(JobKind.ATTEND, LEASE)
        if claim is None:
            return multiple()
        holder = self.holders.get(claim.conversation_id)
        assert holder is None or self.until[holder] <= self.clock.now, f"{claim} while {holder} holds the conversation"
        self.holders[claim.conversation_id] = claim
        self.until[claim] = self.clock.now + LEASE
        return claim

    def holds(self, claim: Claim) -> bool:
        return self.holders.get(claim.conversation_id) == claim

    @rule(claim=consumes(claims))
    def finish(self, claim: Claim) -> None:
        try:
            lines = self.store.waiting(claim).lines
            verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in lines)
            self.store.finish(claim, Settlement(verdicts))
        except LeaseLost:
            assert not self.holds(claim)
            return
        assert self.holds(claim)
        del self.holders[claim.conversation_id]
        self.answered.setdefault(claim.conversation_id, []).extend(line.id for line in lines)

    @rule(claim=consumes(claims), delay=st.integers(0, 60), shutdown=st.booleans())
    def give_back(self, claim: Claim, delay: int, shutdown: bool) -> None:
        try:
            if shutdown:
                self.store.release(claim)
            else:
                self.store.retry(claim, timedelta(seconds=delay), "failed")
        except LeaseLost:
            assert not self.holds(claim)
            return
        del self.holders[claim.conversation_id]

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def crash(self) -> None:
        if self.store.recover():  # on PostgreSQL a lease ends with its time, or with the next claim
            self.holders.clear()

    @invariant()
    def answers_keep_the_order_of_acceptance(self) -> None:
        for answered in self.answered.values():
            assert answered == sorted(set(answered))

    def teardown(self) -> None:
        self.clock.advance(10_000)
        self.store.recover()
        while (claim := self.store.claim(JobKind.ATTEND, LEASE)) is not None:
            self.holders[claim.conversation_id] = claim
            self.finish(claim)
        answered = sorted(number for numbers in self.answered.values() for number in numbers)
        assert answered == sorted(number for numbers in self.accepted.values() for number in numbers)


def test_no_order_of_events_loses_a_message_or_answers_it_twice(engine: Engine) -> None:
    play = settings(
        max_examples=30 if engine.dialect.name == "sqlite" else 10,
        stateful_step_count=40,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )
    run_state_machine_as_test(partial(AttendJobs, engine), settings=play)
