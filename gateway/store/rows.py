"""Records as rows and back, and what the list's questions are in SQL: the same in every store.  Opens nothing.

A record is 17 columns, which lists are made and filtered from, and one blob of all the rest.  Statements number their
values ($1, $2 …), which every database here understands.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Final, cast

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from gateway.exchange import Usage
from gateway.store import (
    AssessmentRecord,
    AttemptRecord,
    Content,
    DecisionRecord,
    Fault,
    Page,
    Query,
    Record,
    Refused,
    Summary,
    Timings,
    Tokens,
    Used,
    read_time,
    usd,
    write_time,
)

FAILED: Final = "(status >= 400 OR code IS NOT NULL)"
COLUMNS: Final = (
    'id, at, team, key, model, provider, endpoint, status, code, stream, session, "user", feature, '
    "input, output, cost_nano, duration_us"
)

# What the columns do not tell is one blob: values in this order, without their names.
DETAIL: Final = ("operation", "method", "path", "route", "client", "tags", "trace_id", "cache", "sent_bytes",
                 "saved_nano")  # fmt: skip
GROUPS: Final = ("team", "key", "user", "feature", "model", "provider", "code")  # what refusals are told apart by
PAGE: Final = 2000  # rows of which the attempts are added up in one go
LONGEST_NS: Final = 3600 * 1_000_000_000  # an attempt begins at most so long after its request
LONE: Final = re.compile("[\ud800-\udfff]")  # half a character: no encoding can write it
UNREADABLE: Final = "\ufffd"

Row = tuple[str | int | bytes | None, ...]
_detail = attrgetter(*DETAIL)
_PLACE: Final = {name: place for place, name in enumerate(AttemptRecord.__struct_fields__)}
_ERROR: Final = _PLACE["error"]
_USAGE: Final = _PLACE["usage"]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class _Blob(msgspec.Struct, array_like=True, gc=False):
    """Of a blob its attempts: nothing else is built.  What assessors said follows, where there is any."""

    detail: Raw
    message: Raw
    decisions: Raw
    attempts: list[list[Any]]


_blob = msgspec.msgpack.Decoder(_Blob).decode
_facts = itemgetter(
    *(_PLACE[name] for name in ("provider", "model", "response_model", "started_us", "sent_us", "free"))
)


def row(record: Record) -> Row:
    """COLUMNS and the blob.  Halves of characters that a caller wrote become the mark for what cannot be read."""
    try:
        return _row(record)
    except UnicodeEncodeError:
        return _row(msgspec.convert(_whole(msgspec.to_builtins(record)), Record))


def contents(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(id, asked, answered) of those records whose content is kept."""
    return [(r.id, _whole(r.content.input), _whole(r.content.output)) for r in records if r.content is not None]


def record(row: Sequence[Any]) -> Record:
    """row: COLUMNS, the blob, asked, answered."""
    facts = {name: fact for name, fact in _told(row).items() if name in Record.__struct_fields__}
    plain, message, decisions, attempts, timings, tokens, *more = _decode(row[17])
    facts |= {name: facts[name] or "" for name in ("session", "user", "feature")}
    facts |= zip(DETAIL, plain, strict=False)  # rows of older versions hold fewer
    facts["error"] = None if message is None else _named(Fault, (row[8], message))
    facts["decisions"] = [_named(DecisionRecord, decision) for decision in decisions]
    facts["attempts"] = [_unpacked(attempt) for attempt in attempts]
    facts["assessments"] = [_named(AssessmentRecord, one) for one in (more[0] if more else ())]
    facts["timings"] = _named(Timings, timings)
    facts["tokens"] = _named(Tokens, tokens)
    facts["content"] = None if row[18] is None else _named(Content, row[18:])
    return msgspec.convert(facts, Record)


def page(rows: Sequence[Sequence[Any]], limit: int) -> Page:
    """rows: what select() asks for; one more than the limit where there are more."""
    shown = rows[:limit]
    cursor = _write_cursor(shown[-1][1], shown[-1][-1]) if len(rows) > limit else None
    return Page([msgspec.convert(_told(row), Summary) for row in shown], cursor)


def select(query: Query, table: str) -> tuple[str, list[str | int]]:
    """The statement and its values.  Words of a caller are values, never part of the statement.

    Raises ValueError where the cursor is none of ours.
    """
    terms, values = _terms(query)
    if query.cursor is not None:
        values += _read_cursor(query.cursor)
        terms.append(f"(at, seq) < (${len(values) - 1}, ${len(values)})")
    condition = " WHERE " + " AND ".join(terms) if terms else ""
    order = f"ORDER BY at DESC, seq DESC LIMIT ${len(values) + 1}"
    return f"SELECT {COLUMNS}, seq FROM {table}{condition} {order}", [*values, query.limit + 1]  # noqa: S608  (constants only)


def refusals(by: Sequence[str], query: Query, table: str) -> tuple[str, list[str | int]]:
    """The statement that counts what ended with a code, and its values.  by: of GROUPS; else ValueError."""
    if not set(by) <= set(GROUPS) or len(set(by)) != len(by):
        raise ValueError(f"each of {', '.join(GROUPS)} at most once")
    terms, values = _terms(query)
    condition = " AND ".join(["code IS NOT NULL", *terms])
    words = "".join(f'"{word}" AS g{place}, ' for place, word in enumerate(by))
    group = f" GROUP BY {', '.join(str(place + 1) for place in range(len(by)))}" if by else ""
    counted = (
        f"SELECT {words}count(*) AS n, min(at) AS first, max(at) AS last, max(seq) AS newest FROM {table} "  # noqa: S608  (constants only)
        f"WHERE {condition}{group} ORDER BY n DESC, newest DESC LIMIT ${len(values) + 1}"
    )
    columns = "".join(f"g{place}, " for place in range(len(by)))
    sql = f"SELECT {columns}n, first, last, id, detail FROM ({counted}) AS c JOIN {table} ON seq = newest "  # noqa: S608  (constants only)
    return sql + "ORDER BY n DESC, newest DESC", [*values, query.limit]


def refused(row: Sequence[Any]) -> Refused:
    """row: what refusals() asks for."""
    *values, count, first, last, id, detail = row
    return Refused(tuple(values), count, first, last, id, _decode(detail)[1] or "")


def spent_tokens(table: str) -> str:
    """The statement that asks for `used`, page by page: from, to, after (at, seq), rows."""
    return (
        f"SELECT at, seq, detail FROM {table} WHERE at >= $1 AND at < $2 AND (at, seq) > ($3, $4) "  # noqa: S608  (constants only)
        "ORDER BY at, seq LIMIT $5"
    )


def used(
    found: dict[tuple[str, str, str], Used], rows: Iterable[Sequence[Any]], since: int, until: int
) -> tuple[int, int] | None:
    """Adds the attempts of these rows that began within the span; the place of the last row."""
    place = None
    for at, seq, detail in rows:
        place = at, seq
        for attempt in _blob(detail).attempts:
            provider, model, answered, started, sent, free = _facts(attempt)
            began = at + (started or 0) * 1000
            if sent is None or free or not since <= began < until:
                continue
            told = write_time(began)[:10], provider, answered or model
            line = found.setdefault(told, Used(*told))
            if attempt[_USAGE] is None:
                line.untold += 1
                continue
            usage = Usage(*attempt[_USAGE])
            line.attempts += 1
            line.input += usage.input
            line.cache_read += usage.cache_read
            line.output += usage.output
            line.estimated += usage.estimated
    return place


def one(table: str, contents: str) -> str:
    """The statement that asks for a whole record by its id."""
    return (
        f"SELECT {COLUMNS}, detail, asked, answered FROM {table} LEFT JOIN "  # noqa: S608  (constants only)
        f"(SELECT seq, input AS asked, output AS answered FROM {contents}) AS c USING (seq) WHERE id = $1"
    )


def _terms(query: Query) -> tuple[list[str], list[str | int]]:
    """What a record must be, but for the cursor."""
    terms: list[str] = []
    values: list[str | int] = []

    def where(term: str, *given: str | int) -> None:
        numbers = [f"${number}" for number in range(len(values) + 1, len(values) + len(given) + 1)]
        terms.append(term.format(*numbers))
        values.extend(given)

    def marks(wanted: Collection[str]) -> str:
        return ",".join(["{}"] * len(wanted))

    named = {
        "team": query.team,
        "key": query.key,
        "model": query.model,
        "code": query.code,
        "session": query.session,
        '"user"': query.user,
        "feature": query.feature,
    }
    for column, wanted in named.items():
        if wanted is not None:
            where(column + " = {}", str(_whole(wanted)))
    if query.teams is not None:
        where(f"team IN ({marks(query.teams)})" if query.teams else "false", *sorted(query.teams))
    if query.codes:
        where(f"code IN ({marks(query.codes)})", *query.codes)
    if query.status is not None:
        where("status BETWEEN {} AND {}", *query.status)
    if query.failed or (query.status is not None and query.status[0] >= 400):
        where(FAILED)  # word for word the condition of exchange_failed, so that the index is used
    if query.since is not None:
        where("at >= {}", query.since)
    if query.until is not None:
        where("at < {}", query.until)
    return terms, values


def _row(record: Record) -> Row:
    attempts, tokens, error = record.attempts, record.tokens, record.error
    provider = attempts[-1].provider if attempts else None
    code = error.code if error is not None else None
    words = (record.id, record.team, record.key, record.model, record.endpoint, record.session, record.user)
    "".join((*words, record.feature, provider or "", code or "")).encode()  # raises where a word cannot be written
    return (
        record.id,
        _moment(record.at),
        record.team,
        record.key,
        record.model,
        provider,
        record.endpoint,
        record.status,
        code,
        record.stream,
        record.session or None,
        record.user or None,
        record.feature or None,
        tokens.input,
        tokens.output,
        record.cost_nano,
        record.timings.total_us,
        _encode(
            (
                _detail(record),
                error.message if error is not None else None,
                [astuple(decision) for decision in record.decisions],
                [_packed(attempt) for attempt in attempts],
                astuple(record.timings),
                astuple(tokens),
                *([[astuple(one) for one in record.assessments]] if record.assessments else ()),
            )
        ),
    )


def _packed(attempt: AttemptRecord) -> list[object]:
    error, usage = attempt.error, attempt.usage
    values = list(astuple(attempt))
    if error is not None:
        values[_ERROR] = astuple(error)
    if usage is not None:
        values[_USAGE] = astuple(usage)
    return values


def _moment(at: str) -> int:
    """read_time of what write_time wrote: neighbours in a batch share their second."""
    return _second(at[:19]) + int(at[20:29]) if len(at) == 30 else read_time(at)


@lru_cache(maxsize=64)
def _second(second: str) -> int:
    return read_time(second + "Z")


def _whole(said: Any) -> Any:
    """The same, with every half of a character replaced."""
    if isinstance(said, str):
        return said if said.isascii() else LONE.sub(UNREADABLE, said)
    if isinstance(said, dict):
        return {name: _whole(value) for name, value in said.items()}
    if isinstance(said, list | tuple):
        return [_whole(value) for value in said]
    return said


def _unpacked(values: Sequence[Any]) -> dict[str, object]:
    facts = _named(AttemptRecord, values)
    if values[_ERROR] is not None:
        facts["error"] = _named(Fault, values[_ERROR])
    if values[_USAGE] is not None:
        facts["usage"] = _named(Usage, values[_USAGE])
    return facts


def _named(kind: type[msgspec.Struct], values: Sequence[object]) -> dict[str, object]:
    return dict(zip(kind.__struct_fields__, values, strict=True))


def _told(row: Sequence[object]) -> dict[str, object]:
    """What the columns say, by Summary's names."""
    facts = dict(zip(Summary.__struct_fields__, (*row[:16], None, row[16]), strict=True))
    return facts | {
        "at": write_time(cast(int, row[1])),
        "stream": bool(row[9]),
        "cost_usd": usd(cast("int | None", row[15])),
    }


def _write_cursor(at: int, seq: int) -> str:
    return base64.urlsafe_b64encode(f"{at}.{seq}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, int]:
    try:
        at, seq = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).split(b".")
        place = int(at), int(seq)
    except (ValueError, binascii.Error) as error:
        raise ValueError("not a cursor of this list") from error
    if not (0 <= place[0] < 2**63 and 0 <= place[1] < 2**63):
        raise ValueError("not a cursor of this list")
    return place
