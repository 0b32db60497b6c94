"""Media and edits between agents and customers: copied on one platform, named or refused across two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.errors import Undeliverable
from bot.messages import (
    DELIVERED,
    NOT_DELIVERED,
    Address,
    AgentAction,
    Customer,
    Delivery,
    Edited,
    InboundKind,
    InboundMessage,
    OutboundKind,
    OutboundMessage,
    Platform,
    Pressed,
    Receipt,
)
from tests.conftest import AGENTS, inbound
from tests.house import House, working

ANNA = Customer("UANNA", "anna")
GROUP = Address(Platform.TELEGRAM, "1", "-100")


def on_slack(text: str, number: int, **more: object) -> InboundMessage:
    """What a customer there writes."""
    said = replace(inbound(text, event=f"DC1:{number}"), address=Address(Platform.SLACK, "T1", "DC1"))
    return replace(said, **more)  # type: ignore[arg-type]  # fields of its own


async def claimed(house: House, agents: Address, first: InboundMessage | None = None) -> House:
    """An angry customer, on Telegram unless told otherwise, whom Anna answers."""
    staff = house.slack if agents is AGENTS else house.telegram
    staff.members = {ANNA.id}
    await house.intake.receive(first or inbound("太差了", event="chat-c1:1"))
    await house.idle()
    await house.intake.press(Pressed(agents.platform, agents.account, agents.chat, ANNA, 1, AgentAction.CLAIM))
    await house.idle()
    return house


@pytest.fixture
async def across(house: House) -> House:
    """The agents are on Slack."""
    return await claimed(house, AGENTS)


@pytest.fixture
async def together(engine: Engine, impatient_queue: None) -> AsyncIterator[House]:
    """The agents are on Telegram, too."""
    house = House(engine, agents=GROUP)
    async with working(house):
        yield await claimed(house, GROUP)
    house.writer.close()


@pytest.fixture
async def slack_alone(house: House) -> House:
    """Agents and customer are on Slack."""
    return await claimed(house, AGENTS, on_slack("太差了", 1))


def card_id(house: House, agents: Address) -> str:
    sent = house.slack.sent if agents is AGENTS else house.telegram.sent
    return f"p{1 + next(at for at, each in enumerate(sent) if each.kind is OutboundKind.CARD)}"


async def writes(house: House, agents: Address, text: str, number: int = 9, **more: object) -> Receipt:
    message = InboundMessage(agents, ANNA, f"{agents.chat}:{number}", text, answers=card_id(house, agents))
    receipt = await house.intake.receive(replace(message, **more))  # type: ignore[arg-type]  # fields of its own
    await house.idle()
    return receipt


async def edits(house: House, agents: Address, text: str, number: int = 9, by: str = ANNA.id) -> Receipt:
    of = f"{agents.chat}:{number}"
    receipt = await house.intake.receive(Edited(agents.platform, agents.account, f"{of}:2", of, text, by=by))
    await house.idle()
    return receipt


def to_customer(house: House) -> list[tuple[str, str, str]]:
    """What agents said to them: the text, what is copied, what is edited."""
    said = [*house.telegram.sent, *house.slack.sent]
    return [(each.text, each.copies, each.edits) for each in said if each.kind is OutboundKind.AGENT]


def relayed(house: House) -> list[tuple[str, str]]:
    said = [*house.telegram.sent, *house.slack.sent]
    return [(each.text, each.copies) for each in said if each.kind is OutboundKind.RELAY]


def marks(house: House) -> list[str]:
    return [each.text for each in [*house.telegram.sent, *house.slack.sent] if each.kind is OutboundKind.MARK]


# -- media of customers


async def test_what_a_customer_sends_is_copied_to_agents_on_the_same_platform(together: House) -> None:
    photo = replace(inbound("photo", event="chat-c1:2", kind=InboundKind.MEDIA), media="photo")
    await together.intake.receive(photo)
    await together.idle()
    assert relayed(together) == [("Li Wei: [photo]", ""), ("", "chat-c1:2")]


async def test_to_agents_elsewhere_it_is_named_with_its_words_and_links(across: House) -> None:
    captioned = replace(inbound("杯子碎了", event="2"), media="photo https://files.example/1")
    await across.intake.receive(captioned)
    await across.idle()
    assert relayed(across) == [("😄 Li Wei: [photo] https://files.example/1 杯子碎了", "")]


async def test_the_card_names_what_came_with_the_words(house: House) -> None:
    await house.intake.receive(replace(inbound("杯子碎了，太差了", event="2"), media="photo"))
    await house.idle()
    assert "[photo] 杯子碎了，太差了" in house.slack.sent[0].text


# -- media of agents


@pytest.mark.parametrize(
    ("text", "kind"), [("photo", InboundKind.MEDIA), ("这是新的发票", InboundKind.TEXT)], ids=["bare", "with words"]
)
async def test_what_an_agent_sends_is_copied_to_customers_on_the_same_platform(
    together: House, text: str, kind: InboundKind
) -> None:
    assert await writes(together, GROUP, text, kind=kind, media="photo") is Receipt.ACCEPTED
    assert to_customer(together) == [(text, "-100:9", "")]
    assert marks(together) == [DELIVERED]


async def test_to_customers_elsewhere_it_does_not_go_and_the_agent_hears_why(across: House) -> None:
    assert await writes(across, AGENTS, "see here", media="photo https://files.example/1") is Receipt.DROPPED
    assert to_customer(across) == []
    assert marks(across) == [NOT_DELIVERED]
    assert say("media_across", "en") in [each.text for each in across.slack.sent]


async def test_media_of_who_has_not_claimed_stay_where_they_are(together: House) -> None:
    together.telegram.members = {ANNA.id, "UBO"}
    receipt = await writes(together, GROUP, "photo", kind=InboundKind.MEDIA, media="photo", customer=Customer("UBO"))
    assert receipt is Receipt.DROPPED
    assert to_customer(together) == []


# -- both on Slack


async def test_on_slack_files_go_both_ways(slack_alone: House) -> None:
    photo = on_slack("photo", 2, kind=InboundKind.MEDIA, media="photo https://files.example/1")
    await slack_alone.intake.receive(photo)
    await slack_alone.idle()
    assert relayed(slack_alone) == [("Li Wei: [photo] https://files.example/1", ""), ("", "DC1:2")]
    assert await writes(slack_alone, AGENTS, "发票", media="photo https://files.example/2") is Receipt.ACCEPTED
    assert to_customer(slack_alone) == [("发票", f"{AGENTS.chat}:9", "")]
    assert marks(slack_alone) == [DELIVERED]


async def test_what_was_copied_under_an_unknown_id_is_copied_again_and_not_taken_back(
    slack_alone: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = slack_alone.slack.send

    async def discreet(message: OutboundMessage) -> Delivery:
        delivery = await send(message)
        return Delivery("") if message.copies else delivery

    monkeypatch.setattr(slack_alone.slack, "send", discreet)
    await writes(slack_alone, AGENTS, "发票", media="photo")
    await edits(slack_alone, AGENTS, "新的发票")
    assert to_customer(slack_alone) == [(text, f"{AGENTS.chat}:9", "") for text in ("发票", "新的发票")]
    await slack_alone.intake.receive(on_slack("photo", 2, kind=InboundKind.MEDIA, media="photo"))
    await slack_alone.idle()
    await slack_alone.intake.receive(on_slack("forget yes", 3, kind=InboundKind.COMMAND))
    await slack_alone.idle()
    withdrawn = [each.reply_to for each in slack_alone.slack.sent if each.kind is OutboundKind.WITHDRAW]
    assert len(withdrawn) == 1
    assert withdrawn[0]


# -- edits of agents


async def test_an_agents_edit_edits_what_the_customer_sees(across: House) -> None:
    await writes(across, AGENTS, "明天补发")
    arrived = f"p{len(across.telegram.sent)}"
    assert await edits(across, AGENTS, "今天补发") is Receipt.ACCEPTED
    assert await edits(across, AGENTS, "今天就补发") is Receipt.ACCEPTED
    assert to_customer(across) == [("明天补发", "", ""), ("今天补发", "", arrived), ("今天就补发", "", arrived)]
    assert [line.text for line in across.reader.history(inbound().address, "c1")][-1] == "今天就补发"


async def test_the_words_under_a_copied_photo_are_edited_there(together: House) -> None:
    await writes(together, GROUP, "发票", media="photo")
    arrived = next(f"p{n}" for n, each in enumerate(together.telegram.sent, 1) if each.copies)
    await edits(together, GROUP, "新的发票")
    assert to_customer(together)[-1] == ("新的发票", "-100:9", arrived)


async def test_what_was_not_delivered_is_said_anew_when_it_is_edited(across: House) -> None:
    across.telegram.plan = [Undeliverable("message is too long")]
    await writes(across, AGENTS, "far too long")
    await edits(across, AGENTS, "short")
    assert to_customer(across) == [("short", "", "")]
    assert marks(across) == [NOT_DELIVERED, DELIVERED]


async def test_what_is_edited_before_it_was_sent_is_sent_once_as_it_is_now(across: House) -> None:
    message = InboundMessage(AGENTS, ANNA, f"{AGENTS.chat}:9", "tomorow", answers="p1")
    async with across.telegram.lock:
        await across.intake.receive(message)
        await across.intake.receive(inbound("hello?", event="2"))
        await across.intake.receive(replace(message, event_id=f"{AGENTS.chat}:10", text="second"))
        await across.intake.receive(
            Edited(AGENTS.platform, AGENTS.account, "x", f"{AGENTS.chat}:10", "the second", by=ANNA.id)
        )
    await across.idle()
    assert to_customer(across) == [("tomorow", "", ""), ("the second", "", "")]


@pytest.mark.parametrize("text", ["明天补发", "// not for them"], ids=["unchanged", "a note now"])
async def test_an_edit_that_says_nothing_new_to_the_customer_is_not_sent(across: House, text: str) -> None:
    await writes(across, AGENTS, "明天补发")
    assert await edits(across, AGENTS, text) is Receipt.DROPPED
    assert len(to_customer(across)) == 1


async def test_only_members_edit_what_customers_see(across: House) -> None:
    await writes(across, AGENTS, "明天补发")
    assert await edits(across, AGENTS, "pay me", by="UX") is Receipt.DROPPED
    assert await edits(across, AGENTS, "about something else", number=77) is Receipt.DROPPED
    assert len(to_customer(across)) == 1
