"""The terminal: customers of the demo write here, and escalation cards are printed when no other channel is set."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from bot.messages import (
    Address,
    Customer,
    Delivery,
    InboundMessage,
    Inbox,
    OutboundKind,
    OutboundMessage,
    Platform,
    Preview,
    Receipt,
    Sentiment,
)


class ConsoleAdapter:
    """A platform without a network. `emoji` shows a label's mood."""

    platform = Platform.CONSOLE
    asks_first = False

    def __init__(self, console: Console, emoji: Callable[[str], str]) -> None:
        self._console = console
        self._emoji = emoji
        self._inbox: asyncio.Future[Inbox] | None = None
        self._moods: dict[str, Sentiment] = {}

    @property
    def last_contact(self) -> float | None:
        return time.time()

    async def run(self, inbox: Inbox) -> None:
        """Nothing comes from outside: write() is the way in."""
        self._ready().set_result(inbox)
        await asyncio.Event().wait()

    async def write(self, customer: Customer, text: str) -> Receipt:
        """A customer says something. Returns once it is stored."""
        self._console.print(f"\n[bold cyan]{escape(customer.name)}[/]  {escape(text)}")
        self._moods.pop(customer.id, None)
        inbox = await self._ready()
        address = Address(Platform.CONSOLE, "console", customer.id)
        return await inbox.receive(InboundMessage(address, customer, uuid.uuid4().hex, text))

    async def send(self, message: OutboundMessage) -> Delivery:
        if message.kind is OutboundKind.CARD:
            title, _, body = message.text.partition("\n")
            self._console.print(Panel(escape(body), title=escape(title), border_style="red", expand=False))
        else:
            self._console.print(f"  [bold green]frontdesk[/]  {escape(message.text)}")
        return Delivery(message.id)

    async def preview(self, preview: Preview) -> None:
        mood = preview.sentiment
        if mood is not None and self._moods.get(preview.customer_id) != mood:
            self._moods[preview.customer_id] = mood
            self._console.print(f"  [dim]{self._emoji(mood.label)} {mood.label}  (negative {mood.negative:.2f})[/]")

    def split(self, text: str) -> Sequence[str]:
        return [text]

    def _ready(self) -> asyncio.Future[Inbox]:
        if self._inbox is None:
            self._inbox = asyncio.get_running_loop().create_future()
        return self._inbox
