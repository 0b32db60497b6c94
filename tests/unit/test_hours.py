"""Hours: since when colleagues are there, and when they will be there again."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bot.hours import ALWAYS, Hours, Span, read_span

BERLIN = ZoneInfo("Europe/Berlin")
SHANGHAI = ZoneInfo("Asia/Shanghai")
ST_JOHNS = ZoneInfo("America/St_Johns")
MONDAY = date(2026, 1, 5)
CHANGES: dict[ZoneInfo, tuple[datetime, ...]] = {
    BERLIN: (datetime(2026, 3, 29, 1), datetime(2026, 10, 25, 1)),
    ZoneInfo("America/New_York"): (datetime(2026, 3, 8, 7), datetime(2026, 11, 1, 6)),
    ZoneInfo("Africa/Cairo"): (datetime(2025, 4, 24, 22), datetime(2025, 10, 30, 21)),  # at midnight
    ZoneInfo("Australia/Lord_Howe"): (datetime(2026, 4, 4, 15), datetime(2026, 10, 3, 15, 30)),  # by half an hour
    ZoneInfo("Pacific/Apia"): (datetime(2011, 12, 30, 10),),  # skips a whole day
    ST_JOHNS: (datetime(2009, 3, 8, 3, 31), datetime(2009, 11, 1, 2, 31)),  # back to the day before
    SHANGHAI: (),
    ZoneInfo("UTC"): (),
}
"""When the clocks change, in UTC."""


def weekly(text: str, days: str = "0123456", zone: ZoneInfo = BERLIN, holidays: tuple[date, ...] = ()) -> Hours:
    spans = [read_span(each) for each in text.split(",")]
    return Hours(zone, {int(day): spans for day in days}, frozenset(holidays))


def at(day: date, clock: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> datetime:
    """The moment in UTC."""
    return datetime.combine(day, time.fromisoformat(clock), zone).replace(fold=fold).astimezone(UTC)


def later(days: int) -> date:
    return MONDAY + timedelta(days=days)


def is_open(hours: Hours, now: datetime) -> bool:
    return hours.since(now) is not None


def test_without_any_span_somebody_is_always_there() -> None:
    for nothing in (Hours(BERLIN, {}, frozenset({MONDAY})), Hours(BERLIN, {0: []}, frozenset())):
        assert nothing.since(at(MONDAY, "12:00")) == ALWAYS == datetime.min.replace(tzinfo=UTC)
        assert nothing.until(at(MONDAY, "12:00")) is None


def test_a_shop_is_open_from_its_first_moment_up_to_its_last() -> None:
    shop = weekly("09:00-18:00")
    assert not is_open(shop, at(MONDAY, "08:59:59"))
    assert shop.since(at(MONDAY, "09:00")) == at(MONDAY, "09:00")
    assert shop.since(at(MONDAY, "17:59:59")) == at(MONDAY, "09:00")
    assert shop.since(at(MONDAY, "18:00")) is None


def test_after_closing_somebody_is_there_again_the_next_morning_in_local_time() -> None:
    again = weekly("09:00-18:00", zone=SHANGHAI).until(at(MONDAY, "18:00", SHANGHAI))
    assert again is not None
    assert again.isoformat() == "2026-01-06T09:00:00+08:00"


def test_while_somebody_is_there_nobody_has_to_come_back() -> None:
    assert weekly("09:00-18:00").until(at(MONDAY, "09:00")) is None


def test_on_friday_evening_the_next_day_is_monday() -> None:
    assert weekly("09:00-18:00", "01234").until(at(later(4), "20:00")) == at(later(7), "09:00")


def test_after_the_lunch_break_they_have_been_there_since_the_break() -> None:
    office = weekly("09:00-12:00, 13:00-18:00")
    assert office.until(at(MONDAY, "12:30")) == at(MONDAY, "13:00")
    assert office.since(at(MONDAY, "15:00")) == at(MONDAY, "13:00")


def test_the_order_in_which_spans_are_written_does_not_matter() -> None:
    assert weekly("13:00-18:00, 09:00-12:00").until(at(MONDAY, "01:00")) == at(MONDAY, "09:00")


@pytest.mark.parametrize("shifts", ["09:00-12:00, 12:00-18:00", "09:00-15:00, 11:00-18:00", "09:00-18:00, 10:00-11:00"])
def test_shifts_that_touch_or_overlap_are_one(shifts: str) -> None:
    assert weekly(shifts).since(at(MONDAY, "17:00")) == at(MONDAY, "09:00")


def test_a_night_bar_is_still_open_after_midnight() -> None:
    bar = weekly("18:00-02:00", "5")
    assert bar.since(at(later(6), "01:59")) == at(later(5), "18:00")
    assert bar.since(at(later(6), "02:00")) is None


def test_a_night_that_goes_over_into_the_next_day_is_no_break() -> None:
    assert weekly("20:00-24:00, 00:00-06:00").since(at(later(1), "03:00")) == at(MONDAY, "20:00")
    assert weekly("20:00-06:00, 06:00-08:00").since(at(later(1), "07:00")) == at(MONDAY, "20:00")


def test_a_whole_day_ends_at_midnight() -> None:
    monday = weekly("00:00-24:00", "0")
    assert monday.since(at(MONDAY, "23:59:59")) == at(MONDAY, "00:00")
    assert monday.until(at(later(1), "00:00")) == at(later(7), "00:00")


def test_who_was_there_day_and_night_for_a_year_was_always_there() -> None:
    assert weekly("00:00-24:00").since(at(MONDAY, "12:00")) == ALWAYS


def test_a_holiday_breaks_even_day_and_night() -> None:
    hours = weekly("00:00-24:00", holidays=(MONDAY,))
    assert hours.until(at(MONDAY, "12:00")) == at(later(1), "00:00")
    assert hours.since(at(later(90), "12:00")) == at(later(1), "00:00")


def test_a_holiday_drops_what_begins_on_it_and_leaves_the_night_before() -> None:
    bar = weekly("18:00-02:00", holidays=(MONDAY,))
    assert bar.since(at(MONDAY, "01:00")) == at(later(-1), "18:00")
    assert bar.until(at(MONDAY, "19:00")) == at(later(1), "18:00")
    assert not is_open(bar, at(later(1), "01:00"))


def test_a_weekday_is_one_of_the_zone_not_of_utc() -> None:
    monday = weekly("00:00-06:00", "0", SHANGHAI)
    assert monday.since(datetime(2026, 1, 4, 17, tzinfo=UTC)) == datetime(2026, 1, 4, 16, tzinfo=UTC)


def test_nobody_is_promised_who_does_not_come_within_a_year() -> None:
    holidays = tuple(later(days) for days in range(368))
    assert weekly("09:00-18:00", holidays=holidays).until(at(MONDAY, "12:00")) is None
    assert weekly("09:00-18:00", holidays=holidays[:360]).until(at(MONDAY, "12:00")) == at(later(360), "09:00")


@pytest.mark.parametrize(("day", "length"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (MONDAY, 24)])
def test_a_whole_day_is_as_long_as_its_clocks_say(day: date, length: int) -> None:
    hours = weekly("00:00-24:00", str(day.weekday()))
    end = at(day, "00:00") + timedelta(hours=length)
    assert hours.since(end - timedelta(seconds=1)) == at(day, "00:00")
    assert hours.since(end) is None


def test_opening_keeps_its_local_time_over_a_change_of_the_clocks() -> None:
    shop = weekly("09:00-18:00")
    assert shop.until(datetime(2026, 3, 28, 20, tzinfo=UTC)) == datetime(2026, 3, 29, 7, tzinfo=UTC)
    assert shop.until(datetime(2026, 10, 24, 20, tzinfo=UTC)) == datetime(2026, 10, 25, 8, tzinfo=UTC)


def test_what_the_clocks_skip_begins_or_ends_when_they_change() -> None:
    spring, change = date(2026, 3, 29), datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert weekly("02:30-03:20", "6").since(at(spring, "03:10")) == change
    assert weekly("01:00-02:30", "6").since(change) is None
    assert weekly("02:10-02:50", "6").until(at(spring, "00:00")) == at(date(2026, 4, 5), "02:10")


def test_what_the_clocks_show_twice_means_the_first_time() -> None:
    autumn = date(2026, 10, 25)
    early = weekly("02:00-02:30", "6")
    assert is_open(early, at(autumn, "02:15"))
    assert not is_open(early, at(autumn, "02:15", fold=1))
    assert weekly("02:30-04:00", "6").since(at(autumn, "02:15", fold=1)) == at(autumn, "02:30")


def test_now_may_be_local_time_even_where_the_clocks_show_it_twice() -> None:
    again = datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    assert weekly("02:30-04:00", "6").since(again) == at(date(2026, 10, 25), "02:30")
    assert weekly("03:00-04:00", "6").until(again) == datetime(2026, 10, 25, 2, tzinfo=UTC)


def test_clocks_that_go_back_over_midnight_close_nothing() -> None:
    sunday = date(2009, 11, 1)  # at 00:01 it was 23:01 on Saturday again
    hours = weekly("00:00-06:00", "6", ST_JOHNS)
    assert hours.since(at(date(2009, 10, 31), "23:30", ST_JOHNS, fold=1)) == at(sunday, "00:00", ST_JOHNS)


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("09:00-18:00", time(9), time(18)),
        ("9:00 - 12:30", time(9), time(12, 30)),
        (" 18:00-02:00 ", time(18), time(2)),
        ("18:00-24:00", time(18), time(0)),
        ("00:00-24:00", time(0), time(0)),
    ],
)
def test_a_span_is_read_as_people_write_it(text: str, begin: time, end: time) -> None:
    assert read_span(text) == Span(begin, end)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9-18",
        "09:00",
        "09:00-",
        "09:00-25:00",
        "24:00-09:00",
        "09:60-10:00",
        "09:00-24:01",
        "9:0-10:00",
        "+9:00-18:00",
    ],
)
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is no span of time") as refused:
        read_span(text)
    assert str(refused.value) == f'"{text}" is no span of time: use "09:00-18:00"'


@pytest.mark.parametrize("text", ["09:00-09:00", "9:00-09:00", "00:00-00:00"])
def test_a_span_that_ends_when_it_begins_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='ends when it begins; a whole day is "00:00-24:00"'):
        read_span(text)


CLOCKS = st.builds(time, st.integers(0, 23), st.sampled_from((0, 1, 10, 29, 30, 31, 45, 59)))
SPANS = st.builds(Span, CLOCKS, CLOCKS).filter(lambda span: span.begin != span.end) | st.just(Span(time(0), time(0)))
WEEKS = st.fixed_dictionaries({day: st.lists(SPANS, max_size=3) for day in range(7)}).filter(
    lambda week: any(week.values())
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Hours, datetime]:
    """Hours with a moment in UTC, often one near a change of the clocks."""
    zone = draw(st.sampled_from(list(CHANGES)))
    now = draw(st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)))
    if (changes := CHANGES[zone]) and draw(st.booleans()):
        now = draw(st.sampled_from(list(changes))) + timedelta(minutes=draw(st.integers(-2000, 2000)))
    nearby = st.integers(-9, 9).map(lambda days: now.date() + timedelta(days=days))
    holidays = draw(st.frozensets(nearby, max_size=4))
    if draw(st.integers(0, 5)) == 5:  # for good
        holidays = frozenset(now.date() + timedelta(days=days) for days in range(370))
    return Hours(zone, draw(WEEKS), holidays), now.replace(tzinfo=UTC)


def begun(hours: Hours, day: date) -> list[tuple[datetime, datetime]]:
    """What begins on that day, as the wall shows it."""
    spans = () if day in hours.holidays else hours.weekly.get(day.weekday(), ())
    return [
        (datetime.combine(day, span.begin), datetime.combine(day + timedelta(days=span.end <= span.begin), span.end))
        for span in spans
    ]


def shown(hours: Hours, now: datetime) -> bool:
    """Whether a clock on the wall says that it is open; what it shows again changes nothing."""
    while (local := now.astimezone(hours.zone)).fold:
        now -= timedelta(minutes=1)
    wall = local.replace(tzinfo=None)
    days = (local.date() - timedelta(days=1), local.date())
    return any(begin <= wall < end for day in days for begin, end in begun(hours, day))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_somebody_is_there_when_the_clock_on_the_wall_says_so(case: tuple[Hours, datetime]) -> None:
    hours, now = case
    assert is_open(hours, now) == shown(hours, now)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_since_is_the_first_moment_without_a_break(case: tuple[Hours, datetime]) -> None:
    hours, now = case
    since = hours.since(now)
    if since in (None, ALWAYS):
        return
    assert since is not None
    assert since <= now
    assert not is_open(hours, since - datetime.resolution)
    moments = {since + (now - since) * tenth / 10 for tenth in range(11)}
    assert {hours.since(moment) for moment in moments} == {since}


@given(cases())
@settings(max_examples=100, deadline=None)
def test_until_is_the_first_moment_that_is_open_again(case: tuple[Hours, datetime]) -> None:
    hours, now = case
    until = hours.until(now)
    today = now.astimezone(hours.zone).date()
    coming = [begin for days in range(2, 365) for begin in begun(hours, today + timedelta(days=days))]
    assert (until is None) == (is_open(hours, now) or not coming)
    if until is None:
        return
    assert until.tzinfo is hours.zone
    again = until.astimezone(UTC)
    assert now < again <= now + timedelta(days=366)
    assert hours.since(again) == again
    assert not is_open(hours, again - timedelta(seconds=1))
    assert not any(is_open(hours, now + (again - now) * tenth / 10) for tenth in range(10))


@given(CLOCKS, CLOCKS, st.sampled_from(("-", " - ")))
@settings(max_examples=100, deadline=None)
def test_a_span_that_is_written_down_is_read_again(begin: time, end: time, dash: str) -> None:
    assume(begin != end or end == time(0))
    text = f"{begin:%H:%M}{dash}{'24:00' if end == time(0) else f'{end:%H:%M}'}"
    assert read_span(text) == Span(begin, end)
