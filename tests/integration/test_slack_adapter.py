"""The Slack adapter receives from a Slack of our own: nothing is acknowledged before it is stored, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import adapters.slack
import adapters.slack_api
from adapters.slack import SlackAdapter
from bot.errors import ConfigError, DatabaseUnavailable, Undeliverable
from bot.messages import (
    DELIVERED,
    NOT_DELIVERED,
    Address,
    AgentAction,
    Button,
    Customer,
    Desk,
    Dropped,
    InboundMessage,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Rated,
    Rating,
    Receipt,
)
from tests.conftest import until
from tests.fakes.slack import FakeSlack, Fault

BOT_TOKEN, APP_TOKEN = "xoxb-canary-4711", "xapp-canary-4712"


class StubInbox:
    """Keeps what it receives. `open` cleared: receiving takes its time; `error` set: nothing is stored."""

    def __init__(self) -> None:
        self.received: list[InboundMessage | Rated | Dropped] = []
        self.pressed: list[Pressed] = []
        self.waiting = self.failed = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def press(self, event: Pressed) -> str:
        if self.error is not None:
            self.failed += 1
            raise self.error
        self.pressed.append(event)
        return "<done>"

    async def receive(self, event: InboundMessage | Rated | Dropped) -> Receipt:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        if self.error is not None:
            self.failed += 1
            raise self.error
        self.received.append(event)
        return Receipt.DROPPED if isinstance(event, Dropped) else Receipt.ACCEPTED

    async def cursor(self, platform: Platform, account: str) -> int | None:
        return None

    def texts(self) -> list[str]:
        return [event.text for event in self.received if isinstance(event, InboundMessage)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, no_proxy: None) -> None:
    """Short rhythms, and no proxy between the adapter and the loopback address."""
    for name, seconds in {"PING_S": 0.2, "WATCH_S": 0.05, "LAST_ACKS_S": 0.5}.items():
        monkeypatch.setattr(adapters.slack, name, seconds)
    monkeypatch.setattr(adapters.slack_api, "ANSWER_S", 2)


@pytest.fixture
async def slack() -> AsyncIterator[FakeSlack]:
    async with FakeSlack(BOT_TOKEN, APP_TOKEN) as slack:
        yield slack
        assert slack.violations == []


@pytest.fixture
def inbox() -> StubInbox:
    return StubInbox()


@pytest.fixture
def adapter(slack: FakeSlack) -> SlackAdapter:
    return SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)


@asynccontextmanager
async def running(slack: FakeSlack, inbox: StubInbox, desk: Desk | None = None) -> AsyncIterator[SlackAdapter]:
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url, desk=desk, agents="C0AGENTS")
    task = asyncio.create_task(adapter.run(inbox))
    try:
        await slack.connected()
        yield adapter
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- acknowledged only when stored


async def test_the_slash_command_is_answered_to_who_gave_it(slack: FakeSlack, inbox: StubInbox) -> None:
    async def desk(words: str, place: Address, code: str) -> str:
        return f"{words} <{place.chat}>"

    async with running(slack, inbox, desk):
        event = await slack.command("C0AGENTS", "U1", "open")
        await slack.acked(event)
    assert event.acks[0]["payload"] == {"response_type": "ephemeral", "text": "open &lt;C0AGENTS&gt;"}
    assert inbox.received == []


CARD = OutboundMessage(
    "o1",
    OutboundKind.CARD,
    Address(Platform.SLACK, "T0FAKE", "C0AGENTS"),
    "🔔 #3\nsomebody",
    buttons=(Button("Claim", "claim:3"), Button("Resolve", "resolve:3")),
)


async def test_a_cards_button_is_pressed_by_an_agent_who_alone_is_told(slack: FakeSlack, inbox: StubInbox) -> None:
    slack.add_channel("C0AGENTS")
    async with running(slack, inbox) as adapter:
        await adapter.send(CARD)
        await slack.acked(await slack.press_button(slack.by_bot("C0AGENTS")[0], "UANNA", "Claim"))
        await until(lambda: bool(slack.whispers))
    (pressed,) = inbox.pressed
    assert pressed == Pressed(Platform.SLACK, "T0FAKE", "C0AGENTS", Customer("UANNA", "uanna"), 3, AgentAction.CLAIM)
    (whisper,) = slack.whispers
    assert (whisper["channel"], whisper["user"], whisper["text"]) == ("C0AGENTS", "UANNA", "&lt;done&gt;")


async def test_a_press_that_is_not_stored_is_not_acknowledged(slack: FakeSlack, inbox: StubInbox) -> None:
    slack.add_channel("C0AGENTS")
    inbox.error = DatabaseUnavailable("away")
    async with running(slack, inbox) as adapter:
        await adapter.send(CARD)
        event = await slack.press_button(slack.by_bot("C0AGENTS")[0], "UANNA", "Claim")
        await until(lambda: inbox.failed > 0)
        assert event.acks == []
        inbox.error = None
        await slack.redeliver(event)
        await slack.acked(event)
    assert len(inbox.pressed) == 1


async def test_the_buttons_of_a_card_change_with_it(slack: FakeSlack) -> None:
    slack.add_channel("C0AGENTS")
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    delivery = await adapter.send(CARD)
    await adapter.send(replace(CARD, text="🔔 #3\ndone", edits=delivery.platform_id, buttons=()))
    (block,) = slack.by_bot("C0AGENTS")[0]["blocks"]
    assert block["text"]["text"] == "*🔔 #3*\ndone"


async def test_threads_in_the_agents_channel_are_heard_without_a_mention(slack: FakeSlack, inbox: StubInbox) -> None:
    root = slack.say("C0AGENTS", "U0BOT", "card")["ts"]
    other = slack.say("C1", "U1", "hello")["ts"]
    async with running(slack, inbox):
        for channel, thread in (("C0AGENTS", root), ("C0AGENTS", ""), ("C1", other)):
            await slack.acked(await slack.thread_message(channel, "UANNA", "hi", thread))
    heard, *dropped = inbox.received
    assert isinstance(heard, InboundMessage)
    assert (heard.answers, heard.text, heard.customer.id) == (root, "hi", "UANNA")
    assert [type(each) for each in dropped] == [Dropped, Dropped]


@pytest.mark.parametrize(("text", "name"), [(DELIVERED, "white_check_mark"), (NOT_DELIVERED, "x")])
async def test_whether_an_agents_words_arrived_is_a_reaction(slack: FakeSlack, text: str, name: str) -> None:
    ts = slack.say("C0AGENTS", "UANNA", "hi")["ts"]
    mark = replace(CARD, kind=OutboundKind.MARK, text=text, reply_to=ts, buttons=())
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    await adapter.send(mark)
    await adapter.send(replace(mark, maybe_sent=True))
    assert slack.reactions == [(ts, name)]


async def test_who_is_in_the_channel_is_asked_of_slack(slack: FakeSlack) -> None:
    slack.add_channel("C0AGENTS")
    slack.members["C0AGENTS"] = [f"U{number}" for number in range(450)]  # more than a page
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    assert await adapter.is_member("C0AGENTS", "U449")
    assert not await adapter.is_member("C0AGENTS", "UX")


@pytest.mark.parametrize(("up", "rating"), [(True, Rating.UP), (False, Rating.DOWN)])
async def test_a_pressed_thumb_is_a_rating(slack: FakeSlack, inbox: StubInbox, up: bool, rating: Rating) -> None:
    slack.add_channel("DU1")
    async with running(slack, inbox) as adapter:
        address = Address(Platform.SLACK, "T0FAKE", "DU1")
        await adapter.send(OutboundMessage("a" * 32, OutboundKind.REPLY, address, "hi", rateable=True))
        await slack.acked(await slack.press(slack.by_bot("DU1")[0], "U1", up=up))
    assert inbox.received == [Rated(Platform.SLACK, "T0FAKE", "U1", "a" * 32, rating)]


async def test_a_message_is_received_under_our_account_and_acknowledged_once(
    slack: FakeSlack, inbox: StubInbox
) -> None:
    async with running(slack, inbox):
        event = await slack.direct_message("U1", "hello")
        await slack.acked(event)
    message = inbox.received[0]
    assert isinstance(message, InboundMessage)
    assert message.address == Address(Platform.SLACK, "T0FAKE", "DU1")
    assert message.event_id == f"DU1:{event.ts}"
    assert event.acks == [{"envelope_id": event.envelopes[0]}]


async def test_no_acknowledgement_leaves_while_the_message_is_being_stored(slack: FakeSlack, inbox: StubInbox) -> None:
    inbox.open.clear()
    async with running(slack, inbox):
        event = await slack.direct_message("U1", "hello")
        await until(lambda: inbox.waiting == 1)
        await asyncio.sleep(0.1)
        assert not event.acks
        inbox.open.set()
        await slack.acked(event)


async def test_what_could_not_be_stored_is_delivered_again(slack: FakeSlack, inbox: StubInbox) -> None:
    inbox.error = DatabaseUnavailable("the disk is full")
    async with running(slack, inbox):
        event = await slack.direct_message("U1", "hello")
        await until(lambda: inbox.failed == 1)
        await asyncio.sleep(0.05)
        assert not event.acks
        inbox.error = None
        await slack.redeliver(event)
        await slack.acked(event)
    assert inbox.texts() == ["hello"]


async def test_a_fault_of_the_inbox_is_not_acknowledged_and_the_next_message_is(
    slack: FakeSlack, inbox: StubInbox
) -> None:
    inbox.error = ValueError("a bug")
    async with running(slack, inbox):
        event = await slack.direct_message("U1", "one")
        await until(lambda: inbox.failed == 1)
        inbox.error = None
        await slack.acked(await slack.direct_message("U1", "two"))
        assert not event.acks
    assert inbox.texts() == ["two"]


async def test_an_event_that_is_not_for_us_is_dropped_and_acknowledged(slack: FakeSlack, inbox: StubInbox) -> None:
    async with running(slack, inbox):
        for event in ({"type": "app_home_opened", "user": "U1"}, {"type": "tokens_revoked"}):
            await slack.acked(await slack.deliver(event))
        await slack.acked(await slack.direct_message("U0BOT", "my own words", bot_id="B0BOT"))
    assert [type(event) for event in inbox.received] == [Dropped] * 3


async def test_an_event_is_stored_although_the_bot_token_is_refused_meanwhile(
    slack: FakeSlack, inbox: StubInbox
) -> None:
    async with running(slack, inbox):
        slack.alive_tokens.clear()
        await slack.acked(await slack.direct_message("U1", "hello"))
    assert inbox.texts() == ["hello"]


async def test_a_mention_and_its_twin_leave_one_message_whichever_comes_first(
    slack: FakeSlack, inbox: StubInbox
) -> None:
    slack.add_channel("C1")
    async with running(slack, inbox):
        mention = await slack.mention("C1", "U1", "hello")
        await slack.acked(await slack.deliver(slack.twin_of(mention)))
        await slack.redeliver(mention)
        await until(lambda: len(mention.acks) == 2)
    messages = [event for event in inbox.received if isinstance(event, InboundMessage)]
    assert {message.event_id for message in messages} == {f"C1:{mention.ts}"}
    assert messages[0].text == "hello"


async def test_messages_are_stored_in_the_order_in_which_they_came(slack: FakeSlack, inbox: StubInbox) -> None:
    async with running(slack, inbox):
        events = [await slack.direct_message("U1", str(number)) for number in range(30)]
        await slack.acked(events[-1])
    assert inbox.texts() == [str(number) for number in range(30)]


@pytest.mark.parametrize(
    "around", [{"authorizations": 5}, {"authorizations": ["x"]}, {"team": 7, "type": []}, {"event": [{}]}, {"user": 1}]
)
async def test_a_malformed_envelope_is_dropped_and_its_neighbour_is_not(
    slack: FakeSlack, inbox: StubInbox, around: dict[str, Any]
) -> None:
    async with running(slack, inbox):
        malformed = await slack.deliver({"type": 5}, **around)
        neighbour = await slack.direct_message("U1", "hello")
        await slack.acked(malformed)
        await slack.acked(neighbour)
    assert [type(event) for event in inbox.received] == [Dropped, InboundMessage]


@pytest.mark.parametrize("raw", ["{", "[]", "5", '{"type": "events_api", "envelope_id": "e", "payload": [1]}', "{}"])
async def test_junk_on_the_socket_harms_nobody(slack: FakeSlack, inbox: StubInbox, raw: str) -> None:
    async with running(slack, inbox):
        await slack.send_raw(raw)
        await slack.acked(await slack.direct_message("U1", "hello"))
    assert inbox.texts() == ["hello"]


# -- connecting


@pytest.mark.parametrize("how", [{"announced": True}, {"announced": False}, {"abrupt": True}])
async def test_after_a_lost_connection_what_was_not_acknowledged_comes_again(
    slack: FakeSlack, inbox: StubInbox, how: dict[str, bool]
) -> None:
    inbox.error = DatabaseUnavailable("locked")
    async with running(slack, inbox):
        event = await slack.direct_message("U1", "hello")
        await until(lambda: inbox.failed == 1)
        inbox.error = None
        await slack.disconnect(**how)
        await slack.acked(event)
    assert inbox.texts() == ["hello"]
    assert len(event.envelopes) == 2


async def test_what_was_written_during_an_outage_of_slack_arrives_afterwards(
    slack: FakeSlack, inbox: StubInbox
) -> None:
    async with running(slack, inbox):
        await slack.__aexit__(None, None, None)
        event = await slack.direct_message("U1", "hello")
        await asyncio.sleep(0.5)
        await slack.__aenter__()
        await slack.acked(event)
    assert inbox.texts() == ["hello"]


async def test_a_socket_address_that_fails_once_is_not_tried_for_ever(slack: FakeSlack, inbox: StubInbox) -> None:
    slack.refuse_sockets = 1
    async with running(slack, inbox):
        await slack.acked(await slack.direct_message("U1", "hello"))


async def test_slack_s_outage_at_the_start_is_waited_out(slack: FakeSlack, inbox: StubInbox) -> None:
    slack.fail("auth.test", Fault(status=503), Fault(retry_after=1))
    slack.fail("apps.connections.open", Fault(error="internal_error"))
    async with running(slack, inbox) as adapter:
        await until(lambda: adapter.last_contact is not None)
        assert time.time() - (adapter.last_contact or 0) < 5


@pytest.mark.parametrize("error", ["invalid_auth", "account_inactive", "token_revoked", "missing_scope"])
@pytest.mark.parametrize(
    ("method", "token"), [("auth.test", "bot token"), ("apps.connections.open", "app-level token")]
)
async def test_a_refused_token_stops_the_adapter_with_a_sentence(
    slack: FakeSlack, inbox: StubInbox, adapter: SlackAdapter, method: str, token: str, error: str
) -> None:
    slack.fail(method, Fault(error=error))
    with pytest.raises(ConfigError, match=f"Slack refused the {token}: {error}; [a-z]"):
        await asyncio.wait_for(adapter.run(inbox), 5)


async def test_a_token_revoked_while_running_stops_the_adapter(slack: FakeSlack, inbox: StubInbox) -> None:
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    task = asyncio.create_task(adapter.run(inbox))
    await slack.connected()
    slack.alive_tokens.clear()
    await slack.disconnect(announced=False)
    with pytest.raises(ConfigError, match="invalid_auth"):
        await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("moment", ["connected", "connecting", "introducing"])
async def test_cancelling_leaves_no_task_and_no_connection(
    slack: FakeSlack, inbox: StubInbox, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(adapters.slack_api, "ANSWER_S", 30)
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    others = asyncio.all_tasks()
    waits_at = {"introducing": "auth.test", "connecting": "apps.connections.open"}
    if moment in waits_at:
        slack.fail(waits_at[moment], Fault(silent=True))
    task = asyncio.create_task(adapter.run(inbox))
    await until(lambda: bool(slack.called(waits_at.get(moment, "apps.connections.open"))))
    if moment == "connected":
        await slack.connected()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await task
    await until(lambda: not slack.is_connected)
    left = {each for each in asyncio.all_tasks() - others if "slack_sdk" in repr(each) or "adapters" in repr(each)}
    assert not left


async def test_what_is_being_stored_when_the_adapter_is_cancelled_is_still_acknowledged(
    slack: FakeSlack, inbox: StubInbox, adapter: SlackAdapter
) -> None:
    inbox.open.clear()
    task = asyncio.create_task(adapter.run(inbox))
    await slack.connected()
    event = await slack.direct_message("U1", "hello")
    await until(lambda: inbox.waiting == 1)
    task.cancel()
    await asyncio.sleep(0.05)
    inbox.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(event.acks) == 1


# -- secrets


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name} {self.format(record)} {json.dumps(record.__dict__, default=repr)}")


async def test_no_token_address_or_word_of_a_customer_is_logged(
    slack: FakeSlack, inbox: StubInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, root = Records(), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, records])
    monkeypatch.setattr(root, "level", logging.DEBUG)
    logging.getLogger("tests").debug("the handler listens")
    slack.refuse_sockets = 1
    async with running(slack, inbox) as adapter:
        await slack.acked(await slack.direct_message("U1", "word-of-a-customer"))
        await slack.disconnect(abrupt=True)
        inbox.error = ValueError("a bug")
        await slack.direct_message("U1", "word-of-a-customer")
        await until(lambda: inbox.failed == 1)
        slack.fail("chat.postMessage", Fault(error="invalid_auth"))
        address = Address(Platform.SLACK, "T0FAKE", "DU1")
        with pytest.raises(Undeliverable):
            await adapter.send(OutboundMessage("o1", OutboundKind.REPLY, address, "word-of-a-customer"))
        slack.fail("apps.connections.open", Fault(error="internal_error"))
        await slack.disconnect()
        await slack.connected()
    logged = "\n".join(records.lines)
    assert "the handler listens" in logged
    assert "slack_sdk" in logged
    for secret in (BOT_TOKEN, APP_TOKEN, "ticket-", "word-of-a-customer"):
        assert secret not in logged
