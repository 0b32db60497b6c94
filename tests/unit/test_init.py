"""`frontdesk init`: what it asks, what it tests, what it writes. The platforms' four functions are stand-ins."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from bot.cli import app
from bot.config import Settings, load
from bot.errors import FrontdeskError
from bot.init import Setup
from bot.messages import Check
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import FakeTelegram

GOOD, BAD = "canary-good", "canary-bad"


class Platforms:
    """What the stand-ins are asked, and what they answer: GOOD tokens are good, the rest is refused."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.groups: list[tuple[str, str]] = [("-100200", "Staff 群")]
        self.channels = [("C1", "general"), ("C2", "staff")]

    async def telegram_check(self, token: str, api_url: str, chat: str) -> list[Check]:
        self.asked.append(("telegram", token, chat))
        return [Check("Telegram", token == GOOD, "@shop_bot" if token == GOOD else f"Unauthorized: {token}")]

    async def slack_check(self, bot: str, app: str, api_url: str, channel: str) -> list[Check]:
        self.asked.append(("slack", bot, app, channel))
        return [Check("Slack", bot == app == GOOD, "")]

    async def find_group(self, token: str, api_url: str, timeout_s: float) -> tuple[str, str]:
        if not self.groups:
            raise FrontdeskError("nobody wrote /here in a group")
        return self.groups.pop(0)

    async def find_channels(self, token: str, api_url: str) -> list[tuple[str, str]]:
        return self.channels


@pytest.fixture
def platforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platforms]:
    fake = Platforms()
    telegram, slack = ModuleType("adapters.telegram_setup"), ModuleType("adapters.slack")
    telegram.__dict__.update(check=fake.telegram_check, find_group=fake.find_group)
    slack.__dict__.update(check=fake.slack_check, find_channels=fake.find_channels)
    monkeypatch.setitem(sys.modules, "adapters.telegram_setup", telegram)
    monkeypatch.setitem(sys.modules, "adapters.slack", slack)
    return fake


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FRONTDESK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("bot.log.set_up", lambda *_: None)  # the other tests keep their logging
    return tmp_path / "config.toml"


def answer(config: Path, *lines: str) -> Result:
    return CliRunner().invoke(app, ["init", "--config", str(config)], input="\n".join([*lines, ""]))


def begin_with(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


SHOP = ["Lotus", "Tea", "Open 9 to 18.", ""]
MODEL = [""]
WHERE_DEFAULT = [""]


def test_a_first_set_up_writes_what_was_answered(config: Path, platforms: Platforms):
    result = answer(config, *SHOP, *MODEL, "y", GOOD, "n", "1")
    assert result.exit_code == 0, result.output
    settings = load(config)
    assert (settings.business.name, settings.business.about, settings.business.facts) == (
        "Lotus",
        "Tea",
        ("Open 9 to 18.",),
    )
    assert settings.engine.model == Settings().engine.model
    assert settings.telegram.enabled
    assert not settings.slack.enabled
    assert settings.escalation.channel == "telegram:-100200"
    assert settings.secrets.telegram_token.get_secret_value() == GOOD
    assert "Staff 群" in result.output


def test_the_files_have_their_modes_and_the_token_is_only_in_env(config: Path, platforms: Platforms):
    answer(config, *SHOP, *MODEL, "y", GOOD, "n", "1")
    assert mode(config) == 0o644
    assert mode(config.parent / ".env") == 0o600
    assert GOOD not in config.read_text(encoding="utf-8")


def test_a_refused_token_is_asked_again_with_the_platforms_words_and_never_shown(config: Path, platforms: Platforms):
    result = answer(config, *SHOP, *MODEL, "y", BAD, GOOD, "n", "1")
    assert result.exit_code == 0, result.output
    assert [token for _, token, _ in platforms.asked[:2]] == [BAD, GOOD]
    assert "✗ Telegram Unauthorized: [secret]" in result.output
    assert GOOD not in result.output


def test_an_empty_token_leaves_the_platform_out(config: Path, platforms: Platforms):
    result = answer(config, *SHOP, *MODEL, "y", BAD, "", "n", *WHERE_DEFAULT)
    assert result.exit_code == 0, result.output
    assert not load(config).telegram.enabled
    assert not (config.parent / ".env").exists()


def test_slack_alone_is_a_complete_set_up(config: Path, platforms: Platforms):
    result = answer(config, *SHOP, *MODEL, "n", "y", GOOD, GOOD, "1", "2")
    assert result.exit_code == 0, result.output
    settings = load(config)
    assert settings.slack.enabled
    assert settings.escalation.channel == "slack:C2"
    assert "slack manifest" in result.output
    assert platforms.asked[-1] == ("slack", GOOD, GOOD, "C2"), "the rights in the channel are looked at"


def test_a_group_that_is_not_found_leads_back_to_the_choice(config: Path, platforms: Platforms):
    platforms.groups.clear()
    result = answer(config, *SHOP, *MODEL, "y", GOOD, "n", "1", "2")
    assert result.exit_code == 0, result.output
    assert "nobody wrote /here" in result.output
    assert load(config).escalation.channel == "console"


def test_a_bot_in_no_channel_is_told_to_be_invited(config: Path, platforms: Platforms):
    platforms.channels = []
    result = answer(config, *SHOP, *MODEL, "n", "y", GOOD, GOOD, "1", "3")
    assert "/invite" in result.output
    assert load(config).escalation.channel == ""


def test_the_bundled_model_can_be_chosen(config: Path, platforms: Platforms):
    answer(config, *SHOP, "2", "n", "n", *WHERE_DEFAULT)
    assert load(config).engine.model == "bundled"


def test_nothing_is_written_when_it_is_broken_off(config: Path, platforms: Platforms):
    result = answer(config, *SHOP, *MODEL, "y", GOOD)
    assert result.exit_code == 1
    assert list(config.parent.iterdir()) == []


def test_an_existing_config_is_changed_only_when_wanted(config: Path, platforms: Platforms):
    config.write_text('[business]\nname = "Old"\n', encoding="utf-8")
    assert answer(config, "n").exit_code == 0
    assert config.read_text(encoding="utf-8") == '[business]\nname = "Old"\n'


def test_going_through_it_again_keeps_comments_other_keys_and_other_lines(config: Path, platforms: Platforms):
    config.write_text(
        '# mine\n[business]\nname = "Old"\nfacts = ["One."]\n[escalation]\nthreshold = 0.9 # strict\n'
        'channel = "telegram:-5"\n[telegram]\nenabled = true\n',
        encoding="utf-8",
    )
    env = config.parent / ".env"
    env.write_text(f"# keep\nOTHER=1\nFRONTDESK_TELEGRAM_TOKEN={GOOD}", encoding="utf-8")
    env.chmod(0o644)
    result = answer(config, "y", "New", "", "y", *MODEL, "y", "n", "1")
    assert result.exit_code == 0, result.output
    text = config.read_text(encoding="utf-8")
    assert "# mine" in text
    assert "threshold = 0.9 # strict" in text
    settings = load(config)
    assert (settings.business.name, settings.business.facts) == ("New", ("One.",))
    assert settings.escalation.channel == "telegram:-5"
    assert env.read_text(encoding="utf-8") == f"# keep\nOTHER=1\nFRONTDESK_TELEGRAM_TOKEN={GOOD}"


def test_a_new_token_replaces_its_line_and_no_other(config: Path, platforms: Platforms):
    env = config.parent / ".env"
    env.write_text(f"# keep\nFRONTDESK_TELEGRAM_TOKEN={BAD}\nOTHER=1\n", encoding="utf-8")
    env.chmod(0o644)
    answer(config, *SHOP, *MODEL, "y", GOOD, "n", "1")
    assert env.read_text(encoding="utf-8") == f"# keep\nFRONTDESK_TELEGRAM_TOKEN='{GOOD}'\nOTHER=1\n"
    assert mode(env) == 0o600


def test_a_token_of_the_environment_is_used_and_not_copied_to_disk(
    config: Path, platforms: Platforms, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FRONTDESK_TELEGRAM_TOKEN", GOOD)
    result = answer(config, *SHOP, *MODEL, "y", "n", "1")
    assert result.exit_code == 0, result.output
    assert not (config.parent / ".env").exists()


def test_a_config_that_is_not_valid_is_refused_before_any_question(config: Path, platforms: Platforms):
    config.write_text("[engin]\n", encoding="utf-8")
    result = answer(config, "y")
    assert isinstance(result.exception, FrontdeskError)
    assert "engin is not a known key" in str(result.exception)
    assert "shop" not in result.output


async def test_with_the_real_adapters_a_whole_set_up_passes_the_doctor(config: Path):
    async with FakeTelegram() as telegram, FakeSlack() as slack:
        telegram.add_group(-100200, "Staff")
        telegram.customer_writes(-100200, "/here")
        slack.add_channel("C0STAFF", "staff")
        urls = f'[telegram]\napi_url = "{telegram.url}"\n[slack]\napi_url = "{slack.url}"\n'
        begin_with(config, urls)
        tokens = ("y", "1:refused", telegram.token, "y", slack.bot_token, slack.app_token)
        asked = await asyncio.to_thread(answer, config, "y", *SHOP, "2", *tokens, "1")
        assert asked.exit_code == 0, asked.output
        assert "✗ Telegram token" in asked.output
        assert load(config).escalation.channel == "telegram:-100200"
        examined = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--config", str(config)])
    assert examined.exit_code == 0, examined.output
    for secret in (telegram.token, slack.bot_token, slack.app_token):
        assert secret not in asked.output + examined.output
    assert telegram.violations + slack.violations == []


@given(st.text(st.characters(codec="utf-8")), st.lists(st.text(st.characters(codec="utf-8"))))
def test_whatever_the_owner_types_comes_back_from_the_file(name: str, facts: list[str]):
    setup = Setup(Path("config.toml"), tomlkit.document(), Settings())
    setup.put("business", name=name, facts=facts)
    assert tomllib.loads(tomlkit.dumps(setup.document))["business"] == {"name": name, "facts": facts}
