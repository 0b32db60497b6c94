"""`frontdesk doctor`: looks at everything that must be well before customers write, and prints ticks and crosses."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bot import log
from bot.config import Settings, load_without_tokens, missing_tokens
from bot.errors import FrontdeskError
from bot.messages import Check, Platform
from bot.model import connect
from bot.store import database
from engine import load


def examine(config: Path) -> int:
    """Print one line for each check. Returns 1 if any is a cross."""
    console = Console(highlight=False)
    log.set_up("CRITICAL", "console", ())  # what the checks find is printed, not logged
    try:
        settings = load_without_tokens(config)
    except FrontdeskError as error:
        print_checks(console, [Check("settings", False, str(error))])
        return 1
    checks = [Check("settings", True, str(config)), *_checks(settings)]
    print_checks(console, checks, settings.secrets.values())
    return 0 if all(check.ok for check in checks) else 1


def print_checks(console: Console, checks: Sequence[Check], secrets: Sequence[str] = ()) -> None:
    """A tick or a cross for each, without the `secrets`, whatever a platform chose to answer."""
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark = Text("✓", "green") if check.ok else Text("✗", "red")
        table.add_row(mark, Text(_hidden(check.what, secrets)), Text(_hidden(check.detail, secrets)))
    console.print(table)


def _hidden(text: str, secrets: Sequence[str]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, log.HIDDEN)
    return text


def _checks(settings: Settings) -> Iterator[Check]:
    yield from (Check("tokens", False, sentence) for sentence in missing_tokens(settings))
    yield (stored := _database(settings.database.url))
    if stored.ok:
        yield from _reach(settings.database.url)
    yield from _model(settings)
    yield from _telegram(settings)
    yield from _slack(settings)
    if settings.escalation.channel == "console":
        yield Check("escalation", True, "cards are printed in the terminal that runs frontdesk")
    elif not settings.escalation.channel:
        yield Check("escalation", False, "escalation.channel is empty, so no human is ever called: `frontdesk init`")


def _database(url: str) -> Check:
    name, version = database.name_of(url), ""
    try:
        version = f"{database.version_of(url)}; "
        if database.is_missing(url):
            return Check("database", True, f"{version}{name} is made at the first start")
        pending = database.pending_migrations(url)
    except FrontdeskError as error:
        return Check("database", False, f"{version}{error}")
    return Check("database", True, f"{version}{name}{', brought up to date at the next start' * pending}")


def _reach(url: str) -> Iterator[Check]:
    """Who cannot be written to any more: nothing that the owner could mend, so no cross."""
    from bot.store.reader import Reader

    if database.is_missing(url) or database.pending_migrations(url):
        return
    engine = database.open_read_only(url)
    try:
        found = Reader(engine).unreachable()
    finally:
        engine.dispose()
    if found:
        reasons = "; ".join(f"{count} × {why}" for why, count in sorted(found.items(), key=lambda each: -each[1]))
        yield Check("customers", True, f"out of reach until they write again: {reasons}")


def _model(settings: Settings) -> Iterator[Check]:
    model, revision = settings.engine.model, settings.engine.revision
    if settings.engine.backend == "openai":
        yield from _asked("model", _server(settings))
        return
    try:
        path = load.resolve(model, revision)
    except FrontdeskError as error:
        yield Check("model", False, str(error))
        return
    if path is None:
        yield Check("model", False, f"{model} is not on this disk: `frontdesk model pull` downloads it")
        return
    nature = "for a first look, not for customers; " * (model == load.BUNDLED)
    yield Check("model", True, f"{model}: {nature}{load.size_on_disk(path) / 1e6:,.0f} MB in {path}")
    yield _precision(path, settings.engine.precision)


async def _server(settings: Settings) -> list[Check]:
    engine = await connect(settings)
    await engine.close()
    return [Check("model", True, f"{settings.engine.model} at {settings.engine.base_url}: {engine.offers}")]


def _precision(path: Path, wanted: str) -> Check:
    from engine import precision  # imports torch: seconds

    try:
        return Check("precision", True, precision.why(path, wanted))
    except FrontdeskError as error:
        return Check("precision", False, str(error))


def _telegram(settings: Settings) -> list[Check]:
    token = settings.secrets.telegram_token.get_secret_value()
    if not (settings.telegram.enabled and token):
        return []
    from adapters.telegram_setup import check

    return _asked("telegram", check(token, settings.telegram.api_url, _chat(settings, Platform.TELEGRAM)))


def _slack(settings: Settings) -> list[Check]:
    bot = settings.secrets.slack_bot_token.get_secret_value()
    app = settings.secrets.slack_app_token.get_secret_value()
    app = "" if settings.slack.webhook else app
    if not (settings.slack.enabled and bot and (app or settings.slack.webhook)):
        return []
    from adapters.slack import check

    return _asked("slack", check(bot, app, settings.slack.api_url, _chat(settings, Platform.SLACK)))


def _chat(settings: Settings, platform: Platform) -> str:
    """The escalation channel when it is on `platform`, else ""."""
    where, _, chat = settings.escalation.channel.partition(":")
    return chat if where == platform else ""


def _asked(platform: str, checks: Coroutine[Any, Any, list[Check]]) -> list[Check]:
    try:
        return asyncio.run(checks)
    except FrontdeskError as error:
        return [Check(platform, False, str(error))]
