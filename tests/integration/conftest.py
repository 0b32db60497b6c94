"""Fixtures that several of these files use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine

from adapters.telegram import TelegramAdapter
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import TOKEN, FakeTelegram
from tests.house import House, working


@pytest.fixture
def impatient_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.queue.embedded.IDLE_POLL_S", 0.02)


@pytest.fixture
async def house(engine: Engine, impatient_queue: None) -> AsyncIterator[House]:
    house = House(engine)
    async with working(house):
        yield house
    house.writer.close()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slack's library sends even loopback addresses through one."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def slack(no_proxy: None) -> AsyncIterator[FakeSlack]:
    async with FakeSlack() as slack:
        yield slack
        assert slack.violations == []


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeTelegram]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with FakeTelegram() as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture
async def adapter(server: FakeTelegram) -> AsyncIterator[TelegramAdapter]:
    made = TelegramAdapter(TOKEN, server.url)
    yield made
    await made._bot.request.shutdown()  # run() does it, and many tests never run
