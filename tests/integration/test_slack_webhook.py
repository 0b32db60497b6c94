"""Slack by webhook: only Slack is heard, and only what is stored is acknowledged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from slack_sdk.signature import SignatureVerifier

from adapters import slack as slack_adapter
from adapters.slack import SlackAdapter
from bot.errors import ConfigError, DatabaseUnavailable, Stopping
from bot.messages import Dropped, InboundMessage, Rated, Rating
from tests.conftest import until
from tests.fakes.door import open_door
from tests.fakes.slack import FakeSlack
from tests.integration.test_slack_adapter import StubInbox

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"


def event(text: str = "hello", **more: Any) -> dict[str, Any]:
    said = {"type": "message", "channel_type": "im", "channel": "DU1", "user": "U1", "ts": "1.2", "text": text, **more}
    return {"type": "event_callback", "team_id": "T0FAKE", "event_id": "Ev1", "event": said}


@pytest.fixture
async def slack(monkeypatch: pytest.MonkeyPatch, no_proxy: None) -> AsyncIterator[FakeSlack]:
    monkeypatch.setattr(slack_adapter, "HEARTBEAT_S", 0.02)
    async with FakeSlack() as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture
def inbox() -> StubInbox:
    return StubInbox()


@pytest.fixture
async def adapter(slack: FakeSlack, inbox: StubInbox) -> AsyncIterator[SlackAdapter]:
    made = SlackAdapter(slack.bot_token, "", slack.url, SECRET)
    running = asyncio.create_task(made.run(inbox))
    await until(lambda: made.last_contact is not None)
    yield made
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
async def door(adapter: SlackAdapter) -> AsyncIterator[httpx.AsyncClient]:
    async with open_door("/slack", adapter.hear) as client:
        yield client


def signed(body: bytes, ago: float = 0, secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(time.time() - ago))
    signature = SignatureVerifier(secret).generate_signature(timestamp=stamp, body=body)
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature or ""}


async def post(door: httpx.AsyncClient, posted: Any, **how: Any) -> httpx.Response:
    """Bytes are a form, everything else is JSON."""
    form, body = isinstance(posted, bytes), posted if isinstance(posted, bytes) else json.dumps(posted).encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded" if form else "application/json"}
    return await door.post("/slack", content=body, headers=signed(body, **how) | kind)


async def test_slacks_question_whether_we_are_here_is_answered(door: httpx.AsyncClient) -> None:
    answer = await post(door, {"type": "url_verification", "challenge": "3eZbrw1aB"})
    assert (answer.status_code, answer.text) == (200, "3eZbrw1aB")


async def test_what_is_posted_is_stored_and_then_acknowledged(
    door: httpx.AsyncClient, slack: FakeSlack, inbox: StubInbox
) -> None:
    assert (await post(door, event())).status_code == 200
    assert (await post(door, event(bot_id="B1"))).status_code == 200
    assert (await post(door, ["junk"])).status_code == 200
    assert [type(each) for each in inbox.received] == [InboundMessage, Dropped, Dropped]
    assert slack.connections == 0


async def test_what_people_press_comes_as_a_form(door: httpx.AsyncClient, inbox: StubInbox) -> None:
    action = {"type": "feedback_buttons", "value": f"down:{'b' * 32}"}
    pressed = {"type": "block_actions", "user": {"id": "U1"}, "team": {"id": "T0FAKE"}, "actions": [action]}
    assert (await post(door, urlencode({"payload": json.dumps(pressed)}).encode())).status_code == 200
    assert (await post(door, b"payload=junk")).status_code == 400
    (rated,) = inbox.received
    assert isinstance(rated, Rated)
    assert (rated.customer_id, rated.rating, rated.outbound_id) == ("U1", Rating.DOWN, "b" * 32)


async def test_the_slash_command_is_answered_to_who_gave_it_as_json(door: httpx.AsyncClient, inbox: StubInbox) -> None:
    asked = {"command": "/frontdesk", "text": "status", "channel_id": "C1", "user_id": "U1", "team_id": "T0FAKE"}
    answer = await post(door, urlencode(asked).encode())
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == {"response_type": "ephemeral", "text": ""}
    assert inbox.received == []


@pytest.mark.parametrize(
    "how",
    [{"secret": "wrong"}, {"ago": 302}, {"ago": -310}],
    ids=["another's signature", "an old one, played again", "one from the future"],
)
async def test_what_slack_did_not_sign_just_now_is_refused(
    door: httpx.AsyncClient, inbox: StubInbox, how: dict[str, Any]
) -> None:
    assert (await post(door, event(), **how)).status_code == 401
    assert inbox.received == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Slack-Signature": "v0=a"},
        {"X-Slack-Request-Timestamp": "now", "X-Slack-Signature": "v0=a"},
        {"X-Slack-Request-Timestamp": "1" * 5000, "X-Slack-Signature": "v0=a"},
    ],
)
async def test_junk_for_a_signature_is_refused(door: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await door.post("/slack", content=b"{}", headers=headers)).status_code == 401


async def test_a_signature_does_not_fit_another_body(door: httpx.AsyncClient) -> None:
    answer = await door.post("/slack", content=b'{"a": 2}', headers=signed(b'{"a": 1}'))
    assert answer.status_code == 401


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), Stopping("closing")])
async def test_what_cannot_be_stored_is_not_acknowledged(
    door: httpx.AsyncClient, inbox: StubInbox, error: Exception
) -> None:
    inbox.error = error
    assert (await post(door, event())).status_code == 503


async def test_what_is_no_json_is_refused(door: httpx.AsyncClient) -> None:
    assert (await door.post("/slack", content=b"{", headers=signed(b"{"))).status_code == 400


async def test_before_it_runs_nothing_is_taken() -> None:
    idle = SlackAdapter("xoxb-fake", "", "http://127.0.0.1:1/", SECRET)
    body = json.dumps(event()).encode()
    headers = {name.lower(): value for name, value in signed(body).items()}
    assert await idle.hear(headers, body) == (503, "")


async def test_a_token_that_is_revoked_is_noticed(slack: FakeSlack, inbox: StubInbox) -> None:
    adapter = SlackAdapter(slack.bot_token, "", slack.url, SECRET)
    running = asyncio.create_task(adapter.run(inbox))
    await until(lambda: adapter.last_contact is not None)
    slack.alive_tokens.clear()
    with pytest.raises(ConfigError):
        await asyncio.wait_for(running, 5)
