"""Every action by every role: what is allowed, and that what is refused changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from bot.catalogue import say
from bot.config import Secrets, parse
from bot.messages import (
    AgentAction,
    Customer,
    Edited,
    InboundKind,
    InboundMessage,
    OutboundKind,
    Platform,
    Pressed,
    Rated,
    Rating,
    Receipt,
    Scored,
)
from tests.conftest import AGENTS, inbound
from tests.house import House, working

STRANGER, CUSTOMER, MEMBER = Customer("UX", "x"), Customer("c1", "Li Wei"), Customer("UMEMBER", "mem")
AGENT, CLAIMER = Customer("UBO", "bo"), Customer("UANNA", "anna")
"""In the channel are the last three; of these, `escalation.agents` names the last two."""
ROLES = {"stranger": STRANGER, "customer": CUSTOMER, "member": MEMBER, "agent": AGENT, "claimer": CLAIMER}

Act = Callable[[House, Customer], Awaitable[str]]


@pytest.fixture
async def owned(engine: Engine, impatient_queue: None) -> AsyncIterator[House]:
    """An angry customer whose conversation the claimer owns, and who was told something."""
    house = House(engine, parse({"escalation": {"agents": [AGENT.id, CLAIMER.id]}}, Secrets()))
    house.slack.members = {MEMBER.id, AGENT.id, CLAIMER.id}
    async with working(house):
        await house.hears("太差了", event="1")
        await press(AgentAction.CLAIM)(house, CLAIMER)
        await writes("您好")(house, CLAIMER)
        yield house
    house.writer.close()


# -- what can be done; each says what came of it


def press(action: AgentAction) -> Act:
    async def act(house: House, who: Customer) -> str:
        words = await house.intake.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, who, 1, action))
        await house.idle()
        keys = ("press_stranger", "press_taken", "press_yours", f"press_{action}")
        return next(key for key in keys if say(key, "zh", name=CLAIMER.name) == words)

    return act


def writes(text: str, **more: object) -> Act:
    async def act(house: House, who: Customer) -> str:
        told = len(house.slack.sent)
        message = InboundMessage(AGENTS, who, f"{AGENTS.chat}:{who.id}{text}", text, answers="p1")
        receipt = await house.intake.receive(replace(message, **more))  # type: ignore[arg-type]  # fields of its own
        await house.idle()
        new = {(each.kind, each.text) for each in house.slack.sent[told:]}
        claim_first = (OutboundKind.NOTICE, say("claim_first", "en", name=who.name)) in new
        no_way = (OutboundKind.NOTICE, say("media_across", "en")) in new
        return "claim first" if claim_first else "no way" if no_way else str(receipt)

    return act


async def edits(house: House, who: Customer) -> str:
    """The claimer's message, which is the only one that reached the customer. (Platforms let nobody else do that.)"""
    of = f"{AGENTS.chat}:{CLAIMER.id}您好"
    receipt = await house.intake.receive(Edited(AGENTS.platform, AGENTS.account, f"{of}:2", of, "hi", by=who.id))
    await house.idle()
    return str(receipt)


async def scores(house: House, who: Customer) -> str:
    await press(AgentAction.RESOLVE)(house, CLAIMER)
    return str(await house.intake.receive(Scored(Platform.TELEGRAM, "1", who.id, 1, 5)))


async def rates(house: House, who: Customer) -> str:
    reply = next(each for each in house.telegram.sent if each.kind is OutboundKind.REPLY)
    return str(await house.intake.receive(Rated(Platform.TELEGRAM, "1", who.id, reply.id, Rating.UP)))


async def forgets(house: House, who: Customer) -> str:
    """In the customer's own chat, as if it were a group."""
    wish = inbound("forget yes", event="f", customer=who.id, chat="chat-c1", kind=InboundKind.COMMAND)
    await house.intake.receive(wish)
    await house.idle()
    return "kept" if house.reader.history(inbound().address, "c1") else "erased"


REFUSED = ("press_stranger",) * 3
DROPPED = (Receipt.DROPPED,) * 3
TABLE: list[tuple[str, Act, tuple[str, ...]]] = [
    # role by role: stranger, customer, member, agent, claimer
    ("claim", press(AgentAction.CLAIM), (*REFUSED, "press_taken", "press_yours")),
    ("resolve", press(AgentAction.RESOLVE), (*REFUSED, "press_resolve", "press_resolve")),
    ("hand back", press(AgentAction.RETURN), (*REFUSED, "press_return", "press_return")),
    ("not negative", press(AgentAction.CORRECT), (*REFUSED, "press_correct", "press_correct")),
    ("write", writes("hello"), (*DROPPED, "claim first", Receipt.ACCEPTED)),
    ("write a note", writes("// hello"), (*DROPPED, Receipt.DROPPED, Receipt.DROPPED)),
    ("send a photo", writes("this", media="photo"), (*DROPPED, "claim first", "no way")),
    ("write elsewhere", writes("hello", answers=""), (*DROPPED, Receipt.DROPPED, Receipt.DROPPED)),
    ("edit", edits, (*DROPPED, Receipt.ACCEPTED, Receipt.ACCEPTED)),
    ("score", scores, (Receipt.DROPPED, Receipt.ACCEPTED, *DROPPED)),
    ("rate a reply", rates, (Receipt.DROPPED, Receipt.ACCEPTED, *DROPPED)),
    ("forget", forgets, ("kept", "erased", "kept", "kept", "kept")),
]
CASES = [
    pytest.param(name, act, who, expected, id=f"{role}: {name}")
    for name, act, expectations in TABLE
    for (role, who), expected in zip(ROLES.items(), expectations, strict=True)
]


@pytest.mark.parametrize(("name", "act", "who", "expected"), CASES)
async def test_every_role_may_do_what_it_may_and_nothing_else(
    owned: House, name: str, act: Act, who: Customer, expected: str
) -> None:
    before = len([each for each in owned.telegram.sent if each.kind is OutboundKind.AGENT])
    assert await act(owned, who) == expected
    said = len([each for each in owned.telegram.sent if each.kind is OutboundKind.AGENT]) - before
    allowed = name in ("write", "edit") and expected == Receipt.ACCEPTED
    assert said == allowed, "nothing else reaches the customer"
