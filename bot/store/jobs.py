"""The jobs table: who may work on what, and until when. Functions on a session, so that they join a transaction.

Order and mutual exclusion come from the lane: only the oldest unfinished job of a lane can be claimed, so two jobs of
one lane never run at once and never overtake each other, not even when the older one waits for a retry. Ids of a lane
grow in the order of commits, because who puts a job in has locked the lane's customer (people.lock).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache

from sqlalchemy import BindParameter, Select, bindparam, case, or_, select, update
from sqlalchemy.orm import Session, aliased

from bot.errors import LeaseLost
from bot.store import people
from bot.store.schema import ConversationRow, JobRow, OutboundRow


class JobKind(StrEnum):
    """What is to be done. A job carries no text."""

    ATTEND = "attend"  # read what a conversation waits for, and answer it
    DELIVER = "deliver"  # send one outbound message


class JobState(StrEnum):
    """Where a job stands. A job that succeeded is deleted."""

    READY = "ready"  # may be claimed once run_at has come
    RUNNING = "running"  # claimed, until lease_until
    DEAD = "dead"  # failed for good; kept to be looked at


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until the lease ends. `attempt` counts from 1; shutdowns do not count."""

    job_id: int
    kind: JobKind
    conversation_id: int
    outbound_id: str | None
    attempt: int
    fence: int


def enqueue_attend(session: Session, conversation_id: int, now: datetime) -> None:
    """One waiting job is enough: it will read everything that the conversation waits for (a burst is answered once)."""
    lane = f"{JobKind.ATTEND}:{conversation_id}"
    waiting = select(JobRow.id).where(JobRow.lane == lane, JobRow.state == JobState.READY)
    if session.scalar(waiting) is None:
        session.add(_new(JobKind.ATTEND, lane, conversation_id, now))


def restart_attend(session: Session, conversation_id: int, now: datetime) -> None:
    """What waits has changed: whoever attends to it now holds nothing any more, and it is read anew."""
    lane = f"{JobKind.ATTEND}:{conversation_id}"
    running = select(JobRow).where(JobRow.lane == lane, JobRow.state == JobState.RUNNING).with_for_update()
    for row in session.scalars(running):
        again(row, now, "", counts=False)
    session.flush()
    enqueue_attend(session, conversation_id, now)


def enqueue_delivery(session: Session, lane: str, conversation_id: int, outbound_id: str, now: datetime) -> None:
    """Deliver one outbound message, after everything that was put into the same lane before it."""
    row = _new(JobKind.DELIVER, f"{JobKind.DELIVER}:{lane}", conversation_id, now)
    row.outbound_id = outbound_id
    session.add(row)
    session.flush()  # the id, and with it the place in the lane, is given now


def is_last_part(session: Session, job: JobRow, row: OutboundRow) -> bool:
    """Whether nothing more of the line that `row` is a part of is to be delivered after `job`."""
    later = select(JobRow.id).join(OutboundRow, OutboundRow.id == JobRow.outbound_id)
    return session.scalar(later.where(JobRow.id > job.id, OutboundRow.message_id == row.message_id).limit(1)) is None


def _new(kind: JobKind, lane: str, conversation_id: int, now: datetime) -> JobRow:
    return JobRow(
        kind=kind,
        lane=lane,
        conversation_id=conversation_id,
        state=JobState.READY,
        attempts=0,
        fence=0,
        created_at=now,
        run_at=now,
        error="",
    )


def claim(
    session: Session,
    kind: JobKind,
    now: datetime,
    lease: timedelta,
    lane: str | None = None,
    in_hand: Collection[int] = (),
) -> Claim | None:
    """Take the most overdue job of a kind whose lane is free; a lease that has run out counts as free. Or of one lane.

    It waits for nobody: a job that another transaction has in hand is passed over. What whoever asks has `in_hand`
    stays there: its lease ran out because a clock was set, or the machine slept.
    """
    asked = {"kind": kind, "now": now, "in_hand": list(in_hand), "lane": lane}
    row = session.scalar(_free(lane is not None), asked)
    if row is None:
        return None
    row.state, row.lease_until = JobState.RUNNING, now + lease
    row.attempts, row.fence = row.attempts + 1, row.fence + 1
    return Claim(row.id, kind, row.conversation_id, row.outbound_id, row.attempts, row.fence)


@cache
def _free(of_one_lane: bool) -> Select[JobRow]:
    """What claim() asks, several times a second: put together once, which takes longer than to answer it."""
    earlier = aliased(JobRow)
    now: BindParameter[datetime] = bindparam("now")
    blocked = select(earlier.id).where(
        earlier.lane == JobRow.lane, earlier.id < JobRow.id, earlier.state != JobState.DEAD
    )
    in_hand: BindParameter[list[int]] = bindparam("in_hand", expanding=True)
    due = or_(
        (JobRow.state == JobState.READY) & (JobRow.run_at <= now),
        (JobRow.state == JobState.RUNNING) & (JobRow.lease_until <= now) & JobRow.id.not_in(in_hand),
    )
    free = select(JobRow).where(JobRow.kind == bindparam("kind"), due, ~blocked.exists())
    if of_one_lane:
        free = free.where(JobRow.lane == bindparam("lane"))
    return free.order_by(JobRow.run_at, JobRow.id).limit(1).with_for_update(skip_locked=True)


def due(session: Session, lane: str) -> datetime | None:
    """When the next job of a lane may be claimed, if nobody finishes it before; None when nothing is left to do."""
    when = case((JobRow.state == JobState.READY, JobRow.run_at), else_=JobRow.lease_until)
    oldest = select(when).where(JobRow.lane == lane, JobRow.state != JobState.DEAD).order_by(JobRow.id)
    return session.scalar(oldest.limit(1))


def held(session: Session, claim: Claim) -> JobRow:
    """The claimed row, for whoever still holds it; the customer it is about is locked.

    Raises LeaseLost: nothing of the transaction may be kept then.
    """
    people.lock(session, ConversationRow.id == claim.conversation_id)
    row = session.get(JobRow, claim.job_id, with_for_update=True)
    if row is None or row.state != JobState.RUNNING or row.fence != claim.fence:
        raise LeaseLost(f"job {claim.job_id} was taken over by another worker")
    return row


def renew(session: Session, claim: Claim, now: datetime, lease: timedelta) -> bool:
    """Prolong the lease; False when the claim is no longer held."""
    mine = (JobRow.id == claim.job_id) & (JobRow.fence == claim.fence) & (JobRow.state == JobState.RUNNING)
    renewed = update(JobRow).where(mine).values(lease_until=now + lease).returning(JobRow.id)
    return session.scalar(renewed) is not None


def again(row: JobRow, at: datetime, error: str, *, counts: bool) -> None:
    """Put a held job back; `counts` says whether this claim was an attempt."""
    row.state, row.run_at, row.lease_until, row.error = JobState.READY, at, None, error
    row.attempts -= 0 if counts else 1


def bury(row: JobRow, error: str) -> None:
    """End a held job for good; what it stood for must have been escalated in the same transaction."""
    row.state, row.lease_until, row.error = JobState.DEAD, None, error


def recover(session: Session) -> int:
    """Free what a dead process held; to be called while no worker runs. Returns how many."""
    running = update(JobRow).where(JobRow.state == JobState.RUNNING).values(state=JobState.READY, lease_until=None)
    return len(session.execute(running.returning(JobRow.id)).all())
