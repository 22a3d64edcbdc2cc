"""Spend questions and who hit a limit, on a million entries and a million records: exact, and how long they take.

pytest -m long -s tests/contract/test_millions.py prints the figures of docs/budgets.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from gateway.ledger import Ledger
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.store import Query, RecordStore
from gateway.store.postgres import PostgresRecordStore
from gateway.store.sqlite import SqliteRecordStore
from tests import millions
from tests.millions import CODES, COUNT, DAYS, HELD, TEAMS, at, sums
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = [pytest.mark.long, pytest.mark.serial]

T = TypeVar("T")
WHOLE_SECONDS = 5.0  # that a question over all may take, even where much else runs
READ_SECONDS = 1.0  # … one that no index narrows: it reads all, and adds up a part
NARROW_SECONDS = 0.3  # … and one over a day, or a team's day


@pytest.fixture(params=["sqlite", "postgres"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[Ledger]:
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        await SqliteLedger(path).aclose()
        millions.fill_sqlite(str(path))
        opened: Ledger = SqliteLedger(path)
        yield opened
        await opened.aclose()
        return
    async with server.database() as url:
        opened = PostgresLedger(url)
        await opened.clock()
        await millions.fill_postgres(url)
        yield opened
        await opened.aclose()


@pytest.fixture(params=["sqlite", "postgres"])
async def records(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[RecordStore]:
    if request.param == "sqlite":
        path = str(tmp_path / "records.db")
        await SqliteRecordStore(path).aclose()
        millions.fill_sqlite_records(path)
        store: RecordStore = SqliteRecordStore(path)
        yield store
        await store.aclose()
        return
    async with server.database() as url:
        store = PostgresRecordStore(url)
        await millions.fill_postgres_records(url)
        yield store
        await store.aclose()


async def timed(what: str, most: float, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer; of three tries the fastest must be within `most` seconds."""
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        answer = await ask()
        took.append(time.perf_counter() - begun)
    print(f"{what:<44} {min(took) * 1000:8.1f} ms (of {', '.join(f'{t * 1000:.0f}' for t in took)})")
    assert min(took) <= most, what
    return answer


@pytest.mark.timeout(1200)
async def test_spend_questions_on_a_million_entries(ledger: Ledger) -> None:
    print(f"\n{type(ledger).__name__}, {COUNT:,} entries of {DAYS} days, {TEAMS} teams")
    for by in ("team", "key", "user", "feature", "model", "provider", "day", "team,day", ""):
        words = by.split(",") if by else []
        lines = await timed(f"by {by or 'nothing'}", WHOLE_SECONDS, lambda words=words: ledger.spend(words))
        assert {line.values: line.amount for line in lines} == sums(words), by
        assert sum(line.overrun for line in lines) == 5 * (COUNT // 1000)
    one = at(COUNT // DAYS * 12), at(COUNT // DAYS * 13)
    for by in ("team", "user", "model"):
        lines = await timed(
            f"by {by}, one day", NARROW_SECONDS, lambda by=by: ledger.spend([by], since=one[0], until=one[1])
        )
        expected = sum(millions.amount(n) + millions.overrun(n) for n in range(COUNT) if one[0] <= at(n) < one[1])
        assert sum(line.amount for line in lines) == expected
    for word, value in (("team", "team-7"), ("user", "u-77"), ("key", "key-7-1"), ("feature", "f-3"), ("model", "m-3")):
        lines = await timed(
            f"one {word}, by day", READ_SECONDS,
            lambda word=word, value=value: ledger.spend(["day"], filters={word: value}),
        )  # fmt: skip
        assert {line.values: line.amount for line in lines} == sums(["day"], **{word: value})
    lines = await timed(
        "one team, one day, by user", NARROW_SECONDS,
        lambda: ledger.spend(["user"], since=one[0], until=one[1], filters={"team": "team-7"}),
    )  # fmt: skip
    found = await timed("holders of a window", NARROW_SECONDS, lambda: ledger.holders(1))
    assert len(found) == HELD
    assert await timed("audit", WHOLE_SECONDS, ledger.audit) == []


@pytest.mark.timeout(1200)
async def test_who_hit_a_limit_on_a_million_records(records: RecordStore) -> None:
    print(f"\n{type(records).__name__}, {COUNT:,} records of {DAYS} days, one in 20 refused")
    limits = CODES[:3]
    for by in ("team,key,user,code", "team,code", "user", "model"):
        words = by.split(",")
        query = Query(codes=limits, limit=100_000)
        lines = await timed(f"by {by}", WHOLE_SECONDS, lambda words=words, query=query: records.refused(words, query))
        assert {line.values: line.count for line in lines} == millions.refusals(words, limits), by
    since = at(COUNT // DAYS * 29)
    for asked in ({}, {"team": "team-7"}):
        query = Query(codes=limits, since=since, limit=100_000, **asked)
        told = f"by team,user,code, one day{', one team' if asked else ''}"
        lines = await timed(told, NARROW_SECONDS, lambda query=query: records.refused(("team", "user", "code"), query))
        expected = millions.refusals(("team", "user", "code"), limits, since, **asked)
        assert {line.values: line.count for line in lines} == expected
    query = Query(codes=limits, team="team-7", limit=100_000)
    lines = await timed("by user, one team", READ_SECONDS, lambda: records.refused(("user",), query))
    assert {line.values: line.count for line in lines} == millions.refusals(("user",), limits, team="team-7")
    used = await timed("tokens of a day (usage)", WHOLE_SECONDS, lambda: records.used(since, 2**62))
    assert sum(line.input for line in used) == 3 * sum(at(n) >= since for n in range(COUNT))
