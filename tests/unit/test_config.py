"""config.toml and the environment: what is accepted, and what is refused with which words."""

from __future__ import annotations

import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from bot.config import Settings, load
from bot.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"


@pytest.fixture(autouse=True)
def _no_tokens_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FRONTDESK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refusal(config: Path, text: str) -> str:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config)
    message = str(caught.value)
    assert message.startswith(str(config)), "the message names the file"
    assert "\n" not in message
    return message.removeprefix(str(config)).removeprefix(": ")


def test_the_example_is_exactly_the_defaults():
    assert Settings.model_validate(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == Settings()


def test_the_example_has_every_key_with_a_comment_above_it():
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    known = Settings().model_dump(exclude={"secrets"})
    assert {section: set(keys) for section, keys in document.items()} == {
        name: set(keys) for name, keys in known.items()
    }
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if re.match(r"\w+ = ", line) and not re.match(r"(tues|wednes|thurs|fri|satur|sun)day = ", line):
            assert above.startswith("# "), line


def test_an_empty_file_is_all_defaults(config: Path):
    config.write_text("")
    settings = load(config)
    assert settings.business == Settings().business
    assert settings.web.port == 7860


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engin]\nmodel = 'x'", ["engin is not a known key", "engine"]),
        ("[engine]\ntempreture = 1", ["engine.tempreture is not a known key", "temperature"]),
        ("[engine]\ntemperature = 9", ["engine.temperature", "less than or equal to 2"]),
        ("[engine]\ntemperature = nan", ["engine.temperature", "finite"]),
        ("[engine]\ntemperature = 'hot'", ["engine.temperature", "number"]),
        ("[engine]\nmodel = ''", ["engine.model", "not be empty"]),
        ("engine = 3", ["engine", "section"]),
        ("[business]\nfacts = 'one'", ["business.facts", "list"]),
        ("[business]\nfacts = [1]", ["business.facts.0", "string"]),
        ("[sentiment]\nlabels = ['good']", ["labels", "two different"]),
        ("[sentiment]\nlabels = ['good', 'good']", ["labels", "two different"]),
        ("[sentiment]\nnegative = 'bad'", ["negative", "正面, 负面"]),
        ("[escalation]\nchannel = '#shop'", ["escalation.channel", "telegram:CHAT_ID", "slack:CHANNEL_ID"]),
        ("[escalation]\nchannel = 'telegram:'", ["escalation.channel", "telegram:CHAT_ID"]),
        ("[escalation]\nchannel = 'telegram:-1'", ["escalation.channel", "telegram.enabled is false"]),
        ("[escalation]\nkeywords = ['']", ["escalation.keywords.0", "not be empty"]),
        ("[telegram]\napi_url = 'api.telegram.org'", ["telegram.api_url", "https://"]),
        ("[web]\nport = 99999", ["web.port", "65535"]),
        ("[database]\nurl = 'mysql://here'", ["database.url", "sqlite:///FILE", "postgresql+psycopg://"]),
        (
            "[database]\nurl = 'postgresql+psycopg://me@host'",
            ["database.url", "postgresql+psycopg://USER@HOST:PORT/DATABASE"],
        ),
        ("[database]\nurl = 'postgresql+psycopg://me:hunter2@host/shop'", ["database.url", "PGPASSWORD", "~/.pgpass"]),
        ("[database]\nurl = 'postgresql+psycopg://host/shop?password=hunter2'", ["database.url", "PGPASSWORD"]),
        ("[database]\nurl = 'postgresql+psycopg://me@host:here/shop'", ["database.url", "Port"]),
        ("[log]\nlevel = 'debug'", ["log.level", "'DEBUG'"]),
        ("[business\nname = 'x'", ["cannot be read as TOML", "line 1"]),
    ],
)
def test_a_bad_value_is_refused_with_the_keys_name_and_what_is_allowed(config: Path, text: str, words: list[str]):
    message = refusal(config, text)
    assert [word for word in words if word not in message] == []


def test_every_problem_is_named_at_once(config: Path):
    message = refusal(config, "[web]\nport = -1\n[log]\nformat = 'xml'")
    assert "web.port" in message
    assert "log.format" in message


@pytest.mark.parametrize(
    ("section", "key"), [("telegram", "token"), ("slack", "bot_token"), ("slack", "app_token"), ("web", "password")]
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(config: Path, section: str, key: str):
    message = refusal(config, f"[{section}]\n{key} = 'canary-4711'")
    assert f"FRONTDESK_{section.upper()}_{key.upper()}" in message
    assert "canary-4711" not in message


def test_the_value_of_a_bad_key_is_not_repeated(config: Path):
    assert "canary-4711" not in refusal(config, "[engine]\ntemperature = 'canary-4711'")


@pytest.mark.parametrize(
    ("section", "variable"), [("telegram", "FRONTDESK_TELEGRAM_TOKEN"), ("slack", "FRONTDESK_SLACK_BOT_TOKEN")]
)
def test_a_platform_without_its_token_is_refused_by_the_variables_name(config: Path, section: str, variable: str):
    assert f"{variable} is not set" in refusal(config, f"[{section}]\nenabled = true")


def test_slack_needs_both_tokens(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FRONTDESK_SLACK_BOT_TOKEN", "canary")
    assert "FRONTDESK_SLACK_APP_TOKEN is not set" in refusal(config, "[slack]\nenabled = true")


def test_tokens_are_read_from_the_env_file_beside_the_config(config: Path):
    config.write_text("[telegram]\nenabled = true", encoding="utf-8")
    (config.parent / ".env").write_text("# mine\nFRONTDESK_TELEGRAM_TOKEN=canary\nOTHER=1\n", encoding="utf-8")
    assert load(config).secrets.telegram_token.get_secret_value() == "canary"


def test_the_environment_wins_over_the_env_file(config: Path, monkeypatch: pytest.MonkeyPatch):
    config.write_text("", encoding="utf-8")
    (config.parent / ".env").write_text("FRONTDESK_TELEGRAM_TOKEN=old\n", encoding="utf-8")
    monkeypatch.setenv("FRONTDESK_TELEGRAM_TOKEN", "new")
    assert load(config).secrets.values() == ("new",)


def test_an_unreadable_env_file_is_one_sentence(config: Path):
    config.write_text("", encoding="utf-8")
    (config.parent / ".env").write_bytes(b"FRONTDESK_TELEGRAM_TOKEN=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        load(config)


def test_no_secret_is_in_the_settings_repr(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FRONTDESK_WEB_PASSWORD", "canary-4711")
    config.write_text("", encoding="utf-8")
    assert "canary-4711" not in repr(load(config))


def test_relative_paths_start_at_the_config_file(config: Path):
    config.write_text("[database]\nurl = 'sqlite:///data/shop.db'\n[engine]\nmodel = './qwen'", encoding="utf-8")
    settings = load(config)
    assert settings.database.url == f"sqlite:///{config.parent / 'data' / 'shop.db'}"
    assert settings.engine.model == str(config.parent / "qwen")


def test_a_database_on_a_server_is_taken_as_it_is(config: Path):
    config.write_text("[database]\nurl = 'postgresql+psycopg://me@host:5433/shop?sslmode=require'", encoding="utf-8")
    assert load(config).database.url == "postgresql+psycopg://me@host:5433/shop?sslmode=require"


def test_absolute_paths_and_hub_ids_stay(config: Path, tmp_path: Path):
    config.write_text(
        f"[database]\nurl = 'sqlite:///{tmp_path}/shop.db'\n[engine]\nmodel = 'Qwen/Qwen2.5-0.5B-Instruct'"
    )
    settings = load(config)
    assert settings.database.url == f"sqlite:///{tmp_path}/shop.db"
    assert settings.engine.model == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_byte_order_mark_does_no_harm(config: Path):
    config.write_text("[business]\nname = '晨光'", encoding="utf-8-sig")
    assert load(config).business.name == "晨光"


def test_a_missing_file_says_how_to_get_one(config: Path):
    with pytest.raises(ConfigError, match=r"frontdesk init.*--config"):
        load(config)


def test_an_empty_variable_counts_as_not_set(config: Path, monkeypatch: pytest.MonkeyPatch):
    config.write_text("", encoding="utf-8")
    (config.parent / ".env").write_text("FRONTDESK_TELEGRAM_TOKEN=mine\n", encoding="utf-8")
    monkeypatch.setenv("FRONTDESK_TELEGRAM_TOKEN", "")
    assert load(config).secrets.values() == ("mine",)


@pytest.mark.parametrize("address", ["", "https://shop.example/telegram", "http://127.0.0.1:8443/a/b"])
def test_a_webhook_has_a_place_of_its_own(address: str) -> None:
    assert Settings.model_validate({"telegram": {"webhook": address}}).telegram.webhook == address


@pytest.mark.parametrize(
    "address", ["shop.example/x", "https://shop.example", "https://shop.example/health", "ftp://a/b", "https:///x"]
)
def test_a_webhook_at_no_place_of_its_own_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="HOST/PATH"):
        Settings.model_validate({"telegram": {"webhook": address}})


@pytest.mark.parametrize("who", ["5551", "telegram", "telegram:", "icq:5"])
def test_a_list_entry_that_names_nobody_is_refused(who: str) -> None:
    with pytest.raises(ValidationError, match="names nobody"):
        Settings.model_validate({"limits": {"block": [who]}})
