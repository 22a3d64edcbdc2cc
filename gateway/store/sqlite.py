"""Keeps the records of requests in one SQLite file, which a second process may read meanwhile."""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import apsw
import msgspec
from msgspec.structs import astuple

from gateway.exchange import Usage
from gateway.store import (
    AttemptRecord,
    Content,
    DecisionRecord,
    Fault,
    Page,
    Query,
    Record,
    RecordRefused,
    StoreError,
    Summary,
    Timings,
    Tokens,
    read_time,
    usd,
    write_time,
)

T = TypeVar("T")

APPLICATION_ID: Final = 0x546F6C6C  # "Toll": SQLite's own place to say whose file this is
BUSY_MS: Final = 1000  # how long another process may hold the file before a write is given back to its queue
CHUNK: Final = 32  # rows in one INSERT: the interpreter lock is let go once per statement, not once per row

# An index ends with the row's number, so (at, seq) is an order without ties: what the cursor relies on.
# Partial indexes cost nothing for the requests that name no session or user and do not fail.
FAILED: Final = "(status >= 400 OR code IS NOT NULL)"
MIGRATIONS: Final = (
    f"""
    CREATE TABLE exchange(
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        at INTEGER NOT NULL,
        team TEXT NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        provider TEXT,
        endpoint TEXT NOT NULL,
        status INTEGER NOT NULL,
        code TEXT,
        stream INTEGER NOT NULL,
        session TEXT,
        "user" TEXT,
        feature TEXT,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cost_nano INTEGER,
        duration_us INTEGER NOT NULL,
        detail BLOB NOT NULL
    ) STRICT;
    CREATE INDEX exchange_at ON exchange(at);
    CREATE INDEX exchange_team ON exchange(team, at);
    CREATE INDEX exchange_model ON exchange(model, at);
    CREATE INDEX exchange_session ON exchange(session, at) WHERE session IS NOT NULL;
    CREATE INDEX exchange_user ON exchange("user", at) WHERE "user" IS NOT NULL;
    CREATE INDEX exchange_code ON exchange(code, at) WHERE code IS NOT NULL;
    CREATE INDEX exchange_failed ON exchange(at) WHERE {FAILED};
    CREATE TABLE content(
        seq INTEGER PRIMARY KEY REFERENCES exchange(seq) ON DELETE CASCADE,
        input TEXT NOT NULL,
        output TEXT NOT NULL
    ) STRICT;
    """,
)  # migration n takes user_version from n to n + 1; what was released is never edited

COLUMNS: Final = (
    'id, at, team, key, model, provider, endpoint, status, code, stream, session, "user", feature, '
    "input, output, cost_nano, duration_us"
)
_ROW: Final = "(" + ",".join("?" * 18) + ")"
_INSERT: Final = f"INSERT INTO exchange({COLUMNS}, detail) VALUES "  # noqa: S608  (constants only)
_CHUNK_INSERT: Final = _INSERT + ",".join([_ROW] * CHUNK) + " ON CONFLICT(id) DO NOTHING"
_ROW_INSERT: Final = _INSERT + _ROW + " ON CONFLICT(id) DO NOTHING"
_CONTENT_INSERT: Final = (
    "INSERT INTO content(seq, input, output) SELECT seq, ?, ? FROM exchange WHERE id = ? ON CONFLICT(seq) DO NOTHING"
)
_EXPIRE: Final = "DELETE FROM exchange WHERE seq IN (SELECT seq FROM exchange WHERE at < ? ORDER BY at LIMIT ?)"

# Errors that lie in what was offered; every other one lies in the file or the machine, and may pass.
_REFUSALS: Final = (apsw.ConstraintError, apsw.TooBigError, apsw.MismatchError, OverflowError, UnicodeError, TypeError)

# What the columns do not tell is one blob: values in this order, without their names.
DETAIL: Final = ("operation", "method", "path", "route", "client", "tags", "trace_id", "cache", "sent_bytes")
_detail = attrgetter(*DETAIL)
_ERROR: Final = AttemptRecord.__struct_fields__.index("error")
_USAGE: Final = AttemptRecord.__struct_fields__.index("usage")

_Row = tuple[str | int | bytes | None, ...]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class SqliteRecordStore:
    """A RecordStore in one file.  Raises StoreError where the file cannot be opened or is not ours."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._write_lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "records-read")
        with _mapped(f"the record store {self.path} cannot be opened"):
            is_new = not Path(self.path).exists()
            self._write = apsw.Connection(self.path)
            try:
                if is_new:  # by name: closing a descriptor of ours would let go of every lock this process has on it
                    Path(self.path).chmod(0o600)  # it may hold prompts: its owner's only
                self._prepare()
                self._read = apsw.Connection(self.path)
            except BaseException:
                self._write.close()
                raise
            self._read.set_busy_timeout(BUSY_MS)
            self._read.pragma("query_only", True)

    def write(self, records: Sequence[Record]) -> None:
        """One transaction.  Blocks up to BUSY_MS while another process holds the file."""
        with self._write_lock, _mapped("the records cannot be written"), _transaction(self._write):
            for start in range(0, len(records), CHUNK):
                rows = [_row(record) for record in records[start : start + CHUNK]]
                if len(rows) == CHUNK:
                    self._write.execute(_CHUNK_INSERT, tuple(chain.from_iterable(rows)))
                else:
                    self._write.executemany(_ROW_INSERT, rows)
            kept = [(r.content.input, r.content.output, r.id) for r in records if r.content is not None]
            if kept:
                self._write.executemany(_CONTENT_INSERT, kept)

    def expire(self, before: int, limit: int) -> int:
        with self._write_lock, _mapped("old records cannot be deleted"), _transaction(self._write):
            self._write.execute(_EXPIRE, (before, limit))
            return self._write.changes()

    async def get(self, id: str) -> Record | None:
        return await self._on_reader(lambda: self._get(id))

    async def find(self, query: Query) -> Page:
        sql, values = _select(query)
        return await self._on_reader(lambda: self._find(sql, values, query.limit))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    def _prepare(self) -> None:
        """Brings the schema to the newest known version and sets the connection up."""
        self._write.set_busy_timeout(BUSY_MS)
        with _transaction(self._write):  # a second process that starts now waits here, and then finds nothing to do
            if self._write.pragma("application_id") != APPLICATION_ID and self._write.pragma("schema_version"):
                raise StoreError(f"{self.path} is a database of another program; name another file")
            version = self._write.pragma("user_version")
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path} has schema {version} and this Tollkeeper knows up to {len(MIGRATIONS)}: "
                    "run the newer Tollkeeper that wrote it, or name another file"
                )
            if version < len(MIGRATIONS):
                for migration in MIGRATIONS[version:]:
                    self._write.execute(migration)
                self._write.pragma("application_id", APPLICATION_ID)
                self._write.pragma("user_version", len(MIGRATIONS))
        self._use_write_ahead_log()
        self._write.pragma("synchronous", "normal")  # a power cut may cost the last records, never the file
        self._write.pragma("foreign_keys", True)
        self._write.pragma("secure_delete", "fast")  # what retention deletes is overwritten

    def _use_write_ahead_log(self) -> None:
        """Waits as a write would: for this switch SQLite itself does not wait while others have the file open."""
        give_up = time.monotonic() + BUSY_MS / 1000
        while True:
            try:
                self._write.pragma("journal_mode", "wal")
            except apsw.BusyError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
            else:
                return

    def _get(self, id: str) -> Record | None:
        row = self._read.execute(
            f"SELECT {COLUMNS}, detail, asked, answered FROM exchange LEFT JOIN "  # noqa: S608  (constants only)
            "(SELECT seq, input AS asked, output AS answered FROM content) USING (seq) WHERE id = ?",
            (id,),
        ).fetchone()
        return None if row is None else _record(row)

    def _find(self, sql: str, values: Sequence[str | int], limit: int) -> Page:
        rows = self._read.execute(sql, values).fetchall()
        cursor = None
        if len(rows) > limit:
            rows.pop()
            cursor = _write_cursor(cast(int, rows[-1][1]), cast(int, rows[-1][-1]))
        return Page([_summary(row) for row in rows], cursor)

    async def _on_reader(self, read: Callable[[], T]) -> T:
        with _mapped("the records cannot be read"):
            return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    def _close(self) -> None:
        self._reader.shutdown()
        with self._write_lock:
            self._read.close()
            self._write.close()  # the last connection folds the write-ahead log into the file


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """The one place where SQLite's errors become ours."""
    try:
        yield
    except _REFUSALS as error:
        raise RecordRefused(f"{what}: {type(error).__name__}: {error}") from error
    except (apsw.Error, OSError) as error:
        raise StoreError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


def _row(record: Record) -> _Row:
    attempts, tokens, error = record.attempts, record.tokens, record.error
    return (
        record.id,
        _moment(record.at),
        record.team,
        record.key,
        record.model,
        attempts[-1].provider if attempts else None,
        record.endpoint,
        record.status,
        error.code if error is not None else None,
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


def _record(row: Sequence[object]) -> Record:
    facts = {name: fact for name, fact in _told(row).items() if name in Record.__struct_fields__}
    plain, message, decisions, attempts, timings, tokens = _decode(cast(bytes, row[17]))
    facts |= {name: facts[name] or "" for name in ("session", "user", "feature")}
    facts |= zip(DETAIL, plain, strict=True)
    facts["error"] = None if message is None else _named(Fault, (row[8], message))
    facts["decisions"] = [_named(DecisionRecord, decision) for decision in decisions]
    facts["attempts"] = [_unpacked(attempt) for attempt in attempts]
    facts["timings"] = _named(Timings, timings)
    facts["tokens"] = _named(Tokens, tokens)
    facts["content"] = None if row[18] is None else _named(Content, row[18:])
    return msgspec.convert(facts, Record)


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


def _summary(row: Sequence[object]) -> Summary:
    return msgspec.convert(_told(row), Summary)


def _select(query: Query) -> tuple[str, list[str | int]]:
    """The statement and its values.  Words of a caller are values, never part of the statement."""
    terms: list[str] = []
    values: list[str | int] = []

    def where(term: str, *given: str | int) -> None:
        terms.append(term)
        values.extend(given)

    named = {
        "team": query.team,
        "model": query.model,
        "code": query.code,
        "session": query.session,
        '"user"': query.user,
    }
    for column, wanted in named.items():
        if wanted is not None:
            where(f"{column} = ?", wanted)
    if query.teams is not None:
        where(f"team IN ({','.join('?' * len(query.teams))})", *sorted(query.teams))
    if query.status is not None:
        where("status BETWEEN ? AND ?", *query.status)
    if query.failed or (query.status is not None and query.status[0] >= 400):
        where(FAILED)  # word for word the condition of exchange_failed, so that the index is used
    if query.since is not None:
        where("at >= ?", query.since)
    if query.until is not None:
        where("at < ?", query.until)
    if query.cursor is not None:
        where("(at, seq) < (?, ?)", *_read_cursor(query.cursor))
    condition = " WHERE " + " AND ".join(terms) if terms else ""
    sql = f"SELECT {COLUMNS}, seq FROM exchange{condition} ORDER BY at DESC, seq DESC LIMIT ?"  # noqa: S608  (constants only)
    return sql, [*values, query.limit + 1]


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
