"""Ten times more is written than can be answered: others hardly wait longer, nobody hears twice that it takes long,
what is not answered is recorded and given to a human, and the queue does not grow."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.messages import Delivery, OutboundKind, OutboundMessage, Receipt
from bot.store.jobs import JobKind
from engine.types import LabelRole, LabelScores, OnText, Reply, TextRole, Turn
from tests.conftest import inbound
from tests.fakes.engine import ScriptedEngine
from tests.house import House, working
from tests.promises.simulated import Clock, Look, emptied, opened, simulate

__all__ = ["opened"]

USERS = 20
REPLY_S, MOOD_S = 3.7, 0.145
"""What a reply and a mood take on two cores (README.md)."""
WORKERS = 4  # of the queue, and so the most replies that are written at a time


class SteadyEngine(ScriptedEngine):
    """Every reply takes as long as any other."""

    def __init__(self, reply_s: float) -> None:
        super().__init__()
        self.reply_s = reply_s

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        await asyncio.sleep(MOOD_S)
        return await super().label(role, text)

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        await asyncio.sleep(self.reply_s)
        return await super().write(role, turns, on_text, conversation)


class Rush:
    """Users who write now and then for some `minutes`, and a front desk."""

    def __init__(self, database: Engine, look: Look, reply_s: float, minutes: float) -> None:
        self.look, self.ends_s = look, 60 * minutes
        self.house = House(database, clock=Clock())
        self.house.handlers[JobKind.ATTEND]._engine = SteadyEngine(reply_s)
        self.house.telegram.send = self.send
        self.written: dict[str, list[float]] = defaultdict(list)
        self.waited: dict[str, list[float]] = defaultdict(list)
        self.told: Counter[tuple[str, str]] = Counter()
        self.jobs = self.waiting = 0

    async def run(self, *, every_s: float, noisy_every_s: float = 0) -> None:
        """`noisy_every_s`: so often one more writes, 0 for nobody."""
        async with working(self.house):
            async with asyncio.TaskGroup() as tasks:
                for number in range(USERS):
                    tasks.create_task(self.write(f"u{number}", every_s))
                if noisy_every_s:
                    tasks.create_task(self.write("noisy", noisy_every_s))
            async with asyncio.timeout(3_600):
                while self.look("SELECT id FROM jobs WHERE state != 'dead'"):  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(1)

    async def write(self, user: str, every_s: float) -> None:
        chance, now = random.Random(user), asyncio.get_running_loop().time
        await asyncio.sleep(chance.uniform(0, every_s))
        for number in itertools.takewhile(lambda _: now() < self.ends_s, itertools.count()):
            self.written[user].append(now())
            message = inbound("hello", event=f"{user} {number}", customer=user)
            assert await self.house.intake.receive(message) is Receipt.ACCEPTED
            self.watch()
            await asyncio.sleep(every_s)

    def watch(self) -> None:
        """How long the queue is at most, of one user."""
        self.jobs = max(self.jobs, *_counts(self.look("SELECT count(*) FROM jobs WHERE kind = 'attend' GROUP BY lane")))
        waiting = "SELECT count(*) FROM messages WHERE turn = 0 GROUP BY conversation_id"
        self.waiting = max(self.waiting, *_counts(self.look(waiting)))

    async def send(self, message: OutboundMessage) -> Delivery:
        user = message.address.chat.removeprefix("chat-")
        if message.kind is OutboundKind.REPLY:
            now = asyncio.get_running_loop().time()
            self.waited[user] += [now - at for at in self.written[user]]
            self.written[user].clear()
        self.told[user, message.text] += 1
        return Delivery(message.id)

    def normal(self) -> list[float]:
        """The seconds that each message of a normal user waited for its answer."""
        return sorted(waited for user, each in self.waited.items() if user != "noisy" for waited in each)

    def most_told(self, key: str) -> int:
        return max((count for (_, text), count in self.told.items() if text == say(key, "en")), default=0)


def _counts(rows: list[tuple[int]]) -> list[int]:
    return [0, *(count for (count,) in rows)]


def rush(opened: tuple[Engine, Look], reply_s: float, minutes: float, **how: float) -> Rush:
    engine, look = opened
    with emptied(engine):

        async def live() -> Rush:
            rush = Rush(engine, look, reply_s, minutes)
            await rush.run(**how)
            return rush

        lived = simulate(live)
        outcomes = Counter(outcome for (outcome,) in look("SELECT outcome FROM messages WHERE author = 'customer'"))
        normal = lived.normal()
        print(
            f"{minutes} min, {how}: {dict(outcomes)}; normal users waited {statistics.mean(normal):.1f} s on average, "
            f"95 in 100 at most {normal[len(normal) * 95 // 100]:.1f} s; at most {lived.jobs} jobs and "
            f"{lived.waiting} messages of one user waited"
        )
        assert lived.jobs <= 2, "one that runs, and one for all that came since"
        assert None not in outcomes
        called = "SELECT conversation_id FROM escalations WHERE reason = 'overload'"
        told = f"SELECT conversation_id FROM messages WHERE author = 'notice' AND text = '{say('too_fast', 'en')}'"
        shed = "SELECT id FROM messages WHERE outcome = 'shed'"
        assert not look(f"{shed} AND conversation_id NOT IN ({called} UNION {told})"), "shed in silence"
    return lived


def is_fair(opened: tuple[Engine, Look], minutes: float, noisy_every_s: float) -> None:
    """Half of what can be answered is asked by the normal users."""
    every_s = 2 * USERS * REPLY_S / WORKERS
    alone = rush(opened, REPLY_S, minutes, every_s=every_s)
    beside = rush(opened, REPLY_S, minutes, every_s=every_s, noisy_every_s=noisy_every_s)
    assert len(beside.normal()) == len(alone.normal())
    assert statistics.mean(beside.normal()) <= 2 * statistics.mean(alone.normal())
    assert beside.most_told("too_fast") <= minutes + 1, "once in a minute"


TEN_TIMES_S = REPLY_S / WORKERS / 10


def test_who_writes_ten_times_what_can_be_answered_costs_others_less_than_twice_the_wait(
    opened: tuple[Engine, Look],
) -> None:
    is_fair(opened, minutes=0.2, noisy_every_s=TEN_TIMES_S)


@pytest.mark.slow
@pytest.mark.parametrize("noisy_every_s", [TEN_TIMES_S, 2.1], ids=["ten times", "as fast as is allowed"])
def test_one_noisy_user_costs_others_less_than_twice_the_wait_at_length(
    opened: tuple[Engine, Look], noisy_every_s: float
) -> None:
    is_fair(opened, minutes=3, noisy_every_s=noisy_every_s)


def is_polite(opened: tuple[Engine, Look], minutes: float) -> None:
    """Everybody writes ten times what can be answered."""
    crowd = rush(opened, reply_s=60, minutes=minutes, every_s=30)
    assert crowd.most_told("slow") == crowd.most_told("too_late") == 1


@pytest.mark.slow
def test_when_all_write_too_much_each_hears_once_that_it_takes_long_and_what_is_shed_goes_to_a_human(
    opened: tuple[Engine, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.store.store.HISTORY_LINES", 2)  # told once, also where more was said since than is read
    is_polite(opened, minutes=2.5)


@pytest.mark.slow
def test_when_all_write_too_much_for_long_each_hears_it_once(opened: tuple[Engine, Look]) -> None:
    is_polite(opened, minutes=30)
