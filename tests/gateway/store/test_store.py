"""Money and times as they are written in records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store import read_time, usd, write_time


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (None, None),
        (0, "0"),
        (1, "0.000000001"),
        (1_500, "0.0000015"),
        (1_000_000_000, "1"),
        (12_345_678_901_234_567_890, "12345678901.23456789"),
        (-1_500, "-0.0000015"),
    ],
)
def test_nano_usd_are_written_as_an_exact_decimal(nano: int | None, text: str | None) -> None:
    assert usd(nano) == text


def test_a_time_is_written_in_utc_to_the_nanosecond() -> None:
    assert write_time(1_763_690_400_000_000_001) == "2025-11-21T02:00:00.000000001Z"


@given(st.integers(0, 2**63 - 1))
def test_a_time_that_was_written_is_read_as_the_same_nanosecond(ns: int) -> None:
    assert read_time(write_time(ns)) == ns


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2025-11-21T03:00:00.5+01:00", "2025-11-21T02:00:00.500000000Z"),
        ("2025-11-20t20:30:00-05:30", "2025-11-21T02:00:00.000000000Z"),
        ("2025-11-21 02:00:00z", "2025-11-21T02:00:00.000000000Z"),
    ],
)
def test_any_zone_and_any_number_of_decimals_are_read(text: str, same: str) -> None:
    assert write_time(read_time(text)) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2025-11-21",
        "2025-11-21T02:00:00",
        "2025-11-21T02:00:00.Z",
        "2025-11-21T02:00:00.1234567890Z",
        "2025-13-21T02:00:00Z",
        "2025-11-21T02:00:00 00:00",
        "2025-11-21T02:00:00Z; DROP TABLE exchange",
        "٢025-11-21T02:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-11-21T02:00:00Z",
    ],
)
def test_what_is_not_a_time_with_its_zone_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_time(text)
