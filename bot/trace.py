"""`frontdesk trace MESSAGE`: one message's way through the house, from the database alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from operator import itemgetter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bot.config import Settings
from bot.errors import FrontdeskError
from bot.store.database import open_read_only
from bot.store.reader import Reader
from bot.store.values import Trace


def print_trace(settings: Settings, message_id: int, console: Console) -> None:
    """Print a table of what happened and when. Raises FrontdeskError when there is no such message."""
    engine = open_read_only(settings.database.url)
    try:
        trace = Reader(engine).trace(message_id)
    finally:
        engine.dispose()
    if trace is None:
        raise FrontdeskError(
            f"there is no message {message_id} in {settings.database.url}: take the number from the log"
        )
    console.print(_table(message_id, trace))


def _table(message_id: int, trace: Trace) -> Table:
    conversation = trace.conversation
    title = f"message {message_id}, conversation {conversation.id}, {conversation.address.platform}"
    table = Table("time (UTC)", "+ s", "what", "detail", title=title)
    happened = sorted((event for event in _events(trace) if event[0]), key=itemgetter(0))
    for at, what, detail in [*happened, *(event for event in _events(trace) if not event[0])]:
        since = f"{(at - trace.line.at).total_seconds():.2f}" if at else ""
        table.add_row(f"{at:%H:%M:%S.%f}"[:-3] if at else "not yet", since, what, escape(detail))
    return table


def _events(trace: Trace) -> Iterator[tuple[datetime | None, str, str]]:
    yield trace.line.at, "received and stored", trace.line.text
    mood = trace.line.sentiment
    judged = f"{mood.label}, negative {mood.negative:.3f} (threshold {mood.threshold}); " if mood else ""
    yield trace.settled_at, "settled", f"{judged}{trace.line.outcome or trace.job_error or 'waiting for the queue'}"
    for line in trace.answers:
        rated = f" (rated {line.rating})" if line.rating else ""
        yield line.at, f"said by {line.author}", line.text + rated
    if trace.escalation is not None:
        yield trace.escalation.opened_at, "human called", f"#{trace.escalation.id} {trace.escalation.reason}"
    for sent in trace.sent:
        yield sent.settled_at, f"{sent.kind} to {sent.address.platform}", f"{sent.state} {sent.error}".strip()
