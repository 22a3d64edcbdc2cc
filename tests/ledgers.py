"""Ledgers for the tests, each with a clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import apsw
import asyncpg

from gateway.ledger import Ledger, LedgerUnavailable
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from tests.servers import Postgres

T = TypeVar("T")
SECOND = 1_000_000_000
START = "2026-03-16T12:00:00+00:00"  # a Monday
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STANDING_CLOCK = """
CREATE TABLE standing(at timestamptz NOT NULL);
INSERT INTO standing VALUES ('{0}');
CREATE OR REPLACE FUNCTION tollkeeper.gw_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT at FROM public.standing';
"""


def ns(iso: str) -> int:
    return (datetime.fromisoformat(iso) - EPOCH) // timedelta(microseconds=1) * 1000


@dataclass
class House:
    """One ledger and its clock."""

    ledger: Ledger
    place: str  # of its file, or the URL of its database
    now: int

    async def at(self, time: str | int) -> None:
        """Sets the clock."""
        self.now = ns(time) if isinstance(time, str) else time
        if self.place.startswith("postgresql://"):
            await self.sql(f"UPDATE standing SET at = '{EPOCH + timedelta(microseconds=self.now // 1000)}'")

    async def move(self, seconds: float) -> None:
        await self.at(self.now + int(seconds * SECOND))

    async def sql(self, text: str) -> list[tuple[object, ...]]:
        """Past the ledger, as somebody with a shell would; with CHECKs off in SQLite where the text says so."""
        if self.place.startswith("postgresql://"):
            connection = await asyncpg.connect(self.place)
            try:
                return [tuple(row) for row in await connection.fetch(text)]
            finally:
                await connection.close()
        file = apsw.Connection(self.place)
        try:
            file.set_busy_timeout(1000)
            return list(file.execute(text.replace("tollkeeper.", "")))
        finally:
            file.close()


async def persistent(step: Callable[[], Awaitable[T]]) -> T:
    """A caller that is told "unavailable" asks again with the same ids."""
    for _ in range(200):
        try:
            return await step()
        except LedgerUnavailable:
            await asyncio.sleep(0.05)
    return await step()


@asynccontextmanager
async def house(kind: str, folder: Path, server: Postgres) -> AsyncIterator[House]:
    """kind: sqlite | postgres."""
    if kind == "sqlite":
        made = House(None, str(folder / "ledger.db"), ns(START))  # type: ignore[arg-type]  # the ledger needs its clock first
        made.ledger = SqliteLedger(made.place, now=lambda: made.now)
        try:
            yield made
        finally:
            await made.ledger.aclose()
        return
    async with server.database() as url:
        ledger = PostgresLedger(url)
        try:
            await ledger.start()
            connection = await asyncpg.connect(url)
            await connection.execute(STANDING_CLOCK.format(START))
            await connection.close()
            yield House(ledger, url, ns(START))
        finally:
            await ledger.aclose()
