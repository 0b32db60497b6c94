"""Keeping no longer than wished, `frontdesk forget`, `frontdesk export-customer`: what goes and what stays."""

from __future__ import annotations

import asyncio
import io
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from bot.app import build
from bot.catalogue import say
from bot.cli import app
from bot.config import DatabaseSection, PrivacySection, Settings, WebSection
from bot.conversation import OwnerEvent
from bot.errors import DatabaseInUse, FrontdeskError, Undeliverable
from bot.messages import AgentAction, Customer, InboundKind, OutboundKind, Platform, Pressed, Rated, Rating, Scored
from bot.retention import AT_ONCE, Retention
from bot.store.database import open_engine, single_writer
from bot.store.schema import Base
from bot.store.store import Store, utc_now
from tests.conftest import AGENTS, TurnableClock, inbound, on_disk, only_sqlite, rows, until
from tests.fakes.engine import ScriptedEngine
from tests.house import House, working

DAY_S = 86_400
CANARY = "kanarienvogel-太差了-0815"
ANNA = Customer("UANNA", "Anna")


@pytest.fixture
async def house(engine: Engine, clock: TurnableClock) -> AsyncIterator[House]:
    house = House(engine, clock=clock)
    house.slack.members = {ANNA.id}
    async with working(house):
        yield house
    house.writer.close()


async def press(house: House, escalation: int, action: AgentAction) -> None:
    await house.intake.press(Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, ANNA, escalation, action))
    await house.idle()


@pytest.fixture
def keeping_30_days(house: House, clock: TurnableClock) -> Retention:
    return Retention(house.store, house.writer, house.engine, timedelta(days=30), house.queue.wake, clock)


async def sweep(house: House, retention: Retention) -> None:
    await retention.sweep()
    await house.idle()


# -- [privacy] keep_days -----------------------------------------------------------------------------


async def test_who_was_silent_for_so_long_is_erased_and_told_nothing(
    house: House, keeping_30_days: Retention, engine: Engine, clock: TurnableClock
) -> None:
    await house.hears("几点开门？")
    told = len(house.telegram.sent)
    clock.advance(30 * DAY_S + 1)
    await sweep(house, keeping_30_days)
    assert rows(engine) == {}
    assert len(house.telegram.sent) == told


@only_sqlite
async def test_no_byte_of_it_stays_in_the_database_and_its_log(
    house: House, keeping_30_days: Retention, clock: TurnableClock, database_url: str
) -> None:
    await house.hears(CANARY)
    await press(house, 1, AgentAction.RESOLVE)
    assert CANARY.encode() in on_disk(database_url)
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert CANARY.encode() not in on_disk(database_url)
    assert b"Li Wei" not in on_disk(database_url)


async def test_the_model_keeps_nothing_of_it(house: House, keeping_30_days: Retention, clock: TurnableClock) -> None:
    await house.hears("hello")
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert house.engine.forgot == ["1"]


async def test_the_card_that_agents_saw_is_emptied_and_relayed_words_are_taken_back(
    house: House, keeping_30_days: Retention, engine: Engine, clock: TurnableClock
) -> None:
    await house.hears(CANARY, event="1")
    await press(house, 1, AgentAction.CLAIM)
    await house.hears("still there?", event="2")
    await press(house, 1, AgentAction.RESOLVE)
    clock.advance(31 * DAY_S)
    seen = len(house.slack.sent)
    await sweep(house, keeping_30_days)
    card, taken_back = house.slack.sent[seen:]
    assert (card.kind, card.edits) == (OutboundKind.CARD, "p1")
    assert card.text in {f"🔔 #1 {say('reason_erased', code)}" for code in ("zh", "en")}
    assert taken_back.kind is OutboundKind.WITHDRAW
    assert rows(engine) == {}


async def test_what_is_erased_again_before_agents_words_were_taken_back_is_taken_back(
    house: House, keeping_30_days: Retention, clock: TurnableClock
) -> None:
    await house.hears(CANARY, event="1")
    await press(house, 1, AgentAction.CLAIM)
    await house.hears("still there?", event="2")
    await press(house, 1, AgentAction.RESOLVE)
    async with house.slack.lock:
        for event in ("3", "4"):
            await house.intake.receive(inbound("forget yes", event=event, kind=InboundKind.COMMAND))
            await until(lambda: len(house.engine.forgot) == int(event) - 2)  # noqa: B023 - it ends before the next
    await house.idle()
    assert [each.reply_to for each in house.slack.sent if each.kind is OutboundKind.WITHDRAW] == ["p3"]


async def test_a_card_that_cannot_be_edited_any_more_is_not_posted_anew_and_agents_are_told(
    house: House, keeping_30_days: Retention, engine: Engine, clock: TurnableClock
) -> None:
    await house.hears(CANARY)
    await press(house, 1, AgentAction.RESOLVE)
    clock.advance(31 * DAY_S)
    seen = len(house.slack.sent)
    house.slack.plan = [Undeliverable("message_not_found")]
    await sweep(house, keeping_30_days)
    (told,) = house.slack.sent[seen:]
    assert (told.kind, told.reply_to) == (OutboundKind.NOTICE, "p1")
    assert told.text == say("not_taken_back", "en", why="message_not_found")
    assert rows(engine) == {}


async def test_who_said_something_lately_is_kept(
    house: House, keeping_30_days: Retention, clock: TurnableClock
) -> None:
    await house.hears("hello", event="1")
    clock.advance(20 * DAY_S)
    await house.hears("hello again", event="2")
    clock.advance(29 * DAY_S)
    await sweep(house, keeping_30_days)
    assert len(house.outcomes()) == 2


async def test_a_customer_goes_only_when_all_their_conversations_are_old_enough(
    house: House, keeping_30_days: Retention, engine: Engine, clock: TurnableClock
) -> None:
    await house.hears("here", event="1")
    clock.advance(31 * DAY_S)
    await house.hears("in the group", event="2", chat="-7")
    await sweep(house, keeping_30_days)
    assert rows(engine)["conversations"] == 2
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert rows(engine) == {}


async def test_who_waits_for_a_human_is_kept(house: House, keeping_30_days: Retention, clock: TurnableClock) -> None:
    await house.hears(CANARY)
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert len(house.outcomes()) == 1


async def test_whom_a_human_owns_is_kept(house: House, keeping_30_days: Retention, clock: TurnableClock) -> None:
    await house.hears("hello")
    house.store.change_owner(1, OwnerEvent.CLAIM)
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert len(house.outcomes()) == 1


async def test_who_waits_for_an_answer_is_kept(engine: Engine, clock: TurnableClock) -> None:
    house = House(engine, clock=clock)  # nobody works in it
    house.store.accept(inbound())
    clock.advance(31 * DAY_S)
    await Retention(house.store, house.writer, house.engine, timedelta(days=30), house.queue.wake, clock).sweep()
    house.writer.close()
    assert rows(engine)["messages"] == 1


async def test_who_writes_between_the_look_and_the_erasing_is_kept(house: House, clock: TurnableClock) -> None:
    await house.hears("old", event="1")
    clock.advance(31 * DAY_S)
    before = clock() - timedelta(days=30)
    assert house.store.silent(before, AT_ONCE) == [1]
    await house.hears("new", event="2")
    assert house.store.erase_silent(1, before) == []


async def test_it_sweeps_at_once_and_then_once_a_day(house: House, engine: Engine, clock: TurnableClock) -> None:
    days = timedelta(seconds=1)  # so that who wrote is due at once
    retention = Retention(house.store, house.writer, house.engine, days, house.queue.wake, clock)
    await sweep(house, retention)
    await house.hears("hello")
    clock.advance(DAY_S - 1)
    await sweep(house, retention)
    assert rows(engine)["messages"] == 2
    clock.advance(1)
    await sweep(house, retention)
    assert rows(engine) == {}


async def test_many_are_erased_a_few_at_a_time(
    house: House, keeping_30_days: Retention, engine: Engine, clock: TurnableClock
) -> None:
    for number in range(AT_ONCE + 5):
        await house.hears("hello", event=f"e{number}", customer=f"c{number}")
    clock.advance(31 * DAY_S)
    await sweep(house, keeping_30_days)
    assert rows(engine)["customers"] == 5
    await sweep(house, keeping_30_days)
    assert rows(engine) == {}


async def test_0_days_is_for_ever(house: House, engine: Engine, clock: TurnableClock) -> None:
    await house.hears("hello")
    clock.advance(36_500 * DAY_S)
    await sweep(house, Retention(house.store, house.writer, house.engine, timedelta(0), house.queue.wake, clock))
    assert rows(engine)["messages"] == 2


async def test_the_service_sweeps_by_itself(store: Store, engine: Engine, database_url: str) -> None:
    store.accept(inbound(CANARY))  # in January 2026
    with engine.begin() as connection:
        connection.execute(Base.metadata.tables["jobs"].delete())
    settings = Settings(
        database=DatabaseSection(url=database_url),
        web=WebSection(enabled=False, port=0),
        privacy=PrivacySection(keep_days=1),
    )
    desk = build(settings, ScriptedEngine(), Console(file=io.StringIO()))
    watching = asyncio.create_task(desk._sweep())
    await until(lambda: rows(engine) == {})
    watching.cancel()
    await desk.close()


# -- frontdesk forget --------------------------------------------------------------------------------


@pytest.fixture
def config(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    config = tmp_path / "config.toml"
    text = f'[database]\nurl = "{database_url}"\n[slack]\nenabled = true\n[escalation]\nchannel = "slack:C0AGENTS"\n'
    config.write_text(text, encoding="utf-8")
    return config


def frontdesk(config: Path, *words: str, says: str = "") -> Result:
    return CliRunner().invoke(app, [*words, "--config", str(config)], input=says)


@pytest.fixture
async def talked(database_url: str) -> None:
    """c1 complained, was helped, was relayed, and rated; c2 said hello. The service is stopped."""
    engine = open_engine(database_url)
    house = House(engine)
    house.slack.members = {ANNA.id}
    async with working(house):
        await house.hears(CANARY, event="1")
        reply = next(each for each in house.telegram.sent if each.kind is OutboundKind.REPLY)
        await house.intake.receive(Rated(Platform.TELEGRAM, "1", "c1", reply.id, Rating.DOWN))
        await press(house, 1, AgentAction.CLAIM)
        await house.hears("还在吗？", event="2")
        await press(house, 1, AgentAction.RESOLVE)
        await house.intake.receive(Scored(Platform.TELEGRAM, "1", "c1", 1, 4))
        await house.hears("hello", event="3", customer="c2")
    house.writer.close()
    engine.dispose()


@only_sqlite
def test_it_asks_and_a_no_erases_nothing(talked: None, config: Path, database_url: str) -> None:
    result = frontdesk(config, "forget", "telegram", "c1", says="n\n")
    assert result.exit_code == 1
    assert "Erase telegram customer c1 (Li Wei), 1 conversation with" in result.output
    assert "Nothing was erased." in result.output
    assert CANARY.encode() in on_disk(database_url)


def test_a_yes_erases_and_the_receipt_says_what_was_and_what_could_not_be(
    talked: None, config: Path, database_url: str
) -> None:
    result = frontdesk(config, "forget", "telegram", "c1", says="y\n")
    assert result.exit_code == 0, result.output
    print(result.output)
    receipt = result.output.partition("Erased, ")[2]
    assert receipt.startswith("telegram customer c1 (Li Wei): 1 conversation, 7 messages, 1 escalation, ")
    assert "1 card and 1 relayed message, which `frontdesk run` empties and takes back when it starts next" in receipt
    assert "backups" in receipt
    assert ("write-ahead log, archives, replicas" in receipt) is database_url.startswith("postgresql")


@only_sqlite
def test_what_was_erased_by_hand_is_in_no_byte_of_the_database(talked: None, config: Path, database_url: str) -> None:
    assert frontdesk(config, "forget", "telegram", "c1", "--yes").exit_code == 0
    assert CANARY.encode() not in on_disk(database_url)
    assert "还在吗".encode() not in on_disk(database_url)
    assert b"answer to: hello" in on_disk(database_url), "c2 is somebody else"


async def test_the_service_empties_the_agents_side_when_it_starts_next(
    talked: None, config: Path, database_url: str, engine: Engine
) -> None:
    frontdesk(config, "forget", "telegram", "c1", "--yes")
    house = House(engine)
    async with working(house):
        await house.idle()
    house.writer.close()
    assert [each.kind for each in house.slack.sent] == [OutboundKind.CARD, OutboundKind.WITHDRAW]
    assert CANARY not in house.slack.sent[0].text
    assert house.telegram.sent == []
    assert rows(engine)["customers"] == 1


def test_who_was_erased_is_unknown_and_what_agents_see_is_still_to_be_emptied(
    talked: None, config: Path, engine: Engine
) -> None:
    frontdesk(config, "forget", "telegram", "c1", "--yes")
    waiting = rows(engine)["jobs"]
    again = frontdesk(config, "forget", "telegram", "c1", "--yes")
    assert isinstance(again.exception, FrontdeskError)
    assert rows(engine)["jobs"] == waiting


def test_a_message_that_still_waits_goes_with_the_rest(config: Path, engine: Engine, store: Store) -> None:
    store.accept(inbound(CANARY))
    result = frontdesk(config, "forget", "telegram", "c1", "--yes")
    assert "1 conversation, 1 message, 0 escalations, 0 outbound messages" in result.output
    assert rows(engine) == {}


def test_a_customer_of_two_of_our_accounts_is_erased_on_both(config: Path, engine: Engine, store: Store) -> None:
    for account in ("1", "2"):
        store.accept(replace(inbound(), address=replace(inbound().address, account=account)))
    result = frontdesk(config, "forget", "telegram", "c1", "--yes")
    assert "2 conversations, 2 messages" in result.output
    assert rows(engine) == {}


@only_sqlite
def test_while_a_service_runs_it_is_refused_in_one_sentence(talked: None, config: Path, database_url: str) -> None:
    with single_writer(database_url):
        result = frontdesk(config, "forget", "telegram", "c1", "--yes")
    assert isinstance(result.exception, DatabaseInUse)
    assert str(result.exception).endswith("stop it, or let the customer write /forget")
    assert CANARY.encode() in on_disk(database_url)


@pytest.mark.parametrize("command", [["forget"], ["export-customer"]])
def test_an_unknown_customer_is_one_sentence(config: Path, tmp_path: Path, command: list[str]) -> None:
    file = [str(tmp_path / "out.json")] if command == ["export-customer"] else []
    result = frontdesk(config, *command, "slack", "c1", *file)
    assert isinstance(result.exception, FrontdeskError)
    assert "there is no slack customer c1 in" in str(result.exception)
    assert not (tmp_path / "out.json").exists()


# -- frontdesk export-customer -----------------------------------------------------------------------


def test_the_file_holds_every_line_with_who_when_and_how_it_was(talked: None, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "c1.json"
    result = frontdesk(config, "export-customer", "telegram", "c1", str(file))
    assert result.exit_code == 0, result.output
    assert result.output == f"1 conversation with 7 messages in {file}\n"
    text = file.read_text(encoding="utf-8")
    print(text)
    assert CANARY in text, "it is readable, whatever the language"
    document = json.loads(text)
    assert (document["platform"], document["customer_id"]) == ("telegram", "c1")
    (conversation,) = document["conversations"]
    assert (conversation["name"], conversation["language"], conversation["chat"]) == ("Li Wei", "zh-hans", "chat-c1")
    first, answer = conversation["messages"][:2]
    assert (first["author"], first["text"], first["outcome"]) == ("customer", CANARY, "escalated")
    assert first["mood"] == {"label": "负面", "negative": 0.95, "threshold": 0.8}
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(answer["time"]) <= utc_now()
    assert (answer["author"], answer["rating"]) == ("bot", "down")
    (call,) = conversation["escalations"]
    assert (call["reason"], call["claimed_by"], call["ended"], call["score"]) == ("negative", "Anna", "resolve", 4)
    assert call["opened_at"] <= call["claimed_at"] <= call["resolved_at"]
    assert {each["state"] for each in conversation["deliveries"]} == {"sent"}


def test_nobody_elses_words_are_in_it(talked: None, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "c2.json"
    frontdesk(config, "export-customer", "telegram", "c2", str(file))
    assert CANARY not in file.read_text(encoding="utf-8")


def test_only_its_owner_can_read_it(talked: None, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "c1.json"
    frontdesk(config, "export-customer", "telegram", "c1", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_exists_is_not_overwritten(talked: None, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("mine")
    result = frontdesk(config, "export-customer", "telegram", "c1", str(file))
    assert str(result.exception) == f"{file} exists already: name another file"
    assert file.read_text() == "mine"


def test_it_works_beside_a_running_service(talked: None, config: Path, tmp_path: Path, database_url: str) -> None:
    with single_writer(database_url):
        result = frontdesk(config, "export-customer", "telegram", "c1", str(tmp_path / "c1.json"))
    assert result.exit_code == 0, result.output
