"""Real processes on one PostgreSQL, killed and cut off at random: nothing is lost, doubled or overtaken."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from bot.store.database import open_engine
from tests.conftest import GROUP, new_postgres, until
from tests.e2e.program import Program
from tests.fakes.telegram import TOKEN, FakeTelegram

PEOPLE = range(101, 113)
UNDER_FIRE_S, SETTLES_S = 60.0, 90.0
BETWEEN_BLOWS_S = 1.0, 4.0
BETWEEN_MESSAGES_S = 0.2, 0.6


def configured(folder: Path, telegram: FakeTelegram, url: str, backend: str, serves: str) -> Program:
    folder.mkdir()
    sections = f"""
[telegram]
enabled = true
api_url = "{telegram.url}"
[database]
url = "{url}"
[queue]
backend = "{backend}"
"""
    secrets, options = {"FRONTDESK_TELEGRAM_TOKEN": TOKEN}, ("--serve", serves, "--port", "0")
    speech = "max_new_tokens = 32\nthreads = 1"
    return Program(folder, f"telegram:{GROUP}", sections, secrets, *options, engine=speech)


class Storm:
    """What is done to the processes, until cancelled."""

    def __init__(self, programs: list[Program], engine: Engine, draw: random.Random) -> None:
        self.up, self.engine, self.draw = programs[:], engine, draw
        self.blows: Counter[str] = Counter()

    async def rage(self) -> None:
        async with asyncio.TaskGroup() as restarts:
            while True:
                await asyncio.sleep(self.draw.uniform(*BETWEEN_BLOWS_S))
                if len(self.up) > 2 and self.draw.random() < 0.7:
                    self.blows["kills"] += 1
                    restarts.create_task(self._kill(self.up.pop(self.draw.randrange(len(self.up)))))
                else:
                    self._cut()

    async def _kill(self, program: Program) -> None:
        await program.kill()
        try:
            await program.start()
        except AssertionError:
            assert "terminating connection" in program.said().splitlines()[-1]
            self.blows["starts cut off"] += 1  # a service manager starts it again
            await self._kill(program)
        else:
            self.up.append(program)

    def _cut(self) -> None:
        """Each connection of the processes with even odds."""
        theirs = "datname = current_database() AND pid != pg_backend_pid()"
        with self.engine.connect() as connection:
            for (pid,) in connection.execute(text(f"SELECT pid FROM pg_stat_activity WHERE {theirs}")).all():
                if self.draw.random() < 0.5:
                    connection.execute(text(f"SELECT pg_terminate_backend({pid})"))
                    self.blows["cuts"] += 1


async def write(telegram: FakeTelegram, draw: random.Random) -> None:
    while True:
        telegram.customer_writes(draw.choice(PEOPLE), "hello there")
        await asyncio.sleep(draw.uniform(*BETWEEN_MESSAGES_S))


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


async def run_for(seconds: float, *doings: Any) -> None:
    """Raises what one of them raises."""
    tasks = [asyncio.create_task(doing) for doing in doings]
    done, going = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in going:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", ["embedded", "procrastinate"])
async def test_three_workers_and_two_pollers_under_fire_keep_every_promise(
    telegram: FakeTelegram, tmp_path: Path, backend: str
) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with new_postgres("fire") as url:
        engine = open_engine(url)
        async with AsyncExitStack() as stack:
            programs = [
                await stack.enter_async_context(configured(tmp_path / f"{role}{number}", telegram, url, backend, role))
                for role, count in (("worker", 3), ("adapters", 2))
                for number in range(count)
            ]
            storm = Storm(programs, engine, draw)
            await run_for(UNDER_FIRE_S, write(telegram, random.Random(seed + 1)), storm.rage())
            for program in programs:
                await program.kill()
                await program.start()
            calm = time.monotonic()
            await until(lambda: not telegram.pending, SETTLES_S)
            left = "SELECT count(*) FROM jobs WHERE state != 'dead'"
            await until(lambda: rows(engine, left) == [(0,)], SETTLES_S)
            if backend == "procrastinate":
                await until(lambda: rows(engine, "SELECT count(*) FROM procrastinate_jobs") == [(0,)], SETTLES_S)
            print(f"{backend}: {dict(storm.blows)}, all done {time.monotonic() - calm:.1f} s after the last")
            assert [await program.terminate() for program in programs] == [0] * len(programs)
        judge(engine, telegram)
        engine.dispose()


def judge(engine: Engine, telegram: FakeTelegram) -> None:
    heard = rows(
        engine, "SELECT event_id, conversation_id, turn, outcome FROM messages WHERE event_id > '' ORDER BY id"
    )
    replies = rows(engine, "SELECT conversation_id, turn FROM messages WHERE author = 'bot'")
    sent = rows(engine, "SELECT chat, platform_id, unknowns FROM outbound WHERE state = 'sent' ORDER BY message_id")
    outcomes = Counter(outcome for *_, outcome in heard)
    states = Counter(state for (state,) in rows(engine, "SELECT state FROM outbound"))
    again = Counter(chat for chat, _, unknowns in sent if unknowns)
    print(f"{len(telegram.written)} written, {dict(outcomes)}; {len(replies)} replies", end=", ")
    print(f"{again.total()} sends begun again, {dict(states)}")
    assert None not in outcomes
    assert max(Counter(replies).values()) == 1, "one reply a turn"
    for chat in PEOPLE:
        wrote = [f"{chat}:{each['message_id']}" for each in telegram.written if each["chat"]["id"] == chat]
        mine = [(event, turn) for event, _, turn, _ in heard if event.startswith(f"{chat}:")]
        assert [event for event, _ in mine] == wrote, "each is kept once, in the order in which it was written"
        turns = [turn for _, turn in mine]
        assert turns == sorted(turns), "attended to in this order"
        shown = [int(number) for where, number, _ in sent if where == str(chat)]
        assert all(first < second for first, second in pairwise(shown)), "seen in the order in which it was said"
        assert len(telegram.sent(chat)) - len(shown) <= again[str(chat)], "seen twice, without need"
