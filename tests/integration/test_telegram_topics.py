"""Where the agents' group has topics, each escalation gets one; where it has none, or not any more, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters import telegram
from adapters.pace import Limit
from adapters.telegram import TelegramAdapter
from bot.errors import OutcomeUnknown, Undeliverable
from bot.messages import Address, OutboundKind, OutboundMessage, Platform
from tests.fakes.telegram import FakeTelegram, Fault

GROUP = -100500
CARD = OutboundMessage(
    "o1", OutboundKind.CARD, Address(Platform.TELEGRAM, "", str(GROUP)), "🔔 #9 unhappy\nCustomer: Li"
)


@pytest.fixture(autouse=True)
def forum(server: FakeTelegram, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group with topics, where tests write faster than Telegram allows."""
    monkeypatch.setattr(telegram, "IN_A_CHAT", Limit(100, 1.0))
    server.add_group(GROUP, forum=True, manages_topics=True)


def in_topic(message: OutboundMessage, thread: str) -> OutboundMessage:
    return replace(message, address=replace(message.address, thread=thread))


async def test_a_new_card_opens_a_topic_named_by_its_title_alone(server: FakeTelegram, adapter: TelegramAdapter):
    delivery = await adapter.send(CARD)
    ((topic, name),) = server.chats[GROUP].topics.items()
    assert (delivery.thread, name) == (str(topic), "🔔 #9 unhappy"), "a name would stay when the customer is forgotten"
    assert server.sent(GROUP)[0].thread == topic


async def test_an_edited_card_stays_where_it_is_and_the_topic_ends_with_the_escalation(
    server: FakeTelegram, adapter: TelegramAdapter
):
    posted = await adapter.send(CARD)
    edit = in_topic(replace(CARD, id="o2", edits=posted.platform_id, text="🔔 #9 claimed"), posted.thread)
    assert await adapter.send(edit) == posted
    assert server.chats[GROUP].closed == set()
    over = replace(edit, text="🔔 #9 resolved", over=True)
    for _ in range(2):
        assert await adapter.send(over) == posted, "also when it is closed already"
    assert server.chats[GROUP].closed == {int(posted.thread)}
    assert len(server.chats[GROUP].topics) == 1


async def test_a_card_that_did_not_arrive_uses_its_topic_when_it_is_sent_again(
    server: FakeTelegram, adapter: TelegramAdapter
):
    server.fail("sendMessage", Fault(504, "Gateway Timeout"))
    with pytest.raises(OutcomeUnknown):
        await adapter.send(CARD)
    await adapter.send(replace(CARD, maybe_sent=True))
    assert len(server.chats[GROUP].topics) == 1


@pytest.mark.parametrize("how", [{"forum": False}, {"forum": True, "manages_topics": False}], ids=["none", "no right"])
async def test_without_topics_or_the_right_to_open_them_the_card_is_posted_all_the_same(
    server: FakeTelegram, adapter: TelegramAdapter, how: dict[str, bool]
):
    server.add_group(GROUP, **how)
    delivery = await adapter.send(CARD)
    assert (delivery.thread, server.texts(GROUP)) == ("", [CARD.text])


async def test_a_customers_words_are_shown_also_when_the_topic_was_deleted(
    server: FakeTelegram, adapter: TelegramAdapter
):
    words = in_topic(replace(CARD, kind=OutboundKind.RELAY, text="where is it?"), "4711")
    await adapter.send(words)
    assert [(each.text, each.thread) for each in server.sent(GROUP)] == [("where is it?", None)]
    with pytest.raises(Undeliverable):
        await adapter.send(replace(words, kind=OutboundKind.NOTICE))


async def test_an_ended_card_that_was_deleted_opens_no_new_topic(server: FakeTelegram, adapter: TelegramAdapter):
    await adapter.send(replace(CARD, over=True))
    assert server.chats[GROUP].topics == {}
