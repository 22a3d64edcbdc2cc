"""Periods begin and end at the midnights of their own zone, and leave no moment out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfoNotFoundError, available_timezones

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.periods import period_of
from tests.ledgers import ns

HOUR = 3600 * 1_000_000_000
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))
PERIODS = st.sampled_from(["day", "week", "month"])


@given(period=PERIODS, zone=st.sampled_from(sorted(available_timezones())), time=TIMES)
def test_a_moment_lies_in_its_period_and_neighbours_touch(period: str, zone: str, time: datetime) -> None:
    now = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    found = period_of(period, zone, now)
    assert found is not None
    start, end = found
    assert start <= now < end
    assert period_of(period, zone, start) == period_of(period, zone, end - 1) == found
    after, before = period_of(period, zone, end), period_of(period, zone, start - 1)
    assert after is not None
    assert before is not None
    assert (before[1], after[0]) == (start, end)


@pytest.mark.parametrize(
    ("period", "zone", "now", "start", "hours"),
    [
        ("day", "UTC", "2026-03-16T00:00:00+00:00", "2026-03-16T00:00:00+00:00", 24),
        ("day", "Europe/Berlin", "2026-03-29T12:00:00+00:00", "2026-03-28T23:00:00+00:00", 23),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00+00:00", "2026-10-24T22:00:00+00:00", 25),
        ("day", "Australia/Lord_Howe", "2026-04-05T00:00:00+00:00", "2026-04-04T13:00:00+00:00", 24.5),
        ("day", "America/Sao_Paulo", "2018-11-04T12:00:00+00:00", "2018-11-04T03:00:00+00:00", 23),  # no midnight
        ("day", "America/Havana", "2024-11-03T04:30:00+00:00", "2024-11-03T04:00:00+00:00", 25),  # two midnights
        ("day", "Pacific/Apia", "2011-12-30T10:00:00+00:00", "2011-12-30T10:00:00+00:00", 24),  # the 30th never was
        ("month", "Asia/Tokyo", "2026-03-31T14:59:59+00:00", "2026-02-28T15:00:00+00:00", 31 * 24),
        ("month", "Asia/Tokyo", "2026-03-31T15:00:00+00:00", "2026-03-31T15:00:00+00:00", 30 * 24),
        ("month", "UTC", "2028-02-29T12:00:00+00:00", "2028-02-01T00:00:00+00:00", 29 * 24),
        ("week", "UTC", "2027-01-03T23:59:59+00:00", "2026-12-28T00:00:00+00:00", 7 * 24),
        ("week", "Europe/Berlin", "2026-03-29T12:00:00+00:00", "2026-03-22T23:00:00+00:00", 7 * 24 - 1),
    ],
)
def test_periods_are_those_of_the_calendar(period: str, zone: str, now: str, start: str, hours: float) -> None:
    assert period_of(period, zone, ns(now)) == (ns(start), ns(start) + int(hours * HOUR))


def test_total_has_no_end_and_needs_no_zone() -> None:
    assert period_of("total", "", 0) is None


def test_what_is_no_zone_or_no_period_is_refused() -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        period_of("day", "Mars/Base", 0)
    with pytest.raises(ValueError, match="period 'year' is not one of day, week, month, total"):
        period_of("year", "UTC", 0)
