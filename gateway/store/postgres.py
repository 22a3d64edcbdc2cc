"""Keeps the records of requests in a PostgreSQL database that several gateways share.

In a schema of its own and over connections of its own: a log that is full or slow must never stop money.  Each step is
one statement, harmless when repeated, and nothing is kept in a session but prepared statements, so a pooler in
transaction mode that knows those (PgBouncer from 1.21) may stand between.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, TypeVar

import asyncpg
from asyncpg import Connection

from gateway.database import Database, DatabaseDown
from gateway.store import Page, Query, Record, RecordRefused, StoreError, rows

T = TypeVar("T")

MIGRATIONS: Final = ("001_records.sql",)  # migration n makes schema n; none is edited once released
MIGRATION_LOCK: Final = 0x546F6C72  # one gateway migrates, the others wait for it
START_SECONDS: Final = 5.0  # how long the start of the gateway waits for the database; the first record goes on
WRITE_SECONDS: Final = 5.0  # that a statement that writes may take …
BYTES_A_SECOND: Final = 1_000_000  # … and more where there is much to write
READ_SECONDS: Final = 15.0
EXPIRE_SECONDS: Final = 30.0
SIZES: Final = {"write": 1, "read": 2}  # connections of each gateway

log = logging.getLogger(__name__)

# Errors that lie in what was offered; every other one lies in the database, and may pass.
_REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    UnicodeError,
    TypeError,
)

VERSION: Final = "SELECT coalesce(max(version), 0) FROM tollkeeper_records.migration"
FOUND: Final = "SELECT to_regclass('tollkeeper_records.migration') IS NOT NULL"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tollkeeper_records.migration (
  version int PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL)"""
_KINDS: Final = (
    "text", "bigint", "text", "text", "text", "text", "text", "integer", "text", "boolean", "text", "text", "text",
    "bigint", "bigint", "bigint", "bigint", "bytea",
)  # fmt: skip
TEXTS: Final = [place for place, kind in enumerate(_KINDS) if kind == "text"]
_ARRAYS: Final = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_KINDS, 1))
INSERT: Final = f"""
WITH added AS (
  INSERT INTO tollkeeper_records.exchange ({rows.COLUMNS}, detail) SELECT * FROM unnest({_ARRAYS})
  ON CONFLICT (id) DO NOTHING RETURNING seq, id)
INSERT INTO tollkeeper_records.content (seq, input, output)
SELECT added.seq, c.input, c.output FROM unnest($19::text[], $20::bytea[], $21::bytea[]) AS c (id, input, output)
JOIN added USING (id) ON CONFLICT (seq) DO NOTHING"""  # noqa: S608  (constants only)
# Gateways that look at the same time do not wait for each other: what one has locked, it deletes.
EXPIRE: Final = """
WITH gone AS (
  DELETE FROM tollkeeper_records.exchange WHERE seq = ANY (ARRAY(
    SELECT seq FROM tollkeeper_records.exchange WHERE at < $1 ORDER BY at, seq LIMIT $2 FOR UPDATE SKIP LOCKED))
  RETURNING 1)
SELECT count(*) FROM gone"""
ONE: Final = rows.one("tollkeeper_records.exchange", "tollkeeper_records.content")


class PostgresRecordStore:
    """A RecordStore in the schema `tollkeeper_records` of one database.

    Connections live in an event loop of their own, in a thread: so `write` may block its caller, who is no event loop,
    and what takes long to pack and unpack stays off the gateway's.  A database that is down does not stop the start:
    it is prepared when it comes.  Raises StoreError where it holds a newer schema, or may not be prepared by this user.
    """

    def __init__(self, dsn: str) -> None:
        self._database = Database(dsn, SIZES, migrate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="records-postgres", daemon=True)
        self._thread.start()
        starting = self._ask(self._start())
        try:
            starting.result(START_SECONDS)
        except TimeoutError:
            log.warning("the database of the records is slow: records wait in memory until it answers")
        except DatabaseDown:
            pass  # the database's own log line says so
        except BaseException:
            self._close()
            raise

    def write(self, records: Sequence[Record]) -> None:
        """One statement."""
        with _mapped("the records cannot be written"):
            values, size = _arrays(records)
            patience = WRITE_SECONDS + size / BYTES_A_SECOND
            self._ask(self._database.rows("write", INSERT, *values, patience=patience)).result()

    def expire(self, before: int, limit: int) -> int:
        with _mapped("old records cannot be deleted"):
            asked = self._database.rows("write", EXPIRE, before, limit, patience=EXPIRE_SECONDS)
            return int(self._ask(asked).result()[0][0])

    async def get(self, id: str) -> Record | None:
        return await self._read(self._get(id))

    async def find(self, query: Query) -> Page:
        sql, values = rows.select(query, "tollkeeper_records.exchange")
        return await self._read(self._find(sql, values, query.limit))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    # ── in the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> None:
        with _mapped("the records' schema cannot be made", DatabaseDown):
            await self._database.start()

    async def _get(self, id: str) -> Record | None:
        found = await self._database.rows("read", ONE, _text(id), patience=READ_SECONDS)
        if not found:
            return None
        *facts, asked, answered = found[0]
        return rows.record([*facts, *(None if said is None else said.decode() for said in (asked, answered))])

    async def _find(self, sql: str, values: Sequence[str | int], limit: int) -> Page:
        given = [_text(value) if isinstance(value, str) else value for value in values]
        found = await self._database.rows("read", sql, *given, patience=READ_SECONDS)
        return rows.page([tuple(row) for row in found], limit)

    async def _read(self, asked: Coroutine[Any, Any, T]) -> T:
        with _mapped("the records cannot be read"):
            return await asyncio.wrap_future(self._ask(asked))

    def _ask(self, asked: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            asked.close()
            raise StoreError("the record store is closed")
        return asyncio.run_coroutine_threadsafe(asked, self._loop)

    async def _end(self) -> None:
        await self._database.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _close(self) -> None:
        if self._loop.is_closed():
            return
        self._ask(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def migrate(connection: Connection) -> None:
    """Brings the schema to the newest version; harmless when repeated, or done by several at once.

    Where nothing is to be done, no right to change the schema is needed.
    """
    if await connection.fetchval(FOUND) and await connection.fetchval(VERSION) == len(MIGRATIONS):
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        if not await connection.fetchval("SELECT to_regnamespace('tollkeeper_records') IS NOT NULL"):
            await connection.execute("CREATE SCHEMA tollkeeper_records")  # IF NOT EXISTS wants the right to, always
        await connection.execute(SCHEMA)
        version = await connection.fetchval(VERSION)
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the records' database has schema {version} and this Tollkeeper knows up to {len(MIGRATIONS)}: "
                "run the newer Tollkeeper that made it, or name another database"
            )
        for number, name in enumerate(MIGRATIONS[version:], version + 1):
            text = (files("gateway.store") / "migrations" / "postgres" / name).read_text(encoding="utf-8")
            await connection.execute(text)
            await connection.execute("INSERT INTO tollkeeper_records.migration VALUES ($1, $2, now())", number, name)


@contextmanager
def _mapped(what: str, *passed: type[Exception]) -> Iterator[None]:
    """The one place where the database's errors become ours."""
    try:
        yield
    except passed:
        raise
    except _REFUSALS as error:
        raise RecordRefused(f"{what}: {type(error).__name__}: {error}") from error
    except (DatabaseDown, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        told = f"{error}" if isinstance(error, DatabaseDown) else f"{type(error).__name__}: {error}"
        raise StoreError(f"{what}: {told}") from error


def _arrays(records: Sequence[Record]) -> tuple[list[list[Any]], int]:
    """What INSERT takes, column by column, and about how many bytes it is."""
    columns: list[list[Any]] = [list(column) for column in zip(*map(rows.row, records), strict=True)]
    for place in TEXTS:
        if any(said is not None and "\0" in said for said in columns[place]):
            columns[place] = [None if said is None else _text(said) for said in columns[place]]
    kept = rows.contents(records)
    contents: list[list[Any]] = [
        [_text(id) for id, _, _ in kept],
        [asked.encode() for _, asked, _ in kept],
        [answered.encode() for _, _, answered in kept],
    ]
    size = sum(len(blob) for column in (columns[-1], *contents[1:]) for blob in column)
    return columns + contents, size


def _text(said: str) -> str:
    """PostgreSQL's text holds every character but one."""
    return said.replace("\0", rows.UNREADABLE)
