"""`frontdesk forget` and `frontdesk export-customer`: what one customer may ask for, done by the owner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bot.app import cards_to
from bot.config import Settings
from bot.conversation import Escalation, Line
from bot.errors import DatabaseInUse, FrontdeskError
from bot.messages import Customer, Platform
from bot.store.database import is_file, name_of, open_engine, open_read_only, single_writer
from bot.store.reader import Reader
from bot.store.store import Store
from bot.store.values import Erased, Kept, Sent

# -- forget ------------------------------------------------------------------------------------------


def forget(
    settings: Settings, platform: Platform, customer_id: str, sure: Callable[[str], bool], console: Console
) -> bool:
    """Erase one customer as /forget does, if the answer to the question put to `sure` is yes, and print a receipt.

    Returns that answer. Raises DatabaseInUse while a service runs on the file: it may be answering this customer, and
    what its model remembers of them cannot be reached from here. Raises FrontdeskError for an unknown customer.
    """
    kept = _kept(settings, platform, customer_id)
    url, who = settings.database.url, _who(kept[0].conversation.customer)
    with _alone(url):
        if not sure(f"Erase {platform} customer {who}, {_holding(kept)}, for good?"):
            console.print("Nothing was erased.")
            return False
        engine = open_engine(url)
        try:
            erased = Store(engine, cards_to(settings)).erase_known(platform, customer_id)
        finally:
            engine.dispose()
    if erased is None:
        raise _unknown(settings, platform, customer_id)
    for line in (*_receipt(erased, platform, who), *_left_on_a_server(url)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return True


@contextmanager
def _alone(url: str) -> Iterator[None]:
    try:
        lock = single_writer(url)
    except DatabaseInUse:
        raise DatabaseInUse(
            f"{name_of(url)} is in use by a running frontdesk: stop it, or let the customer write /forget"
        ) from None
    with lock:
        yield


def _receipt(erased: Erased, platform: Platform, who: str) -> Iterator[str]:
    yield (
        f"Erased, {platform} customer {who}: {_many(erased.conversations, 'conversation')}, "
        f"{_many(erased.messages, 'message')}, {_many(erased.escalations, 'escalation')}, "
        f"{_many(erased.outbound, 'outbound message')}."
    )
    yield "Not erased:"
    if erased.cards or erased.relayed:
        seen = f"{_many(erased.cards, 'card')} and {_many(erased.relayed, 'relayed message')}"
        yield (
            f"- what agents see: {seen}, which `frontdesk run` empties and takes back when it starts next; "
            "where the platform refuses, it tells the agents which to delete by hand"
        )
    if erased.lost:
        yield f"- {_many(erased.lost, 'relayed message')} of which the platform did not tell where: delete by hand"
    if erased.escalations:
        yield "- what agents wrote about it where they are"
    yield f"- what is in the chat itself: only its members can delete that on {platform}"
    yield "- backups made before, and files written by `frontdesk export`: they still hold all of it"


def _left_on_a_server(url: str) -> Iterator[str]:
    if not is_file(url):
        yield "- PostgreSQL's write-ahead log, archives, replicas and the unused space of its files: until it is reused"
        yield "- what the models of running services have read of it, until these stop"


def _who(customer: Customer) -> str:
    return f"{customer.id} ({customer.name})" if customer.name else customer.id


def _holding(kept: Sequence[Kept]) -> str:
    lines = sum(len(each.lines) for each in kept)
    return f"{_many(len(kept), 'conversation')} with {_many(lines, 'message')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# -- export-customer ---------------------------------------------------------------------------------


def export_customer(settings: Settings, platform: Platform, customer_id: str, file: Path) -> str:
    """Write all that is stored about one customer to the new `file`, which only its owner can read.

    Returns how much it is, in words. Raises FrontdeskError for an unknown customer, and when the file exists or cannot
    be written.
    """
    kept = _kept(settings, platform, customer_id)
    document = json.dumps(_document(platform, customer_id, kept), ensure_ascii=False, indent=2)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(f"{document}\n")
    except FileExistsError:
        raise FrontdeskError(f"{file} exists already: name another file") from None
    except OSError as error:
        raise FrontdeskError(f"{file} cannot be written: {error.strerror}") from None
    return _holding(kept)


def _document(platform: Platform, customer_id: str, kept: Sequence[Kept]) -> dict[str, Any]:
    return {
        "exported_at": _at(datetime.now(UTC)),
        "platform": platform,
        "customer_id": customer_id,
        "conversations": [_conversation(each) for each in kept],
    }


def _conversation(kept: Kept) -> dict[str, Any]:
    conversation = kept.conversation
    customer, address = conversation.customer, conversation.address
    return {
        "name": customer.name,
        "language": customer.language,
        "chosen_language": customer.chosen,
        "account": address.account,
        "chat": address.chat,
        "thread": address.thread,
        "opened_at": _at(kept.opened_at),
        "came_by": conversation.origin,
        "answered_by": conversation.owner,
        "unreachable": conversation.unreachable,
        "messages": [_line(line) for line in kept.lines],
        "escalations": [_escalation(each) for each in kept.escalations],
        "deliveries": [_delivery(each) for each in kept.sent],
    }


def _line(line: Line) -> dict[str, Any]:
    mood = line.sentiment
    return {
        "time": _at(line.at),
        "author": line.author,
        "kind": line.kind,
        "text": line.text,
        "media": line.media,
        "cut": line.cut,
        "mood": {"label": mood.label, "negative": mood.negative, "threshold": mood.threshold} if mood else None,
        "mood_corrected": line.corrected,
        "outcome": line.outcome,
        "rating": line.rating,
    }


def _escalation(call: Escalation) -> dict[str, Any]:
    return {
        "number": call.id,
        "reason": call.reason,
        "called_times": call.times,
        "message": call.evidence.text if call.evidence else None,
        "opened_at": _at(call.opened_at),
        "claimed_at": _at(call.claimed_at),
        "claimed_by": call.claimed_by,
        "resolved_at": _at(call.resolved_at),
        "ended": call.ended,
        "came_back_at": _at(call.came_back_at),
        "score": call.score,
    }


def _delivery(sent: Sent) -> dict[str, Any]:
    return {
        "time": _at(sent.created_at),
        "kind": sent.kind,
        "platform": sent.address.platform,
        "chat": sent.address.chat,
        "state": sent.state,
        "settled_at": _at(sent.settled_at),
        "error": sent.error,
    }


def _at(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


# -- both --------------------------------------------------------------------------------------------


def _kept(settings: Settings, platform: Platform, customer_id: str) -> list[Kept]:
    engine = open_read_only(settings.database.url)
    try:
        kept = Reader(engine).kept(platform, customer_id)
    finally:
        engine.dispose()
    if not kept:
        raise _unknown(settings, platform, customer_id)
    return kept


def _unknown(settings: Settings, platform: Platform, customer_id: str) -> FrontdeskError:
    return FrontdeskError(
        f"there is no {platform} customer {customer_id} in {name_of(settings.database.url)}: "
        "take the id from a card, where it stands beside the name"
    )
