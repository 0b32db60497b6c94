"""What the Telegram adapter sends, and what each way to fail means."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from adapters import telegram, telegram_bot
from adapters.pace import Limit
from adapters.telegram import TelegramAdapter
from bot.errors import ChatMoved, DeliveryError, OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import Address, OutboundKind, OutboundMessage, Platform, Preview
from tests.fakes.telegram import TOKEN, FakeTelegram, Fault

BOT = TOKEN.partition(":")[0]
CHAT, GROUP = 7, -100500


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests write faster than Telegram allows."""
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(100, 1.0))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For faults that never answer."""
    monkeypatch.setattr(telegram_bot, "SEND_S", 0.3)


@pytest.fixture
def chat(server: FakeTelegram) -> int:
    server.customer_writes(CHAT, "hello")
    return CHAT


def reply(text: str = "good morning", *, chat: int = CHAT, thread: str = "", **more: str) -> OutboundMessage:
    return OutboundMessage("o1", OutboundKind.REPLY, Address(Platform.TELEGRAM, BOT, str(chat), thread), text, **more)


async def test_a_reply_is_plain_text_without_previews(server: FakeTelegram, adapter: TelegramAdapter, chat: int):
    text = "*not bold* <b>neither</b> https://example.org _x_"
    delivery = await adapter.send(reply(text))
    sent = server.sent(chat)[0]
    assert (delivery.platform_id, sent.text) == (str(sent.message_id), text)
    assert sent.params == {"chat_id": chat, "text": text, "link_preview_options": {"is_disabled": True}}
    assert adapter.last_contact is not None


async def test_under_an_answer_that_can_be_rated_are_two_thumbs(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int
):
    await adapter.send(replace(reply(), id="a" * 32, rateable=True))
    keyboard = server.sent(chat)[0].params["reply_markup"]["inline_keyboard"]
    assert [(each["text"], each["callback_data"]) for row in keyboard for each in row] == [
        ("👍", f"up:{'a' * 32}"),
        ("👎", f"down:{'a' * 32}"),
    ]


async def test_at_our_own_pace_telegram_never_has_to_refuse(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(1, 0.2))
    server.pause_s = 0.15
    waits = []
    for _ in range(6):
        try:
            await adapter.send(reply())
        except RetryLater as error:
            waits.append(error.after)
            await asyncio.sleep(error.after or 0)
    assert (len(server.sent(chat)), len(waits), server.floods) == (3, 3, 0)


async def test_where_telegram_is_stricter_its_own_delay_is_kept(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int
):
    server.pause_s = 5.0
    await adapter.send(reply())
    with pytest.raises(RetryLater) as refused:
        await adapter.send(reply())
    assert (refused.value.after, server.floods) == (5.0, 1)


async def test_in_a_topic_of_a_group_the_answer_goes_to_the_message_there(
    server: FakeTelegram, adapter: TelegramAdapter
):
    server.add_group(GROUP)
    server.customer_writes(GROUP, "/help", is_topic_message=True, message_thread_id=5)
    await adapter.send(reply(chat=GROUP, thread="5", reply_to="1"))
    sent = server.sent(GROUP)[0]
    assert (sent.thread, sent.reply_to) == (5, 1)


async def test_a_deleted_question_still_gets_its_answer(server: FakeTelegram, adapter: TelegramAdapter):
    server.add_group(GROUP)
    await adapter.send(reply(chat=GROUP, reply_to="999"))
    assert server.texts(GROUP) == ["good morning"]


async def test_an_edit_replaces_the_text(server: FakeTelegram, adapter: TelegramAdapter, chat: int):
    first = await adapter.send(reply("one"))
    second = await adapter.send(reply("two", edits=first.platform_id))
    assert second == first
    assert [(sent.text, sent.former) for sent in server.sent(chat)] == [("two", ["one"])]


async def test_an_edit_that_changes_nothing_is_done(server: FakeTelegram, adapter: TelegramAdapter, chat: int):
    first = await adapter.send(reply("one"))
    assert await adapter.send(reply("one", edits=first.platform_id)) == first


async def test_a_vanished_message_cannot_be_edited(adapter: TelegramAdapter, chat: int):
    with pytest.raises(Undeliverable, match=r"(?i)message to edit not found"):
        await adapter.send(reply("two", edits="999"))


async def test_what_no_encoding_can_say_is_replaced(server: FakeTelegram, adapter: TelegramAdapter, chat: int):
    await adapter.send(reply("half \ud83d emoji"))
    assert server.texts(chat) == ["half ? emoji"]


def test_parts_are_measured_as_telegram_measures(adapter: TelegramAdapter):
    assert [len(part) for part in adapter.split("😀" * 3000)] == [2048, 952]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(403, "Forbidden: bot was blocked by the user"), Undeliverable, "bot was blocked by the user"),
        (Fault(400, "Bad Request: chat not found"), Undeliverable, "chat not found"),
        (Fault(400, "Bad Request: up", parameters={"migrate_to_chat_id": -1009}), ChatMoved, "its id is -1009 now"),
        (Fault(401, "Unauthorized"), Undeliverable, "refused the bot's token"),
        (Fault(429, "Too Many Requests", retry_after=7), RetryLater, "Flood control"),
        (Fault(429, "Too Many Requests"), RetryLater, "Too Many Requests"),
        (Fault(500, "Internal Server Error: restart"), RetryLater, "restart"),
        (Fault(502, "Bad Gateway"), RetryLater, "Bad Gateway"),
        (Fault(502, body="<html>nginx</html>"), RetryLater, r"Bad Gateway \(502\)$"),
        (Fault(504, "Gateway Timeout"), OutcomeUnknown, "Gateway Timeout"),
        (Fault(504, body="<html>nginx</html>"), OutcomeUnknown, "Gateway Timeout"),
        (Fault(reset=True), OutcomeUnknown, "httpx"),
        (Fault(reset=True, done=True), OutcomeUnknown, "httpx"),
        (Fault(body="<html>hotel</html>", done=True), OutcomeUnknown, "not Telegram's"),
    ],
    ids=lambda value: f"{value.status} {value.body or value.description}"[:40] if isinstance(value, Fault) else "",
)
async def test_every_failure_has_its_meaning(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, fault: Fault, error: type[DeliveryError], words: str
):
    server.fail("sendMessage", fault)
    with pytest.raises(error, match=f"(?i){words}") as caught:
        await adapter.send(reply())
    assert server.count("sendMessage") == 1  # nobody retries inside a send
    assert TOKEN not in str(caught.value)
    assert "<html>" not in str(caught.value)
    if isinstance(caught.value, RetryLater):
        assert caught.value.after == (fault.retry_after or None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("done", [False, True])
async def test_without_an_answer_nobody_knows(server: FakeTelegram, adapter: TelegramAdapter, chat: int, done: bool):
    server.fail("sendMessage", Fault(silent=True, done=done))
    with pytest.raises(OutcomeUnknown, match="Timed out"):
        await adapter.send(reply())
    assert server.texts(chat) == (["good morning"] if done else [])


async def test_a_refused_connection_took_nothing(chat: int, adapter: TelegramAdapter, server: FakeTelegram):
    await server.__aexit__(None, None, None)
    with pytest.raises(RetryLater, match="ConnectError"):
        await adapter.send(reply())
    await server.__aenter__()


@pytest.mark.usefixtures("impatient")
async def test_a_send_that_waits_for_a_connection_took_nothing(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int
):
    pool = adapter._bot.request._client._transport._pool  # the library hides it well
    pool._max_connections = 1
    server.fail("sendMessage", Fault(silent=True))
    outcomes = await asyncio.gather(*(adapter.send(reply(str(n))) for n in range(2)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown, RetryLater}
    assert server.texts(chat) == []


async def test_a_flood_limit_warns_nobody_of_a_deprecation(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, recwarn: pytest.WarningsRecorder
):
    server.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=7))
    with pytest.raises(RetryLater):
        await adapter.send(reply())
    assert len(recwarn) == 0


# -- typing ----------------------------------------------------------------------------------------


async def test_typing_is_shown_in_the_topic(server: FakeTelegram, adapter: TelegramAdapter):
    server.add_group(GROUP)
    server.customer_writes(GROUP, "/help", is_topic_message=True, message_thread_id=5)
    await adapter.preview(Preview(Address(Platform.TELEGRAM, BOT, str(GROUP), "5"), "1", 3, text="so far"))
    assert server.actions == [(GROUP, 5, "typing")]


async def test_typing_is_not_renewed_while_it_shows_nor_kept_back_after_a_reply(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, monkeypatch: pytest.MonkeyPatch
):
    preview = Preview(reply().address, str(CHAT), 3)
    for _ in range(3):
        await adapter.preview(preview)
    assert len(server.actions) == 1
    await adapter.send(reply())
    await adapter.preview(preview)
    assert len(server.actions) == 2
    monkeypatch.setattr(telegram, "TYPING_S", 0.0)
    await adapter.preview(preview)
    assert len(server.actions) == 3


async def test_a_failed_typing_is_a_delivery_error(server: FakeTelegram, adapter: TelegramAdapter, chat: int):
    server.blocked.add(chat)
    with pytest.raises(Undeliverable, match="blocked"):
        await adapter.preview(Preview(reply().address, str(CHAT), 3))


# -- drafts ----------------------------------------------------------------------------------------


def so_far(text: str, number: int = 3) -> Preview:
    return Preview(reply().address, str(CHAT), number, text=text)


async def test_in_a_private_chat_the_reply_grows_in_a_draft_before_it_is_sent(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(telegram, "DRAFT_S", 0.0)
    for text in ("", " ", "good", "good morning"):
        await adapter.preview(so_far(text))
    assert server.drafts == [(chat, 3, "good"), (chat, 3, "good morning")]
    assert len(server.actions) == 1
    assert server.sent(chat) == []
    await adapter.send(reply())
    assert server.texts(chat) == ["good morning"]


async def test_drafts_of_one_chat_keep_their_distance_and_another_chat_does_not_wait(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, monkeypatch: pytest.MonkeyPatch
):
    other = CHAT + 1
    server.customer_writes(other, "hello")
    monkeypatch.setattr(telegram, "DRAFT_S", 60.0)  # however slow the machine is
    for text in ("a", "ab", "abc"):
        await adapter.preview(so_far(text))
    await adapter.preview(Preview(reply(chat=other).address, str(other), 4, text="x"))
    assert server.drafts == [(chat, 3, "a"), (other, 4, "x")]
    monkeypatch.setattr(telegram, "DRAFT_S", 0.05)
    await asyncio.sleep(0.05)
    await adapter.preview(so_far("abcd"))
    assert server.drafts[-1] == (chat, 3, "abcd")


async def test_a_draft_is_never_too_long_nor_torn_inside_a_character(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int
):
    await adapter.preview(so_far("😀" * 3000 + "\ud83d"))
    ((_, _, text),) = server.drafts
    assert text == "😀" * 2048


async def test_a_flood_limit_on_a_draft_is_a_delivery_error_and_no_message(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int
):
    server.fail("sendMessageDraft", Fault(429, retry_after=7))
    with pytest.raises(RetryLater):
        await adapter.preview(so_far("good"))
    assert server.count("sendMessageDraft") == 1
    await adapter.send(reply())
    assert server.texts(chat) == ["good morning"]


# -- pace ------------------------------------------------------------------------------------------


async def test_a_message_too_soon_is_put_off_without_asking_telegram_and_another_chat_goes_on(
    server: FakeTelegram, adapter: TelegramAdapter, chat: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(1, 1.0))
    server.customer_writes(CHAT + 1, "hello")
    await adapter.send(reply("one"))
    with pytest.raises(RetryLater) as caught:
        await adapter.send(reply("two"))
    assert 0.5 < (caught.value.after or 0) <= 1.0
    assert server.count("sendMessage") == 1
    await adapter.send(reply("three", chat=CHAT + 1))


async def test_a_group_takes_twenty_a_minute(server: FakeTelegram, adapter: TelegramAdapter):
    server.add_group(GROUP)
    for number in range(20):
        await adapter.send(reply(str(number), chat=GROUP))
    with pytest.raises(RetryLater) as caught:
        await adapter.send(reply("one more", chat=GROUP))
    assert (caught.value.after or 0) > 50
