"""The real program against a Slack of our own: nothing lost, nothing answered twice, whatever happens to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.catalogue import say
from tests.e2e.program import Program
from tests.fakes.slack import FakeSlack

AGENTS = "C0AGENTS"
SECRETS = {"FRONTDESK_SLACK_BOT_TOKEN": "xoxb-CANARY-e2e", "FRONTDESK_SLACK_APP_TOKEN": "xapp-CANARY-e2e"}


def configured(folder: Path, slack: FakeSlack) -> Program:
    sections = f'[slack]\nenabled = true\napi_url = "{slack.url}"'
    return Program(folder, f"slack:{AGENTS}", sections, SECRETS)


@pytest.fixture
async def slack() -> AsyncIterator[FakeSlack]:
    tokens = SECRETS["FRONTDESK_SLACK_BOT_TOKEN"], SECRETS["FRONTDESK_SLACK_APP_TOKEN"]
    async with FakeSlack(*tokens) as slack:
        slack.add_channel(AGENTS, "agents")
        yield slack
    assert slack.violations == []


async def test_every_acknowledged_message_is_answered_once_although_the_process_was_killed(
    slack: FakeSlack, tmp_path: Path
) -> None:
    people = [f"U{number}" for number in range(8)]
    async with configured(tmp_path, slack) as program:
        await slack.connected()
        for event in [await slack.direct_message(person, "hello there") for person in people]:
            await slack.acked(event)
        await program.kill()
        late = await slack.direct_message("U8", "while you were away")
        await program.start()
        await slack.acked(late)
        for person in [*people, "U8"]:
            await slack.posted(f"D{person}")
        assert await program.terminate() == 0
        unsure = program.rows("SELECT count(*) FROM outbound WHERE unknowns > 0")[0][0]
    answers = [len(slack.said(f"D{person}")) for person in [*people, "U8"]]
    assert answers == [1] * 9, f"{unsure} sends were looked up first"
    assert program.rows("SELECT DISTINCT outcome FROM messages WHERE author = 'customer'") == [("answered",)]


async def test_asking_for_a_person_brings_a_card_and_stopping_finishes_what_runs(
    slack: FakeSlack, tmp_path: Path
) -> None:
    async with configured(tmp_path, slack) as program:
        await slack.connected()
        await slack.direct_message("U1", "人工")
        await program.logs("mood read")
        assert await program.terminate() == 0
    (answer,), (card,) = slack.said("DU1"), slack.said(AGENTS)
    assert answer == say("human_called", "zh")
    assert "人工" in card


async def test_no_token_reaches_the_log_of_the_whole_program_at_debug(slack: FakeSlack, tmp_path: Path) -> None:
    async with configured(tmp_path, slack) as program:
        await slack.connected()
        await slack.direct_message("U1", "hello")
        await slack.posted("DU1")
        await program.terminate()
    assert "slack" in program.said()
    assert "CANARY" not in program.said()
