"""Keeps the records of requests in one SQLite file, which a second process may read meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

import apsw

from gateway.store import Page, Query, Record, RecordRefused, Refused, StoreError, Used, rows
from gateway.store.sqlite_file import BUSY_MS, opened, transaction

T = TypeVar("T")

APPLICATION_ID: Final = 0x546F6C6C  # "Toll": SQLite's own place to say whose file this is
CHUNK: Final = 32  # rows in one INSERT: the interpreter lock is let go once per statement, not once per row

# An index ends with the row's number, so (at, seq) is an order without ties: what the cursor relies on.
# Partial indexes cost nothing for the requests that name no session or user and do not fail.
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
    CREATE INDEX exchange_failed ON exchange(at) WHERE {rows.FAILED};
    CREATE TABLE content(
        seq INTEGER PRIMARY KEY REFERENCES exchange(seq) ON DELETE CASCADE,
        input TEXT NOT NULL,
        output TEXT NOT NULL
    ) STRICT;
    """,
)  # migration n takes user_version from n to n + 1; what was released is never edited

_ROW: Final = "(" + ",".join("?" * 18) + ")"
_INSERT: Final = f"INSERT INTO exchange({rows.COLUMNS}, detail) VALUES "  # noqa: S608  (constants only)
_CHUNK_INSERT: Final = _INSERT + ",".join([_ROW] * CHUNK) + " ON CONFLICT(id) DO NOTHING"
_ROW_INSERT: Final = _INSERT + _ROW + " ON CONFLICT(id) DO NOTHING"
_CONTENT_INSERT: Final = (
    "INSERT INTO content(seq, input, output) SELECT seq, ?2, ?3 FROM exchange WHERE id = ?1 ON CONFLICT(seq) DO NOTHING"
)
_ONE: Final = rows.one("exchange", "content")
_USED: Final = rows.spent_tokens("exchange")
_EXPIRE: Final = "DELETE FROM exchange WHERE seq IN (SELECT seq FROM exchange WHERE at < ? ORDER BY at LIMIT ?)"

# Errors that lie in what was offered; every other one lies in the file or the machine, and may pass.
_REFUSALS: Final = (apsw.ConstraintError, apsw.TooBigError, apsw.MismatchError, OverflowError, UnicodeError, TypeError)


class SqliteRecordStore:
    """A RecordStore in one file.  Raises StoreError where the file cannot be opened or is not ours."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._write_lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "records-read")
        with _mapped(f"the record store {self.path} cannot be opened"):
            self._write = opened(self.path, APPLICATION_ID, MIGRATIONS)
            self._write.pragma("synchronous", "normal")  # a power cut may cost the last records, never the file
            self._write.pragma("foreign_keys", True)
            self._write.pragma("secure_delete", "fast")  # what retention deletes is overwritten
            try:
                self._read = apsw.Connection(self.path)
            except BaseException:
                self._write.close()
                raise
            self._read.set_busy_timeout(BUSY_MS)
            self._read.pragma("query_only", True)

    def write(self, records: Sequence[Record]) -> None:
        """One transaction.  Blocks up to BUSY_MS while another process holds the file."""
        with self._write_lock, _mapped("the records cannot be written"), transaction(self._write):
            for start in range(0, len(records), CHUNK):
                made = [rows.row(record) for record in records[start : start + CHUNK]]
                if len(made) == CHUNK:
                    self._write.execute(_CHUNK_INSERT, tuple(chain.from_iterable(made)))
                else:
                    self._write.executemany(_ROW_INSERT, made)
            if kept := rows.contents(records):
                self._write.executemany(_CONTENT_INSERT, kept)

    def expire(self, before: int, limit: int) -> int:
        with self._write_lock, _mapped("old records cannot be deleted"), transaction(self._write):
            self._write.execute(_EXPIRE, (before, limit))
            return self._write.changes()

    async def get(self, id: str) -> Record | None:
        return await self._on_reader(lambda: self._get(id))

    async def find(self, query: Query) -> Page:
        sql, values = rows.select(query, "exchange")
        return await self._on_reader(lambda: self._find(sql, values, query.limit))

    async def refused(self, by: Sequence[str], query: Query) -> list[Refused]:
        sql, values = rows.refusals(by, query, "exchange")
        return await self._on_reader(lambda: [rows.refused(row) for row in self._read.execute(sql, values)])

    async def used(self, since: int, until: int) -> list[Used]:
        found: dict[tuple[str, str, str], Used] = {}
        place: tuple[int, int] | None = (0, 0)

        def add_page() -> tuple[int, int] | None:
            assert place is not None
            read = self._read.execute(_USED, (since - rows.LONGEST_NS, until, *place, rows.PAGE))
            return rows.used(found, read.fetchall(), since, until)

        while place is not None:  # page by page: other questions come in between
            place = await self._on_reader(add_page)
        return sorted(found.values(), key=lambda line: (line.day, line.provider, line.model))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    def _get(self, id: str) -> Record | None:
        row = self._read.execute(_ONE, (id,)).fetchone()
        return None if row is None else rows.record(row)

    def _find(self, sql: str, values: Sequence[str | int], limit: int) -> Page:
        return rows.page(self._read.execute(sql, values).fetchall(), limit)

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
