"""`frontdesk init`: asks, tests every token as it is typed, finds the channel, and writes config.toml and .env.

What is there already stays: comments, keys that are not asked for, other lines of .env.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
import typer
from dotenv import set_key
from rich.console import Console
from tomlkit.exceptions import TOMLKitError

from bot import log
from bot.config import DEFAULT_MODEL, Settings, parse, read_secrets
from bot.doctor import print_checks
from bot.errors import ConfigError, FrontdeskError
from bot.messages import Check, Platform

FIND_GROUP_S = 120.0
"""How long we wait for /here in the group of the agents."""

_HEADER = "# Written by `frontdesk init`. config.example.toml explains every other key.\n"


@dataclass(slots=True)
class Setup:
    """What is known so far. `document` becomes config.toml, `tokens` goes to .env; both only at the end."""

    config: Path
    document: tomlkit.TOMLDocument
    settings: Settings
    tokens: dict[str, str] = field(default_factory=dict)
    platforms: list[Platform] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(highlight=False))

    def put(self, section: str, **values: object) -> None:
        table: Any = self.document.setdefault(section, tomlkit.table())
        table.update(values)

    def token(self, name: str) -> str:
        """A token typed now, or else one that is in force already; "" for none."""
        return self.tokens.get(name) or str(getattr(self.settings.secrets, name).get_secret_value())

    def is_well(self, checks: Coroutine[Any, Any, list[Check]], secrets: Sequence[str]) -> bool:
        """Ask the platform and print what it says, but for the `secrets`."""
        try:
            found = asyncio.run(checks)
        except FrontdeskError as error:
            found = [Check("", False, str(error))]
        print_checks(self.console, found, secrets)
        return all(check.ok for check in found)


def init(config: Path) -> None:
    """Ask, test, write. Nothing is written before the last answer. Raises ConfigError when config.toml is not valid."""
    log.set_up("CRITICAL", "console", ())  # what the checks find is printed, not logged
    setup = _begin(config)
    if config.exists() and not typer.confirm(f"{config} exists. Go through it? What is not asked for stays.", True):
        raise typer.Exit
    _ask_business(setup)
    _ask_model(setup)
    _ask_telegram(setup)
    _ask_slack(setup)
    _ask_channel(setup)
    _write(setup)


def _begin(config: Path) -> Setup:
    try:
        text = config.read_text(encoding="utf-8-sig") if config.exists() else _HEADER
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"{config} cannot be read as TOML: {error}; correct it or move it away") from None
    return Setup(config, document, parse(document.unwrap(), read_secrets(config), source=str(config)))


# -- the questions -----------------------------------------------------------------------------------


def _ask_business(setup: Setup) -> None:
    known = setup.settings.business
    name = _text("The shop's name", known.name)
    about = _text("What it sells or does, in a sentence", known.about)
    facts = tomlkit.array().multiline(True)
    facts.extend(_ask_facts(known.facts))
    setup.put("business", name=name, about=about, facts=facts)


def _ask_facts(known: Sequence[str]) -> list[str]:
    if known:
        typer.echo("\n  - ".join(["The bot knows:", *known]))
        if typer.confirm("Keep that?", True):
            return list(known)
    typer.echo("What do customers ask about? Hours, delivery, returns ... One fact a line; an empty line ends.")
    return list(iter(lambda: _text("  fact"), ""))


def _ask_model(setup: Setup) -> None:
    choices = {
        setup.settings.engine.model: "as it is now",
        DEFAULT_MODEL: "1.2 GB, downloaded once",
        "bundled": "tiny, for a first look and not for customers",
    }
    number = _choose("Which model?", [f"{model} ({remark})" for model, remark in choices.items()])
    setup.put("engine", model=list(choices)[number])


def _ask_telegram(setup: Setup) -> None:
    if not _wants(setup, Platform.TELEGRAM):
        return
    typer.echo("In a chat with @BotFather, /newbot makes a bot and gives you its token.")
    from adapters.telegram_setup import check

    url = setup.settings.telegram.api_url
    _connect(setup, Platform.TELEGRAM, {"telegram_token": "Token"}, lambda token: check(token, url, ""))


def _ask_slack(setup: Setup) -> None:
    if not _wants(setup, Platform.SLACK):
        return
    typer.echo(
        "At https://api.slack.com/apps: Create New App, From a manifest; paste what frontdesk slack manifest prints.\n"
        "Install App gives you the bot token. Basic Information, App-Level Tokens, with the scope connections:write, "
        "gives you the other."
    )
    from adapters.slack import check

    url = setup.settings.slack.api_url
    questions = {"slack_bot_token": "Bot token (xoxb-...)", "slack_app_token": "App-level token (xapp-...)"}
    _connect(setup, Platform.SLACK, questions, lambda bot, app: check(bot, app, url, ""))


def _wants(setup: Setup, platform: Platform) -> bool:
    setup.put(platform, enabled=False)
    return typer.confirm(f"\nConnect {platform.capitalize()}?", getattr(setup.settings, platform).enabled)


def _connect(
    setup: Setup, platform: Platform, questions: dict[str, str], check: Callable[..., Coroutine[Any, Any, list[Check]]]
) -> None:
    """Ask until the platform takes the tokens or an answer is empty. Tokens that are there already are tried first."""
    typed: dict[str, str] = {}
    tokens = [setup.token(name) for name in questions]
    while not (all(tokens) and setup.is_well(check(*tokens), tokens)):
        typed = {name: _secret(question) for name, question in questions.items()}
        tokens = list(typed.values())
        if not all(tokens):
            return
    setup.tokens |= typed
    setup.platforms.append(platform)
    setup.put(platform, enabled=True)


def _ask_channel(setup: Setup) -> None:
    """Where humans are called. The id is found by asking the platform, nobody types it."""
    choices = dict(_channels(setup))
    number = _choose("\nWhere are humans called?", list(choices))
    while (channel := list(choices.values())[number]()) is None:
        number = _choose("Where else?", list(choices))
    setup.put("escalation", channel=channel)


def _channels(setup: Setup) -> Iterable[tuple[str, Callable[[], str | None]]]:
    known = setup.settings.escalation.channel
    if known.partition(":")[0] in setup.platforms:
        yield f"As it is now: {known}", lambda: known
    if Platform.TELEGRAM in setup.platforms:
        yield "In a Telegram group", lambda: _find_group(setup)
    if Platform.SLACK in setup.platforms:
        yield "In a Slack channel", lambda: _find_channel(setup)
    yield "In the terminal that runs frontdesk", lambda: "console"
    yield "Nowhere yet", lambda: ""


def _find_group(setup: Setup) -> str | None:
    from adapters.telegram_setup import check, find_group

    token, url = setup.token("telegram_token"), setup.settings.telegram.api_url
    typer.echo("Make a group of your staff, add the bot to it, make it an administrator, and write /here in the group.")
    typer.echo("Waiting two minutes ...")
    try:
        chat, title = asyncio.run(find_group(token, url, FIND_GROUP_S))
    except FrontdeskError as error:
        typer.echo(str(error))
        return None
    typer.echo(f"Found: {title}")
    return f"telegram:{chat}" if setup.is_well(check(token, url, chat), [token]) else None


def _find_channel(setup: Setup) -> str | None:
    from adapters.slack import check, find_channels

    bot, app, url = setup.token("slack_bot_token"), setup.token("slack_app_token"), setup.settings.slack.api_url
    try:
        channels = asyncio.run(find_channels(bot, url))
    except FrontdeskError as error:
        typer.echo(str(error))
        return None
    if not channels:
        typer.echo("The bot is in no channel yet: write /invite @frontdesk in the channel of your staff.")
        return None
    channel = channels[_choose("Which channel?", [f"#{name}" for _, name in channels])][0]
    return f"slack:{channel}" if setup.is_well(check(bot, app, url, channel), [bot, app]) else None


def _text(question: str, default: str = "") -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default))
    return answer.encode("utf-8", "replace").decode("utf-8").strip()  # a terminal may pass on what is no character


def _secret(question: str) -> str:
    answer: str = typer.prompt(f"{question}, not shown; empty skips", default="", show_default=False, hide_input=True)
    return answer.strip()


def _choose(question: str, choices: Sequence[str]) -> int:
    """The number of the chosen one, counted from 0."""
    typer.echo("\n".join([question, *(f"  {number}  {choice}" for number, choice in enumerate(choices, start=1))]))
    number = 0
    while not 1 <= number <= len(choices):
        number = typer.prompt("Number", default=1, type=int)
    return number - 1


# -- the files ---------------------------------------------------------------------------------------


def _write(setup: Setup) -> None:
    parse(setup.document.unwrap(), setup.settings.secrets, source=str(setup.config))
    env = setup.config.parent / ".env"
    setup.config.parent.mkdir(parents=True, exist_ok=True)
    if env.exists():
        env.chmod(0o600)
    for name, token in setup.tokens.items():
        set_key(env, f"FRONTDESK_{name.upper()}", token)
    setup.config.write_text(tomlkit.dumps(setup.document), encoding="utf-8")
    setup.config.chmod(0o644)
    typer.echo(
        f"\nWritten: {setup.config}{' and .env' * bool(setup.tokens)}. Next: frontdesk doctor, then frontdesk run"
    )
