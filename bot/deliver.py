"""One deliver job: what is sent, what an error means; and the preview of what is still being written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import structlog

from bot.catalogue import language_of, say
from bot.conversation import Reason
from bot.errors import ChatMoved, DeliveryError, OutcomeUnknown, RetryLater, Undeliverable
from bot.escalate import CardWriter
from bot.messages import Adapter, Delivery, Moved, OutboundKind, OutboundMessage, Platform, Preview
from bot.metrics import Metrics
from bot.store.database import Writer
from bot.store.jobs import Claim
from bot.store.store import Clock, Store, utc_now
from bot.store.values import Sending

log = structlog.get_logger(__name__)

PATIENCE = timedelta(hours=24)
"""How long a platform may stay unreachable before a message to it is given up and a human is called."""
MAX_RESENDS = 1
"""Resends after an unknown outcome where the platform cannot be asked: one visible duplicate at most."""


class Deliverer:
    """Handles deliver jobs."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        adapters: Mapping[Platform, Adapter],
        cards: CardWriter,
        metrics: Metrics,
        backoff: Callable[[int], timedelta],
        clock: Clock = utc_now,
        thumbs: bool = True,
    ) -> None:
        """`thumbs`: replies can be rated."""
        self._thumbs = thumbs
        self._store = store
        self._writer = writer
        self._adapters = adapters
        self._cards = cards
        self._metrics = metrics
        self._backoff = backoff
        self._now = clock

    async def __call__(self, claim: Claim) -> None:
        """Send once and record what came of it. Raises LeaseLost when another worker took over."""
        sending = await self._writer(self._store.begin_send, claim)
        if sending is None:
            log.info("not sent, a human took over", outbound=claim.outbound_id)
            return
        message = sending.message
        with structlog.contextvars.bound_contextvars(outbound=message.id, platform=message.address.platform):
            try:
                delivery = await self._send(sending)
            except ChatMoved as error:
                await self._follow(claim, message, error)
            except RetryLater as error:
                await self._wait(claim, sending, error)
            except OutcomeUnknown as error:
                await self._doubt(claim, message, error)
            except Undeliverable as error:
                await self.bury(claim, str(error))
            else:
                await self._writer(self._store.sent, claim, delivery)
                self._count(message, "sent")

    async def bury(self, claim: Claim, error: str) -> None:
        """Give the message up; unless it was a card, a human is called."""
        left = say("not_taken_back", language_of("", ""), why=error)
        await self._writer(self._store.bury_delivery, claim, error, left)
        self._metrics.delivery("", "failed")
        log.error("could not be delivered", outbound=claim.outbound_id, error=error)

    async def _send(self, sending: Sending) -> Delivery:
        message = sending.message
        adapter = self._adapters.get(message.address.platform)
        if adapter is None:
            raise Undeliverable(f"{message.address.platform} is not configured: enable it in config.toml")
        if message.maybe_sent and not adapter.asks_first and sending.unknowns > MAX_RESENDS:
            raise Undeliverable("sent more than once without an answer from the platform")
        if not self._thumbs:
            message = replace(message, rateable=False)
        if sending.escalation is not None:
            escalation = sending.escalation
            text, buttons = self._cards.text(escalation), self._cards.buttons(escalation)
            message = replace(message, text=text, buttons=buttons, over=escalation.resolved_at is not None)
        try:
            return await adapter.send(message)
        except Undeliverable:
            if not message.edits or _is_erased(sending):
                raise
            return await adapter.send(_anew(message))

    async def _wait(self, claim: Claim, sending: Sending, error: RetryLater) -> None:
        if self._now() - sending.created_at > PATIENCE:
            await self.bury(claim, f"gave up after {PATIENCE}: {error}")
            return
        delay = self._backoff(claim.attempt) if error.after is None else timedelta(seconds=error.after)
        await self._writer(self._store.postpone, claim, delay, str(error), unknown=False)
        self._count(sending.message, "postponed")
        log.warning("will be sent later", seconds=delay.total_seconds(), error=str(error))

    async def _follow(self, claim: Claim, message: OutboundMessage, error: ChatMoved) -> None:
        address = message.address
        await self._writer(self._store.move, Moved(address.platform, address.account, address.chat, error.chat))
        await self._writer(self._store.postpone, claim, self._backoff(1), str(error), unknown=False)
        self._count(message, "postponed")
        log.warning("the chat has a new id: change it in config.toml where it stands there", to=error.chat)

    async def _doubt(self, claim: Claim, message: OutboundMessage, error: OutcomeUnknown) -> None:
        await self._writer(self._store.postpone, claim, self._backoff(claim.attempt), str(error), unknown=True)
        self._count(message, "unknown")
        log.warning("may or may not have arrived", error=str(error))

    def _count(self, message: OutboundMessage, result: str) -> None:
        self._metrics.delivery(message.address.platform, result)
        if result == "sent":
            log.info("sent", kind=message.kind)


def _is_erased(sending: Sending) -> bool:
    """Nobody misses the card of somebody who is erased."""
    return sending.escalation is not None and sending.escalation.reason is Reason.ERASED


def _anew(message: OutboundMessage) -> OutboundMessage:
    """What it was to replace is gone, and with a card the place that was opened for it."""
    address = replace(message.address, thread="") if message.kind is OutboundKind.CARD else message.address
    return replace(message, edits="", address=address)


class Progress:
    """Shows a reply on its way: one call at a time, never more often than `every`, renewed before typing expires.

    Words are the beginning of a reply, so `may_speak` is asked before any are shown; a no ends the preview and calls
    `on_over`. `began` is told the platform's id of a message that the reply is written into.
    """

    _LAST_S, _CURRENT_S = 1.0, 5.0
    """How long, at the end, the call for the mood may take, and one under way, which may be beginning a message."""

    def __init__(
        self,
        adapter: Adapter | None,
        preview: Preview,
        may_speak: Callable[[], Awaitable[bool]],
        began: Callable[[str], Awaitable[None]],
        on_over: Callable[[], object] = lambda: None,
        every: float = 0.1,
        renew: float = 4.0,
    ) -> None:
        self._adapter = adapter
        self._preview = preview
        self._may_speak = may_speak
        self._began = began
        self._on_over = on_over
        self._every = every
        self._renew = renew
        self._shown: Preview | None = None
        self._changed = asyncio.Event()
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    @property
    def seen(self) -> str:
        """The words that were shown last."""
        return self._shown.text if self._shown else ""

    def show(self, **changes: Any) -> None:
        """Change the preview's `sentiment` or `text`; shown as soon as the rhythm allows."""
        self._preview = replace(self._preview, **changes)
        self._changed.set()

    async def __aenter__(self) -> Self:
        if self._adapter is not None:
            self._task = asyncio.create_task(self._run(self._adapter))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None or self._adapter is None:
            return
        self._ended = True
        self._changed.set()
        await asyncio.wait([self._task], timeout=self._CURRENT_S)
        self._task.cancel()
        await asyncio.wait([self._task])
        if error is None and self._shown is not None and self._shown.sentiment != self._preview.sentiment:
            with contextlib.suppress(DeliveryError, TimeoutError):  # the mood is seen before the reply, also a fast one
                await asyncio.wait_for(self._show(self._adapter), self._LAST_S)

    async def _show(self, adapter: Adapter) -> bool:
        """False when a human took over, so that nothing more may be shown."""
        self._changed.clear()
        preview = self._preview
        if preview.text and not await self._may_speak():
            log.info("preview ended, a human took over")
            self._on_over()
            await adapter.preview(replace(preview, text="", over=True))
            return False
        if begun := await adapter.preview(preview):
            await self._began(begun)
        self._shown = preview
        return True

    async def _run(self, adapter: Adapter) -> None:
        try:
            while await self._show(adapter):
                await asyncio.sleep(self._every)
                await self._until_changed()
                if self._ended:
                    return
        except DeliveryError as error:
            log.debug("preview ended", error=str(error))  # the reply itself has its own delivery
        except Exception:  # a fault of a preview must not cost the reply
            log.exception("preview failed")

    async def _until_changed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._renew):
                await self._changed.wait()
