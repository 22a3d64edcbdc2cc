"""Keeps the records of requests in a PostgreSQL database that several gateways share.

In a schema of its own and over connections of its own: a log that is full or slow must never stop money.  Each step is
one statement, harmless when repeated, and nothing is kept in a session but prepared statements, so a pooler in
transaction mode that knows those (PgBouncer from 1.21) may stand between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from gateway.database import DatabaseDown
from gateway.store import Page, Query, Record, Refused, Used, rows
from gateway.store.aside import Aside, Schema, mapped

SCHEMA: Final = Schema("tollkeeper_records", "the records", ("001_records.sql",), 0x546F6C72)
START_SECONDS: Final = 5.0  # how long the start of the gateway waits for the database; the first record goes on
WRITE_SECONDS: Final = 5.0  # that a statement that writes may take …
BYTES_A_SECOND: Final = 1_000_000  # … and more where there is much to write
READ_SECONDS: Final = 15.0
EXPIRE_SECONDS: Final = 30.0
SIZES: Final = {"write": 1, "read": 2}  # connections of each gateway

log = logging.getLogger(__name__)

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
USED: Final = rows.spent_tokens("tollkeeper_records.exchange")


class PostgresRecordStore:
    """A RecordStore in the schema `tollkeeper_records` of one database.

    A database that is down does not stop the start: it is prepared when it comes.  Raises StoreError where it holds a
    newer schema, or may not be prepared by this user.
    """

    def __init__(self, dsn: str) -> None:
        self._aside = Aside(dsn, SCHEMA, SIZES)
        try:
            self._aside.start(START_SECONDS)
        except TimeoutError:
            log.warning("the database of the records is slow: records wait in memory until it answers")
        except DatabaseDown:
            pass  # the database's own log line says so
        except BaseException:
            self._aside.close()
            raise

    def write(self, records: Sequence[Record]) -> None:
        """One statement."""
        with mapped("the records cannot be written"):
            values, size = _arrays(records)
            patience = WRITE_SECONDS + size / BYTES_A_SECOND
            self._aside.run(self._aside.rows("write", INSERT, *values, patience=patience))

    def expire(self, before: int, limit: int) -> int:
        with mapped("old records cannot be deleted"):
            gone = self._aside.run(self._aside.rows("write", EXPIRE, before, limit, patience=EXPIRE_SECONDS))
            return int(gone[0][0])

    async def get(self, id: str) -> Record | None:
        with mapped("the records cannot be read"):
            return await self._aside.wait(self._get(id))

    async def find(self, query: Query) -> Page:
        sql, values = rows.select(query, "tollkeeper_records.exchange")
        with mapped("the records cannot be read"):
            return await self._aside.wait(self._find(sql, values, query.limit))

    async def refused(self, by: Sequence[str], query: Query) -> list[Refused]:
        sql, values = rows.refusals(by, query, "tollkeeper_records.exchange")
        with mapped("the records cannot be read"):
            return [rows.refused(row) for row in await self._aside.wait(self._asked(sql, values))]

    async def used(self, since: int, until: int) -> list[Used]:
        with mapped("the records cannot be read"):
            return await self._aside.wait(self._used(since, until))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._aside.close)

    # ── in the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _get(self, id: str) -> Record | None:
        found = await self._aside.rows("read", ONE, _text(id), patience=READ_SECONDS)
        if not found:
            return None
        *facts, asked, answered = found[0]
        return rows.record([*facts, *(None if said is None else said.decode() for said in (asked, answered))])

    async def _find(self, sql: str, values: Sequence[str | int], limit: int) -> Page:
        return rows.page(await self._asked(sql, values), limit)

    async def _used(self, since: int, until: int) -> list[Used]:
        found: dict[tuple[str, str, str], Used] = {}
        place: tuple[int, int] | None = (0, 0)
        while place is not None:
            asked = (since - rows.LONGEST_NS, until, *place, rows.PAGE)
            place = rows.used(found, await self._asked(USED, asked), since, until)
        return sorted(found.values(), key=lambda line: (line.day, line.provider, line.model))

    async def _asked(self, sql: str, values: Sequence[str | int]) -> list[Any]:
        given = [_text(value) if isinstance(value, str) else value for value in values]
        return [tuple(row) for row in await self._aside.rows("read", sql, *given, patience=READ_SECONDS)]


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
