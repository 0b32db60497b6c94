"""A full disk, a locked database, an engine that is down: nothing is acknowledged that is not stored, and once it is
over every message is answered or given to a human, without help."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from bot.app import App, build
from bot.config import Secrets, parse
from bot.errors import DatabaseUnavailable, EngineError
from bot.messages import Platform
from bot.store.database import driver, file_of, open_engine
from bot.store.jobs import JobKind
from bot.store.store import Store
from engine.types import LabelRole, LabelScores, OnText, Reply, TextRole, Turn
from tests.conftest import AGENTS, inbound, only_sqlite, until
from tests.fakes.adapter import RecordingAdapter
from tests.fakes.engine import ScriptedEngine

pytestmark = only_sqlite

PROMISED_S = 30
REDELIVERY_S = 0.1
Open = Callable[..., Any]
Trouble = Callable[[], Awaitable[None]]


async def is_well() -> None:
    pass


class Patient(ScriptedEngine):
    """Asked for anything, it first does what `trouble` does."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        await self.trouble()
        return await super().label(role, text)

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        await self.trouble()
        return await super().write(role, turns, on_text, conversation)


class Shop:
    """The whole front desk, and customers whose platform delivers until it is told that we have the message."""

    def __init__(self, app: App, engine: Patient, telegram: RecordingAdapter) -> None:
        self.app, self.engine, self.telegram = app, engine, telegram
        self.file = file_of(app.settings.database.url)
        self._looking = driver().connect(f"{self.file.as_uri()}?mode=ro", uri=True)
        self.sent = self.refused = 0

    async def hears(self, messages: int, text: str = "hello") -> None:
        """So many at once, each of another customer, until all are acknowledged."""
        first, self.sent = self.sent, self.sent + messages
        await asyncio.gather(*(self._deliver(f"c{number}", text) for number in range(first, self.sent)))

    async def _deliver(self, customer: str, text: str) -> None:
        assert self.telegram.inbox is not None
        message = inbound(text, event=customer, customer=customer)
        while True:
            try:
                await self.telegram.inbox.receive(message)
            except DatabaseUnavailable:
                self.refused += 1
                await asyncio.sleep(REDELIVERY_S)
            else:
                assert self.rows(f"SELECT id FROM messages WHERE event_id = '{customer}'"), "acknowledged, not stored"
                return

    async def is_asked(self, messages: int) -> None:
        """So many messages are with the engine, which answers none until `hold` is set."""
        self.engine.hold = asyncio.Event()
        await self.hears(messages)
        await until(lambda: [name for name, _ in self.engine.asked].count("reply") == messages)

    async def recovers(self, *hearing: asyncio.Task[None]) -> None:
        """From now on, all that was heard ends in time, and every customer is told something."""
        now = asyncio.get_running_loop().time
        healed = now()
        async with asyncio.timeout(PROMISED_S):
            await asyncio.gather(*hearing)
            await until(lambda: not self.rows("SELECT id FROM jobs WHERE state != 'dead'"), PROMISED_S)
        outcomes = self.outcomes()
        print(
            f"{self.sent} messages, {self.refused} not acknowledged at first, "
            f"all ended {now() - healed:.1f} s after it was over: {Counter(outcomes)}"
        )
        assert len(outcomes) == self.sent
        assert set(outcomes) <= {"answered", "escalated", "dead"}
        told = {message.address.chat for message in self.telegram.sent}
        assert told == {f"chat-c{number}" for number in range(self.sent)}
        called = len(self.rows("SELECT id FROM escalations"))
        assert called == len(outcomes) - outcomes.count("answered")

    def outcomes(self) -> list[object]:
        return [outcome for (outcome,) in self.rows("SELECT outcome FROM messages WHERE author = 'customer'")]

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """What the database holds, as somebody else sees it."""
        return list(self._looking.execute(query))

    def close(self) -> None:
        self._looking.close()

    async def may_grow_to(self, pages: int) -> None:
        """SQLite's limit holds for one connection: the only one that the store has."""

        def limit() -> None:
            with self.app.database.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        await self.app.writer(limit)


@pytest.fixture
async def shop_with(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens the shop with these settings."""
    engine, telegram, slack = Patient(is_well), RecordingAdapter(), RecordingAdapter(Platform.SLACK)
    monkeypatch.setattr("bot.app._platforms", lambda *_: [telegram, slack])
    tokens = Secrets(slack_bot_token=SecretStr("xoxb-none"), slack_app_token=SecretStr("xapp-none"))
    settings = {
        "database": {"url": database_url},
        "web": {"enabled": False, "port": 0},
        "slack": {"enabled": True},
        "escalation": {"channel": f"slack:{AGENTS.chat}"},
    }
    async with AsyncExitStack() as stack:
        stack.enter_context(capture_logs())  # tracebacks take seconds to render

        async def opened(**sections: dict[str, object]) -> Shop:
            app, stop = build(parse({**settings, **sections}, tokens), engine), asyncio.Event()
            running = asyncio.create_task(app.run(stop))
            stack.push_async_callback(app.close)
            stack.push_async_callback(asyncio.wait_for, running, PROMISED_S)
            stack.callback(stop.set)
            await until(lambda: telegram.inbox is not None)
            shop = Shop(app, engine, telegram)
            stack.callback(shop.close)
            return shop

        yield opened


# -- the disk is full ------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [{"lease_seconds": 2.0}, pytest.param({}, marks=pytest.mark.slow)])
async def test_what_a_full_disk_refused_is_answered_once_there_is_room(
    shop_with: Open, queue: dict[str, object]
) -> None:
    shop = await shop_with(queue=queue)
    shop.engine.answer = lambda turns: "y" * 4_000
    await shop.is_asked(4)
    await shop.may_grow_to(pages=1)  # that is: no further
    hearing = asyncio.create_task(shop.hears(8, "x" * 4_000))
    await until(lambda: shop.refused > 8)
    shop.engine.hold.set()
    await asyncio.sleep(0.3)
    assert shop.telegram.sent == []
    await shop.may_grow_to(pages=1_000_000)
    await shop.recovers(hearing)
    assert set(shop.outcomes()) == {"answered"}


# -- somebody else writes to the database ----------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (6, 30))])
async def test_what_a_locked_database_refused_is_answered_once_it_is_free(shop_with: Open, seconds: int) -> None:
    shop = await shop_with()
    await shop.is_asked(4)
    with closing(driver().connect(shop.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        hearing = asyncio.create_task(shop.hears(4))
        await asyncio.sleep(0.1)  # they are the first who wait for the lock
        shop.engine.hold.set()
        await asyncio.sleep(seconds)
        assert shop.telegram.sent == []
        other.execute("ROLLBACK")
    await shop.recovers(hearing)
    assert shop.refused == 0 or seconds > 5, "a short wait is no fault"
    assert shop.refused > 0 or seconds < 30, "a long one is told to the platform"
    assert set(shop.outcomes()) == {"answered"}


LEASE = timedelta(seconds=30)
Change = Callable[[Engine], None]


def claimed(url: str, change: Change) -> list[int]:
    """The jobs that four who know nothing of each other get, until none is left."""

    def claim_all(_: int) -> list[int]:
        database = open_engine(url)
        change(database)
        store = Store(database)
        try:
            return [claim.job_id for claim in iter(lambda: store.claim(JobKind.ATTEND, LEASE), None)]
        finally:
            database.dispose()

    with ThreadPoolExecutor(4) as pool:
        return sorted(job for jobs in pool.map(claim_all, range(4)) for job in jobs)


def begin_late(database: Engine) -> None:
    """Sabotage: a transaction that reads takes the lock only when it writes."""

    @event.listens_for(database, "before_cursor_execute", retval=True)
    def _begin(_c: object, _u: object, statement: str, parameters: object, *_: object) -> tuple[str, object]:
        return ("BEGIN" if statement == "BEGIN IMMEDIATE" else statement), parameters


def test_who_claims_beside_others_gets_a_job_that_nobody_has_or_waits(store: Store, database_url: str) -> None:
    accepted = [store.accept(inbound(event=f"e{number}", customer=f"c{number}")) for number in range(40)]
    assert len(claimed(database_url, lambda database: None)) == len(accepted)


def test_with_a_lock_that_is_taken_late_claims_are_refused(store: Store, database_url: str) -> None:
    for number in range(40):
        store.accept(inbound(event=f"e{number}", customer=f"c{number}"))
    with pytest.raises(OperationalError, match="database is locked"):
        claimed(database_url, begin_late)


# -- the engine ------------------------------------------------------------------------------------


async def raises() -> None:
    raise RuntimeError("a fault of the model's code")


async def says_nan() -> None:
    raise EngineError("the model produced numbers that are not numbers")


async def hangs() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("trouble", [raises, says_nan, hangs])
async def test_an_engine_in_trouble_costs_no_message_and_is_asked_again_when_it_is_well(
    shop_with: Open, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    monkeypatch.setattr("bot.attend.GRACE_S", 0.1)
    monkeypatch.setattr("bot.circuit.PROBE_EVERY_S", 0.1)
    shop = await shop_with(queue={"max_backoff_seconds": 0.1}, engine={"deadline_seconds": 0.2})
    shop.engine.trouble = trouble
    await shop.hears(4)
    await shop.recovers()  # also while it lasts
    assert shop.outcomes().count("answered") == 0
    shop.engine.trouble = is_well
    await asyncio.sleep(0.1)
    for messages in (1, 3):  # the first is the try that ends it
        await shop.hears(messages)
        await shop.recovers()
    assert shop.outcomes().count("answered") == 4


async def test_an_engine_that_is_ten_times_as_slow_answers_all_the_same(shop_with: Open) -> None:
    shop = await shop_with(engine={"deadline_seconds": 1})
    shop.engine.trouble = lambda: asyncio.sleep(0.3)
    await shop.hears(8)
    await shop.recovers()
    assert set(shop.outcomes()) == {"answered"}
