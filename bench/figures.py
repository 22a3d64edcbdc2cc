"""What was measured beside what was promised: one line for each figure, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["aim met", "must met", "FAIL", ""]


@dataclass(frozen=True)
class Figure:
    """low, high: of the rounds that `value` is the middle of.  must, aim: None where nothing is promised."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    must: float | None = None
    aim: float | None = None
    more_is_better: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.must is None:
            return ""
        if self.aim is not None and self._reaches(self.aim):
            return "aim met"
        return "must met" if self._reaches(self.must) else "FAIL"

    def _reaches(self, bound: float) -> bool:
        return self.value >= bound if self.more_is_better else self.value <= bound


def middle(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    must: float | None = None,
    aim: float | None = None,
    more_is_better: bool = False,
) -> Figure:
    """The median of several rounds."""
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Figure(name, statistics.median(values), unit, low, high, must, aim, more_is_better)


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed (nearest rank)."""
    return sorted_values[max(0, min(len(sorted_values) - 1, round(share * len(sorted_values)) - 1))]


def table(figures: Sequence[Figure]) -> str:
    rows: list[tuple[str, ...]] = [("figure", "measured", "of rounds", "must", "aim", "")]
    for figure in figures:
        spread = "" if figure.low is None or figure.high is None else f"{_number(figure.low)} … {_number(figure.high)}"
        bounds = ["" if bound is None else _number(bound) for bound in (figure.must, figure.aim)]
        rows.append((figure.name, f"{_number(figure.value)} {figure.unit}".rstrip(), spread, *bounds, figure.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)),
            row[5],
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "─" * (sum(widths) + 10))
    return "\n".join(lines)


def plain(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """For --json."""
    return [{**asdict(figure), "verdict": figure.verdict} for figure in figures]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.3g}"
