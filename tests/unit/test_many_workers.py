"""Several processes on one PostgreSQL, as threads that share nothing else: what its one writer gives SQLite."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from random import Random
from typing import TypeVar

import pytest
from sqlalchemy import Engine, select

from bot.conversation import Call, Outcome, Reason
from bot.errors import LeaseLost
from bot.messages import AgentAction, Customer, Delivery, Edited, Moved, OutboundKind, Platform, Pressed, Receipt
from bot.store.database import open_engine
from bot.store.jobs import Claim, JobKind
from bot.store.reader import Reader
from bot.store.schema import EscalationRow, MessageRow, OutboundRow
from bot.store.store import Store
from bot.store.values import OutboundState, Pressing, Say, Settlement, Verdict
from tests.conftest import AGENTS, inbound, only_postgres, rows

pytestmark = only_postgres

T = TypeVar("T")

LEASE = timedelta(seconds=60)
SEED = 8
AGENTS_CHAT = (AGENTS.platform, AGENTS.account, AGENTS.chat)


@pytest.fixture
def processes(database_url: str) -> Iterator[list[Store]]:
    engines = [open_engine(database_url) for _ in range(4)]
    yield [Store(engine, AGENTS) for engine in engines]
    for engine in engines:
        engine.dispose()


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Their results; all begin at the same moment."""
    ready = threading.Barrier(len(calls))

    def begin(call: Callable[[], T]) -> T:
        ready.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


class Diary:
    """What the workers of all processes did: in which job they read which messages, and what they sent, in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.in_hand: set[str] = set()
        self.read: dict[int, dict[int, list[int]]] = defaultdict(dict)
        self.sent: dict[int, list[tuple[int, int]]] = defaultdict(list)

    @contextmanager
    def alone(self, lane: str) -> Iterator[None]:
        with self.lock:
            assert lane not in self.in_hand, f"two workers in {lane}"
            self.in_hand.add(lane)
        yield
        with self.lock:
            self.in_hand.remove(lane)


def work_off(store: Store, diary: Diary, accepting: threading.Event) -> None:
    """Attend and deliver until nothing is left and nothing more comes."""
    while True:
        last = not accepting.is_set()
        idle = True
        for kind, work in ((JobKind.ATTEND, attend), (JobKind.DELIVER, deliver)):
            if (claim := store.claim(kind, LEASE)) is not None:
                work(store, diary, claim)
                idle = False
        if idle and last and not Reader(store._engine).load().jobs:
            return
        if idle:
            time.sleep(0.002)


def attend(store: Store, diary: Diary, claim: Claim) -> None:
    with diary.alone(f"attend:{claim.conversation_id}"):
        lines = store.waiting(claim).lines
        assert store.renew([claim], LEASE) == []
    verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in lines)
    say = Say(OutboundKind.NOTICE, (f"{claim.job_id} 1", f"{claim.job_id} 2"))
    call = Call(Reason.ASKED, lines[0].id) if lines and lines[0].id % 5 == 0 else None
    store.finish(claim, Settlement(verdicts, (say,), call))
    diary.read[claim.conversation_id][claim.job_id] = [line.id for line in lines]


def deliver(store: Store, diary: Diary, claim: Claim) -> None:
    sending = store.begin_send(claim)
    assert sending is not None
    with diary.alone(f"card:{sending.escalation.id}" if sending.escalation else f"deliver:{claim.conversation_id}"):
        if sending.message.text[:1].isdigit():
            job, part = map(int, sending.message.text.split())
            diary.sent[claim.conversation_id].append((job, part))
    store.sent(claim, Delivery("card" if sending.escalation else "p"))


def test_nothing_is_lost_doubled_or_overtaken_by_four_processes(processes: list[Store], engine: Engine) -> None:
    print("seed", SEED)
    diary, accepting = Diary(), threading.Event()
    accepting.set()
    receipts: Counter[Receipt] = Counter()
    customers, numbers = "abc", range(30)

    def write(store: Store, seed: int) -> None:
        """Every process hears every event: platforms deliver again, and to another."""
        random = Random(seed)
        for number in numbers:
            text, customer = f"{number}", customers[number % 3]
            receipt = store.accept(inbound(text, event=text, customer=customer, cursor=number)).receipt
            with diary.lock:
                receipts[receipt] += 1
            if random.random() < 0.1:
                store.move(Moved(Platform.TELEGRAM, "1", f"chat-{customer}", f"chat-{customer}"))

    def press() -> None:
        while accepting.is_set():
            for call in Reader(engine).open_calls():
                for action in (AgentAction.CLAIM, AgentAction.RESOLVE):
                    processes[0].press(Pressed(*AGENTS_CHAT, Customer("anna", "Anna"), call.id, action), "notice")
            time.sleep(0.005)

    def write_all() -> None:
        try:
            at_once(*(partial(write, store, SEED + number) for number, store in enumerate(processes)))
        finally:
            accepting.clear()

    at_once(write_all, press, *(partial(work_off, store, diary, accepting) for store in processes))
    assert receipts == {Receipt.ACCEPTED: len(numbers), Receipt.DUPLICATE: 3 * len(numbers)}
    assert "jobs" not in rows(engine)
    with engine.connect() as connection:
        assert not connection.execute(select(MessageRow.id).where(MessageRow.turn == 0)).all()
        assert not connection.execute(select(OutboundRow.id).where(OutboundRow.state != OutboundState.SENT)).all()
    read = [[message for _, ids in sorted(jobs.items()) for message in ids] for jobs in diary.read.values()]
    assert all(ids == sorted(set(ids)) for ids in read), "in order of acceptance, each once"
    assert sum(map(len, read)) == len(numbers)
    assert all(sent == sorted(set(sent)) for sent in diary.sent.values()), "in the order in which it was said"


def test_one_job_is_claimed_once_however_many_ask(processes: list[Store]) -> None:
    for number in range(20):
        processes[0].accept(inbound(event=str(number), customer=str(number)))
        claims = at_once(*(partial(store.claim, JobKind.ATTEND, LEASE) for store in processes))
        assert len(list(filter(None, claims))) == 1


def test_somebody_new_who_writes_twice_at_once_is_one_customer_with_one_conversation(
    processes: list[Store], engine: Engine
) -> None:
    for number in range(10):
        parts = [inbound(event=f"{number}.{part}", customer=str(number)) for part in range(4)]
        at_once(*(partial(store.accept, part) for store, part in zip(processes, parts, strict=True)))
    assert rows(engine) == {"customers": 10, "conversations": 10, "messages": 40, "jobs": 10}


def test_one_event_that_two_processes_hear_at_once_is_kept_once(processes: list[Store], engine: Engine) -> None:
    for number in range(10):
        message = inbound(event=str(number))
        receipts = at_once(*(partial(store.accept, message) for store in processes))
        assert Counter(accepted.receipt for accepted in receipts) == {Receipt.ACCEPTED: 1, Receipt.DUPLICATE: 3}
    assert rows(engine)["messages"] == 10


def called(store: Store, number: int) -> int:
    """An escalation on a conversation in which a reply waits to be sent."""
    store.accept(inbound("太差了", event=str(number), customer=str(number)))
    claim = store.claim(JobKind.ATTEND, LEASE)
    assert claim is not None
    (line,) = store.waiting(claim).lines
    verdict, reply = Verdict(line.id, Outcome.ESCALATED), Say(OutboundKind.REPLY, ("sorry",))
    store.finish(claim, Settlement((verdict,), (reply,), Call(Reason.NEGATIVE, line.id)))
    with store._engine.connect() as connection:
        return connection.execute(select(EscalationRow.id).order_by(EscalationRow.id.desc())).scalars().first() or 0


def test_no_reply_begins_after_a_human_claimed_and_only_one_of_two_does(processes: list[Store]) -> None:
    first, second, third, _ = processes
    for number in range(10):
        escalation = called(first, number)
        claimed = threading.Event()

        def claim(store: Store, who: str, escalation: int, claimed: threading.Event) -> Pressing:
            agent = Customer(who, who)
            done = store.press(Pressed(*AGENTS_CHAT, agent, escalation, AgentAction.CLAIM), "notice")
            claimed.set()
            return done

        def send(_: object, claimed: threading.Event) -> Pressing:
            while (job := third.claim(JobKind.DELIVER, LEASE)) is not None:
                knew = claimed.is_set()
                sending = third.begin_send(job)
                if sending is not None:
                    assert not (knew and sending.message.kind is OutboundKind.REPLY)
                    third.sent(job, Delivery("p"))
            return Pressing.OVER

        calls = (partial(claim, first, "anna"), partial(claim, second, "bo"), send)
        done = at_once(*(partial(call, escalation, claimed) for call in calls))
        assert Counter(done) == {Pressing.DONE: 1, Pressing.TAKEN: 1, Pressing.OVER: 1}


def test_who_is_forgotten_while_the_bot_answers_is_forgotten_whole(processes: list[Store], engine: Engine) -> None:
    for number in range(10):
        store = processes[0]
        store.accept(inbound("kanarienvogel", event=str(number)))
        claim = store.claim(JobKind.ATTEND, LEASE)
        assert claim is not None

        def finish(claim: Claim = claim) -> None:
            with suppress(LeaseLost):
                verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in processes[1].waiting(claim).lines)
                processes[1].finish(claim, Settlement(verdicts, (Say(OutboundKind.REPLY, ("answer",)),)))

        def forget() -> None:
            processes[2].erase_known(Platform.TELEGRAM, "c1")

        def edit(of: str = str(number)) -> None:
            processes[3].edit(Edited(Platform.TELEGRAM, "1", f"{of}:2", of, "kanarienvögel"))

        at_once(finish, forget, edit)
        assert rows(engine) == {}


def test_of_a_late_worker_and_the_one_who_took_over_one_stores_its_answer(
    processes: list[Store], engine: Engine
) -> None:
    def finish(store: Store, claim: Claim | None) -> bool:
        try:
            if claim is not None:
                store.finish(claim, Settlement(says=(Say(OutboundKind.REPLY, ("answer",)),)))
        except LeaseLost:
            return False
        return claim is not None

    late, next_one, *_ = processes
    for number in range(20):
        late.accept(inbound(event=str(number), customer=str(number)))
        claim = late.claim(JobKind.ATTEND, timedelta(0))

        def take_over() -> bool:
            return finish(next_one, next_one.claim(JobKind.ATTEND, LEASE))

        assert sorted(at_once(partial(finish, late, claim), take_over)) == [False, True]
    assert rows(engine)["outbound"] == 20


def test_a_dead_process_s_job_is_free_when_its_lease_ran_out_and_a_living_one_s_is_not(
    processes: list[Store],
) -> None:
    dead, living = processes[0], processes[1]
    dead.accept(inbound(event="1", customer="a"))
    dead.accept(inbound(event="2", customer="b"))
    lost, kept = dead.claim(JobKind.ATTEND, timedelta(seconds=0.3)), living.claim(JobKind.ATTEND, LEASE)
    assert lost is not None
    assert kept is not None
    starting = processes[2]
    starting.recover()
    assert starting.claim(JobKind.ATTEND, LEASE) is None
    time.sleep(0.35)
    again = starting.claim(JobKind.ATTEND, LEASE)
    assert again is not None
    assert (again.job_id, again.attempt) == (lost.job_id, 2)
    assert living.renew([kept], LEASE) == []
    with pytest.raises(LeaseLost):
        dead.finish(lost, Settlement())
