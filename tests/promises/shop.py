"""The whole front desk in this process: real adapters on a Telegram and a Slack of our own, and its log at DEBUG."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from bot import log
from bot.app import App, build
from bot.config import Secrets, parse
from engine.types import Engine
from tests.conftest import until
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import TOKEN, FakeTelegram

AGENTS, ANNA = "C0AGENTS", "UANNA"
SECRETS = {
    "telegram_token": TOKEN,
    "slack_bot_token": "xoxb-CANARY-bot",
    "slack_app_token": "xapp-CANARY-app",
    "slack_signing_secret": "CANARY-signing",
    "web_password": "CANARY-password",
    "engine_api_key": "CANARY-key",
}


@dataclass(slots=True)
class Shop:
    """`written` is the log as it is written, `raw` what it would be if nothing were taken out of it."""

    app: App
    telegram: FakeTelegram
    slack: FakeSlack
    written: io.StringIO
    raw: io.StringIO

    async def idle(self) -> None:
        """Until nothing is left to do."""
        await self.telegram.confirmed()
        await until(lambda: all(event.acks for event in self.slack.events))
        await until(lambda: not self.app.reader.load().jobs, 30)


@asynccontextmanager
async def open_shop(database_url: str, model: Engine, **sections: Mapping[str, Any]) -> AsyncIterator[Shop]:
    written, raw = io.StringIO(), io.StringIO()
    log.set_up("DEBUG", "json", list(SECRETS.values()), written)
    unredacted = logging.StreamHandler(raw)
    unredacted.setFormatter(log.formatter("json", []))
    logging.getLogger().addHandler(unredacted)
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        for pause in ("slack.PING_S", "slack.WATCH_S", "telegram.CONFLICT_S", "telegram.MAX_BACKOFF_S"):
            patch.setattr(f"adapters.{pause}", 0.1)
        patch.setattr("bot.queue.embedded.IDLE_POLL_S", 0.02)
        patch.setattr("adapters.slack_files.SHARED_AFTER_S", (0.0, 0.0, 0.0))
        telegram = await stack.enter_async_context(FakeTelegram())
        slack = FakeSlack(SECRETS["slack_bot_token"], SECRETS["slack_app_token"])
        await stack.enter_async_context(slack)
        slack.add_channel(AGENTS, "agents")
        slack.members[AGENTS] = [ANNA]
        settings = {
            "database": {"url": database_url},
            "web": {"enabled": False, "port": 0},
            "telegram": {"enabled": True, "api_url": telegram.url},
            "slack": {"enabled": True, "api_url": slack.url},
            "queue": {"max_backoff_seconds": 0.1},
            "escalation": {"channel": f"slack:{AGENTS}", "threshold": 1.0},
            **sections,
        }
        secrets = Secrets(**{name: SecretStr(secret) for name, secret in SECRETS.items()})
        app, stop = build(parse(settings, secrets), model), asyncio.Event()
        running = asyncio.create_task(app.run(stop))
        stack.push_async_callback(app.close)
        stack.push_async_callback(asyncio.wait_for, running, 30)
        stack.callback(stop.set)
        await slack.connected()
        await until(lambda: bool(telegram.offsets))
        yield Shop(app, telegram, slack, written, raw)
        assert (telegram.violations, slack.violations) == ([], [])
