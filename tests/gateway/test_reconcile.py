"""Two sets of figures beside each other: names that mean the same, days without models, and the sums."""

from __future__ import annotations

from gateway.exports import Export
from gateway.reconcile import NO_MODEL, Compared, Ours, compare, grouped, totals


def export(**more: object) -> Export:
    return Export("usd", 0, 86_400, **more)  # type: ignore[arg-type]


def test_names_that_share_a_providers_model_are_one_line() -> None:
    pairs = [("fast", "gpt-4o-mini"), ("cheap", "gpt-4o-mini-2024-07-18"), ("big", "gpt-4o"), ("cheap", "o3")]
    ours, theirs = grouped(pairs)
    assert ours == {"fast": "cheap, fast", "cheap": "cheap, fast", "big": "big"}
    assert theirs == {"gpt-4o-mini": "cheap, fast", "o3": "cheap, fast", "gpt-4o": "big"}
    backwards = grouped(pairs[::-1])
    assert backwards == (ours, theirs)


def test_each_line_of_either_side_is_compared() -> None:
    theirs = export(sums={("d1", "gpt-4o", "usd"): 5, ("d1", "o3", "usd"): 7, ("d2", "", "usd"): 1}, names={"o3": "o3"})
    ours = Ours({("d1", "big", "usd"): 4, ("d2", "big", "usd"): 9}, {"gpt-4o": "big"})
    lines = compare(theirs, ours)
    assert lines == [
        Compared("d1", "big", "usd", 4, 5),
        Compared("d1", "o3", "usd", 0, 7),
        Compared("d2", NO_MODEL, "usd", 0, 1),
        Compared("d2", "big", "usd", 9, 0),
    ]
    assert [line.difference for line in lines] == [-1, -7, -1, 9]
    assert totals(lines) == [Compared("total", "", "usd", 13, 13)]


def test_where_the_export_names_no_model_whole_days_are_compared() -> None:
    ours = Ours({("d1", "a", "usd"): 4, ("d1", "b", "usd"): 1}, {})
    assert compare(export(sums={("d1", "", "usd"): 5}), ours) == [Compared("d1", "", "usd", 5, 5)]
    assert compare(export(), ours) == [Compared("d1", "", "usd", 5, 0)]
