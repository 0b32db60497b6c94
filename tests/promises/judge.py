"""What a trial is judged by: what people wrote, what the platforms saw of the front desk, and what its database holds.

The truth is the lines of a file, one a thing that was seen, in the order in which it was. Every promise that is broken
is one sentence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.messages import Address, Customer, InboundMessage, Platform
from bot.store.database import driver
from tests.conftest import AGENTS

Truth = list[dict[str, Any]]


def _message(number: int, mood: str, platform: Platform) -> InboundMessage:
    """ "m1" ... is found again in whatever is said about it."""
    account, chat, cursor = ("1", "chat-t", number) if platform is Platform.TELEGRAM else ("T1", "D-s", None)
    who = Customer(chat[-1], chat, "en")
    return InboundMessage(Address(platform, account, chat), who, f"m{number}", f"{mood} m{number}", cursor=cursor)


TELEGRAM = (_message(1, "awful", Platform.TELEGRAM), _message(2, "hello", Platform.TELEGRAM))
SLACK = (_message(3, "awful", Platform.SLACK), _message(4, "hello", Platform.SLACK))
MESSAGES = (*TELEGRAM, *SLACK)
FIRST, THEN = (TELEGRAM[0], SLACK[0]), (TELEGRAM[1], SLACK[1])
CHATS = (TELEGRAM[0].address.chat, SLACK[0].address.chat)


def read() -> Truth:
    """All that was seen until now, in the trial whose folder we are in."""
    return [json.loads(line) for line in Path("truth").read_text("utf-8").splitlines()]


def of(truth: Truth, what: str) -> Iterator[dict[str, Any]]:
    return (each for each in truth if each["what"] == what)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds in the end: the outcome of each message, the order in which things to say were stored,
    what was not left to the human who owned the conversation, and chats of which the agents could not be told."""

    outcomes: Mapping[str, str | None]
    order: Mapping[str, int]
    spoken_over: tuple[str, ...]
    given_up: tuple[str, ...]


def stored() -> Stored:
    """Of the trial whose folder we are in. The times of claims and outcomes are taken under the write lock."""
    with closing(driver().connect("frontdesk.db")) as database:
        after_a_claim = database.execute(
            "SELECT event_id FROM messages m JOIN escalations e ON e.conversation_id = m.conversation_id"
            " WHERE author = 'customer' AND settled_at > claimed_at AND outcome != 'silent'"
        )
        given_up = database.execute(
            "SELECT c.chat FROM outbound o JOIN conversations c ON c.id = o.conversation_id"
            " WHERE kind IN ('card', 'relay') AND state = 'failed'"
        )
        return Stored(
            dict(database.execute("SELECT event_id, outcome FROM messages WHERE author = 'customer'")),
            dict(database.execute("SELECT id, rowid FROM outbound")),
            tuple(name for (name,) in after_a_claim),
            tuple(chat for (chat,) in given_up),
        )


def broken(truth: Truth, wanted: Iterable[InboundMessage], stored: Stored) -> Iterator[str]:
    """The promises that are, once nothing is left to do; `wanted` is what people wrote."""
    yield from _lost(truth, wanted, stored)
    yield from _doubled(truth)
    yield from _disordered(truth, stored)
    yield from _spoke_over(truth)
    for name in stored.spoken_over:
        yield f"spoke over a human: {name} came after a claim, and is {stored.outcomes[name]}"


def _lost(truth: Truth, wanted: Iterable[InboundMessage], stored: Stored) -> Iterator[str]:
    """What was acknowledged has an outcome, and was answered or shown to the agents, unless that was tried in vain."""
    acknowledged = {each["id"] for each in of(truth, "acknowledged")}
    for message in wanted:
        name, outcome = message.event_id, stored.outcomes.get(message.event_id)
        answer, call = (message.address.chat, "reply"), {(AGENTS.chat, "card"), (AGENTS.chat, "relay")}
        places = {(each["chat"], each["kind"]) for each in of(truth, "shown") if name in _words(each)}
        if name not in acknowledged:
            yield f"lost: {name} was never acknowledged"
        elif outcome is None:
            yield f"lost: {name} was acknowledged and has no outcome"
        elif not places & {answer, *call} and message.address.chat not in stored.given_up:
            yield f"lost: {name} is {outcome}, and nobody saw an answer or a call"


def _doubled(truth: Truth) -> Iterator[str]:
    """Once, but for a send of which nobody knows how it ended, where the platform cannot be asked; and one answer."""
    for name, count in Counter(_new(truth)).items():
        if count == 1:
            continue
        first, second, *more = (n for n, each in enumerate(truth) if each["what"] == "shown" and each["id"] == name)
        unsure = any(each["what"] == "killed" or _is(each, "unknown", name) for each in truth[first:second])
        known = any(_is(each, "stored as sent", name) for each in truth[:second])
        if more or known or not unsure or truth[first]["chat"] != TELEGRAM[0].address.chat:
            yield f"doubled: {truth[first]} was seen {count} times"
    replies = [each for each in of(truth, "shown") if each["kind"] == "reply"]
    for message in MESSAGES:
        count = len({each["id"] for each in replies if message.event_id in _words(each)})
        if count > 1:
            yield f"doubled: {message.event_id} was answered {count} times"


def _disordered(truth: Truth, stored: Stored) -> Iterator[str]:
    """Customers see what is said to them in the order in which it was stored, and answers in the order they wrote."""
    for home in CHATS:
        here = [each for each in of(truth, "shown") if each["chat"] == home]
        replies = {each["id"]: _words(each) for each in here if each["kind"] == "reply"}
        answered = [word for words in replies.values() for word in words if word[0] == "m"]
        said = [stored.order[each["id"]] for each in here]
        if said != sorted(said) or answered != sorted(answered):
            yield f"disordered: {home} saw {[each['text'] for each in here]}"


def _spoke_over(truth: Truth) -> Iterator[str]:
    """No reply starts after a claim; of what is previewed, one call may be under way."""
    claimed, under_way = set[str](), set[str]()
    for each in truth:
        if each["what"] == "claimed":
            claimed.add(each["chat"])
        elif each.get("chat") not in claimed:
            continue
        elif each["what"] == "started" and each["kind"] == "reply" and not each["again"]:
            yield f"spoke over a human: {each}"
        elif each["what"] == "previewed" and each["text"]:
            if each["chat"] in under_way:
                yield f"spoke over a human: {each}"
            under_way.add(each["chat"])


def exercised(truth: Truth) -> Counter[str]:
    """How often what happened."""
    counts = Counter(each["what"] for each in truth if each["what"] != "step")
    counts["redelivered"] = counts["delivered"] - len({each["id"] for each in of(truth, "delivered")})
    counts["resent"] = sum(each["again"] for each in of(truth, "started"))
    counts["seen twice"] = sum(count - 1 for count in Counter(_new(truth)).values())
    return counts


def _new(truth: Truth) -> list[str]:
    """The ids of what was shown as a message of its own, once each time."""
    return [each["id"] for each in of(truth, "shown") if not each["edits"]]


def _is(seen: Mapping[str, Any], what: str, name: str) -> bool:
    return seen["what"] == what and bool(seen["id"] == name)


def _words(shown: Mapping[str, Any]) -> list[str]:
    return str(shown["text"]).split()
