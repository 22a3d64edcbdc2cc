"""The money of several gateways, in one PostgreSQL database that they share.

Each step is one SQL function, called in one round trip; the functions are in migrations/postgres.  Nothing is kept in a
session but prepared statements, so a pooler in transaction mode that knows those (PgBouncer from 1.21) may stand
between.  A question whose answer was lost is asked again with the same ids, which changes nothing if it had been done.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final
from uuid import uuid4

import asyncpg
from asyncpg import Connection, Record

from gateway.database import Database, DatabaseDown
from gateway.ledger import (
    EXPIRE_AT_MOST,
    Budget,
    Defect,
    Dimension,
    Granted,
    Holder,
    Journal,
    LedgerError,
    LedgerUnavailable,
    Note,
    Posting,
    Refused,
    Spend,
    Window,
    check_amount,
    check_budget,
    check_lease,
    check_posting,
    check_reserve,
    check_spend,
    check_ttl,
    expire_each,
    storable,
    write_note,
)

MIGRATIONS: Final = ("001_ledger.sql",)  # migration n makes schema n; none is edited once released
MIGRATION_LOCK: Final = 0x546F6C6D  # one gateway migrates, the others wait for it


class PostgresLedger:
    """A Ledger in the schema `tollkeeper` of one database.

    dsn: postgresql://…  size: connections for admission; two more are kept for settlement, and one for reports.
    Once it was noticed that the database is down, every call raises LedgerUnavailable at once, until it is back.
    """

    def __init__(self, dsn: str, *, size: int = 8) -> None:
        self._database = Database(dsn, {"admit": size, "settle": 2, "report": 1}, migrate)

    async def start(self) -> None:
        """Connects and migrates, unless that was done; any other call does so too.

        Raises LedgerUnavailable where the database does not answer (a later call tries again), LedgerError where it
        holds a newer schema than this Tollkeeper knows.
        """
        try:
            await self._database.start()
        except DatabaseDown as error:
            raise LedgerUnavailable(f"the ledger: {error}") from error

    async def open_windows(self, budgets: Sequence[Budget]) -> list[Window]:
        for budget in budgets:
            check_budget(budget)
        names = [budget.id for budget in budgets]
        found = await self._running(names)
        changed = [b for b in budgets if (w := found.get(b.id)) is None or (w.limit, w.hard) != (b.limit, b.hard)]
        while changed:
            for budget in changed:
                await self._one("admit", "SELECT tollkeeper.open_window($1, $2, $3, $4, $5)", *budget)
            found = await self._running(names)
            changed = [budget for budget in budgets if budget.id not in found]  # its period ended in between
        return [found[name] for name in names]

    async def _running(self, names: list[str]) -> dict[str, Window]:
        return {row["asked"]: _window(row) for row in await self._rows("admit", RUNNING, names)}

    async def reserve(
        self,
        id: str,
        windows: Sequence[int],
        amount: int,
        *,
        minimum: int | None = None,
        owner: str,
        ttl: float,
        note: Note | None = None,
    ) -> Granted | Refused:
        check_reserve(id, windows, amount, minimum, ttl)
        sql = "SELECT * FROM tollkeeper.reserve($1, $2, $3, $4, $5, $6, $7)"
        return _verdict(
            id, await self._one("admit", sql, id, list(windows), amount, minimum, owner, float(ttl), write_note(note))
        )

    async def grow(self, reservation: str, amount: int, minimum: int) -> Granted | Refused:
        check_lease(amount, minimum)
        sql = "SELECT * FROM tollkeeper.grow($1, $2, $3, $4)"
        return _verdict(reservation, await self._one("admit", sql, reservation, amount, minimum, uuid4()))

    async def post(self, postings: Sequence[Posting]) -> list[str]:
        for posting in postings:
            check_posting(posting)
        row = await self._one("settle", "SELECT tollkeeper.post($1)", _postings(postings))
        return list(row[0])

    async def release(self, reservation: str, amount: int | None = None) -> str:
        if amount is not None:
            check_amount("amount", amount)
        row = await self._one("settle", "SELECT tollkeeper.release($1, $2, $3)", reservation, amount, uuid4())
        return str(row[0])

    async def renew(self, owner: str, ttl: float) -> list[str]:
        check_ttl(ttl)
        return [
            row[0] for row in await self._rows("settle", "SELECT * FROM tollkeeper.renew($1, $2)", owner, float(ttl))
        ]

    async def expire(self, journal: Journal) -> int:
        async def end(id: str, known: list[Posting] | None) -> bool:
            told = None if known is None else _postings(known)
            return bool((await self._one("settle", "SELECT tollkeeper.expire($1, $2)", id, told))[0])

        due = await self._rows("settle", DUE, EXPIRE_AT_MOST)
        return await expire_each([row[0] for row in due], journal, end)

    async def freeze(self, windows: Sequence[int], frozen: bool = True) -> int:
        return int((await self._one("settle", "SELECT tollkeeper.freeze($1, $2)", list(windows), frozen))[0])

    async def audit(self) -> list[Defect]:
        sql = "SELECT kind, window_id, reservation, found, expected FROM tollkeeper.budget_audit"
        return [Defect(*row) for row in await self._rows("report", sql)]

    async def windows(
        self,
        prefix: str = "",
        *,
        ids: Sequence[int] | None = None,
        current: bool = True,
        limit: int = 1000,
        after: int = 0,
    ) -> list[Window]:
        asked = None if ids is None else list(ids)
        return [_window(row) for row in await self._rows("admit", WINDOWS, after, prefix, asked, current, limit)]

    async def spend(
        self,
        by: Sequence[Dimension],
        *,
        since: int | None = None,
        until: int | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[Spend]:
        filters = filters or {}
        check_spend(by, filters)
        sums: dict[tuple[str | None, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        bounds = (0 if since is None else since, 2**62 if until is None else until)
        terms = " ".join(f"AND entry.note ->> '{word}' = ${place}" for place, word in enumerate(filters, 3))
        group = " GROUP BY " + ", ".join(str(i + 1) for i in range(len(by))) if by else ""
        halves = [
            f"SELECT {', '.join([*(_column(word, kind) for word in by), SUMS[kind]])} {FROM[kind]} {terms}{group}"
            for kind in ("own", "moved")
        ]
        asked = " UNION ALL ".join(halves)  # one statement sees one moment
        for *values, amount, overrun, entries in await self._rows("report", asked, *bounds, *filters.values()):
            for place, value in enumerate((amount, overrun, entries)):
                sums[tuple(values)][place] += int(value or 0)
        found = [Spend(values, *three) for values, three in sums.items() if any(three)]
        return sorted(found, key=lambda line: (-line.amount, str(line.values)))

    async def holders(self, window: int) -> list[Holder]:
        return [
            Holder(id, owner, rest, since, seconds, json.loads(note or "{}"))
            for id, owner, rest, since, seconds, note in await self._rows("report", HOLDERS, window)
        ]

    async def clock(self) -> int:
        return int((await self._one("admit", "SELECT tollkeeper.ns(tollkeeper.gw_now())"))[0])

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _one(self, pool: str, sql: str, *values: object) -> Record:
        (row,) = await self._rows(pool, sql, *values)
        return row

    async def _rows(self, pool: str, sql: str, *values: object) -> list[Record]:
        """Every statement here changes nothing when it is repeated with the same values."""
        try:
            return await self._database.rows(pool, sql, *values)
        except DatabaseDown as error:
            raise LedgerUnavailable(f"the ledger: {error}") from error
        except asyncpg.InvalidParameterValueError as error:
            raise ValueError(str(error)) from error
        except asyncpg.PostgresError as error:
            raise LedgerError(f"the ledger refused this: {type(error).__name__}: {error}") from error


async def migrate(connection: Connection) -> None:
    """Brings the schema to the newest version; harmless when repeated, or done by several at once.

    Where nothing is to be done, no right to change the schema is needed.

    Raises LedgerError where the schema is newer than what this Tollkeeper knows.
    """
    if await connection.fetchval(FOUND) and await connection.fetchval(VERSION) == len(MIGRATIONS):
        return
    async with connection.transaction():
        await connection.execute(DURABLE)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        await connection.execute(VERSIONS)
        version = await connection.fetchval(VERSION)
        if version > len(MIGRATIONS):
            raise LedgerError(
                f"the ledger's database has schema {version} and this Tollkeeper knows up to {len(MIGRATIONS)}: "
                "run the newer Tollkeeper that made it, or name another database"
            )
        for number, name in enumerate(MIGRATIONS[version:], version + 1):
            text = (files("gateway.ledger") / "migrations" / "postgres" / name).read_text(encoding="utf-8")
            await connection.execute(text)
            await connection.execute("INSERT INTO tollkeeper.migration VALUES ($1, $2, now())", number, name)


DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
FOUND: Final = "SELECT to_regclass('tollkeeper.migration') IS NOT NULL"
VERSION: Final = "SELECT coalesce(max(version), 0) FROM tollkeeper.migration"
VERSIONS: Final = """
CREATE SCHEMA IF NOT EXISTS tollkeeper;
CREATE TABLE IF NOT EXISTS tollkeeper.migration (version int PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL)
"""
_COLUMNS: Final = """
w.id, w.budget, CASE WHEN isfinite(w.ends) THEN tollkeeper.ns(w.starts) END, tollkeeper.ns(w.ends), w.limit_nano,
w.ceiling, w.spent, w.reserved, w.overrun, w.frozen, w.hard, w.seq,
CASE WHEN isfinite(w.ends) THEN extract(epoch FROM w.ends - c.at)::float8 END"""
RUNNING: Final = f"""
SELECT {_COLUMNS}, w.budget AS asked FROM (SELECT tollkeeper.gw_now() AS at) c, unnest($1::text[]) b,
LATERAL tollkeeper.running(b, c.at) w"""  # noqa: S608  (constants only)
WINDOWS: Final = f"""
SELECT {_COLUMNS} FROM (SELECT tollkeeper.gw_now() AS at) c, tollkeeper.budget_window w
WHERE w.id > $1 AND starts_with(w.budget, $2) AND ($3::bigint[] IS NULL OR w.id = ANY ($3))
  AND (NOT $4 OR (w.starts <= c.at AND c.at < w.ends)) ORDER BY w.id LIMIT $5"""  # noqa: S608  (constants only)
DUE: Final = """
SELECT id FROM tollkeeper.reservation
WHERE state = 'held' AND expires <= tollkeeper.gw_now() ORDER BY expires, id LIMIT $1"""
HOLDERS: Final = """
SELECT r.id, r.owner, r.rest, tollkeeper.ns(r.since),
  extract(epoch FROM r.expires - tollkeeper.gw_now())::float8, r.note::text
FROM tollkeeper.share s JOIN tollkeeper.reservation r ON r.id = s.reservation
WHERE s.window_id = $1 AND r.state = 'held' AND r.rest > 0 ORDER BY r.rest DESC, r.id"""
SUMS: Final = {
    "own": "sum(entry.amount + entry.moved), sum(entry.amount) FILTER (WHERE entry.kind = 'overrun'), count(*)",
    "moved": "-sum(late.moved), 0, 0",
}
_TIME: Final = "to_timestamp($1::bigint / 1e9) AND {0}.at < to_timestamp($2::bigint / 1e9)"
FROM: Final = {
    "own": f"FROM tollkeeper.entry WHERE entry.prime AND entry.at >= {_TIME.format('entry')}",
    # What a correction took over from the expiry of its reservation is not spent by whom that was charged to.
    "moved": "FROM tollkeeper.entry late JOIN tollkeeper.entry ON entry.hold = late.reservation "
    "AND entry.window_id = late.window_id AND entry.kind = 'expire' "
    f"WHERE entry.prime AND late.moved <> 0 AND late.at >= {_TIME.format('late')}",
}


def _column(word: Dimension, kind: str) -> str:
    if word == "day":
        return f"to_char({'entry' if kind == 'own' else 'late'}.at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    return f"entry.note ->> '{word}'"


def _window(row: Record) -> Window:
    return Window(*row[:13])


def _verdict(id: str, row: Record) -> Granted | Refused:
    if row["reason"] is not None:
        return Refused(row["reason"], row["window_id"], row["retry"], row["available"])
    return Granted(id, row["amount"], row["left_over"], row["replay"])


def _postings(postings: Sequence[Posting]) -> str:
    told = [posting._asdict() | {"note": storable(posting.note)} for posting in postings]
    return json.dumps(told, separators=(",", ":"))
