"""The sums of one posting and one admission, by hand."""

from __future__ import annotations

import pytest

from gateway.ledger import MAX_NANO, Posting, Refused, Window
from gateway.ledger.accounts import SOFT_CEILING, Change, admit, charge


def window(id: int = 1, limit: int = 100, **over: object) -> Window:
    facts: dict[str, object] = {
        "id": id, "budget": "b", "start": None, "end": None, "limit": limit, "ceiling": limit, "spent": 0,
        "reserved": 0, "overrun": 0, "frozen": False, "hard": True, "seq": 0, "seconds_left": None,
    }  # fmt: skip
    return Window(**(facts | over))  # type: ignore[arg-type]  # facts of each kind


@pytest.mark.parametrize(
    ("windows", "amount", "minimum", "answer"),
    [
        ([window()], 100, None, 100),
        ([window()], 0, None, 0),
        ([window(spent=60)], 41, None, Refused("exhausted", 1, None, 40)),
        ([window(spent=30, overrun=30)], 41, None, Refused("exhausted", 1, None, 40)),
        ([window(reserved=60)], 41, None, Refused("contended", 1, 1.0, 40)),
        ([window(spent=200, ceiling=200)], 0, None, Refused("exhausted", 1, None, 0)),
        ([window(spent=60, seconds_left=9.0), window(2, spent=60, seconds_left=5.0)], 41, None,
         Refused("exhausted", 1, 9.0, 40)),
        ([window(reserved=60), window(2, spent=70, seconds_left=5.0)], 41, None, Refused("exhausted", 2, 5.0, 30)),
        ([window(frozen=True), window(2, spent=100)], 1, None, Refused("frozen", 1, None, 0)),
        ([window(seconds_left=0.0), window(2, spent=100)], 1, None, Refused("window_over", 1, 0.0, 0)),
        ([window(hard=False, spent=500, ceiling=SOFT_CEILING)], MAX_NANO, None, MAX_NANO),
        ([window(reserved=60)], 41, 40, 40),
        ([window(reserved=60)], 50, 41, Refused("contended", 1, 1.0, 40)),
        ([window(reserved=60)], 10, 1, 10),
        ([window(limit=MAX_NANO, spent=MAX_NANO)], MAX_NANO, None, Refused("exhausted", 1, None, 0)),
    ],
)  # fmt: skip
def test_admission(windows: list[Window], amount: int, minimum: int | None, answer: Refused | int) -> None:
    assert admit(windows, amount, minimum) == answer


@pytest.mark.parametrize(
    ("sums", "amount", "held", "covered", "claimed", "change"),
    [
        # (ceiling, spent, reserved): in time, what is covered leaves the reserve
        ((100, 0, 50), 30, 50, 30, 0, Change(30, -30, 0, 0)),
        ((100, 0, 50), 70, 50, 50, 0, Change(50, -50, 20, 0)),
        ((100, 0, 50), 0, 50, 0, 0, Change(0, 0, 0, 0)),
        # less was still reserved than the hold says: the ceiling decides what of the rest is spent
        ((100, 0, 50), 40, 50, 10, 0, Change(40, -10, 0, 0)),
        ((60, 20, 40), 40, 50, 10, 0, Change(10, -10, 30, 0)),
        # late: what was charged at expiry comes back as far as the truth is smaller
        ((100, 50, 0), 30, 50, 0, 50, Change(-20, 0, 0, 50)),
        ((100, 50, 0), 50, 50, 0, 50, Change(0, 0, 0, 50)),
        ((100, 50, 0), 80, 50, 0, 50, Change(0, 0, 30, 50)),
        ((100, 90, 0), 40, 50, 0, 0, Change(10, 0, 30, 0)),
        # a window whose limit was lowered below what was spent
        ((100, 100, 0), 5, 50, 0, 0, Change(0, 0, 5, 0)),
    ],
)  # fmt: skip
def test_what_a_posting_does_to_a_window(
    sums: tuple[int, int, int], amount: int, held: int, covered: int, claimed: int, change: Change
) -> None:
    assert charge(sums, Posting("h", "r", amount, held), covered, claimed, claimed) == change


def test_a_posting_without_a_bill_gives_back_all_that_was_charged_for_it() -> None:
    assert charge((100, 50, 0), Posting("h", "r", None, 50), 0, 50, 50) == Change(-50, 0, 0, 50)
