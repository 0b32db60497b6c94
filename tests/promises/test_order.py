"""Within a conversation messages are settled, and answers arrive, in the order in which the messages were accepted."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from sqlalchemy import Engine

from bot.errors import EngineError, OutcomeUnknown, RetryLater
from bot.messages import Delivery, OutboundMessage, Receipt
from bot.store import jobs
from bot.store.jobs import JobKind
from engine.types import OnText, Reply, TextRole, Turn
from tests.conftest import inbound
from tests.fakes.engine import ScriptedEngine
from tests.house import House, working
from tests.promises.simulated import Clock, Look, emptied, opened, simulate

__all__ = ["opened"]

CUSTOMERS = 6
JUMP_S = 100.0
"""How far the clock of the machine jumps, forth and back: more than three leases."""


class UnsteadyEngine(ScriptedEngine):
    """Takes some time, fails sometimes, and answers with the number of the newest message."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(answer=lambda turns: f"to {_numbers(turns[-1].text)[-1]}")
        self.chance = chance

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        await asyncio.sleep(self.chance.choice((0.01, 0.1, 2.0)))
        if self.chance.random() < 0.05:
            raise EngineError("NaN")
        return await super().write(role, turns, on_text, conversation)


class Day:
    """Customers write numbered messages to a front desk of four workers whose clock jumps."""

    def __init__(self, database: Engine, look: Look, seed: int) -> None:
        self.chance, self.look, self.clock = random.Random(seed), look, Clock()
        self.house = House(database, clock=self.clock)
        self.house.handlers[JobKind.ATTEND]._engine = UnsteadyEngine(self.chance)
        self.house.telegram.send = self.send
        self.arrived: dict[str, list[int]] = defaultdict(list)
        self.exercised: Counter[str] = Counter()

    async def run(self, messages: int) -> None:
        async with working(self.house):
            jumping = asyncio.create_task(self.jump())
            async with asyncio.TaskGroup() as tasks:
                for number in range(CUSTOMERS):
                    tasks.create_task(self.write(f"c{number}", messages))
            while self.look("SELECT id FROM jobs WHERE state != 'dead'"):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.5)
            jumping.cancel()

    async def write(self, customer: str, messages: int) -> None:
        for number in range(messages):
            await asyncio.sleep(self.chance.choice((0.0, 0.01, 1.0, 5.0)))
            message = inbound(f"number {number}", event=f"{customer} {number}", customer=customer)
            assert await self.house.intake.receive(message) is Receipt.ACCEPTED
            for _ in range(self.chance.choice((0, 0, 1, 2))):
                assert await self.house.intake.receive(message) is Receipt.DUPLICATE
                self.exercised["duplicates"] += 1

    async def jump(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(1, 20))
            self.clock.ahead = JUMP_S - self.clock.ahead
            self.exercised["jumps"] += 1
            self.exercised["expired leases"] += len(
                self.look(f"SELECT id FROM jobs WHERE lease_until <= {self.clock().timestamp() * 1e6:.0f}")
            )

    async def send(self, message: OutboundMessage) -> Delivery:
        await asyncio.sleep(self.chance.choice((0.01, 0.1, 1.0)))
        fault = self.chance.random()
        if fault < 0.05:
            raise RetryLater("busy", 0.5)
        if numbers := _numbers(message.text):  # of the notices none has a number
            self.arrived[message.address.chat].append(numbers[-1])
        if fault < 0.1:
            raise OutcomeUnknown("no answer")
        return Delivery(message.edits or message.id)

    def inversions(self) -> int:
        """In the history, and on the customers' screens."""
        settled: dict[int, list[int]] = defaultdict(list)
        query = "SELECT conversation_id, text FROM messages WHERE author = 'customer' ORDER BY turn, id"
        for conversation, text in self.look(query):
            settled[conversation] += _numbers(text)
        return sum(map(_inversions, (*settled.values(), *self.arrived.values())))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", text)]


def _inversions(numbers: Sequence[int]) -> int:
    return sum(later < earlier for earlier, later in itertools.pairwise(numbers))


def live(opened: tuple[Engine, Look], seeds: range, messages: int) -> int:
    engine, look = opened
    exercised, inversions = Counter[str](), 0
    for seed in seeds:
        with emptied(engine):

            async def day() -> Day:
                day = Day(engine, look, seed)  # noqa: B023 - it ends before the next
                await day.run(messages)
                return day

            lived = simulate(day)
            exercised += lived.exercised
            exercised["answers"] += sum(map(len, lived.arrived.values()))
            inversions += lived.inversions()
            accepted = look("SELECT count(*) FROM messages WHERE author = 'customer' AND outcome IS NOT NULL")
            assert accepted == [(CUSTOMERS * messages,)]
    print(
        f"seeds {seeds}: {len(seeds) * CUSTOMERS * messages} messages, {inversions} inversions; "
        f"{', '.join(f'{n} {what}' for what, n in sorted(exercised.items()))}"
    )
    assert {"duplicates", "jumps", "expired leases"} <= exercised.keys()
    return inversions


def test_nothing_overtakes_anything_in_a_conversation(opened: tuple[Engine, Look]) -> None:
    assert live(opened, range(1), messages=10) == 0


def test_a_clock_that_jumps_takes_no_message_from_who_is_sending_it(opened: tuple[Engine, Look]) -> None:
    """It would be sent twice, and the next one perhaps in between."""
    engine, _ = opened
    sent: list[str] = []

    async def live() -> None:
        clock = Clock()
        house = House(engine, clock=clock)

        async def send(message: OutboundMessage) -> Delivery:
            sent.append(message.text)
            clock.ahead += JUMP_S
            await asyncio.sleep(3)
            return Delivery("p1")

        house.telegram.send = send
        async with working(house):
            await house.hears("hello")

    with emptied(engine):
        simulate(live)
    assert sent == ["answer to: hello"]


@pytest.mark.slow
def test_nothing_overtakes_anything_in_a_conversation_at_length(opened: tuple[Engine, Look]) -> None:
    assert live(opened, range(20), messages=50) == 0


def test_where_every_job_has_a_lane_of_its_own_answers_overtake_each_other(
    opened: tuple[Engine, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage."""
    new, numbers = jobs._new, itertools.count()
    monkeypatch.setattr(jobs, "_new", lambda kind, lane, *rest: new(kind, f"{lane} {next(numbers)}", *rest))
    assert live(opened, range(1), messages=10) > 0
