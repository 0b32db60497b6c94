"""Whatever happens in whatever order: every accepted message has one row, and ends in one outcome, which stays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from bot.config import Settings
from bot.conversation import Outcome
from bot.errors import EngineError, OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import AgentAction, Customer, Delivery, Edited, InboundKind, OutboundMessage, Pressed, Receipt
from bot.store.jobs import Claim, JobKind
from bot.store.schema import JobRow
from engine.types import LabelRole, LabelScores, OnText, Reply, TextRole, Turn
from tests.conftest import AGENTS, inbound
from tests.fakes.engine import ScriptedEngine
from tests.house import House, working
from tests.promises.simulated import Clock, Look, emptied, opened, simulate

__all__ = ["opened"]

STEPS = 50
LEASE = timedelta(seconds=30)
SETTLED_S = 0.5
"""Simulated. After that nobody moves who does not wait for a test's word."""
CUSTOMERS, BLOCKED, AGENT_IDS = ("c1", "c2", "c3"), "c0", ("anna", "bo")
TEXTS = (*(("hello", InboundKind.TEXT),) * 4, ("awful", InboundKind.TEXT), ("poison", InboundKind.TEXT))
TEXTS += (("human", InboundKind.TEXT), ("help", InboundKind.COMMAND), ("photo", InboundKind.MEDIA))
PRESSES = (AgentAction.CLAIM, AgentAction.CLAIM, AgentAction.RESOLVE, AgentAction.RETURN)
OUTCOMES = set(Outcome) - {Outcome.NOTED}  # which is an edit's


@dataclass(slots=True, eq=False)
class Worker:
    """Who has a job in hand. At every call of engine or platform it waits until the test lets it go on."""

    task: asyncio.Task[None] | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None

    async def pause(self) -> None:
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault


WORKER: ContextVar[Worker] = ContextVar("worker")
WELL = Worker()


class HeldEngine(ScriptedEngine):
    """It fails on poison, however often it is asked."""

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        await WORKER.get().pause()
        if "poison" in text:
            raise RuntimeError("a bug")
        return await super().label(role, text)

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        await WORKER.get().pause()
        return await super().write(role, turns, on_text, conversation)


class Walk:
    """Three customers, two agents, a front desk, and so many steps at random."""

    def __init__(self, database: Engine, look: Look, seed: int) -> None:
        self.random, self.look = random.Random(seed), look
        limits = {"messages_per_minute": 6, "block": [f"telegram:{BLOCKED}"]}
        self.clock = Clock()
        self.house = House(database, Settings.model_validate({"limits": limits}), self.clock)
        self.house.handlers[JobKind.ATTEND]._engine = HeldEngine()
        self.house.slack.members = set(AGENT_IDS)
        for adapter in (self.house.telegram, self.house.slack):
            adapter.send = self.send
        self.workers: list[Worker] = []
        self.events, self.dropped, self.sent = [], set(), 0
        self.settled: dict[str, tuple[int, str]] = {}
        self.exercised: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        steps: list[tuple[Callable[[], object], int]] = [
            (self.customer_writes, 8),
            (self.platform_delivers_again, 1),
            (self.customer_edits, 1),
            (self.worker_takes_a_job, 14),
            (self.worker_goes_on, 10),
            (self.worker_fails, 4),
            (self.process_dies, 1),
            (self.time_passes, 1),
            (self.agent_presses, 3),
        ]
        calls, weights = zip(*steps, strict=True)
        for step in self.random.choices(calls, weights, k=STEPS):
            await step()
            await asyncio.sleep(SETTLED_S)
            self.check()
        await self.all_is_well()
        self.check()
        assert not self.look("SELECT id FROM messages WHERE turn = 0"), "a message still waits"
        self.exercised.update(outcome for _, outcome in self.settled.values())
        self.exercised["dropped"] += len(self.dropped)
        return self.exercised

    # -- what may happen ---------------------------------------------------------------------------

    async def customer_writes(self) -> None:
        who = self.random.choice((*CUSTOMERS, *CUSTOMERS, BLOCKED))
        text, kind = self.random.choice(TEXTS)
        message = inbound(text, event=f"e{len(self.events)}", customer=who, kind=kind)
        self.events.append(message)
        receipt = await self.house.intake.receive(message)
        assert receipt is (Receipt.DROPPED if who == BLOCKED else Receipt.ACCEPTED)
        if receipt is Receipt.DROPPED:
            self.dropped.add(message.event_id)

    async def platform_delivers_again(self) -> None:
        if self.events:
            message = self.random.choice(self.events)
            assert await self.house.intake.receive(message) is not Receipt.ACCEPTED
            self.exercised["redeliveries"] += 1

    async def customer_edits(self) -> None:
        if self.events:
            of = self.random.choice(self.events)
            edit = Edited(of.address.platform, "1", f"{of.event_id}:{self.clock()}", of.event_id, "awful, I say")
            await self.house.intake.receive(edit)

    async def worker_takes_a_job(self) -> None:
        kind = self.random.choice(list(JobKind))
        claim = self.house.store.claim(kind, LEASE)
        if claim is not None:
            worker = Worker()
            before = WORKER.set(worker)
            worker.task = asyncio.create_task(self.house.queue._work(self.house.handlers[kind], claim))
            WORKER.reset(before)
            self.workers.append(worker)

    async def worker_goes_on(self, fault: Exception | None = None) -> None:
        """Also one whose lease ran out, or whose process is thought to be dead."""
        if waiting := [worker for worker in self.workers if not worker.task.done()]:
            worker = self.random.choice(waiting)
            worker.fault = fault
            worker.gate.set()
            self.exercised["faults"] += fault is not None

    async def worker_fails(self) -> None:
        faults = (RetryLater("busy", 0), OutcomeUnknown("no answer"), Undeliverable("blocked"), EngineError("NaN"))
        await self.worker_goes_on(self.random.choice(faults))

    async def process_dies(self) -> None:
        self.exercised["crashes"] += self.house.store.recover() > 0

    async def time_passes(self) -> None:
        seconds = self.random.choice((1, 10, 31, 70, 130))
        await asyncio.sleep(seconds)
        self.exercised["expired leases"] += seconds > LEASE.total_seconds() and bool(
            self.look("SELECT id FROM jobs WHERE state = 'running'")
        )

    async def agent_presses(self) -> None:
        if calls := self.look("SELECT id FROM escalations WHERE resolved_at IS NULL"):
            ((number,),) = self.random.sample(calls, 1)
            who, action = self.random.choice(AGENT_IDS), self.random.choice(PRESSES)
            await self.house.intake.press(
                Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, Customer(who, who), number, action)
            )
            self.exercised[action] += 1

    async def send(self, message: OutboundMessage) -> Delivery:
        await WORKER.get().pause()
        self.sent += 1
        return Delivery(message.edits or f"p{self.sent}")

    async def all_is_well(self) -> None:
        """The process starts anew, and nothing fails any more; those who were thought to be dead go on as well."""
        for worker in self.workers:
            worker.gate.set()
        WELL.gate.set()
        async with working(self.house):
            while self.look("SELECT id FROM jobs WHERE state != 'dead'"):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(SETTLED_S)
        await asyncio.gather(*(worker.task for worker in self.workers))

    # -- what always holds -------------------------------------------------------------------------

    def check(self) -> None:
        lines = self.look("SELECT event_id, turn, outcome FROM messages WHERE author = 'customer' AND kind != 'edit'")
        accepted = [message.event_id for message in self.events if message.event_id not in self.dropped]
        assert [event for event, _, _ in lines] == accepted, "one row for each, in order of acceptance"
        ended = {event: (turn, outcome) for event, turn, outcome in lines if turn or outcome}
        assert all(turn and outcome in OUTCOMES for turn, outcome in ended.values()), "no turn without an outcome"
        assert self.settled.items() <= ended.items(), "what was settled stays as it was"
        self.settled = ended
        assert not self.look(
            "SELECT turn FROM messages WHERE author = 'bot' GROUP BY conversation_id, turn HAVING count(*) > 1"
        ), "answered twice"
        assert not self.look(
            "SELECT id FROM messages m WHERE author = 'bot' AND NOT EXISTS (SELECT 1 FROM messages q WHERE"
            " q.author = 'customer' AND (q.conversation_id, q.turn) = (m.conversation_id, m.turn)"
            " AND q.outcome IN ('answered', 'escalated', 'silent'))"
        ), "a reply to what has another outcome"
        assert not self.look(
            "SELECT id FROM messages WHERE outcome IN ('escalated', 'dead')"
            " AND conversation_id NOT IN (SELECT conversation_id FROM escalations)"
        ), "no human was called"
        assert not self.look(
            "SELECT id FROM messages WHERE outcome = 'shed'"
            " AND conversation_id NOT IN (SELECT conversation_id FROM messages WHERE author = 'notice')"
        ), "shed in silence"


def walk(opened: tuple[Engine, Look], seeds: range) -> None:
    engine, look = opened
    exercised: Counter[str] = Counter()
    for seed in seeds:
        WORKER.set(WELL)
        with emptied(engine):
            try:
                exercised += simulate(lambda: Walk(engine, look, seed).run())  # noqa: B023 - it ends before the next
            except BaseException:
                print(f"seed {seed}")
                raise
    print(f"{len(seeds)} walks of {STEPS} steps: {', '.join(f'{n} {what}' for what, n in sorted(exercised.items()))}")
    assert OUTCOMES | {"dropped", "crashes", "expired leases", "faults", "redeliveries"} <= exercised.keys()


def test_every_message_ends_in_one_outcome_whatever_happens(opened: tuple[Engine, Look]) -> None:
    walk(opened, range(10))


@pytest.mark.slow
def test_every_message_ends_in_one_outcome_whatever_happens_at_length(opened: tuple[Engine, Look]) -> None:
    walk(opened, range(2_000))


def test_without_the_fencing_token_a_message_is_answered_twice(
    opened: tuple[Engine, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: who lost its lease may store its result all the same."""

    def held(session: Session, claim: Claim) -> JobRow:
        return session.get(JobRow, claim.job_id) or session.scalars(select(JobRow).limit(1)).one()

    monkeypatch.setattr("bot.store.jobs.held", held)
    with pytest.raises(AssertionError, match=r"stays as it was|answered twice|another outcome"):
        walk(opened, range(10))
