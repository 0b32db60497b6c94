"""What people paste into Slack fits what the adapter needs, and every permission has its reason."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from adapters.slack import SCOPES
from bot.cli import app
from tests.fakes.slack import SCOPES as GRANTED

EVENTS = ["app_mention", "member_left_channel", "message.channels", "message.groups", "message.im"]


@pytest.fixture
def manifest() -> dict[str, Any]:
    text = (files("adapters") / "slack_manifest.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_the_manifest_asks_for_exactly_the_scopes_that_doctor_checks(manifest: dict[str, Any]) -> None:
    assert set(manifest["oauth_config"]["scopes"]["bot"]) == SCOPES == set(GRANTED.split(","))


def test_the_manifest_asks_for_the_events_that_are_read_and_no_others(manifest: dict[str, Any]) -> None:
    assert manifest["settings"]["event_subscriptions"]["bot_events"] == EVENTS


def test_people_can_write_to_the_bot_and_no_public_address_is_needed(manifest: dict[str, Any]) -> None:
    assert manifest["settings"]["socket_mode_enabled"] is True
    assert manifest["features"]["app_home"]["messages_tab_enabled"] is True
    assert manifest["features"]["app_home"]["messages_tab_read_only_enabled"] is False


def test_the_tokens_do_not_expire(manifest: dict[str, Any]) -> None:
    assert manifest["settings"]["token_rotation_enabled"] is False


def test_slack_takes_the_lengths(manifest: dict[str, Any]) -> None:
    assert len(manifest["display_information"]["name"]) <= 35
    assert len(manifest["display_information"]["description"]) <= 140


def test_every_scope_has_its_reason_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "slack.md").read_text(encoding="utf-8")
    assert [scope for scope in sorted(SCOPES) if f"`{scope}`" not in guide] == []


def test_for_a_webhook_slack_is_told_the_address_and_opens_no_socket() -> None:
    done = CliRunner().invoke(app, ["slack", "manifest", "--webhook", "https://shop.example/slack"])
    settings = yaml.safe_load(done.output)["settings"]
    assert settings["socket_mode_enabled"] is False
    (command,) = yaml.safe_load(done.output)["features"]["slash_commands"]
    assert command["url"] == "https://shop.example/slack"
    assert settings["interactivity"] == {"is_enabled": True, "request_url": "https://shop.example/slack"}
    assert settings["event_subscriptions"] == {
        "request_url": "https://shop.example/slack",
        "bot_events": EVENTS,
    }
