"""The Telegram adapter against a Telegram of our own: nothing is confirmed before it is stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from adapters import telegram, telegram_bot
from adapters.pace import Limit
from adapters.telegram import TelegramAdapter
from adapters.telegram_setup import check, find_group
from bot.app import build
from bot.catalogue import say
from bot.config import Secrets, parse
from bot.errors import (
    ConfigError,
    DatabaseUnavailable,
    DeliveryError,
    Stopping,
)
from bot.messages import (
    COMMANDS,
    DELIVERED,
    NOT_DELIVERED,
    Address,
    Button,
    Dropped,
    InboundKind,
    InboundMessage,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Rated,
    Rating,
    Receipt,
)
from bot.store.jobs import JobKind
from tests.conftest import until
from tests.fakes.engine import ScriptedEngine
from tests.fakes.telegram import TOKEN, FakeTelegram, Fault

BOT = TOKEN.partition(":")[0]
CHAT, GROUP = 7, -100500


class RecordingInbox:
    """Keeps events in order and answers as the store would; `refuse` maps a text to the errors it meets on its way."""

    def __init__(self) -> None:
        self.events: list[InboundMessage | Rated | Dropped] = []
        self.pressed: list[Pressed] = []
        self.stored: int | None = None
        self.refuse: dict[str, list[Exception]] = {}
        self.attempts = 0

    async def receive(self, event: InboundMessage | Rated | Dropped) -> Receipt:
        self.attempts += 1
        text = getattr(event, "text", "")
        if self.refuse.get(text):
            raise self.refuse[text].pop(0)
        await asyncio.sleep(0)
        self.stored = max(self.stored or 0, event.cursor or 0)
        if event in self.events:
            return Receipt.DUPLICATE
        self.events.append(event)
        return Receipt.DROPPED if isinstance(event, Dropped) else Receipt.ACCEPTED

    async def press(self, event: Pressed) -> str:
        self.pressed.append(event)
        self.stored = event.cursor
        return "done"

    async def cursor(self, platform: Platform, account: str) -> int | None:
        assert (platform, account) == (Platform.TELEGRAM, BOT)
        if self.refuse.get("cursor"):
            raise self.refuse["cursor"].pop(0)
        return self.stored

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, InboundMessage)]


class RecordingDesk:
    """Answers what is asked of it, once it has met the errors in `refuse`."""

    def __init__(self, answer: str = "Nobody waits.") -> None:
        self.answer = answer
        self.asked: list[tuple[str, Address]] = []
        self.refuse: list[Exception] = []

    async def __call__(self, words: str, place: Address, code: str) -> str:
        self.asked.append((words, place))
        if self.refuse:
            raise self.refuse.pop(0)
        return self.answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_BACKOFF_S", "CONFLICT_S", "STORE_RETRY_S"):
        monkeypatch.setattr(telegram, name, 0.01)
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(100, 1.0))
    monkeypatch.setattr(telegram, "POLL_S", 2)
    monkeypatch.setattr(telegram_bot, "SEND_S", 5.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For faults that never answer."""
    monkeypatch.setattr(telegram_bot, "SEND_S", 0.3)


@pytest.fixture
def inbox() -> RecordingInbox:
    return RecordingInbox()


@pytest.fixture
def desk() -> RecordingDesk:
    return RecordingDesk()


@pytest.fixture
async def staffed(server: FakeTelegram, desk: RecordingDesk) -> TelegramAdapter:
    """An adapter that has a desk, and whose agents are in GROUP."""
    server.add_group(GROUP)
    return TelegramAdapter(TOKEN, server.url, desk=desk, agents=str(GROUP))


@asynccontextmanager
async def running(adapter: TelegramAdapter, inbox: RecordingInbox) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(adapter.run(inbox))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConfigError):
            await task


def reply(text: str = "good morning", *, chat: int = CHAT, thread: str = "", **more: str) -> OutboundMessage:
    return OutboundMessage("o1", OutboundKind.REPLY, Address(Platform.TELEGRAM, BOT, str(chat), thread), text, **more)


# -- receiving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "rating"), [("👍", Rating.UP), ("👎", Rating.DOWN)])
async def test_a_pressed_thumb_is_a_rating_and_whoever_pressed_it_is_told(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox, label: str, rating: Rating
):
    server.customer_writes(CHAT, "hello")
    await adapter.send(replace(reply(), id="a" * 32, rateable=True))
    async with running(adapter, inbox):
        server.presses(server.sent(CHAT)[0], label)
        await server.until(lambda: bool(server.noticed))
        await server.confirmed()
    assert inbox.events[-1] == Rated(
        Platform.TELEGRAM, BOT, str(CHAT), "a" * 32, rating, cursor=inbox.events[-1].cursor
    )


async def test_a_cards_button_is_pressed_by_an_agent_who_is_told_what_came_of_it(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.add_group(GROUP)
    card = OutboundMessage(
        "o1",
        OutboundKind.CARD,
        Address(Platform.TELEGRAM, BOT, str(GROUP)),
        "🔔 #3",
        buttons=(Button("Claim", "claim:3"),),
    )
    await adapter.send(card)
    async with running(adapter, inbox):
        server.presses(server.sent(GROUP)[0], "Claim", user_id=42)
        await server.until(lambda: bool(server.noticed))
        await server.confirmed()
    (pressed,) = inbox.pressed
    assert (pressed.chat, pressed.agent.id, pressed.escalation_id, pressed.action) == (str(GROUP), "42", 3, "claim")
    assert server.noticed == ["done"]


async def test_the_buttons_of_a_card_change_with_it(server: FakeTelegram, adapter: TelegramAdapter):
    server.add_group(GROUP)
    address = Address(Platform.TELEGRAM, BOT, str(GROUP))
    card = OutboundMessage("o1", OutboundKind.CARD, address, "🔔 #3", buttons=(Button("Claim", "claim:3"),))
    delivery = await adapter.send(card)
    await adapter.send(replace(card, text="🔔 #3 done", edits=delivery.platform_id, buttons=()))
    assert server.sent(GROUP)[0].params["reply_markup"] == {}


@pytest.mark.parametrize(("text", "face"), [(DELIVERED, "👌"), (NOT_DELIVERED, "👎")])
async def test_whether_an_agents_words_arrived_is_a_reaction(
    server: FakeTelegram, adapter: TelegramAdapter, text: str, face: str
):
    server.add_group(GROUP)
    server.customer_writes(GROUP, "hello", user_id=42)
    address = Address(Platform.TELEGRAM, BOT, str(GROUP))
    await adapter.send(OutboundMessage("o1", OutboundKind.MARK, address, text, reply_to="1"))
    assert server.reactions == [(1, face)]


@pytest.mark.parametrize(
    ("status", "member"),
    [("member", True), ("administrator", True), ("creator", True), ("left", False), ("kicked", False)],
)
async def test_who_is_in_the_group_is_asked_of_telegram(
    server: FakeTelegram, adapter: TelegramAdapter, status: str, member: bool
):
    server.add_group(GROUP)
    server.people[42] = status
    assert await adapter.is_member(str(GROUP), "42") is member


@pytest.mark.parametrize("data", ["", "up:1", "sideways:" + "a" * 32, "up:" + "A" * 32, None])
async def test_a_button_that_is_not_ours_is_dropped(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox, data: str | None
):
    query = {"id": "1", "from": {"id": 7, "is_bot": False, "first_name": "Li"}, "chat_instance": "1"}
    async with running(adapter, inbox):
        server.push(callback_query=query | ({"data": data} if data is not None else {}))
        await server.confirmed()
    assert isinstance(inbox.events[0], Dropped)


async def test_messages_arrive_in_order_and_are_confirmed(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    for number in range(250):  # more than one batch
        server.customer_writes(CHAT, f"m{number}")
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == [f"m{number}" for number in range(250)]
    assert len(server.offsets) == 4


async def test_a_message_that_arrives_during_a_poll_is_there_at_once(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox):
        await until(lambda: bool(server.offsets))
        started = time.monotonic()
        server.customer_writes(CHAT, "hello")
        await server.confirmed()
        assert time.monotonic() - started < 1
    assert adapter.last_contact == pytest.approx(time.time(), abs=5)


async def test_the_offset_moves_only_after_the_whole_batch_is_stored(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    numbers = [server.customer_writes(CHAT, text) for text in ("one", "two", "three")]
    inbox.refuse["two"] = [DatabaseUnavailable("disk full")] * 10_000
    async with running(adapter, inbox):
        await until(lambda: len(server.offsets) >= 3)
        assert [update["update_id"] for update in server.pending] == numbers[1:]
        inbox.refuse.clear()
        await server.confirmed()
    assert inbox.texts == ["one", "two", "three"]
    assert max(offset or 0 for offset in server.offsets[:-1]) <= numbers[1]


async def test_what_was_not_stored_is_delivered_to_the_next_process(server: FakeTelegram, inbox: RecordingInbox):
    server.customer_writes(CHAT, "one")
    server.customer_writes(CHAT, "two")
    inbox.refuse["two"] = [DatabaseUnavailable("killed")] * 10_000
    async with running(TelegramAdapter(TOKEN, server.url), inbox):
        await until(lambda: inbox.attempts > 2)
    inbox.refuse.clear()
    async with running(TelegramAdapter(TOKEN, server.url), inbox):
        await server.confirmed()
    assert inbox.texts == ["one", "two"]


async def test_a_closing_desk_polls_no_more_but_still_replies(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.customer_writes(CHAT, "too late")
    inbox.refuse["too late"] = [Stopping("frontdesk is stopping")]
    async with running(adapter, inbox):
        await until(lambda: inbox.attempts == 1)
        await adapter.send(reply("to an earlier question"))
        await asyncio.sleep(0.1)  # time for many polls
    assert len(server.offsets) == 1
    assert (server.texts(CHAT), len(server.pending)) == (["to an earlier question"], 1)


async def test_the_first_offset_is_behind_what_is_stored(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    inbox.stored = server.customer_writes(CHAT, "stored before the crash, never confirmed")
    server.customer_writes(CHAT, "new")
    inbox.refuse["cursor"] = [DatabaseUnavailable("not yet")]
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["new"]
    assert None not in server.offsets


@pytest.mark.timeout(20)
async def test_after_a_quiet_week_the_numbers_begin_anew(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    inbox.stored = 700_000_500
    server.restart_numbers(300)
    server.customer_writes(CHAT, "hello again")
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["hello again"]


async def test_updates_nobody_knows_are_dropped_between_their_neighbours(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.customer_writes(CHAT, "before")
    server.push(hologram={"from": 7})
    server.push(message={"message_id": "?", "text": ["not", "text"]})
    server.push(message=[])
    server.customer_writes(CHAT, photo=[{"file_id": "x"}])
    server.customer_writes(CHAT, "after")
    async with running(adapter, inbox):
        await server.confirmed()
    kinds = [event.kind if isinstance(event, InboundMessage) else event.reason for event in inbox.events]
    assert kinds == [
        InboundKind.TEXT,
        "unknown update type",
        "malformed message",
        "malformed message",
        InboundKind.MEDIA,
        InboundKind.TEXT,
    ]


async def test_a_message_that_nobody_can_store_does_not_hold_up_the_next(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.customer_writes(CHAT, "poison")
    server.customer_writes(CHAT, "after")
    inbox.refuse["poison"] = [ValueError("cannot be bound")]
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["after"]
    assert [event.reason for event in inbox.events if isinstance(event, Dropped)] == ["cannot be stored"]


async def test_an_update_without_a_number_does_not_make_us_poll_without_rest(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(telegram, "STORE_RETRY_S", 5)
    server.push(update_id="none", message={})
    async with running(adapter, inbox):
        await until(lambda: bool(inbox.events))
        await asyncio.sleep(0.1)  # time for many polls
    assert len(server.offsets) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(502, body="<html>bad gateway</html>"),
        Fault(500, "Internal Server Error: restart"),
        Fault(429, "Too Many Requests", retry_after=1),
        Fault(reset=True),
        Fault(body="<html>please log in to the hotel's network</html>"),
        Fault(body='{"ok": true, "result": {"not": "a list"}}'),
        Fault(body='{"ok": true}'),
        Fault(body="[]"),
        Fault(409, "Conflict: terminated by other getUpdates request"),
    ],
    ids=lambda fault: f"{fault.status} {fault.body or fault.description}"[:30],
)
async def test_an_outage_of_polling_is_waited_out(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox, fault: Fault
):
    server.fail("getUpdates", fault, fault if not fault.retry_after else Fault(reset=True))
    server.customer_writes(CHAT, "hello")
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["hello"]


@pytest.mark.usefixtures("impatient")
async def test_an_outage_at_the_start_is_waited_out(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.fail("getMe", Fault(reset=True), Fault(502), Fault(silent=True))
    server.fail("deleteWebhook", Fault(502))
    server.fail("setMyCommands", Fault(400, "Bad Request: no menus today"))
    server.customer_writes(CHAT, "hello")
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["hello"]


async def test_an_unreachable_telegram_is_waited_for(inbox: RecordingInbox, capsys: pytest.CaptureFixture[str]):
    async with FakeTelegram() as server:
        server.customer_writes(CHAT, "hello")
    adapter = TelegramAdapter(TOKEN, server.url)
    async with running(adapter, inbox):
        await until(lambda: "telegram does not answer" in capsys.readouterr().out)
        assert adapter.last_contact is None
        async with server:
            await server.confirmed()
    assert inbox.texts == ["hello"]


async def test_a_webhook_left_by_another_program_is_removed_and_its_updates_kept(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    server.webhook = "https://example.org/hook"
    server.customer_writes(CHAT, "waiting since then")
    async with running(adapter, inbox):
        await server.confirmed()
    assert inbox.texts == ["waiting since then"]


async def test_another_program_with_the_same_token_is_named_and_waited_for(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox, capsys: pytest.CaptureFixture[str]
):
    async with running(adapter, inbox):
        await until(lambda: bool(server.offsets))
        server.webhook = "https://example.org/hook"
        server.fail("getUpdates", Fault(reset=True))
        server.customer_writes(CHAT, "hello")
        await until(lambda: server.count("getUpdates") > 5)
        server.webhook = ""
        await until(lambda: inbox.texts == ["hello"])
    assert "another program" in capsys.readouterr().out


async def test_a_revoked_token_is_a_sentence_for_the_owner(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox) as task:
        await until(lambda: bool(server.offsets))
        server.revoked = True
        server.customer_writes(CHAT, "ends the open poll")
        with pytest.raises(ConfigError, match=r"revoked or mistyped: copy the current one from @BotFather") as caught:
            await asyncio.wait_for(task, 5)
    assert TOKEN not in str(caught.value)


async def test_cancelling_ends_in_the_middle_of_a_poll(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox) as task:
        await until(lambda: bool(server.offsets))
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert time.monotonic() - started < 1


async def test_the_menu_is_shown_in_both_languages_and_a_shorter_one_in_groups(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox):
        await until(lambda: bool(server.offsets))
    assert {place: [entry["command"] for entry in menu] for place, menu in server.commands.items()} == {
        ("all_private_chats", ""): list(COMMANDS),
        ("all_private_chats", "zh"): list(COMMANDS),
        ("all_group_chats", ""): ["help", "human", "status"],
        ("all_group_chats", "zh"): ["help", "human", "status"],
    }


async def test_the_agents_group_has_a_menu_of_its_own_in_both_languages(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox
):
    async with running(staffed, inbox):
        await until(lambda: bool(server.offsets))
    menus = {language: server.commands[f"chat {GROUP}", language] for language in ("", "zh")}
    assert [[entry["command"] for entry in menu] for menu in menus.values()] == [["open", "status", "help"]] * 2
    assert menus[""] != menus["zh"]
    assert len(server.commands) == 6


@pytest.mark.parametrize("agents", ["-1", "somewhere"])
async def test_without_the_agents_group_its_menu_is_missing_and_nothing_else(
    server: FakeTelegram, inbox: RecordingInbox, desk: RecordingDesk, agents: str
):
    async with running(TelegramAdapter(TOKEN, server.url, desk=desk, agents=agents), inbox):
        server.customer_writes(CHAT, "hello")
        await server.confirmed()
    assert inbox.texts == ["hello"]
    assert len(server.commands) == 4


async def test_only_updates_that_are_handled_are_asked_for(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox):
        await until(lambda: bool(server.offsets))
    asked = [params for name, params in server.calls if name == "getUpdates"]
    assert asked[0] == {"timeout": 2, "allowed_updates": ["message", "edited_message", "callback_query"]}


async def test_sends_go_out_while_a_poll_is_open(server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox):
    server.customer_writes(CHAT, "hello")
    async with running(adapter, inbox):
        await server.confirmed()
        await asyncio.gather(*(adapter.send(reply(f"part {n}")) for n in range(10)))
    assert len(server.texts(CHAT)) == 10


async def test_a_running_desk_takes_the_poll_away_from_set_up(
    server: FakeTelegram, adapter: TelegramAdapter, inbox: RecordingInbox
):
    async with running(adapter, inbox):
        await until(lambda: bool(server.offsets))
        with pytest.raises(ConfigError, match="did not let us look for /here: Conflict"):
            await find_group(TOKEN, server.url, 10)
        server.customer_writes(CHAT, "hello")
        await server.confirmed()
    assert inbox.texts == ["hello"]


# -- what agents ask of the desk -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"), [("/open", "open"), ("/status", "status"), ("/help", "help"), ("/open@Shop_Bot", "open")]
)
async def test_what_agents_ask_is_answered_under_their_words_and_is_no_customers_message(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox, desk: RecordingDesk, text: str, words: str
):
    async with running(staffed, inbox):
        number = server.customer_writes(GROUP, text, user_id=42)
        (answer,) = await server.answers(GROUP, 1)
        await server.confirmed()
    assert (answer.text, answer.reply_to, answer.thread) == ("Nobody waits.", 1, None)
    assert desk.asked == [(words, Address(Platform.TELEGRAM, BOT, str(GROUP)))]
    assert inbox.events == [Dropped(Platform.TELEGRAM, BOT, "asked of the desk", cursor=number)]


async def test_in_a_topic_the_desk_answers_there(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox, desk: RecordingDesk
):
    async with running(staffed, inbox):
        server.customer_writes(GROUP, "/open", user_id=42, message_thread_id=5, is_topic_message=True)
        (answer,) = await server.answers(GROUP, 1)
    assert (answer.reply_to, answer.thread) == (1, 5)
    assert desk.asked[0][1].thread == "5"


async def test_elsewhere_nobody_asks_the_desk(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox, desk: RecordingDesk
):
    server.add_group(-100600, "Customers")
    async with running(staffed, inbox):
        for text in ("/status", "/help", "/open"):
            server.customer_writes(-100600, text)
        server.customer_writes(CHAT, "/status")
        server.customer_writes(CHAT, "/open")
        await server.confirmed()
    assert inbox.texts == ["status", "help", "status", "/open"]
    assert [event.reason for event in inbox.events if isinstance(event, Dropped)] == ["not addressed to the bot"]
    assert desk.asked == []


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DatabaseUnavailable("the database is away"), None),
        (ValueError("CANARY"), None),
        (None, Fault(403, "Forbidden: bot was kicked from the supergroup chat")),
        (None, Fault(502)),
        (None, Fault(429, "Too Many Requests", retry_after=600)),
    ],
)
async def test_an_answer_that_fails_is_in_the_log_and_holds_nothing_up(
    server: FakeTelegram,
    staffed: TelegramAdapter,
    inbox: RecordingInbox,
    desk: RecordingDesk,
    error: Exception | None,
    fault: Fault | None,
):
    desk.answer, desk.refuse = "CANARY", [error] if error else []
    server.fail("sendMessage", *([fault] if fault else []))
    with capture_logs() as logged:
        async with running(staffed, inbox):
            server.customer_writes(GROUP, "/open CANARY", user_id=42)
            server.customer_writes(CHAT, "hello")
            await server.confirmed()
            await until(lambda: any("question was not answered" in each["event"] for each in logged))
    assert inbox.texts == ["hello"]
    assert "CANARY" not in str(logged)


async def test_a_slow_desk_holds_nothing_up_and_is_not_waited_for_at_the_end(
    server: FakeTelegram, inbox: RecordingInbox
):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(words: str, place: Address, code: str) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    server.add_group(GROUP)
    async with running(TelegramAdapter(TOKEN, server.url, desk=slow, agents=str(GROUP)), inbox):
        server.customer_writes(GROUP, "/open", user_id=42)
        server.customer_writes(CHAT, "hello")
        await server.confirmed()
        await begun.wait()
        assert inbox.texts == ["hello"]
    await asyncio.wait_for(ended.wait(), 5)


async def test_answers_too_soon_for_telegrams_pace_are_put_off_and_all_arrive(
    server: FakeTelegram,
    staffed: TelegramAdapter,
    inbox: RecordingInbox,
    desk: RecordingDesk,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(1, 0.1))
    desk.answer = "x" * 5_000
    async with running(staffed, inbox):
        server.customer_writes(GROUP, "/open", user_id=42)
        server.customer_writes(GROUP, "/status", user_id=42)
        answers = await server.answers(GROUP, 4)
    assert sorted(answer.reply_to or 0 for answer in answers) == [1, 1, 2, 2]


async def test_a_flood_limit_only_delays_the_answer(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox
):
    server.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=1))
    async with running(staffed, inbox):
        server.customer_writes(GROUP, "/open", user_id=42)
        assert len(await server.answers(GROUP, 1)) == 1


async def test_a_question_is_answered_only_once_its_update_is_stored(
    server: FakeTelegram, staffed: TelegramAdapter, inbox: RecordingInbox, desk: RecordingDesk
):
    inbox.refuse[""] = [DatabaseUnavailable("disk full")] * 2
    async with running(staffed, inbox):
        server.customer_writes(GROUP, "/open", user_id=42)
        await server.answers(GROUP, 1)
        await server.confirmed()
    assert (inbox.attempts, len(desk.asked)) == (3, 1)


async def test_what_agents_ask_by_webhook_is_answered_too(
    server: FakeTelegram, inbox: RecordingInbox, desk: RecordingDesk
):
    server.add_group(GROUP)
    server.customer_writes(GROUP, "/status", user_id=42)
    adapter = TelegramAdapter(TOKEN, server.url, "https://shop.example/telegram", desk, str(GROUP))
    async with running(adapter, inbox):
        await until(lambda: bool(server.webhook))
        proof = {"x-telegram-bot-api-secret-token": server.secret}
        assert await adapter.hear(proof, json.dumps(server.pending[0]).encode()) == (200, "")
        assert [answer.text for answer in await server.answers(GROUP, 1)] == ["Nobody waits."]


async def test_the_front_desk_itself_answers_its_agents_in_their_language(server: FakeTelegram, database_url: str):
    server.add_group(GROUP)
    document = {
        "telegram": {"enabled": True, "api_url": server.url},
        "web": {"enabled": False},
        "escalation": {"channel": f"telegram:{GROUP}"},
        "database": {"url": database_url},
    }
    app = build(parse(document, Secrets(telegram_token=TOKEN)), ScriptedEngine())
    async with running(app.adapters[Platform.TELEGRAM], app.intake):
        server.customer_writes(GROUP, "/open", user_id=43, language="en")
        for text in ("/status", "/help"):
            server.customer_writes(GROUP, text, user_id=42)
        answers = await server.answers(GROUP, 3)
        await server.confirmed()
    kept = app.store.claim(JobKind.ATTEND, timedelta(seconds=30))
    cursor = await app.intake.cursor(Platform.TELEGRAM, BOT)
    await app.close()
    assert {answer.reply_to: answer.text for answer in answers} == {
        1: say("desk_nobody", "en"),
        2: say("desk_status", "zh", calls=0, jobs=0),
        3: say("desk_help_telegram", "zh"),
    }
    assert (kept, cursor) == (None, server.offsets[-1] - 1)


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_no_log_record_holds_the_token_or_a_message(
    server: FakeTelegram,
    adapter: TelegramAdapter,
    inbox: RecordingInbox,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "telegram"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.customer_writes(CHAT, "CANARY-words")
    server.fail(
        "getUpdates", Fault(reset=True), Fault(502, body=TOKEN), Fault(body="CANARY-words {"), Fault(409, TOKEN)
    )
    server.fail("sendMessage", Fault(502, body=TOKEN), Fault(silent=True), Fault(403, "Forbidden"))
    async with running(TelegramAdapter(TOKEN, server.url), inbox) as task:
        await server.confirmed()
        for _ in range(4):
            with contextlib.suppress(DeliveryError):
                await adapter.send(reply("CANARY-words"))
        await check(f"{BOT}:CANARY-mistyped", server.url, "")
        server.revoked = True
        server.customer_writes(CHAT, "CANARY-words")
        with contextlib.suppress(ConfigError):
            await task
    server.revoked = False
    written = caplog.text + "".join(capsys.readouterr())
    assert "telegram does not answer" in written
    assert "CANARY" not in written
