"""The way in: clean the text, store the message, and only then let the platform be told that we have it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace

import structlog

from bot.errors import Stopping
from bot.handoff import Handoff
from bot.messages import (
    Address,
    Dropped,
    Edited,
    Event,
    InboundKind,
    InboundMessage,
    Left,
    Moved,
    Platform,
    Pressed,
    Rated,
    Receipt,
    Scored,
)
from bot.metrics import Metrics
from bot.store.database import Writer
from bot.store.store import Store

log = structlog.get_logger(__name__)

# NUL and other control characters (PostgreSQL refuses the first, terminals obey the rest), and the bidirectional
# controls that make a text read otherwise than it is. Tab and newline stay; so do joiners, which emoji need.
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")

MAX_MEDIA = 1_000
"""Characters of what media are called, links to them among it."""


def clean(text: str, max_chars: int) -> str:
    """Text that any database stores and any terminal shows: no lone surrogates, controls, or more than `max_chars`."""
    whole = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return _UNWANTED.sub("", whole).strip()[:max_chars].rstrip()


class Intake:
    """The Inbox of every adapter. What is written to `agents`, where the cards go, comes from no customer.

    `allow` and `block` hold "platform:id" of people and chats; an empty `allow` lets everybody in. `on_accepted` wakes
    the queue.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        metrics: Metrics,
        max_chars: int,
        agents: Address | None,
        on_accepted: Callable[[], None],
        allow: Collection[str] = (),
        block: Collection[str] = (),
        handoff: Handoff | None = None,
    ) -> None:
        self._store = store
        self._writer = writer
        self._metrics = metrics
        self._max_chars = max_chars
        self._agents = agents
        self._on_accepted = on_accepted
        self._allow, self._block = frozenset(allow), frozenset(block)
        self._handoff = handoff
        self._closed = False

    def close(self) -> None:
        """Accept nothing more; replies to what was accepted may still go out."""
        self._closed = True

    async def receive(self, event: Event) -> Receipt:
        """Store one event in one transaction. Raises DatabaseUnavailable: nothing was stored, do not acknowledge."""
        if self._closed:
            raise Stopping("frontdesk is stopping")
        if isinstance(event, Dropped):
            return await self._drop(event)
        if isinstance(event, Edited):
            return await self._edit(event)
        if isinstance(event, Moved):
            return await self._move(event)
        if isinstance(event, Rated):
            return await self._rate(event)
        if isinstance(event, Scored):
            return await self._score(event)
        if isinstance(event, Pressed):
            await self.press(event)
            return Receipt.ACCEPTED
        if isinstance(event, Left):
            return await self._let_go(event)
        message = self._cleaned(event)
        if self._handoff and self._handoff.is_here(message.address.platform, message.address.chat):
            return await self._hear_agent(self._handoff, message)
        if reason := self._unwanted(message):
            address = event.address
            return await self._drop(Dropped(address.platform, address.account, reason, event.event_id, event.cursor))
        accepted = await self._writer(self._store.accept, message)
        self._metrics.accepted(message.address.platform, accepted.receipt)
        log.info(
            "received",
            platform=message.address.platform,
            receipt=accepted.receipt,
            message=accepted.message_id,
            conversation=accepted.conversation_id,
            cut=message.cut,
        )
        if accepted.receipt is Receipt.ACCEPTED:
            self._on_accepted()
        return accepted.receipt

    async def cursor(self, platform: Platform, account: str) -> int | None:
        return await self._writer(self._store.cursor, platform, account)

    async def press(self, event: Pressed) -> str:
        """Do what a button on a card says. Returns what to tell whoever pressed it. Raises DatabaseUnavailable."""
        if self._closed:
            raise Stopping("frontdesk is stopping")
        words = await self._handoff.press(event) if self._handoff else ""
        await self._writer(self._store.drop, Dropped(event.platform, event.account, "", cursor=event.cursor))
        return words

    async def _hear_agent(self, handoff: Handoff, message: InboundMessage) -> Receipt:
        address = message.address
        return await self._passed_on(
            await handoff.hear(message), Dropped(address.platform, address.account, "", cursor=message.cursor)
        )

    async def _passed_on(self, receipt: Receipt, event: Edited | Dropped) -> Receipt:
        if receipt is Receipt.DROPPED:
            await self._drop(Dropped(event.platform, event.account, "among agents", cursor=event.cursor))
        return receipt

    async def _edit(self, event: Edited) -> Receipt:
        text = clean(event.text, self._max_chars)
        if not text:
            return await self._drop(Dropped(event.platform, event.account, "edited away", cursor=event.cursor))
        event = replace(event, text=text)
        if self._handoff and self._handoff.is_here(event.platform, event.of.rpartition(":")[0]):
            return await self._passed_on(await self._handoff.edit(event), event)
        edited = await self._writer(self._store.edit, event)
        self._metrics.accepted(event.platform, edited.receipt)
        log.info(
            "edited",
            platform=event.platform,
            receipt=edited.receipt,
            message=edited.message_id,
            conversation=edited.conversation_id,
        )
        if edited.receipt is Receipt.ACCEPTED:
            self._on_accepted()
        return edited.receipt

    async def _move(self, event: Moved) -> Receipt:
        await self._writer(self._store.move, event)
        log.info("a chat has a new id", platform=event.platform, chat=event.chat, to=event.to)
        return Receipt.ACCEPTED

    async def _rate(self, event: Rated) -> Receipt:
        rated = await self._writer(self._store.rate, event)
        if rated.receipt is Receipt.ACCEPTED:
            self._metrics.rated(event.platform, event.rating)
        log.info("rated", platform=event.platform, rating=event.rating, receipt=rated.receipt, message=rated.message_id)
        return rated.receipt

    async def _score(self, event: Scored) -> Receipt:
        scored = await self._writer(self._store.score, event)
        log.info("scored", platform=event.platform, score=event.score, receipt=scored.receipt)
        if scored.receipt is Receipt.ACCEPTED:
            self._on_accepted()
        return scored.receipt

    async def _let_go(self, event: Left) -> Receipt:
        if self._handoff:
            self._handoff.left(event)
        return await self._drop(Dropped(event.platform, event.account, "somebody left", cursor=event.cursor))

    async def _drop(self, event: Dropped) -> Receipt:
        await self._writer(self._store.drop, event)
        self._metrics.accepted(event.platform, Receipt.DROPPED)
        log.info("dropped", platform=event.platform, reason=event.reason)
        return Receipt.DROPPED

    def _unwanted(self, message: InboundMessage) -> str:
        address, agents = message.address, self._agents
        if agents is not None and agents.is_chat(address.platform, address.chat):
            return "written by an agent"
        known_as = {f"{address.platform}:{known}" for known in (message.customer.id, address.chat)}
        if known_as & self._block or (self._allow and not known_as & self._allow):
            return "not let in by [limits]"
        return "no text" if message.kind is InboundKind.TEXT and not message.text else ""

    def _cleaned(self, message: InboundMessage) -> InboundMessage:
        name = clean(message.customer.name, 200).replace("\n", " ")
        customer = replace(message.customer, name=name, language=clean(message.customer.language, 35))
        text = clean(message.text, self._max_chars + 1)
        kept = text[: self._max_chars].rstrip()
        cut, media = len(text) > self._max_chars, clean(message.media, MAX_MEDIA)
        return replace(message, customer=customer, text=kept, cut=cut, media=media)
