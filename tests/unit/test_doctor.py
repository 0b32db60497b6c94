"""`frontdesk doctor`: a tick or a cross for everything that must be well, and never a token."""

from __future__ import annotations

import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from bot.cli import app
from bot.errors import FrontdeskError
from bot.messages import Check, OutboundKind
from bot.store.database import driver, open_engine, upgrade
from bot.store.jobs import JobKind
from bot.store.store import Store
from bot.store.values import Say, Settlement
from tests.conftest import inbound

TOKEN = "canary-4711"
WELL = '[engine]\nmodel = "bundled"\n[escalation]\nchannel = "console"\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FRONTDESK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("bot.log.set_up", lambda *_: None)  # the other tests keep their logging
    return tmp_path / "config.toml"


def examine(config: Path, text: str) -> Result:
    config.write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, ["doctor", "--config", str(config)])


def telegram_says(monkeypatch: pytest.MonkeyPatch, *answers: Check | FrontdeskError) -> list[tuple[str, str, str]]:
    asked = []

    async def check(token: str, api_url: str, chat: str) -> list[Check]:
        asked.append((token, api_url, chat))
        if isinstance(answers[0], FrontdeskError):
            raise answers[0]
        return list(answers)

    module = ModuleType("adapters.telegram_setup")
    module.__dict__["check"] = check
    monkeypatch.setitem(sys.modules, "adapters.telegram_setup", module)
    return asked


def test_a_set_up_without_faults_has_only_ticks(config: Path):
    upgrade(f"sqlite:///{config.parent / 'frontdesk.db'}")
    result = examine(config, WELL)
    assert result.exit_code == 0, result.output
    assert "✗" not in result.output
    assert f"SQLite {driver().sqlite_version}" in result.output
    assert "bundled" in result.output
    assert "fp32: 8 bits would not make a model this small faster" in result.output


def test_a_database_on_a_server_is_named_with_its_version(config: Path, empty_postgres: str):
    text = f'{WELL}[database]\nurl = "{empty_postgres}"\n'
    result = examine(config, text)
    assert result.exit_code == 0, result.output
    assert re.search(rf"PostgreSQL \d+\.\d+; {re.escape(empty_postgres)}, brought up to date", result.output)
    upgrade(empty_postgres)
    assert "brought up to date" not in examine(config, text).output


def test_a_server_that_does_not_answer_is_a_cross(config: Path):
    result = examine(config, f'{WELL}[database]\nurl = "postgresql+psycopg://me@127.0.0.1:1/shop"\n')
    assert result.exit_code == 1
    assert "postgresql+psycopg://me@127.0.0.1:1/shop cannot be read: connection failed" in result.output


def test_who_is_out_of_reach_is_told_and_is_no_fault(config: Path):
    url = f"sqlite:///{config.parent / 'frontdesk.db'}"
    upgrade(url)
    store = Store(open_engine(url))
    store.accept(inbound())
    claim = store.claim(JobKind.ATTEND, timedelta(seconds=30))
    store.finish(claim, Settlement(says=(Say(OutboundKind.NOTICE, ("hi",)),)))
    store.bury_delivery(store.claim(JobKind.DELIVER, timedelta(seconds=30)), "bot was blocked by the user")
    result = examine(config, WELL)
    assert result.exit_code == 0, result.output
    assert "out of reach until they write again: 1 × bot was blocked by the user" in result.output


def test_a_precision_that_this_machine_lacks_is_a_cross(config: Path, monkeypatch: pytest.MonkeyPatch):
    from engine import precision

    monkeypatch.setitem(precision._PRECISIONS, "int8", (precision.int8_linear, lambda: False))
    result = examine(config, WELL.replace("[escalation]", 'precision = "int8"\n[escalation]'))
    assert result.exit_code == 1
    assert 'cannot calculate in engine.precision = "int8"' in result.output


def test_a_database_that_is_not_there_yet_is_no_fault(config: Path):
    result = examine(config, WELL)
    assert result.exit_code == 0, result.output
    assert "is made at the first start" in result.output
    assert not (config.parent / "frontdesk.db").exists(), "looking changes nothing"


def test_a_file_that_is_no_database_is_a_cross(config: Path):
    (config.parent / "frontdesk.db").write_bytes(b"not a database, but long enough to be read as one" * 20)
    result = examine(config, WELL)
    assert result.exit_code == 1
    assert "✗ database" in result.output


def test_bad_settings_are_a_cross_with_the_keys_name(config: Path):
    result = examine(config, "[web]\nport = -1\n")
    assert result.exit_code == 1
    assert "✗ settings" in result.output
    assert "web.port" in result.output


def test_a_missing_config_is_a_cross(config: Path):
    result = CliRunner().invoke(app, ["doctor", "--config", str(config)])
    assert result.exit_code == 1
    assert "frontdesk init" in result.output


def test_a_model_that_was_not_downloaded_is_a_cross_that_says_how(config: Path):
    result = examine(config, WELL.replace("bundled", "Qwen/never-pulled"))
    assert result.exit_code == 1
    assert "✗ model" in result.output
    assert "frontdesk model pull" in result.output


def test_a_missing_model_directory_is_a_cross(config: Path):
    result = examine(config, WELL.replace("bundled", "./nowhere"))
    assert result.exit_code == 1
    assert "✗ model" in result.output


def test_a_missing_token_is_a_cross_that_names_the_variable(config: Path):
    result = examine(config, WELL + "[slack]\nenabled = true\n")
    assert result.exit_code == 1
    assert "FRONTDESK_SLACK_BOT_TOKEN" in result.output
    assert "FRONTDESK_SLACK_APP_TOKEN" in result.output


def test_nobody_being_called_is_a_cross(config: Path):
    result = examine(config, WELL.replace("console", ""))
    assert result.exit_code == 1
    assert "✗ escalation" in result.output


def test_the_platform_is_asked_about_its_token_and_the_channel(config: Path, monkeypatch: pytest.MonkeyPatch):
    asked = telegram_says(
        monkeypatch, Check("Telegram", True, "@shop_bot"), Check("Telegram group", False, "no rights")
    )
    monkeypatch.setenv("FRONTDESK_TELEGRAM_TOKEN", TOKEN)
    result = examine(config, WELL.replace("console", "telegram:-100") + "[telegram]\nenabled = true\n")
    assert asked == [(TOKEN, "https://api.telegram.org", "-100")]
    assert result.exit_code == 1
    assert "✓ Telegram" in result.output
    assert "✗ Telegram group no rights" in result.output


@pytest.mark.parametrize("answer", [Check("Telegram", False, f"GET /bot{TOKEN}/getMe"), FrontdeskError(f"bad {TOKEN}")])
def test_a_token_is_never_printed(config: Path, monkeypatch: pytest.MonkeyPatch, answer: Check | FrontdeskError):
    telegram_says(monkeypatch, answer)
    monkeypatch.setenv("FRONTDESK_TELEGRAM_TOKEN", TOKEN)
    result = examine(config, WELL + "[telegram]\nenabled = true\n")
    assert result.exit_code == 1
    assert "[secret]" in result.output
    assert TOKEN not in result.output
