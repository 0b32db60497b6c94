"""`frontdesk demo`: three customers write, through the real path, in the terminal; then the chat page is served."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.panel import Panel

from bot import log
from bot.app import App, build, stop_on_signals
from bot.config import Settings, load
from bot.conversation import Author
from bot.errors import ModelUnavailable
from bot.messages import Address, Customer, Platform
from bot.model import load_engine
from bot.store.database import upgrade
from bot.store.values import OutboundState, Trace
from engine.load import BUNDLED, resolve

PATIENCE_S = 180.0
"""How long the demo waits for one answer; a CPU may be slow, a hang must still end."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing a customer says in the demo."""

    customer: Customer
    text: str


_WANG, _EMMA, _LI = Customer("wang", "王芳", "zh"), Customer("emma", "Emma", "en"), Customer("li", "李雷", "zh")
SCRIPT = (
    Part(_WANG, "你好，请问你们几点开门？"),
    Part(_EMMA, "Hi! My parcel arrived this morning and I love it. Thank you!"),
    Part(_LI, "我的订单三天没到，太差了"),
    Part(_EMMA, "Can I exchange it for a larger size?"),
    Part(_LI, "人工"),
)

_SHOP = {
    "name": "晨光小店 Morning Light",
    "about": "A small shop for tea, cups and tea sets.",
    "facts": (
        "Open Monday to Saturday, 9:00 to 18:00.",
        "Delivery takes two to four days and is free from 99 yuan.",
        "Unused goods can be returned or exchanged within 7 days.",
    ),
}


def run_demo(once: bool, model: str | None, port: int | None, config: Path) -> int:
    """Play the script; then serve the page until Ctrl-C, unless `once`. Returns 1 if a message got no answer."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="frontdesk-demo-") as folder:
        settings = demo_settings(once, model, port, config, Path(folder))
        log.set_up("WARNING", settings.log.format, settings.secrets.values())
        upgrade(settings.database.url)
        return asyncio.run(_demo(settings, once, console))


def demo_settings(once: bool, model: str | None, port: int | None, config: Path, folder: Path) -> Settings:
    """The owner's settings where there are any, but with no platform of theirs, a fresh database, and no download."""
    own = load(config) if config.exists() else Settings()
    chosen = model or (own.engine.model if resolve(own.engine.model, own.engine.revision) else BUNDLED)
    changed = {
        "business": own.business if own.business.name or own.business.facts else own.business.model_copy(update=_SHOP),
        "engine": own.engine.model_copy(update={"model": chosen}),
        "escalation": own.escalation.model_copy(update={"channel": "console"}),
        "telegram": own.telegram.model_copy(update={"enabled": False}),
        "slack": own.slack.model_copy(update={"enabled": False}),
        "web": own.web.model_copy(update=_web(once, own.web.port if port is None else port)),
        "database": own.database.model_copy(update={"url": f"sqlite:///{folder / 'demo.db'}"}),
    }
    return own.model_copy(update=changed)


def _web(once: bool, port: int) -> dict[str, object]:
    return {"enabled": False, "port": 0} if once else {"enabled": True, "port": port}


async def _demo(settings: Settings, once: bool, console: Console) -> int:
    stop = stop_on_signals()
    console.print(Panel(_banner(settings.engine.model), border_style="cyan", expand=False))
    path = resolve(settings.engine.model, settings.engine.revision)
    if path is None:
        raise ModelUnavailable(f"{settings.engine.model} is not on this disk: run `frontdesk model pull` first")
    app = build(settings, await load_engine(settings, path, console), console)
    try:
        return await _serve(app, stop, once, console)
    finally:
        await app.close()


async def _serve(app: App, stop: asyncio.Event, once: bool, console: Console) -> int:
    serving = asyncio.create_task(app.run(stop))
    try:
        unanswered = await _play(app, stop)
        console.print(_verdict(unanswered))
        if not once and not stop.is_set():
            console.print(f"\nThe chat page: [bold]{app.url}[/]   (Ctrl-C ends)")
            await asyncio.wait([serving])
    finally:
        stop.set()
        await serving
    return 1 if unanswered else 0


async def _play(app: App, stop: asyncio.Event) -> int:
    """Say every part, each after the answer to the one before. Returns how many got no answer."""
    for part in SCRIPT:
        if stop.is_set():
            break
        await app.console.write(part.customer, part.text)
        with suppress(TimeoutError):
            await asyncio.wait_for(_idle(app, stop), PATIENCE_S)
    return len(SCRIPT) - await _answered(app)


async def _idle(app: App, stop: asyncio.Event) -> None:
    while not stop.is_set() and (await app.writer(app.reader.load)).jobs:  # noqa: ASYNC110 - the database tells, no event
        await asyncio.sleep(0.05)


async def _answered(app: App) -> int:
    """Messages of the script that something was said to and delivered."""
    count = 0
    for customer in {part.customer for part in SCRIPT}:
        address = Address(Platform.CONSOLE, "console", customer.id)
        for line in await app.writer(app.reader.history, address, customer.id):
            if line.author is Author.CUSTOMER:
                trace = await app.writer(app.reader.trace, line.id)
                count += trace is not None and bool(trace.answers) and _all_sent(trace)
    return count


def _all_sent(trace: Trace) -> bool:
    return all(sent.state is OutboundState.SENT for sent in trace.sent)


def _verdict(unanswered: int) -> str:
    if unanswered:
        return f"\n[bold red]{unanswered} of {len(SCRIPT)} messages got no answer.[/]"
    return f"\n[bold green]All {len(SCRIPT)} messages were answered.[/]"


def _banner(model: str) -> str:
    if model != BUNDLED:
        return f"[bold]frontdesk demo[/] · speaking: [bold]{model}[/]"
    return (
        "[bold]frontdesk demo[/] · speaking: the small [bold]bundled[/] model. It reads\n"
        "most moods and answers simple questions: for a first look, not for customers."
    )
