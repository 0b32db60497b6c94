"""`frontdesk escalations`: who waits for a human, from the database alone."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bot.catalogue import say
from bot.config import Settings
from bot.conversation import Escalation
from bot.store.database import open_read_only
from bot.store.reader import Reader


def print_escalations(settings: Settings, console: Console) -> None:
    """Print a table of what is open, the most urgent first."""
    engine = open_read_only(settings.database.url)
    try:
        calls = Reader(engine).open_calls(limit=500)
    finally:
        engine.dispose()
    if not calls:
        console.print(say("desk_nobody", "en"))
        return
    table = Table("#", "waiting", "why", "negative", "customer", "where", "claimed by", title="Open escalations")
    now = datetime.now(UTC)
    for call in calls:
        table.add_row(*map(escape, _row(call, now)))
    console.print(table)


def _row(call: Escalation, now: datetime) -> tuple[str, ...]:
    sentiment = call.evidence.sentiment if call.evidence else None
    customer, address = call.conversation.customer, call.conversation.address
    return (
        str(call.id),
        str(now - call.opened_at).partition(".")[0],
        say(f"reason_{call.reason}", "en"),
        f"{sentiment.negative:.2f}" if sentiment else "",
        customer.name or customer.id,
        f"{address.platform} {address.chat}",
        call.claimed_by,
    )
