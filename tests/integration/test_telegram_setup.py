"""What doctor says about a Telegram set-up, and how init finds the group of the staff."""

from __future__ import annotations

import asyncio

import pytest

from adapters.telegram_setup import check, find_group
from bot.errors import ConfigError
from bot.messages import Check
from tests.conftest import until
from tests.fakes.telegram import TOKEN, FakeTelegram

BOT = TOKEN.partition(":")[0]
CHAT, GROUP = 7, -100500


async def test_doctor_sees_the_bot_and_its_group(server: FakeTelegram):
    server.add_group(GROUP, "Staff 群")
    assert await check(TOKEN, server.url, str(GROUP)) == [
        Check("Telegram token", True, "@shop_bot"),
        Check("Telegram escalation group", True, "Staff 群"),
    ]


@pytest.mark.parametrize("chat", [None, ""])
async def test_doctor_looks_at_no_group_where_none_is_set(server: FakeTelegram, chat: str | None):
    assert await check(TOKEN, f"{server.url}/", chat) == [Check("Telegram token", True, "@shop_bot")]


@pytest.mark.parametrize("token", [f"{BOT}:wrong", "nonsense", "", "with space and\nnewline"])
async def test_doctor_says_that_a_token_is_refused(server: FakeTelegram, token: str):
    (found,) = await check(token, server.url, str(GROUP))
    assert (found.what, found.ok) == ("Telegram token", False)
    assert not token or token not in found.detail


async def test_doctor_says_that_telegram_cannot_be_reached():
    (found,) = await check(TOKEN, "http://127.0.0.1:9", "")
    assert not found.ok
    assert "ConnectError" in found.detail


@pytest.mark.parametrize(
    ("status", "may_write", "words"),
    [
        ("left", True, 'the bot is not in "Staff": add it there'),
        ("kicked", True, 'the bot is not in "Staff": add it there'),
        ("restricted", False, "may not write"),
        ("member", False, "may not write"),
    ],
)
async def test_doctor_says_why_the_bot_cannot_write_in_the_group(
    server: FakeTelegram, status: str, may_write: bool, words: str
):
    server.add_group(GROUP, status=status, may_write=may_write)
    _, group = await check(TOKEN, server.url, str(GROUP))
    assert not group.ok
    assert words in group.detail


@pytest.mark.parametrize(("status", "may_write"), [("administrator", False), ("restricted", True), ("creator", False)])
async def test_doctor_knows_who_may_write(server: FakeTelegram, status: str, may_write: bool):
    server.reads_all = True
    server.add_group(GROUP, status=status, may_write=may_write)
    assert (await check(TOKEN, server.url, str(GROUP)))[1].ok


@pytest.mark.parametrize("status", ["member", "restricted"])
async def test_doctor_says_that_the_bot_does_not_see_what_agents_write(server: FakeTelegram, status: str):
    server.add_group(GROUP, status=status)
    _, group = await check(TOKEN, server.url, str(GROUP))
    assert not group.ok
    assert 'does not see what agents write in "Staff": make it an administrator; or turn' in group.detail
    assert "/setprivacy" in group.detail


@pytest.mark.parametrize(("status", "reads_all"), [("administrator", False), ("creator", False), ("member", True)])
async def test_an_administrator_sees_everything_and_so_does_a_bot_without_privacy_mode(
    server: FakeTelegram, status: str, reads_all: bool
):
    server.reads_all = reads_all
    server.add_group(GROUP, status=status)
    assert (await check(TOKEN, server.url, str(GROUP)))[1] == Check("Telegram escalation group", True, "Staff")


@pytest.mark.parametrize(
    ("status", "manages_topics", "ok"),
    [
        ("administrator", True, True),
        ("creator", False, True),
        ("administrator", False, False),
        ("member", True, False),
        ("restricted", True, False),
    ],
)
@pytest.mark.parametrize("reads_all", [True, False])
async def test_in_a_forum_the_bot_must_be_an_administrator_who_manages_topics(
    server: FakeTelegram, status: str, manages_topics: bool, reads_all: bool, ok: bool
):
    server.reads_all = reads_all
    server.add_group(GROUP, status=status, forum=True, manages_topics=manages_topics)
    _, group = await check(TOKEN, server.url, str(GROUP))
    assert group.ok is ok
    assert ok or "needs the right to manage topics" in group.detail


async def test_doctor_says_that_the_group_is_unknown_or_none(server: FakeTelegram):
    assert "Chat not found" in (await check(TOKEN, server.url, "-1"))[1].detail
    server.customer_writes(CHAT, "hello")
    assert "is a private chat" in (await check(TOKEN, server.url, str(CHAT)))[1].detail


async def test_the_group_is_found_and_no_customer_is_lost(server: FakeTelegram):
    server.webhook = "https://example.org/hook"
    server.customer_writes(CHAT, "before")
    server.customer_writes(CHAT, "before that")
    server.add_group(GROUP, "Staff 群")
    looking = asyncio.create_task(find_group(TOKEN, server.url, 10))
    await until(lambda: bool(server.offsets))
    server.customer_writes(GROUP, "/here@shop_bot")
    assert await looking == (str(GROUP), "Staff 群")
    assert [update["message"]["text"] for update in server.pending] == ["before", "before that", "/here@shop_bot"]


async def test_nobody_writes_here(server: FakeTelegram):
    with pytest.raises(ConfigError, match="nobody wrote /here within 0 s: add the bot to the group"):
        await find_group(TOKEN, server.url, 0.2)


async def test_a_full_queue_is_not_confirmed_to_find_the_group(server: FakeTelegram):
    for number in range(100):
        server.customer_writes(CHAT, str(number))
    with pytest.raises(ConfigError, match="let `frontdesk run` answer them first"):
        await find_group(TOKEN, server.url, 5)
    assert len(server.pending) == 100


async def test_a_wrong_token_finds_no_group(server: FakeTelegram):
    with pytest.raises(ConfigError, match="refused the bot's token") as caught:
        await find_group(f"{BOT}:wrong", server.url, 5)
    assert "wrong" not in str(caught.value)
