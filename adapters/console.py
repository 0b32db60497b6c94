"""The terminal: customers of the demo write here, and escalation cards are printed when no other channel is set."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from adapters.local import LocalAdapter
from bot.messages import (
    Address,
    Customer,
    Delivery,
    InboundMessage,
    OutboundKind,
    OutboundMessage,
    Platform,
    Preview,
    Receipt,
    Sentiment,
)


class ConsoleAdapter(LocalAdapter):
    """A platform without a network."""

    platform = Platform.CONSOLE

    def __init__(self, console: Console, emoji: Callable[[str], str]) -> None:
        super().__init__(emoji)
        self._console = console
        self._moods: dict[str, Sentiment] = {}

    async def write(self, customer: Customer, text: str) -> Receipt:
        """A customer says something. Returns once it is stored."""
        self._console.print(f"\n[bold cyan]{escape(customer.name)}[/]  {escape(text)}")
        self._moods.pop(customer.id, None)
        inbox = await self.inbox()
        address = Address(Platform.CONSOLE, "console", customer.id)
        return await inbox.receive(InboundMessage(address, customer, uuid.uuid4().hex, text))

    async def send(self, message: OutboundMessage) -> Delivery:
        if message.kind is OutboundKind.CARD:
            title, _, body = message.text.partition("\n")
            self._console.print(Panel(escape(body), title=escape(title), border_style="red", expand=False))
        else:
            self._console.print(f"  [bold green]frontdesk[/]  {escape(message.text)}")
        return Delivery(message.id)

    async def preview(self, preview: Preview) -> str:
        mood = preview.sentiment
        if mood is not None and self._moods.get(preview.customer_id) != mood:
            self._moods[preview.customer_id] = mood
            self._console.print(f"  [dim]{self._emoji(mood.label)} {mood.label}  (negative {mood.negative:.2f})[/]")
        return ""

    async def is_member(self, chat: str, person: str) -> bool:
        return False
