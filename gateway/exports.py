"""What a provider exports of its own figures: tokens or USD by day (UTC) and model, told apart by what stands in them.

JSON, one page, several one after the other, or in a list:
* OpenAI API reference, Usage: GET /v1/organization/usage/completions (and embeddings, …), grouped by model or not
* OpenAI API reference, Costs: GET /v1/organization/costs, grouped by line_item ("gpt-4o-2024-08-06, input") or not
* Anthropic Admin API, Usage and Cost: GET /v1/organizations/usage_report/messages, GET /v1/organizations/cost_report,
  whose amounts are decimal strings of cents
CSV, with the columns that the dashboards write (neither provider documents them):
* OpenAI, Usage dashboard, Export: the fields of the two APIs as columns; an amount is amount_value and amount_currency
* Claude Console, Usage and Cost: usage_date_utc, model_version, usage_input_tokens_…; or model, cost_usd
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

EXPECTED: Final = (
    "expected is an export of OpenAI (organization/usage/…, organization/costs, or a dashboard's CSV) or of Anthropic "
    "(usage_report/messages, cost_report, or the Console's CSV)"
)
DAY: Final = 86_400
NANO: Final = 1_000_000_000
MOST: Final = Decimal(10) ** 12  # USD or tokens in one figure; more is a defect
SNAPSHOT: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")  # of a model: its prices and its family are one

What = Literal["input", "cached input", "output", "usd"]
Line = tuple[str, str, What]  # day, model (family(); empty: none is named), what is counted


class BadExport(ValueError):
    """It is none of those, or damaged.  The message says where, and what is expected."""


@dataclass
class Export:
    """sums: tokens, or nano-USD.  start, end: the span that it tells of, seconds since the epoch.

    names: family of a model -> a name of it.  partial: there are pages that it does not hold.
    """

    unit: Literal["tokens", "usd"]
    start: int
    end: int
    sums: dict[Line, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    partial: bool = False


Row = tuple[int, int, str, dict[What, Decimal]]  # start, end, model, figures


def family(model: str) -> str:
    """One word for all snapshots and spellings of a model: "Claude Haiku 4.5", "claude-haiku-4-5-20251001"."""
    return SNAPSHOT.sub("", re.sub(r"[ .]", "-", model.strip().lower()))


def read(text: str) -> Export:
    """Raises BadExport."""
    text = text.removeprefix("\ufeff").strip()
    partial = False
    if text[:1] in ("{", "["):
        rows, partial = _pages(text)
    else:
        rows = list(_table(text))
    if not rows:
        raise BadExport(f"there is no day in it; {EXPECTED}")
    units = {"usd" if "usd" in figures else "tokens" for *_, figures in rows if figures}
    if not units:
        raise BadExport(f"there is no figure in it, so it cannot be told what it would be compared with; {EXPECTED}")
    if len(units) > 1:
        raise BadExport("it holds tokens and USD: compare one after the other")
    found = Export("usd" if units == {"usd"} else "tokens", min(r[0] for r in rows), max(r[1] for r in rows))
    found.partial = partial
    exact: dict[Line, Decimal] = {}
    for start, _, model, figures in rows:
        day = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d")
        found.names.setdefault(family(model), model)
        for what, figure in figures.items():
            line = day, family(model), what
            exact[line] = exact.get(line, Decimal(0)) + figure
    # Rounded once for each line, after adding up: a provider's figures have more decimals than nano-USD.
    found.sums = {
        line: int((figure * NANO if line[2] == "usd" else figure).to_integral_value()) for line, figure in exact.items()
    }
    return found


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pages(text: str) -> tuple[list[Row], bool]:
    """The rows of all pages, and whether the last one says that there are more."""
    rows: list[Row] = []
    seen: set[tuple[int, int, str]] = set()
    more = False
    for page in _documents(text):
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise BadExport(f"a page with a list `data` is missing; {EXPECTED}")
        more = page.get("has_more") is True
        for bucket in page["data"]:
            start, end, results = _bucket(bucket)
            rows.append((start, end, "", {}))  # a day without any use is told of, too
            for result in results:
                rows.append((start, end, *_result(result)))
            if results:
                told = start, end, str(results[0].get("object") or sorted(results[0]))
                if told in seen:
                    raise BadExport(f"the bucket that begins at {_moment(start)} stands in it twice: a page came twice")
                seen.add(told)
    return [row for row in rows if row[3] or row[2] == ""], more


def _documents(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
    place = 0
    while place < len(text):
        try:
            one, place = decoder.raw_decode(text, place)
        except BadExport:
            raise
        except (ValueError, RecursionError) as error:
            raise BadExport(f"it is no JSON ({error}); {EXPECTED}")
        yield from one if isinstance(one, list) else [one]
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1


def _bucket(bucket: Any) -> tuple[int, int, list[dict[str, Any]]]:
    if not isinstance(bucket, dict) or not isinstance(bucket.get("results"), list):
        raise BadExport(f"a bucket with a list `results` is missing; {EXPECTED}")
    if "start_time" in bucket:
        span = bucket.get("start_time"), bucket.get("end_time")
    else:
        span = _iso(bucket.get("starting_at")), _iso(bucket.get("ending_at"))
    start, end = span
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= 2**33:
        raise BadExport(f"a bucket says no start_time and end_time, nor starting_at and ending_at; {EXPECTED}")
    if not all(isinstance(result, dict) for result in bucket["results"]):
        raise BadExport(f"a result is no object; {EXPECTED}")
    return start, end, bucket["results"]


def _result(result: Mapping[str, Any]) -> tuple[str, dict[What, Decimal]]:
    """The model and the figures of one result, by the fields that it has."""
    amount = result.get("amount")
    if isinstance(amount, dict):  # OpenAI, costs
        return _item(result.get("line_item")), {"usd": _usd(amount.get("value"), amount.get("currency"))}
    model = str(result.get("model") or "")
    if amount is not None:  # Anthropic, cost_report: cents
        return model, {"usd": _usd(amount, result.get("currency")) / 100}
    if "uncached_input_tokens" in result:
        written = result.get("cache_creation") or {}
        parts = [result.get("uncached_input_tokens"), result.get("cache_read_input_tokens"), *written.values()]
        return model, _tokens(
            sum(map(_figure, parts)), result.get("cache_read_input_tokens"), result.get("output_tokens")
        )
    if "input_tokens" in result:
        return model, _tokens(result["input_tokens"], result.get("input_cached_tokens"), result.get("output_tokens"))
    raise BadExport(f"a result has neither an amount nor input_tokens; {EXPECTED}")


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(text: str) -> Iterator[Row]:
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        known = set(table.fieldnames or ())
        row_of = next((make for needed, make in TABLES if needed <= known), None)
        if row_of is None:
            raise BadExport(f"its first line names no columns that are known; {EXPECTED}")
        for number, cells in enumerate(table, 2):
            if None in cells or None in cells.values():
                raise BadExport(f"line {number} has not as many cells as the first")
            yield row_of(cells)
    except csv.Error as error:
        raise BadExport(f"it is no CSV ({error}); {EXPECTED}")


def _openai_cost(row: Mapping[str, str]) -> Row:
    figures: dict[What, Decimal] = {}
    if row["amount_value"]:  # empty on a day without any cost
        figures["usd"] = _usd(row["amount_value"], row["amount_currency"])
    return (*_span(row), _item(row.get("line_item")), figures)


def _openai_usage(row: Mapping[str, str]) -> Row:
    figures = _tokens(row["input_tokens"], row.get("input_cached_tokens"), row["output_tokens"])
    return (*_span(row), row.get("model") or "", figures)


def _anthropic_cost(row: Mapping[str, str]) -> Row:
    return (*_date(row), row["model"], {"usd": _usd(row["cost_usd"], "USD")})


def _anthropic_usage(row: Mapping[str, str]) -> Row:
    asked = sum(_figure(cell) for column, cell in row.items() if column.startswith("usage_input_tokens"))
    figures = _tokens(asked, row.get("usage_input_tokens_cache_read"), row["usage_output_tokens"])
    return (*_date(row), row["model_version"], figures)


TABLES: Final[tuple[tuple[set[str], Callable[[Mapping[str, str]], Row]], ...]] = (
    ({"start_time", "end_time", "amount_value", "amount_currency"}, _openai_cost),
    ({"start_time", "end_time", "input_tokens", "output_tokens"}, _openai_usage),
    ({"usage_date_utc", "model", "cost_usd"}, _anthropic_cost),
    ({"usage_date_utc", "model_version", "usage_output_tokens"}, _anthropic_usage),
)


# ── what stands in them ─────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(asked: Any, cached: Any, answered: Any) -> dict[What, Decimal]:
    return {"input": _figure(asked), "cached input": _figure(cached), "output": _figure(answered)}


def _item(line_item: Any) -> str:
    """The model of an OpenAI line item: "gpt-4o-2024-08-06, input"."""
    return str(line_item or "").partition(", ")[0]


def _usd(value: Any, currency: Any) -> Decimal:
    if str(currency).lower() != "usd":
        raise BadExport(f"an amount is in {currency!r}: only USD can be compared")
    return _figure(value)


def _figure(value: Any) -> Decimal:
    """A finite number, however it is written; nothing is 0."""
    if value is None or value == "":
        return Decimal(0)
    try:
        figure = Decimal(value) if isinstance(value, int | str | Decimal) and not isinstance(value, bool) else None
    except InvalidOperation:
        figure = None
    if figure is None or not figure.is_finite() or abs(figure) > MOST:
        raise BadExport(f"{str(value)[:40]!r} is no amount")
    return figure


def _span(row: Mapping[str, str]) -> tuple[int, int]:
    start, end = (_figure(row[word]) for word in ("start_time", "end_time"))
    if not 0 <= start < end <= 2**33:
        raise BadExport(f"start_time and end_time: {row['start_time']!r}, {row['end_time']!r} are no span of seconds")
    return int(start), int(end)


def _date(row: Mapping[str, str]) -> tuple[int, int]:
    start = _iso(row["usage_date_utc"][:10] + "T00:00:00Z")
    if start is None:
        raise BadExport(f"usage_date_utc: {row['usage_date_utc'][:40]!r} is no day")
    return start, start + DAY


def _iso(text: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else int(moment.timestamp())
    except (TypeError, ValueError, OverflowError):
        return None


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _no_number(word: str) -> Any:
    raise BadExport(f"{word} is no amount")
