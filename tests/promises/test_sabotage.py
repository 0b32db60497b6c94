"""Each promise that kills and claims put to the test turns red when the code that keeps it is taken away.

The patches are made in the forks that are tried, and end with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from bot.conversation import Owner
from bot.messages import Event, Receipt
from bot.store import jobs, sending
from bot.store.jobs import Claim, JobKind
from bot.store.schema import ConversationRow, JobRow
from bot.store.store import utc_now
from engine.types import Reply, TextRole, Turn
from tests.house import House
from tests.promises.judge import FIRST, TELEGRAM, THEN
from tests.promises.trial import Carry, Plan, Report


def broken(reports: Iterable[Report]) -> str:
    return "\n".join(line for report in reports for line in report.broken)


# -- what is taken away ----------------------------------------------------------------------------


def acknowledging_before_the_commit(house: House) -> None:
    receive, tasks = house.intake.receive, set[asyncio.Task[Receipt]]()

    async def early(event: Event) -> Receipt:
        tasks.add(asyncio.create_task(receive(event)))
        return Receipt.ACCEPTED

    house.intake.receive = early  # type: ignore[method-assign]


def no_fencing_token(house: House) -> None:
    def held(session: Any, claim: Claim) -> Any:
        row = session.get(JobRow, claim.job_id)
        if row is None:  # whoever overtook us has ended it: a row to be ended once more
            row = jobs._new(claim.kind, "", claim.conversation_id, utc_now())
            session.add(row)
            session.flush()
        return row

    jobs.held = held


def no_look_at_the_owner_at_finish(house: House) -> None:
    settle = house.store._settling.settle

    def blind(session: Any, conversation_id: int, *rest: Any) -> None:
        conversation = session.get_one(ConversationRow, conversation_id)
        owner, conversation.owner = conversation.owner, Owner.WAITING
        settle(session, conversation_id, *rest)
        conversation.owner = owner

    house.store._settling.settle = blind  # type: ignore[method-assign, assignment]


def no_look_at_the_owner_at_the_send(house: House) -> None:
    sending.must_be_silent = lambda session, row: False


# -- what happens ----------------------------------------------------------------------------------


def overtaken(house: House) -> None:
    """The first answer of the model comes when the clock has jumped past the lease, and another worker has one too."""
    write, asked, again, ahead = house.engine.write, list[str](), asyncio.Event(), [timedelta(0)]

    async def late(role: TextRole, turns: Sequence[Turn], *rest: Any) -> Reply:
        asked.append(role.name)
        if len(asked) == 1:
            ahead[0] = timedelta(seconds=100)
            house.queue.wake()
            await again.wait()
        again.set()
        return await write(role, turns, *rest)

    claim = house.store.claim

    def as_another_process(kind: JobKind, lease: timedelta, in_hand: Collection[int] = ()) -> Claim | None:
        return claim(kind, lease)

    house.store.claim = as_another_process  # type: ignore[method-assign]
    house.engine.write = late  # type: ignore[method-assign, assignment]
    house.store._now = lambda: utc_now() + ahead[0]


# -- what turns red --------------------------------------------------------------------------------


def test_acknowledging_before_the_commit_loses_messages(carry: Carry) -> None:
    plans = [Plan(FIRST, (step,), tamper=(acknowledging_before_the_commit,)) for step in range(3, 8)]
    assert "was acknowledged and has no outcome" in broken(carry(plans))


def test_a_worker_that_was_overtaken_stores_nothing_and_without_a_fencing_token_answers_again(carry: Carry) -> None:
    assert broken(carry([Plan(TELEGRAM[:1], tamper=(overtaken,))])) == ""
    sabotaged = carry([Plan(TELEGRAM[:1], tamper=(overtaken, no_fencing_token))])
    assert "doubled: m1 was answered 2 times" in broken(sabotaged)


@pytest.mark.parametrize(
    ("sabotage", "red"),
    [
        (no_look_at_the_owner_at_finish, "came after a claim, and is answered"),
        (no_look_at_the_owner_at_the_send, "spoke over a human: {'what': 'started'"),
    ],
)
def test_without_a_look_at_the_owner_the_bot_speaks_over_a_human(
    carry: Carry, sabotage: Callable[[House], None], red: str
) -> None:
    (undisturbed,) = carry([Plan(THEN)])
    between = {"before finish", "after finish", "before begin_send"}
    steps = [number for number, name in enumerate(undisturbed.steps, 1) if name in between]
    assert red in broken(carry([Plan(THEN, claim_at=(0, step), tamper=(sabotage,)) for step in steps]))
