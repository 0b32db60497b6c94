"""`frontdesk stats`: how the desk fared, in figures that name nobody, from the database alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean, median, quantiles

from rich.console import Console
from rich.table import Table

from bot.catalogue import say
from bot.config import Settings
from bot.conversation import Reason
from bot.messages import AgentAction, Rating
from bot.store.database import open_read_only
from bot.store.reader import Reader
from bot.store.values import Course, Tally

SCORES = range(1, 6)
_NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Times:
    """Of some spans of time: their median and 90th percentile in seconds, None where there are no spans."""

    median_s: float | None
    p90_s: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """How the desk fared in the last `days` days, 0 for all its days.

    `conversations` are those in which a customer wrote, `solved` those of them without an escalation, and
    `solved_share` their part (0 to 1). All about escalations is about those opened in that time: `escalations` is the
    sum of `by_reason`, and of `open`, `resolved` and `handed_back`. Both times begin when the escalation was opened;
    `to_resolve` leaves out what was handed back. `by_score` has every score from 1 (bad) to 5 (great).
    """

    days: int
    conversations: int
    solved: int
    solved_share: float | None
    thumbs_up: int
    thumbs_down: int
    escalations: int
    by_reason: dict[str, int]
    open: int
    resolved: int
    handed_back: int
    to_claim: Times
    to_resolve: Times
    scores: int
    mean_score: float | None
    by_score: dict[int, int]


def print_stats(settings: Settings, days: int, as_json: bool, console: Console) -> None:
    """Print a table about the last `days` days, 0 for everything, or the figures as one JSON object.

    Raises DatabaseUnavailable when there is no database, or one of another version.
    """
    now = datetime.now(UTC)
    engine = open_read_only(settings.database.url)
    try:
        tally = Reader(engine).tally(now - timedelta(days=days) if days else datetime.min.replace(tzinfo=UTC))
    finally:
        engine.dispose()
    figures = measure(tally, days)
    if as_json:
        console.print_json(data=asdict(figures))
    elif figures.conversations or figures.escalations:
        console.print(_table(figures))
    else:
        console.print(f"No customer wrote in {_time(days)}." if days else "No customer wrote yet.", highlight=False)


def measure(tally: Tally, days: int) -> Figures:
    """The figures of what happened in the last `days` days."""
    courses = tally.courses
    reasons = Counter(course.reason for course in courses)
    ended = [course for course in courses if course.resolved_at is not None]
    resolved = [course for course in ended if course.ended is not AgentAction.RETURN]
    scores = [course.score for course in courses if course.score is not None]
    return Figures(
        days=days,
        conversations=tally.conversations,
        solved=tally.alone,
        solved_share=tally.alone / tally.conversations if tally.conversations else None,
        thumbs_up=tally.thumbs.get(Rating.UP, 0),
        thumbs_down=tally.thumbs.get(Rating.DOWN, 0),
        escalations=len(courses),
        by_reason={reason: reasons[reason] for reason in Reason if reason is not Reason.ERASED},
        open=len(courses) - len(ended),
        resolved=len(resolved),
        handed_back=len(ended) - len(resolved),
        to_claim=_times([_seconds(course, course.claimed_at) for course in courses if course.claimed_at]),
        to_resolve=_times([_seconds(course, course.resolved_at) for course in resolved if course.resolved_at]),
        scores=len(scores),
        mean_score=fmean(scores) if scores else None,
        by_score={score: scores.count(score) for score in SCORES},
    )


def _seconds(course: Course, until: datetime) -> float:
    return (until - course.opened_at).total_seconds()


def _times(seconds: Sequence[float]) -> Times:
    if not seconds:
        return Times(None, None)
    # quantiles() asks for two before Python 3.13
    p90 = quantiles(seconds, n=10, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return Times(median(seconds), p90)


# -- what is shown -----------------------------------------------------------------------------------


def _table(figures: Figures) -> Table:
    table = Table(title=_time(figures.days).capitalize(), show_header=False)
    share = f" ({figures.solved_share:.0%})" if figures.solved_share is not None else ""
    table.add_row("conversations", str(figures.conversations))
    table.add_row("solved without a human", f"{figures.solved}{share}")
    table.add_row("replies with a thumb up / down", f"{figures.thumbs_up} / {figures.thumbs_down}")
    table.add_section()
    table.add_row("escalations", str(figures.escalations))
    for reason, count in figures.by_reason.items():
        table.add_row(f"  {say(f'reason_{reason}', 'en')}", str(count))
    table.add_section()
    table.add_row("still open", str(figures.open))
    table.add_row("resolved", str(figures.resolved))
    table.add_row("handed back", str(figures.handed_back))
    table.add_row("time to claim, median / 90th percentile", _as_people_say(figures.to_claim))
    table.add_row("time to resolve, median / 90th percentile", _as_people_say(figures.to_resolve))
    table.add_section()
    table.add_row("customers' scores of it", str(figures.scores))
    table.add_row("  mean", _NOTHING if figures.mean_score is None else f"{figures.mean_score:.1f}")
    for score in reversed(SCORES):
        table.add_row(f"  {score}", str(figures.by_score[score]))
    return table


def _time(days: int) -> str:
    if not days:
        return "all days"
    return "the last day" if days == 1 else f"the last {days} days"


def _as_people_say(times: Times) -> str:
    if times.median_s is None or times.p90_s is None:
        return _NOTHING
    return f"{_span(times.median_s)} / {_span(times.p90_s)}"


def _span(seconds: float) -> str:
    """In whole minutes, and hours where it took an hour."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "less than a minute"
