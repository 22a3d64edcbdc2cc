"""Keeps the directory of teams and keys in a PostgreSQL database that several gateways share.

A change is one statement: it moves the head of the log on from the revision it was decided upon, and writes its row
and its objects only where it could.  The head's row lock makes changes one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from asyncpg import Record

from gateway.database import DatabaseDown
from gateway.store import StoreError
from gateway.store.aside import Aside, Schema, mapped
from gateway.store.directory import KINDS, AuditEntry, Changes, Checked, Entry, Item, Row, Stale, Walk, chain, kind

SCHEMA: Final = Schema("tollkeeper_directory", "the directory", ("001_directory.sql",), 0x546F6C44)
START_SECONDS: Final = 10.0  # without it, keys that were revoked would be unknown: no gateway starts
SIZES: Final = {"directory": 2}  # connections of each gateway; changes are rare, and keys are looked up in memory
PAGE: Final = 1000  # rows of the log that are checked at once

_ROW: Final = "seq, at, actor, action, object, before, after, hash"
HEAD: Final = "SELECT revision, hash FROM tollkeeper_directory.head"
# A key that was revoked stays revoked, also on a server that is set to answer before it has written.
COMMIT: Final = f"""
WITH durable AS (
  SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'),
moved AS (
  UPDATE tollkeeper_directory.head SET revision = $1 + 1, hash = $2 WHERE revision = $1 RETURNING revision),
logged AS (
  INSERT INTO tollkeeper_directory.audit ({_ROW}) SELECT revision, $3, $4, $5, $6, $7, $8, $2 FROM moved),
written AS (
  INSERT INTO tollkeeper_directory.item (kind, id, revision, body)
  SELECT i.kind, i.id, moved.revision, i.body
  FROM moved, unnest($9::text[], $10::text[], $11::text[]) AS i (kind, id, body)
  ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body)
SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM durable)"""  # noqa: S608  (constants only)
READ: Final = """
SELECT h.revision, (SELECT coalesce(max(revision), 0) FROM tollkeeper_directory.item), i.kind, i.id, i.body
FROM tollkeeper_directory.head h LEFT JOIN tollkeeper_directory.item i ON i.revision > $1 ORDER BY i.kind, i.id"""
AUDIT: Final = f"""
SELECT {_ROW} FROM tollkeeper_directory.audit WHERE $1::bigint IS NULL OR seq < $1 ORDER BY seq DESC LIMIT $2"""  # noqa: S608  (constants only)
PAGES: Final = f"SELECT {_ROW} FROM tollkeeper_directory.audit WHERE seq > $1 ORDER BY seq LIMIT $2"  # noqa: S608  (constants only)
SEAL: Final = "INSERT INTO tollkeeper_directory.meta VALUES ('pepper', $1) ON CONFLICT (name) DO NOTHING"
SEALED: Final = "SELECT value FROM tollkeeper_directory.meta WHERE name = 'pepper'"

_encode = msgspec.json.Encoder(order="sorted").encode


class PostgresDirectory:
    """A Directory in the schema `tollkeeper_directory` of one database.

    Raises StoreError where the database does not answer, holds a newer schema, or may not be prepared by this user.
    """

    def __init__(self, dsn: str) -> None:
        self._aside = Aside(dsn, SCHEMA, SIZES)
        try:
            self._aside.start(START_SECONDS)
        except (TimeoutError, DatabaseDown) as error:
            self._aside.close()
            why = str(error) or "the database is slow"
            raise StoreError(f"the directory cannot be opened: {why}") from error
        except BaseException:
            self._aside.close()
            raise

    def seal(self, mark: str) -> str:
        async def sealed() -> str:
            await self._rows(SEAL, mark)
            return cast(str, (await self._rows(SEALED))[0][0])  # a statement of its own: it sees what others have kept

        with mapped("the directory cannot be read"):
            return self._aside.run(sealed())

    async def revision(self) -> int:
        return cast(int, (await self._ask(HEAD))[0][0])

    async def read(self, since: int = 0) -> Changes:
        return (await self._read(since))[0]

    async def commit(self, base: int, entry: Entry, put: Sequence[Item], drop: Sequence[Item]) -> int:
        revision, previous = (await self._ask(HEAD))[0]
        if revision != base:
            raise Stale
        hash = chain(previous, base + 1, entry)
        objects = [(kind(item), item.id, _encode(item).decode()) for item in put]
        objects += [(kind(item), item.id, None) for item in drop]  # type: ignore[misc]  # None: it is gone
        columns = [[row[place] for row in objects] for place in range(3)]
        facts = (entry.at, entry.actor, entry.action, entry.object, entry.before, entry.after)
        moved = (await self._ask(COMMIT, base, hash, *facts, *columns))[0][0]
        if not moved and not await self._is_ours(base + 1, hash):
            raise Stale
        return base + 1

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        return [_entry(row) for row in await self._ask(AUDIT, before, limit)]

    async def check(self) -> Checked:
        walk = Walk()
        while True:
            rows = await self._page(walk.rows)
            if not all(walk.step(row) for row in rows):
                return walk.end(0, [])
            if len(rows) == PAGE:
                continue
            changes, newest = await self._read(0)
            if changes.revision == walk.rows or not await self._page(walk.rows):  # else: somebody changed it meanwhile
                return walk.end(max(changes.revision, newest), changes.items)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._aside.close)

    async def _is_ours(self, revision: int, hash: str) -> bool:
        """Was it done, though its answer was lost, and then asked again?"""
        return any(row[7] == hash for row in await self._ask(AUDIT, revision + 1, 1))

    async def _read(self, since: int) -> tuple[Changes, int]:
        """What changed, and the newest revision that any object has: of one moment."""
        rows = await self._ask(READ, since)
        items: list[Item] = []
        gone: list[tuple[str, str]] = []
        with mapped("the directory cannot be read"):
            for _, _, name, id, body in rows:
                if body is not None:
                    items.append(msgspec.json.decode(body, type=KINDS[name]))
                elif name is not None:
                    gone.append((name, id))
        return Changes(rows[0][0], items, gone), rows[0][1]

    async def _page(self, after: int) -> list[Row]:
        return [cast(Row, tuple(row)) for row in await self._ask(PAGES, after, PAGE)]

    async def _ask(self, sql: str, *values: object) -> list[Record]:
        with mapped("the directory cannot be asked"):
            return await self._aside.wait(self._rows(sql, *values))

    async def _rows(self, sql: str, *values: object) -> list[Record]:
        return await self._aside.rows("directory", sql, *values)


def _entry(row: Record) -> AuditEntry:
    *facts, before, after, hash = row
    told: list[Any] = [None if text is None else msgspec.json.decode(text) for text in (before, after)]
    return AuditEntry(*facts, *told, hash)  # type: ignore[call-arg]  # the order of _ROW
