"""One trial: the front desk lives, is killed at a numbered step, and lives again until nothing is left to do.

Two customers, one on Telegram and one on Slack, each write an angry and then a calm message. The parts are real, on a
real SQLite file; engine and adapters are scripted. The platforms own the truth: a file to which whatever they see is
appended by one os.write, so that no kill can lose it, and which judge.py reads in the end.

Every life is a fork, so it need not import anything anew. The process to fork from, which nursery() starts, holds
neither threads, event loop nor connection, and never imports torch: a fork would hang.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import structlog
from sqlalchemy import Engine, event

from bot import attend
from bot.deliver import Progress
from bot.errors import DeliveryError, OutcomeUnknown, RetryLater
from bot.messages import (
    AgentAction,
    Customer,
    Delivery,
    InboundMessage,
    OutboundMessage,
    Platform,
    Pressed,
    Preview,
)
from bot.queue import embedded
from bot.store import sending
from bot.store.database import Writer, driver, open_engine
from bot.store.store import Store
from bot.store.values import Pressing
from tests.conftest import AGENTS, migrated
from tests.fakes.adapter import RecordingAdapter
from tests.house import House, working
from tests.promises.judge import FIRST, MESSAGES, SLACK, TELEGRAM, THEN, broken, exercised, of, read, stored

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A kill loses nothing that was written, so a file system in memory shows the same, and sooner."""
URL = "sqlite:///frontdesk.db"
LONGEST_LIFE_S = 60
FAULTS = ("", "later", "unknown, unseen", "unknown, seen"), (7, 1, 1, 1)
"""What a platform does to a send instead of confirming it, and how often."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the front desk.

    `messages` are written, and where they are not the FIRST, those are settled before. `kills` holds the step at which
    each life ends; the one after the last goes on until nothing is left to do. From step `claim_at` (life, step) on, an
    agent claims each call whose card was seen. `seed` draws when people write and which sends fail; without one they
    write again when all is settled, and no send fails. `tamper` changes the parts of every life before they start.
    """

    messages: tuple[InboundMessage, ...] = field(default=MESSAGES, repr=False)
    kills: tuple[int, ...] = ()
    claim_at: tuple[int, int] | None = None
    seed: int | None = None
    tamper: tuple[Callable[[House], None], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a plan: the promises that were broken, how often what was exercised, the steps that the first life
    took, and those at which lives ended."""

    plan: Plan
    broken: tuple[str, ...]
    exercised: Counter[str]
    steps: tuple[str, ...]
    killed_at: tuple[str, ...]


Carry = Callable[[Iterable[Plan]], list[Report]]
"""Carries out plans, one after the other. Raises AssertionError when a life ends otherwise than planned."""


@contextmanager
def nursery() -> Iterator[Carry]:
    """A fresh process of one thread, from which lives can be forked."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        ProcessPoolExecutor(1, get_context("spawn"), _warm_up, (folder,)) as pool,
    ):
        yield lambda plans: list(pool.map(_run, plans))


@cache
def _engine() -> Engine:
    """The same for every life: what it compiled once is there after each fork."""
    return open_engine(URL)


BEGUN: dict[str, bytes] = {}
"""The files of a desk where the FIRST messages are settled, by name."""


def _warm_up(folder: str) -> None:
    """Do once what each life would do anew, and let go of thread, event loop and connection."""
    os.chdir(folder)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _start_anew({})

    async def live() -> None:
        house = House(_engine())
        async with working(house):
            for message in MESSAGES:
                await house.intake.receive(message)
            await house.idle()
        house.writer.close()

    asyncio.run(live())
    _engine().dispose()
    report = _run(Plan(FIRST))
    assert not report.broken, report
    BEGUN.update({file.name: file.read_bytes() for file in Path().iterdir()})
    gc.freeze()


def _start_anew(files: Mapping[str, bytes]) -> None:
    for file in Path().iterdir():
        file.unlink()
    for name, content in {"frontdesk.db": migrated(), "truth": b"", **files}.items():
        Path(name).write_bytes(content)


def _run(plan: Plan) -> Report:
    goes_on = plan.messages == THEN
    _start_anew(BEGUN if goes_on else {})
    before = len(read())
    for number in range(len(plan.kills) + 1):
        child = os.fork()
        if child == 0:
            _live(plan, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        said = Path("log").read_text("utf-8")
        assert (status, number < len(plan.kills)) == (-signal.SIGKILL, True), f"{plan}: {status} in {number}\n{said}"
    truth, in_the_end = read(), stored()
    fresh = truth[before:]
    return Report(
        plan,
        tuple(broken(truth, MESSAGES if goes_on else plan.messages, in_the_end)),
        exercised(fresh) + Counter({"told to agents in vain": len(in_the_end.given_up)}),
        tuple(each["name"] for each in of(fresh, "step") if each["life"] == 0),
        tuple(each["at"] for each in of(fresh, "killed")),
    )


# -- living ----------------------------------------------------------------------------------------


def _live(plan: Plan, number: int) -> NoReturn:
    """One life, in a process of its own."""
    status = 1
    try:
        gc.disable()  # a life is short
        signal.alarm(LONGEST_LIFE_S)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        asyncio.run(_Life(plan, number).run())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Life:
    """From a start to the kill, or until nothing is left to do."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.plan, self.number = plan, number
        self.random = random.Random(f"{plan.seed}.{number}")
        self.truth = os.open("truth", os.O_WRONLY | os.O_APPEND)
        self.known = {each["id"] for each in of(read(), "acknowledged")}
        self.kill_at = dict(enumerate(plan.kills)).get(number)
        self.looking = driver().connect("frontdesk.db")
        self.steps = 0

    async def run(self) -> None:
        if self.plan.seed is not None:  # else nothing is tried again later
            embedded.IDLE_POLL_S = 0.03
        attend.Progress = partial(Progress, every=0.001)  # type: ignore[assignment, attr-defined]
        house = House(_engine())
        self._watch(house)
        for tamper in self.plan.tamper:
            tamper(house)
        async with working(house):
            await asyncio.gather(self._poll(house), self._socket(house))
            await self._idle()

    def tell(self, what: str, **more: object) -> None:
        os.write(self.truth, (json.dumps({"what": what, **more}) + "\n").encode())

    def step(self, name: str) -> None:
        """One numbered moment at which the process may die, or a call be claimed."""
        self.steps += 1
        self.tell("step", life=self.number, name=name)
        if self.plan.claim_at is not None and (self.number, self.steps) >= self.plan.claim_at:
            self.agents.claim()
        if self.steps == self.kill_at:
            self.tell("killed", at=name)
            os.kill(os.getpid(), signal.SIGKILL)

    def _watch(self, house: House) -> None:
        """Count every call of the writer and of an adapter, and tell when replies start. All patches end with us."""
        write, begin = Writer.__call__, sending.sending

        async def counted(writer: Writer, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
            name = call.__name__
            if name == "claim":  # most find nothing to do
                result = await write(writer, call, *args, **how)
                if result is not None:
                    self.step("claimed a job")
                return result
            self.step(f"before {name}")
            result = await write(writer, call, *args, **how)
            if name == "sent":
                self.tell("stored as sent", id=args[0].outbound_id)
            self.step(f"after {name}")
            return result

        def told(session: Any, row: Any, job: Any, maybe_sent: bool) -> Any:
            """Told within the transaction, so that starts and claims are told in the order of their commits."""
            self.tell("started", id=row.id, kind=row.kind, chat=row.chat, again=maybe_sent)
            return begin(session, row, job, maybe_sent)

        Writer.__call__ = counted  # type: ignore[assignment, method-assign]
        sending.sending = told
        for adapter in (house.telegram, house.slack):
            adapter.send = partial(self._send, adapter)  # type: ignore[method-assign]
            adapter.preview = partial(self._preview, adapter)  # type: ignore[method-assign]
        house.slack.asks_first = True

    async def _idle(self) -> None:
        left = "SELECT 1 FROM jobs WHERE state != 'dead' LIMIT 1"
        while self.looking.execute(left).fetchone():  # noqa: ASYNC110 - the database tells, there is no event
            await asyncio.sleep(0.001)

    # -- platforms ---------------------------------------------------------------------------------

    async def _poll(self, house: House) -> None:
        """Telegram: an update is delivered until a poll names a later offset, which is where the database stands."""
        cursor = await house.intake.cursor(Platform.TELEGRAM, "1")
        for message in self._unknowing(TELEGRAM):
            if cursor is None or message.cursor > cursor:  # type: ignore[operator]
                await self._deliver(house, message)
            self._acknowledge(message)

    async def _socket(self, house: House) -> None:
        """Slack: an event is delivered until its receipt arrives."""
        for message in self._unknowing(SLACK):
            await self._deliver(house, message)
            self._acknowledge(message)

    def _unknowing(self, messages: tuple[InboundMessage, ...]) -> Iterator[InboundMessage]:
        """What the platform does not know that we have."""
        return (each for each in messages if each in self.plan.messages and each.event_id not in self.known)

    async def _deliver(self, house: House, message: InboundMessage) -> None:
        if message in THEN:
            await (self._idle() if self.plan.seed is None else asyncio.sleep(self.random.choice((0, 0.003, 0.01))))
        self.tell("delivered", id=message.event_id)
        await house.intake.receive(message)

    def _acknowledge(self, message: InboundMessage) -> None:
        self.step("before the acknowledgement")
        self.tell("acknowledged", id=message.event_id)
        self.step("after the acknowledgement")

    async def _send(self, adapter: RecordingAdapter, message: OutboundMessage) -> Delivery:
        self.step("before a send")
        fault, here = self._fault(), Delivery(message.edits or message.id)
        if message.maybe_sent and adapter.asks_first and message.id in {each["id"] for each in of(read(), "shown")}:
            return here
        if fault == "later":
            self.tell("asked to wait")
            raise RetryLater("too many requests", 0.0)
        if fault != "unknown, unseen":
            place = {"chat": message.address.chat, "edits": message.edits}
            self.tell("shown", id=message.id, kind=message.kind, text=message.text, **place)
            self.step("a message is shown")
        if fault:
            self.tell("unknown", id=message.id)
            raise OutcomeUnknown("no answer")
        self.step("after a send")
        return here

    async def _preview(self, adapter: RecordingAdapter, preview: Preview) -> str:
        self.tell("previewed", chat=preview.address.chat, text=preview.text)
        self.step("a preview is shown")
        if self._fault():
            raise DeliveryError("no preview today")
        return ""

    def _fault(self) -> str:
        return "" if self.plan.seed is None else self.random.choices(*FAULTS)[0]

    @cached_property
    def agents(self) -> _Agents:
        return _Agents(self.tell)


class _Agents:
    """They claim on a connection of their own, while the desk is in the middle of something."""

    def __init__(self, tell: Callable[..., None]) -> None:
        engine = _engine().execution_options()
        event.listen(engine, "commit", lambda _: tell("claimed", chat=self._chat))
        self._chat, self._store, self._looking = "", Store(engine, AGENTS), driver().connect("frontdesk.db")

    def claim(self) -> None:
        """Every call whose card they saw. That they claim is told before the commit, under the lock, as starts are."""
        unclaimed = self._looking.execute(
            "SELECT o.id, e.id, c.chat FROM outbound o JOIN escalations e ON e.id = escalation_id"
            " JOIN conversations c ON c.id = e.conversation_id WHERE kind = 'card' AND claimed_by = ''"
        ).fetchall()
        seen = {each["id"] for each in of(read(), "shown")}
        for number, chat in {(number, chat) for card, number, chat in unclaimed if card in seen}:
            self._chat, anna = chat, Customer("U-anna", "Anna")
            press = Pressed(AGENTS.platform, AGENTS.account, AGENTS.chat, anna, number, AgentAction.CLAIM)
            assert self._store.press(press, "a colleague is here") is Pressing.DONE
