"""The front desk without a model and without platforms: everything between a scripted engine and recorded adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import Engine

from bot.app import emoji, handoff_manners, manners
from bot.attend import Attendant
from bot.circuit import Circuit
from bot.config import Settings
from bot.conversation import Outcome
from bot.deliver import Deliverer
from bot.escalate import CardWriter
from bot.handoff import Handoff, Members
from bot.intake import Intake
from bot.messages import Address, Platform, Receipt
from bot.metrics import Metrics
from bot.queue.embedded import EmbeddedQueue
from bot.queue.work import backoff
from bot.store.database import Writer
from bot.store.jobs import JobKind
from bot.store.reader import Reader
from bot.store.store import Clock, Store, utc_now
from tests.conftest import AGENTS, inbound
from tests.fakes.adapter import RecordingAdapter
from tests.fakes.engine import ScriptedEngine

CAP = timedelta(seconds=0.01)


class House:
    """The wired parts between a scripted model and two recorded platforms."""

    def __init__(
        self, database: Engine, settings: Settings | None = None, clock: Clock = utc_now, agents: Address = AGENTS
    ) -> None:
        settings = settings or Settings()
        self.engine, self.seconds = ScriptedEngine(), 0.0
        self.telegram, self.slack = RecordingAdapter(), RecordingAdapter(Platform.SLACK)
        self.writer, self.metrics = Writer(), Metrics()
        self.circuit = Circuit(lambda: clock().timestamp())
        self.store, self.reader = Store(database, agents, clock), Reader(database)
        adapters = {Platform.TELEGRAM: self.telegram, Platform.SLACK: self.slack}
        self.queue = EmbeddedQueue(
            self.store,
            self.writer,
            concurrency=4,
            lease=timedelta(seconds=30),
            max_attempts=3,
            max_backoff=CAP,
        )
        wake = self.queue.wake
        limits, cards = settings.limits, CardWriter(lambda label: emoji(settings, label))
        self.members = Members(adapters, agents, settings.escalation.agents, lambda: self.seconds)
        self.handoff = handoff = Handoff(
            self.store, self.writer, self.members, agents, cards, wake, handoff_manners(settings), clock
        )
        self.intake = Intake(
            self.store, self.writer, self.metrics, 4000, agents, wake, limits.allow, limits.block, handoff
        )
        self.handlers = {
            JobKind.ATTEND: Attendant(
                self.store,
                self.writer,
                self.engine,
                adapters,
                manners(settings),
                self.metrics,
                wake,
                self.circuit,
                clock,
            ),
            JobKind.DELIVER: Deliverer(
                self.store, self.writer, adapters, cards, self.metrics, lambda attempt: backoff(attempt, CAP)
            ),
        }

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while self.reader.load().jobs:  # noqa: ASYNC110 - the database tells, there is no event
                await asyncio.sleep(0.005)

    async def hears(self, text: str, **how: object) -> Receipt:
        receipt = await self.intake.receive(inbound(text, **how))  # type: ignore[arg-type]  # inbound's own keywords
        await self.idle()
        return receipt

    def outcomes(self) -> list[Outcome | None]:
        lines = self.reader.history(inbound().address, "c1")
        return [line.outcome for line in lines if line.outcome or line.author == "customer"]


@asynccontextmanager
async def working(house: House) -> AsyncIterator[None]:
    stop = asyncio.Event()
    run = asyncio.create_task(house.queue.run(house.handlers, stop, 5))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(run, 10)
