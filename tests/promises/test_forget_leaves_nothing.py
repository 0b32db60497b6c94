"""Who wants to be forgotten: no byte of their words or their name is left where we can reach it, and who has to know
is told what we cannot reach."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine

from bot.catalogue import say
from bot.config import Settings
from bot.conversation import Call, Outcome, Reason
from bot.messages import AgentAction, Customer, Delivery, InboundKind, Platform, Pressed
from bot.privacy import forget
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.values import Settlement, Verdict
from engine.qwen import QwenEngine
from engine.types import EngineConfig, OnText, Reply, TextRole, Turn
from tests.conftest import AGENTS, inbound, on_disk, only_sqlite, rows, until
from tests.fakes.engine import ScriptedEngine
from tests.fakes.slack import Fault
from tests.house import House, working
from tests.promises.shop import AGENTS as CHANNEL
from tests.promises.shop import ANNA, Shop, open_shop

LEASE = timedelta(seconds=30)
WORD, NAME = "Kanarienvogel", "Wellensittich"
"""In everything that the customer says, and in their name."""
CUSTOMER, CHAT = "U1", "DU1"
ON_TELEGRAM = 7


@pytest.fixture
def model(random_model: Path) -> QwenEngine:
    return QwenEngine.load(EngineConfig(threads=1, precision="fp32"), random_model)


def remembered(engine: QwenEngine) -> bytes:
    """All that the engine's caches and its draft store hold, as text."""
    caches = [*engine._histories._caches.values(), *engine._prefixes.values()]
    tokens = [*(cache.tokens for cache in caches), *engine._replies._said]
    return "\n".join(engine._chat._tokenizer.decode(each) for each in tokens).encode()


def shown_to_agents(shop: Shop) -> bytes:
    """Their channel, and the files that the bot uploaded."""
    chat = shop.slack.add_channel(CHAT)
    sent = {file["id"] for said in chat.messages for file in said.get("files", ())}
    uploaded = [content for id, content in shop.slack.contents.items() if id not in sent]
    return b"".join([repr(shop.slack.by_bot(CHANNEL)).encode(), *uploaded])


def copies(shop: Shop, engine: QwenEngine) -> dict[str, int]:
    """How often what the customer said, or their name, is found where."""
    places = {
        "database": on_disk(shop.app.settings.database.url),
        "model": remembered(engine),
        "agents": shown_to_agents(shop),
        "log": shop.raw.getvalue().encode(),
    }
    found = {place: held.count(WORD.encode()) + held.count(NAME.encode()) for place, held in places.items()}
    return {place: count for place, count in found.items() if count}


async def complains_on_slack(shop: Shop) -> None:
    """Words, a call for a person, whom Anna is; words and a file to her."""
    slack = shop.slack
    for text in (f"{WORD} one", f"{WORD} two, human"):
        await slack.direct_message(CUSTOMER, text)
        await shop.idle()
    await claims(shop)
    photo = slack.put_file(f"{WORD} as a picture".encode(), f"{WORD}.png")
    await slack.direct_message(CUSTOMER, f"{WORD} three", subtype="file_share", files=[photo])
    await shop.idle()


async def complains_on_telegram(shop: Shop) -> None:
    """The same without a file; an edit, and a mood that Anna corrects."""
    for text in (f"{WORD} one", f"{WORD} two, human"):
        shop.telegram.customer_writes(ON_TELEGRAM, text, name=NAME, language="en")
        await shop.idle()
    await claims(shop)
    shop.telegram.customer_writes(ON_TELEGRAM, f"{WORD} three", name=NAME, language="en")
    await shop.idle()
    edited = shop.telegram.written[0] | {"text": f"{WORD} four", "edit_date": 1}
    shop.telegram.push(edited_message=edited)
    await shop.idle()


async def claims(shop: Shop) -> None:
    card = next(said for said in reversed(shop.slack.by_bot(CHANNEL)) if said["blocks"])
    await shop.slack.press_button(card, ANNA, say("button_claim", "en"))
    await shop.idle()
    await shop.slack.thread_message(CHANNEL, ANNA, "on its way", card["ts"])
    await shop.idle()


@only_sqlite
@pytest.mark.parametrize("platform", ["slack", "telegram"])
async def test_after_forget_no_copy_is_left_where_we_can_reach_it(
    database_url: str, model: QwenEngine, platform: str
) -> None:
    async with open_shop(database_url, model, engine={"max_new_tokens": 8}) as shop:
        await (complains_on_slack if platform == "slack" else complains_on_telegram)(shop)
        before = copies(shop, model)
        if platform == "slack":
            await shop.slack.direct_message(CUSTOMER, "!forget yes")
        else:
            shop.telegram.customer_writes(ON_TELEGRAM, "/forget yes", name=NAME, language="en")
        await shop.idle()
        print(f"copies before: {before}, after: {copies(shop, model)}")
        assert before.keys() == {"database", "model", "agents"}
        assert copies(shop, model) == {}
        assert rows(shop.app.database).keys() <= {"cursors"}
        told = shop.slack.said(CHAT) if platform == "slack" else shop.telegram.texts(ON_TELEGRAM)
        assert told[-1] == say("forgotten", "en")


@only_sqlite
async def test_what_slack_does_not_let_us_delete_the_agents_are_told_to_delete(
    database_url: str, model: QwenEngine
) -> None:
    async with open_shop(database_url, model, engine={"max_new_tokens": 8}) as shop:
        await complains_on_slack(shop)
        shop.slack.fail("files.delete", Fault(error="cant_delete_file"))
        await shop.slack.direct_message(CUSTOMER, "!forget yes")
        await shop.idle()
        assert copies(shop, model).keys() == {"agents"}, "the file, which Slack keeps"
        told = shop.slack.said(CHANNEL)[-1]
        print(told)
        assert told.startswith(say("not_taken_back", "en", why="").partition("(")[0])
        assert "cant_delete_file" in told
        assert rows(shop.app.database).keys() <= {"cursors"}


class Slow(ScriptedEngine):
    """A reply in one chat waits for `hold`; the model remembers whom it answered until it is told to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.remembered: set[str] = set()

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        reply = await super().write(role, turns, on_text, conversation)
        self.remembered.add(conversation)
        return reply

    async def forget(self, conversation: str) -> None:
        self.remembered.discard(conversation)


async def test_a_reply_that_is_being_written_elsewhere_when_its_customer_is_forgotten_is_forgotten_too(
    engine: Engine,
) -> None:
    house, model = House(engine), Slow()
    house.handlers[JobKind.ATTEND]._engine = model
    model.hold = asyncio.Event()
    async with working(house):
        await house.intake.receive(inbound("in the group", event="1", chat="-7"))
        await until(lambda: bool(model.asked))
        await house.intake.receive(inbound("forget yes", event="2", kind=InboundKind.COMMAND))
        await until(lambda: bool(house.telegram.sent))
        model.hold.set()
        await until(lambda: not house.queue._working)
    house.writer.close()
    assert model.remembered == set()
    assert rows(engine) == {}


@pytest.mark.parametrize("arrived", [True, False])
def test_the_owner_s_receipt_lists_what_was_erased_and_what_could_not_be(
    engine: Engine, database_url: str, arrived: bool
) -> None:
    """A relayed message whose place the platform told, and one of which it did not."""
    store = Store(engine, AGENTS)
    message = store.accept(inbound(WORD)).message_id
    settle(store, message, Call(Reason.ASKED, message))
    deliver(store, "p1")
    store.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, Customer("anna"), 1, AgentAction.CLAIM), "she")
    message = store.accept(inbound(WORD, event="2")).message_id
    settle(store, message, relays=((message, WORD),))
    deliver(store, "p2" if arrived else "")
    said, settings = io.StringIO(), Settings.model_validate({"database": {"url": database_url}})
    assert forget(settings, Platform.TELEGRAM, "c1", lambda question: True, Console(file=said))
    print(said.getvalue())
    receipt = said.getvalue()
    assert receipt.startswith("Erased, telegram customer c1 (Li Wei): 1 conversation, ")
    assert "backups made before" in receipt
    assert "what agents wrote about it" in receipt
    assert ("1 relayed message, which `frontdesk run`" in receipt) is arrived
    assert ("1 relayed message of which the platform did not tell where" in receipt) is not arrived


def settle(store: Store, message: int, call: Call | None = None, relays: tuple[tuple[int, str], ...] = ()) -> None:
    claim = store.claim(JobKind.ATTEND, LEASE)
    store.finish(claim, Settlement((Verdict(message, Outcome.ANSWERED),), call=call, relays=relays))


def deliver(store: Store, place: str) -> None:
    while claim := store.claim(JobKind.DELIVER, LEASE):
        store.begin_send(claim)
        store.sent(claim, Delivery(place))


@only_sqlite
async def test_where_the_write_ahead_log_is_left_alone_copies_are_left_in_it(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage."""
    monkeypatch.setattr("bot.store.store.leave_no_trace", lambda engine: None)
    house = House(engine)
    async with working(house):
        await house.hears(WORD, event="1")
        await house.hears("forget yes", event="2", kind=InboundKind.COMMAND)
    house.writer.close()
    assert rows(engine) == {}
    assert WORD.encode() in on_disk(database_url)
