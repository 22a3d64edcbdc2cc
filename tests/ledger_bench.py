"""Prints how fast the ledgers are, without leases: python -m tests.ledger_bench"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from gateway.ledger import Budget, Granted, Ledger, Posting
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from tests.servers import postgres

BUDGETS = [
    Budget("team/month", "month", "Asia/Tokyo", 10**12, True),
    Budget("team/day", "day", "UTC", 10**12, True),
    Budget("user/day", "day", "UTC", 10**12, False),
]
CALLERS = 64


async def measured(name: str, ledger: Ledger) -> None:
    windows = [window.id for window in await ledger.open_windows(BUDGETS)]
    took = []
    for i in range(1000):
        begun = time.perf_counter()
        assert isinstance(await ledger.reserve(f"r{i}", windows, 1000, owner="me", ttl=60), Granted)
        posting = Posting(f"r{i}.1", f"r{i}", 700, 1000, note={"team": "a", "model": "m"}, last=True)
        assert await ledger.post([posting]) == ["ok"]
        took.append((time.perf_counter() - begun) * 1000)

    async def caller(number: int) -> None:
        for i in range(50):
            await ledger.reserve(f"c{number}.{i}", windows, 1000, owner="me", ttl=60)

    begun = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    rate = CALLERS * 50 / (time.perf_counter() - begun)
    assert await ledger.audit() == []
    p99 = sorted(took)[int(len(took) * 0.99)]
    print(f"{name}: reserve+post in 3 windows p50 {statistics.median(took):.2f} ms, p99 {p99:.2f} ms; "
          f"{CALLERS} callers: {rate:,.0f} reserves/s")  # fmt: skip
    await ledger.aclose()


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        await measured("SQLite, synchronous=FULL", SqliteLedger(Path(folder) / "ledger.db"))
    with postgres() as server:
        async with server.database() as url:
            await measured("PostgreSQL, fsync on, local", PostgresLedger(url))


if __name__ == "__main__":
    asyncio.run(main())
