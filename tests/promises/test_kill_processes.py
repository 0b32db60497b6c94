"""The real program with the bundled model on Telegram and Slack, killed at random moments: nothing is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import until
from tests.e2e.program import Program
from tests.e2e.test_slack_process import SECRETS
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import TOKEN, FakeTelegram

LONGEST_LIFE_S = 1.5
"""Within which eight people have their answers when nothing happens."""


def configured(folder: Path, telegram: FakeTelegram, slack: FakeSlack) -> Program:
    platforms = {"telegram": telegram.url, "slack": slack.url}
    sections = "\n".join(f'[{name}]\nenabled = true\napi_url = "{url}"' for name, url in platforms.items())
    return Program(folder, "slack:C0AGENTS", sections, {**SECRETS, "FRONTDESK_TELEGRAM_TOKEN": TOKEN})


async def nothing_is_lost(folder: Path, kills: int) -> None:
    """Each kill ends a life in which eight new people write, four on each platform, at any moment of it."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    draw, people, events = random.Random(seed), range(101, 101 + 4 * kills), []
    async with FakeTelegram() as telegram, FakeSlack(*list(SECRETS.values())) as slack:
        slack.add_channel("C0AGENTS", "agents")
        async with configured(folder, telegram, slack) as program:
            for life in range(kills):
                await slack.connected(life + 1)
                ends = asyncio.create_task(asyncio.sleep(draw.uniform(0, LONGEST_LIFE_S)))
                for person in people[4 * life : 4 * life + 4]:
                    telegram.customer_writes(person, "hello there")
                    events.append(await slack.direct_message(f"U{person}", "hello there"))
                    await asyncio.sleep(draw.uniform(0, LONGEST_LIFE_S / 8))
                await ends
                await program.kill()
                await program.start()
            await until(lambda: not telegram.pending and all(event.acks for event in events), 60)
            await until(lambda: program.rows("SELECT count(*) FROM jobs WHERE state != 'dead'") == [(0,)], 60)
            outcomes = program.rows("SELECT outcome, count(*) FROM messages WHERE author = 'customer' GROUP BY outcome")
            unsure = program.rows("SELECT chat FROM outbound WHERE platform = 'telegram' AND unknowns > 0")
            failed = program.rows("SELECT chat FROM outbound WHERE state = 'failed'")
            assert await program.terminate() == 0
    seen = {str(person): Counter(telegram.texts(person)) for person in people}
    seen |= {f"DU{person}": Counter(slack.said(f"DU{person}")) for person in people}
    again = sum(len(event.envelopes) - 1 for event in events)
    twice = [chat for chat, texts in seen.items() if max(texts.values(), default=1) > 1]
    print(
        f"{kills} kills, {dict(outcomes)}: {again} events of Slack delivered again, {len(unsure)} sends of Telegram",
        end="",
    )
    print(f" begun again, {len(twice)} seen twice, {len(failed)} given up and a human called")
    assert sum(count for outcome, count in outcomes if outcome) == 2 * len(people)
    assert [chat for chat, texts in seen.items() if not texts and (chat,) not in failed] == []
    assert [chat for chat in twice if max(seen[chat].values()) > 2 or (chat,) not in unsure] == []
    assert telegram.violations + slack.violations == []


@pytest.mark.slow
async def test_twenty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    await nothing_is_lost(tmp_path, 20)
