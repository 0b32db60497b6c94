"""Telegram by webhook: only Telegram is heard, and only what is stored is acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from adapters import telegram
from adapters.telegram import TelegramAdapter
from bot.errors import DatabaseUnavailable, Stopping
from bot.http import MAX_BODY
from bot.messages import Dropped, Edited, InboundMessage
from tests.conftest import until
from tests.fakes.door import open_door
from tests.fakes.telegram import TOKEN, FakeTelegram
from tests.integration.test_telegram_adapter import RecordingInbox

HOOK = "https://shop.example/telegram"
HEADER = "X-Telegram-Bot-Api-Secret-Token"


def update(text: str = "hello", number: int = 1, **more: Any) -> dict[str, Any]:
    person = {"id": 7, "is_bot": False, "first_name": "Li"}
    chat = {"id": 7, "type": "private"}
    return {
        "update_id": number,
        "message": {"message_id": number, "date": 1, "chat": chat, "from": person, "text": text, **more},
    }


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeTelegram]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(telegram, "HEARTBEAT_S", 0.02)
    async with FakeTelegram() as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture
def inbox() -> RecordingInbox:
    return RecordingInbox()


@pytest.fixture
async def adapter(server: FakeTelegram, inbox: RecordingInbox) -> AsyncIterator[TelegramAdapter]:
    made = TelegramAdapter(TOKEN, server.url, HOOK)
    running = asyncio.create_task(made.run(inbox))
    await until(lambda: bool(server.webhook))
    yield made
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
async def door(adapter: TelegramAdapter) -> AsyncIterator[httpx.AsyncClient]:
    async with open_door("/telegram", adapter.hear) as client:
        yield client


async def post(door: httpx.AsyncClient, server: FakeTelegram, body: Any, secret: str | None = None) -> int:
    headers = {HEADER: server.secret if secret is None else secret}
    content = body if isinstance(body, bytes) else json.dumps(body)
    return (await door.post("/telegram", content=content, headers=headers)).status_code


async def test_the_webhook_is_registered_with_a_secret_and_one_connection_so_that_order_holds(
    server: FakeTelegram, adapter: TelegramAdapter
) -> None:
    (asked,) = [params for name, params in server.calls if name == "setWebhook"]
    assert (asked["url"], asked["max_connections"]) == (HOOK, 1)
    assert asked["allowed_updates"] == ["message", "edited_message", "callback_query"]
    assert len(asked["secret_token"]) >= 32
    assert server.count("getUpdates") == 0
    await until(lambda: adapter.last_contact is not None)


async def test_what_is_posted_is_stored_and_then_acknowledged(
    door: httpx.AsyncClient, server: FakeTelegram, inbox: RecordingInbox
) -> None:
    assert await post(door, server, update()) == 200
    edited = {"update_id": 2, "edited_message": {**update("hallo")["message"], "edit_date": 9}}
    assert await post(door, server, edited) == 200
    assert await post(door, server, {"update_id": 3, "poll": {}}) == 200
    assert [type(event) for event in inbox.events] == [InboundMessage, Edited, Dropped]
    assert inbox.texts == ["hello"]


@pytest.mark.parametrize("secret", ["", "wrong", "ключ"])
async def test_a_post_without_the_secret_is_refused_and_leaves_nothing(
    door: httpx.AsyncClient, server: FakeTelegram, inbox: RecordingInbox, secret: str
) -> None:
    headers = {HEADER: secret.encode()}
    answer = await door.post("/telegram", content=json.dumps(update()), headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 403
    assert inbox.events == []


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), Stopping("closing")])
async def test_what_cannot_be_stored_is_not_acknowledged_and_comes_again(
    door: httpx.AsyncClient, server: FakeTelegram, inbox: RecordingInbox, error: Exception
) -> None:
    inbox.refuse = {"hello": [error]}
    assert await post(door, server, update()) == 503
    assert await post(door, server, update()) == 200
    assert inbox.texts == ["hello"]


async def test_an_update_that_nobody_can_store_is_skipped(
    door: httpx.AsyncClient, server: FakeTelegram, inbox: RecordingInbox
) -> None:
    inbox.refuse = {"hello": [ValueError("a bug")]}
    assert await post(door, server, update()) == 200
    assert [type(event) for event in inbox.events] == [Dropped]


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
async def test_what_is_no_json_is_refused(door: httpx.AsyncClient, server: FakeTelegram, body: bytes) -> None:
    assert await post(door, server, body) == 400


async def test_a_body_larger_than_any_event_is_refused(door: httpx.AsyncClient, server: FakeTelegram) -> None:
    assert await post(door, server, b" " * (MAX_BODY + 1)) == 413


async def test_only_posts_are_taken(door: httpx.AsyncClient) -> None:
    assert (await door.get("/telegram")).status_code == 405


async def test_before_it_runs_nothing_is_taken() -> None:
    idle = TelegramAdapter(TOKEN, "http://127.0.0.1:1", HOOK)
    assert await idle.hear({HEADER.lower(): idle._secret}, json.dumps(update()).encode()) == (503, "")


async def test_another_program_that_takes_the_webhook_is_named_and_loses_it(
    server: FakeTelegram, adapter: TelegramAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    server.webhook = "https://elsewhere.example/hook"
    await until(lambda: server.webhook == HOOK)
    assert "another program" in capsys.readouterr().out


async def test_what_keeps_telegram_from_posting_is_in_the_log(
    server: FakeTelegram, adapter: TelegramAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    server.webhook_trouble = {"last_error_date": 4_000_000_000, "last_error_message": "Connection refused"}
    await until(lambda: "Connection refused" in capsys.readouterr().out)
