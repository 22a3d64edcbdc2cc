"""When the day, the week or the month of a budget begins and ends, in its own time zone.

A local day has 23, 24 or 25 hours and a month its own length, so a period runs from one local midnight to another: the
first one where it comes twice, and where it is leapt over, the moment at which it would have come.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def period_of(period: str, zone: str, now: int) -> tuple[int, int] | None:
    """Start and end of the period that `now` lies in, all ns since the epoch: start <= now < end.  None: "total".

    period: day | week (ISO, from Monday) | month | total.  zone: IANA name; raises ZoneInfoNotFoundError or ValueError.
    """
    if period == "total":
        return None
    place = ZoneInfo(zone)
    first = _first_day(period, datetime.fromtimestamp(now // 1_000_000_000, place).date())
    # Where a zone steps over its own midnight, the local date may be the neighbour's: walk to the right one.
    while _midnight(first, place) > now:
        first = _first_day(period, first - timedelta(days=1))
    while (end := _midnight(_next(period, first), place)) <= now:
        first = _next(period, first)
    return _midnight(first, place), end


def _first_day(period: str, day: date) -> date:
    if period == "day":
        return day
    if period == "week":
        return day - timedelta(days=day.weekday())
    if period == "month":
        return day.replace(day=1)
    raise ValueError(f"period {period!r} is not one of day, week, month, total")


def _next(period: str, first: date) -> date:
    if period == "month":
        return (first + timedelta(days=32)).replace(day=1)
    return first + timedelta(days=1 if period == "day" else 7)


def _midnight(day: date, place: ZoneInfo) -> int:
    """ns since the epoch."""
    at = datetime(day.year, day.month, day.day, tzinfo=place)  # fold=0: the first of two
    return (at - EPOCH) // timedelta(seconds=1) * 1_000_000_000
