"""No secret in a log, at DEBUG, whatever platforms do."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.slack import check as check_slack
from adapters.telegram_setup import check as check_telegram
from tests.conftest import only_sqlite, until
from tests.fakes.engine import ScriptedEngine
from tests.fakes.slack import Fault as SlackFault
from tests.fakes.telegram import TOKEN, Fault
from tests.promises.shop import AGENTS, SECRETS, Shop, open_shop

ROOT = Path(__file__).parents[2]


async def all_goes_wrong(shop: Shop) -> None:
    """Customers write while both platforms fail in every way, some of them by saying our own tokens."""
    telegram, slack = shop.telegram, shop.slack
    telegram.fail("getUpdates", Fault(reset=True), Fault(502, body=TOKEN), Fault(409, TOKEN), Fault(429, retry_after=0))
    telegram.fail("sendMessage", Fault(429, retry_after=1), Fault(502, body=TOKEN))
    slack.fail("chat.postMessage", SlackFault(retry_after=0), SlackFault(reset=True), SlackFault(error="fatal_error"))
    telegram.customer_writes(7, "awful", language="en")
    await slack.direct_message("U1", "awful, a human please")
    await until(lambda: bool(telegram.sent(7) and slack.by_bot("DU1")), 30)
    await slack.disconnect(abrupt=True)
    await slack.connected(2)
    telegram.fail("sendMessage", Fault(403, f"Forbidden: {TOKEN}"))
    telegram.customer_writes(7, "and?", language="en")
    await until(lambda: shop.app.reader.load().open_escalations == 2, 30)
    await check_telegram(f"{TOKEN}-mistyped", telegram.url, "")
    await check_slack(f"{SECRETS['slack_bot_token']}-old", SECRETS["slack_app_token"], slack.url, AGENTS)
    slack.alive_tokens.clear()
    await slack.disconnect()


@only_sqlite
async def test_no_secret_reaches_the_log_whatever_platforms_do(database_url: str) -> None:
    async with open_shop(database_url, ScriptedEngine()) as shop:
        await all_goes_wrong(shop)
    lines = shop.written.getvalue().splitlines()
    print(f"{len(lines)} lines, {shop.raw.getvalue().count('CANARY')} secrets that had to be taken out of them")
    assert any('"level": "debug"' in line for line in lines)
    assert [line for line in lines if "CANARY" in line] == []


@only_sqlite
async def test_where_libraries_may_log_what_they_like_secrets_are_taken_out_of_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: httpx writes every address, and Telegram's hold the token."""
    monkeypatch.setattr(logging.getLogger("httpx"), "filters", [])
    async with open_shop(database_url, ScriptedEngine()) as shop:
        shop.telegram.customer_writes(7, "hello", language="en")
        await shop.idle()
    assert shop.raw.getvalue().count(TOKEN) > 3
    assert "CANARY" not in shop.written.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_no_secret_is_logged_by_any_test_of_the_whole_desk_at_debug() -> None:
    """Not even to be taken out again."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.promises.canary_plugin", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, "tests/integration", "tests/e2e"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(ran.stdout[-2_000:])
    assert ran.returncode == 0
    looked = re.search(r"looked at (\d+) lines of the log, 0 with a secret", ran.stdout)
    assert looked is not None
    assert int(looked[1]) > 10_000
