"""When colleagues are there: spans of local time by weekday, and holidays. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

ALWAYS = datetime.min.replace(tzinfo=UTC)
"""The beginning of time: since when somebody is there who is always there."""

_YEAR = timedelta(days=366)
_DAY = timedelta(days=1)
_CLOCK = r"(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
_SPAN = re.compile(rf"({_CLOCK})\s*-\s*({_CLOCK}|24:00)")


@dataclass(frozen=True, slots=True)
class Span:
    """From `begin` up to, not including, `end`; an end at or before its begin lies on the next day."""

    begin: time
    end: time


def read_span(text: str) -> Span:
    """A span as people write it: "09:00-18:00", "18:00-02:00", "00:00-24:00". ValueError for anything else."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'"{text}" is no span of time: use "09:00-18:00"')
    begin, end = map(_read_time, found.groups())
    if begin == end and found[2] != "24:00":
        raise ValueError(f'"{text}" is no span of time: it ends when it begins; a whole day is "00:00-24:00"')
    return Span(begin, end)


@dataclass(frozen=True, slots=True)
class Hours:
    """When colleagues are there: spans of local time by weekday (0 is Monday). Without any span, always.

    A holiday drops the spans that begin on it. What the clocks skip in spring lies at the moment of the change; what
    they show twice in autumn means the first time.
    """

    zone: ZoneInfo
    weekly: Mapping[int, Sequence[Span]]
    holidays: frozenset[date] = frozenset()

    def since(self, now: datetime) -> datetime | None:
        """Since when they have been there without a break, in UTC; None where nobody is there.

        ALWAYS where there was no break for a year.
        """
        if not any(self.weekly.values()):
            return ALWAYS
        now = now.astimezone(UTC)
        since = begin = self._begin(now)
        while begin is not None:
            if now - begin > _YEAR:
                return ALWAYS
            since, begin = begin, self._begin(begin - datetime.resolution)
        return since

    def until(self, now: datetime) -> datetime | None:
        """When somebody will be there again, in local time; None while somebody is, or when nobody will be within a
        year (366 days)."""
        now = now.astimezone(UTC)
        if not any(self.weekly.values()) or self._begin(now) is not None:
            return None
        today = now.astimezone(self.zone).date()
        for day in range(_YEAR.days + 1):
            later = [begin for begin, _ in self._on(today + day * _DAY) if now < begin <= now + _YEAR]
            if later:
                return min(later).astimezone(self.zone)
        return None

    def _begin(self, moment: datetime) -> datetime | None:
        """When the longest of the spans around `moment` began; None for no span. Both in UTC."""
        today = moment.astimezone(self.zone).date()
        # tomorrow too: clocks that go back over midnight show yesterday's date again
        days = (today - _DAY, today, today + _DAY)
        return min((begin for day in days for begin, end in self._on(day) if begin <= moment < end), default=None)

    def _on(self, day: date) -> Iterator[tuple[datetime, datetime]]:
        """Begin and end, in UTC, of the spans that begin on `day`; none that the clocks skip altogether."""
        if day in self.holidays:
            return
        for span in self.weekly.get(day.weekday(), ()):
            begin = _moment(day, span.begin, self.zone)
            end = _moment(day + _DAY if span.end <= span.begin else day, span.end, self.zone)
            if begin < end:
                yield begin, end


def _moment(day: date, wall: time, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, at which the clocks of `zone` first show that time, or jump over it."""
    local = datetime.combine(day, wall, zone)
    first, second = local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)
    if first <= second:
        return first
    # Skipped: fold 1 lies before the change and fold 0 after it, which would put an end before its begin.
    before = second.astimezone(zone).utcoffset()

    def changed(seconds: int) -> bool:
        return (second + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != before

    between = range(int((first - second).total_seconds()))
    return second + timedelta(seconds=bisect_left(between, True, key=changed))


def _read_time(text: str) -> time:
    hour, minute = map(int, text.split(":"))
    return time(hour % 24, minute)
