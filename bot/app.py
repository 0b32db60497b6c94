"""The composition root: settings become a running front desk. The only file that knows every part."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from rich.console import Console

from adapters.console import ConsoleAdapter
from bot import log
from bot.attend import Attendant, Manners
from bot.catalogue import language_of, say
from bot.circuit import Circuit
from bot.config import Settings
from bot.conversation import Line, Overdue
from bot.deliver import Deliverer
from bot.errors import ConfigError, DatabaseUnavailable, FrontdeskError
from bot.escalate import CardWriter, Desk
from bot.handoff import Handoff, HandoffManners, Members
from bot.http import Health, Hook, build_asgi, is_loopback, serve
from bot.intake import Intake
from bot.messages import Adapter, Address, Platform
from bot.metrics import Metrics
from bot.model import load_engine, model_path, reply_role, sentiment_role
from bot.policy import Limits
from bot.queue import Handler, JobQueue
from bot.queue.embedded import EmbeddedQueue
from bot.queue.work import Knobs, backoff
from bot.retention import Retention
from bot.store.database import Database, Writer, is_file, open_engine, single_writer, upgrade
from bot.store.jobs import JobKind
from bot.store.leader import lead
from bot.store.reader import Reader
from bot.store.store import Store
from engine.types import Engine

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = structlog.get_logger(__name__)

History = Callable[[Address, str], Awaitable[Sequence[Line]]]

WATCH_EVERY_S = 5.0


class Serve(StrEnum):
    """What one process does."""

    ALL = "all"
    ADAPTERS = "adapters"  # takes in what comes from the platforms, and shows the chat page
    WORKER = "worker"  # attends and delivers


@dataclass(slots=True)
class App:
    """Every part, wired. Made by build(); run() starts and stops them, close() frees what they hold."""

    serves: Serve
    settings: Settings
    database: Database
    writer: Writer
    store: Store
    reader: Reader
    engine: Engine | None
    metrics: Metrics
    queue: JobQueue
    handlers: Mapping[JobKind, Handler]
    intake: Intake
    adapters: Mapping[Platform, Adapter]
    console: ConsoleAdapter
    circuit: Circuit
    hooks: Mapping[str, Hook]
    handoff: Handoff | None
    retention: Retention
    waiting: set[Platform] = field(default_factory=set)  # to be let in, while another process receives
    stopped: set[Platform] = field(default_factory=set)
    url: str = ""  # of /health, /metrics and the chat page, once they are served

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; then accept nothing more, finish what runs, release the rest.

        Raises ConfigError when a part cannot start, or when no platform is left to serve.
        """
        try:
            await self._run(stop)
        except* FrontdeskError as group:
            raise _first(group) from None

    async def _run(self, stop: asyncio.Event) -> None:
        url, receivers = self.settings.database.url, [] if self.serves is Serve.WORKER else self.adapters.values()
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(self._receive(adapter)) for adapter in receivers]
            parts.append(tasks.create_task(self._serve_http()))
            parts.append(tasks.create_task(self._watch()))
            parts.append(tasks.create_task(lead(url, "sweep", self._sweep)))
            working = tasks.create_task(self._work(stop))
            await stop.wait()
            self.intake.close()
            await working
            for part in parts:
                part.cancel()

    async def _work(self, stop: asyncio.Event) -> None:
        if self.handlers:
            await self.queue.run(self.handlers, stop, self.settings.queue.drain_seconds)

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
        self.writer.close()
        self.database.dispose()

    async def _receive(self, adapter: Adapter) -> None:
        """One platform that only a person can mend does not take the others down with it.

        What a platform posts is taken in by any number of processes, what is asked of it by one.
        """
        try:
            if _asks(self.settings, adapter.platform):
                self.waiting.add(adapter.platform)
                await lead(self.settings.database.url, f"receive {adapter.platform}", partial(self._take_in, adapter))
            else:
                await adapter.run(self.intake)
        except ConfigError as error:
            logger.error("platform stopped", platform=adapter.platform, error=str(error))
            self.stopped.add(adapter.platform)
            if self.stopped >= self.adapters.keys() - {Platform.CONSOLE, Platform.WEB}:
                raise

    async def _take_in(self, adapter: Adapter) -> None:
        self.waiting.discard(adapter.platform)
        try:
            await adapter.run(self.intake)
        finally:
            self.waiting.add(adapter.platform)

    async def _serve_http(self) -> None:
        web, routes = self.settings.web, build_asgi(self.metrics, self.health, self.hooks)
        if web.enabled and self.serves is not Serve.WORKER:
            self._mount_page(routes)
        await serve(routes, web.host, web.port, partial(setattr, self, "url"))

    def _mount_page(self, routes: Starlette) -> None:
        from adapters.web import WebAdapter, mount

        adapter, web = self.adapters[Platform.WEB], self.settings.web
        assert isinstance(adapter, WebAdapter)  # noqa: S101 - narrows the type, build() put it there
        password = self.settings.secrets.web_password.get_secret_value()
        if not (password or is_loopback(web.host)):
            logger.warning("everybody who can reach this address can use the chat page: set FRONTDESK_WEB_PASSWORD")
        login = (web.user, password) if password else None
        mount(routes, adapter, self.settings.business.name, _say_in_browser, login)

    async def _watch(self) -> None:
        while True:
            try:
                load = await self.writer(self.reader.load)
            except DatabaseUnavailable as error:
                logger.error("the database is away", error=str(error))
            else:
                self.metrics.load(load.oldest_job_s, load.open_escalations)
            await asyncio.sleep(WATCH_EVERY_S)

    async def _sweep(self) -> None:
        while True:
            try:
                if self.handoff is not None:
                    await self.handoff.sweep()
                await self.retention.sweep()
            except DatabaseUnavailable as error:
                logger.error("nothing swept, the database is away", error=str(error))
            await asyncio.sleep(WATCH_EVERY_S)

    async def health(self) -> Health:
        try:
            await self.writer(self.reader.load)
            database = True
        except DatabaseUnavailable:
            database = False
        receives = {Platform.TELEGRAM, Platform.SLACK} - self.waiting if self.serves is not Serve.WORKER else ()
        contacts = {str(each): adapter.last_contact for each, adapter in self.adapters.items() if each in receives}
        engine = self.engine is None or (self.engine.alive and not self.circuit.is_open)
        return Health(database, engine, contacts)


def build(settings: Settings, engine: Engine | None, console: Console | None = None, serves: Serve = Serve.ALL) -> App:
    """Wire the parts. The database must have been upgraded; who serves the adapters alone has no `engine`."""
    database = open_engine(settings.database.url)
    writer, metrics, circuit = Writer(), Metrics(), Circuit()
    reader = Reader(database)
    store, queue = _store_and_queue(settings, database, writer)
    terminal = ConsoleAdapter(console or Console(), partial(emoji, settings))
    desk = Desk(reader, writer, cards_to(settings))
    platforms = [
        terminal,
        *_platforms(settings, lambda address, customer: writer(reader.history, address, customer), desk),
    ]
    adapters = {adapter.platform: adapter for adapter in platforms}
    behaviour, agents = manners(settings), cards_to(settings)
    handoff = None
    if agents is not None and agents.platform in adapters:
        handoff = Handoff(
            store,
            writer,
            Members(adapters, agents, settings.escalation.agents),
            agents,
            behaviour.cards,
            queue.wake,
            handoff_manners(settings),
        )
    handlers: dict[JobKind, Handler] = {}
    if engine is not None:
        attendant = Attendant(store, writer, engine, adapters, behaviour, metrics, queue.wake, circuit)
        delay = partial(backoff, cap=timedelta(seconds=settings.queue.max_backoff_seconds))
        deliverer = Deliverer(store, writer, adapters, behaviour.cards, metrics, delay, thumbs=settings.business.thumbs)
        handlers = {JobKind.ATTEND: attendant, JobKind.DELIVER: deliverer}
    return App(
        serves,
        settings,
        database,
        writer,
        store,
        reader,
        engine,
        metrics,
        queue,
        handlers,
        Intake(
            store,
            writer,
            metrics,
            settings.limits.max_text_chars,
            agents,
            queue.wake,
            settings.limits.allow,
            settings.limits.block,
            handoff,
        ),
        adapters,
        terminal,
        circuit,
        dict(_hooks(settings, adapters)) if serves is not Serve.WORKER else {},
        handoff,
        Retention(store, writer, engine, timedelta(days=settings.privacy.keep_days), queue.wake),
    )


def _store_and_queue(settings: Settings, database: Database, writer: Writer) -> tuple[Store, JobQueue]:
    section, cards = settings.queue, cards_to(settings)
    knobs = Knobs(
        concurrency=section.concurrency,
        lease=timedelta(seconds=section.lease_seconds),
        max_attempts=section.max_attempts,
        max_backoff=timedelta(seconds=section.max_backoff_seconds),
    )
    if section.backend == "embedded":
        store = Store(database, cards)
        return store, EmbeddedQueue(store, writer, **knobs)
    from bot.queue.procrastinate import ProcrastinateQueue
    from bot.store.tokens import TokenStore

    tokens = TokenStore(database, cards)
    return tokens, ProcrastinateQueue(tokens, writer, **knobs)


def _platforms(settings: Settings, history: History, desk: Desk) -> Iterator[Adapter]:
    """Each platform's library is imported only where the platform is on."""
    secrets = settings.secrets
    if settings.telegram.enabled:
        from adapters.telegram import TelegramAdapter

        token, telegram = secrets.telegram_token.get_secret_value(), settings.telegram
        chat = _agents_chat(settings, Platform.TELEGRAM)
        yield TelegramAdapter(token, telegram.api_url, telegram.webhook, desk, chat)
    if settings.slack.enabled:
        from adapters.slack import SlackAdapter

        tokens = secrets.slack_bot_token.get_secret_value(), secrets.slack_app_token.get_secret_value()
        signing = secrets.slack_signing_secret.get_secret_value() if settings.slack.webhook else ""
        yield SlackAdapter(*tokens, settings.slack.api_url, signing, desk, _agents_chat(settings, Platform.SLACK))
    if settings.web.enabled:
        try:
            from adapters.web import WebAdapter
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"web.enabled is true but {error.name} is not installed: pip install 'frontdesk[web]', "
                "or set web.enabled = false"
            ) from None
        yield WebAdapter(history, partial(emoji, settings))


def _hooks(settings: Settings, adapters: Mapping[Platform, Adapter]) -> Iterator[tuple[str, Hook]]:
    """Where platforms post what happens, and who takes it."""
    for platform, section in ((Platform.TELEGRAM, settings.telegram), (Platform.SLACK, settings.slack)):
        if section.enabled and section.webhook:
            adapter: Any = adapters[platform]  # one of the two that can hear
            yield urlsplit(section.webhook).path, adapter.hear


def _asks(settings: Settings, platform: Platform) -> bool:
    """Whether we ask the platform what there is, so that only one process may."""
    webhooks = {Platform.TELEGRAM: settings.telegram.webhook, Platform.SLACK: settings.slack.webhook}
    return webhooks.get(platform) == ""


def _say_in_browser(key: str, code: str) -> str:
    return say(key, language_of("", code))


def cards_to(settings: Settings) -> Address | None:
    """Where escalation cards go."""
    platform, _, chat = settings.escalation.channel.partition(":")
    return Address(Platform(platform), "", chat) if platform else None


def _agents_chat(settings: Settings, platform: Platform) -> str:
    """The chat of the cards where it is on `platform`, else ""."""
    agents = cards_to(settings)
    return agents.chat if agents is not None and agents.platform is platform else ""


def manners(settings: Settings) -> Manners:
    """How the desk behaves, from the settings."""
    return Manners(
        sentiment=sentiment_role(settings),
        reply=reply_role(settings),
        deadline_s=settings.engine.deadline_seconds,
        negative=settings.sentiment.negative,
        threshold=settings.escalation.threshold,
        keywords=settings.escalation.keywords,
        limits=Limits(settings.limits.messages_per_minute, settings.limits.replies_per_minute),
        shop=settings.business.name,
        cards=CardWriter(partial(emoji, settings)),
        hours=settings.hours.read(),
    )


def handoff_manners(settings: Settings) -> HandoffManners:
    """How agents and customers meet, from the settings. A wait of 0 is for ever."""
    escalation = settings.escalation
    waits = {
        Overdue.REMIND: timedelta(minutes=escalation.remind_minutes),
        Overdue.APOLOGISE: timedelta(minutes=escalation.apologise_minutes),
        Overdue.IDLE: timedelta(hours=escalation.idle_hours),
    }
    patience = {what: time for what, time in waits.items() if time}
    return HandoffManners(patience, settings.hours.read(), escalation.names, escalation.ask_score)


def emoji(settings: Settings, label: str) -> str:
    """A face for a mood: the negative label's, the first other's, and a straight one for any further."""
    mood = settings.sentiment
    if label == mood.negative:
        return "😢"
    return "😄" if label == next(each for each in mood.labels if each != mood.negative) else "😐"


# -- starting --------------------------------------------------------------------------------------


def run(settings: Settings, serves: Serve = Serve.ALL) -> int:
    """`frontdesk run`: serve every configured platform, or a part of it, until SIGTERM or Ctrl-C.

    Raises FrontdeskError.
    """
    if serves is not Serve.ALL and is_file(settings.database.url):
        raise ConfigError(
            f"--serve {serves} is for one of several processes, and they need PostgreSQL: set database.url, or leave "
            "--serve out"
        )
    log.set_up(settings.log.level, settings.log.format, settings.secrets.values())
    console = Console(stderr=True)
    with single_writer(settings.database.url):
        upgrade(settings.database.url, tokens=settings.queue.backend == "procrastinate")
        path = model_path(settings, console) if serves is not Serve.ADAPTERS else None
        asyncio.run(_serve(settings, path, console, serves))
    return 0


async def _serve(settings: Settings, path: Path | None, console: Console, serves: Serve) -> None:
    stop = stop_on_signals()
    engine = await load_engine(settings, path, console) if serves is not Serve.ADAPTERS else None
    app = build(settings, engine, serves=serves)
    try:
        logger.info("serving", what=serves, platforms=sorted(app.adapters), model=settings.engine.model)
        await app.run(stop)
    finally:
        await app.close()
        logger.info("stopped")


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


def _first(group: BaseExceptionGroup[FrontdeskError]) -> FrontdeskError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
