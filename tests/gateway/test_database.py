"""A database that is dead, hung, locked or read-only is noticed, told at once, and used again when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gateway import database
from gateway.database import Database, DatabaseDown
from tests.servers import Postgres, postgres, until

pytestmark = pytest.mark.serial  # how long it waits is measured

ONE = "SELECT 1"


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server of this module, which its tests stop and pause."""
    with postgres("fsync=off") as server:
        yield server


async def prepared(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS t(id int PRIMARY KEY, n int); ")
    await connection.execute("INSERT INTO t VALUES (1, 0), (2, 0) ON CONFLICT DO NOTHING")


@asynccontextmanager
async def opened(url: str, **sizes: int) -> AsyncIterator[Database]:
    made = Database(url, {"admit": 4, "settle": 2, "report": 1} | sizes, prepared)
    try:
        yield made
    finally:
        await made.aclose()


async def refused(base: Database) -> float:
    """Seconds until it says that it is down."""
    begun = time.monotonic()
    with pytest.raises(DatabaseDown):
        await base.rows("admit", ONE)
    return time.monotonic() - begun


async def answers(base: Database, within: float) -> None:
    end = time.monotonic() + within
    while True:
        try:
            await base.rows("admit", ONE)
            return
        except DatabaseDown:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)


async def test_a_database_that_stops_is_told_at_once_and_used_again_when_it_is_back(
    own: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(own.url()) as base:
        await base.rows("admit", ONE)
        own.stop()
        try:
            waits = [await refused(base) for _ in range(20)]
        finally:
            own.start()
        assert waits[0] < 1
        assert max(waits[1:]) < 0.05
        await answers(base, 3)
    assert {(record.name, record.levelname) for record in caplog.records} == {("gateway.database", "WARNING")}
    assert len(caplog.records) == 1  # one line for one outage, however long


async def test_a_database_that_hangs_while_it_is_prepared_is_told(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(connection: asyncpg.Connection) -> None:
        await connection.execute("SELECT pg_sleep(60)")

    monkeypatch.setattr(database, "PREPARE", 0.2)
    base = Database(own.url(), {"admit": 1}, hangs)
    with pytest.raises(DatabaseDown, match="TimeoutError"):
        await base.start()
    await base.aclose()


async def test_a_database_that_hangs_is_told_after_one_time_out_and_then_at_once(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ADMIT", 0.4)
    monkeypatch.setattr(database, "CONNECT", 0.4)
    async with opened(own.url()) as base:
        await base.rows("admit", ONE)
        paused = own.pause()
        try:
            assert 0.2 < await refused(base) < 1.5
            assert max([await refused(base) for _ in range(20)]) < 0.05
        finally:
            own.resume(paused)
        await answers(base, 3)


async def test_those_who_ask_while_the_first_one_waits_for_a_database_that_hangs_are_told_with_it(
    own: Postgres,
) -> None:
    async def later(base: Database, seconds: float) -> float:
        await asyncio.sleep(seconds)
        await refused(base)
        return time.monotonic()

    async with opened(own.url(), admit=8) as base:
        await base.rows("admit", ONE)
        paused = own.pause()
        try:
            begun = time.monotonic()
            ends = await asyncio.gather(*(later(base, 0.1 * number) for number in range(20)))
        finally:
            own.resume(paused)
        told = [end - begun for end in ends]
        first = database.ADMIT + 0.3
        assert max(told[: int(first / 0.1)]) < first
        assert max(end - 0.1 * number for number, end in enumerate(told) if 0.1 * number > first) < 0.05
        await answers(base, 3)


async def test_a_statement_may_be_given_more_time_or_less_than_its_pool_gives(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT", 0.2)
    async with opened(own.url()) as base:
        await base.start()
        assert len(await base.rows("settle", "SELECT pg_sleep(0.5)", patience=10)) == 1
        with pytest.raises(DatabaseDown, match="TimeoutError"):
            await base.rows("report", "SELECT pg_sleep(30)", patience=0.2)


async def test_a_database_that_is_not_there_at_the_start_is_used_when_it_comes(own: Postgres) -> None:
    own.stop()
    try:
        async with opened(own.url()) as base:
            with pytest.raises(DatabaseDown, match=r"does not answer \(ConnectionRefusedError\)"):
                await base.start()
            own.start()
            await answers(base, 3)
            assert [tuple(row) for row in await base.rows("admit", "SELECT id FROM t ORDER BY id")] == [(1,), (2,)]
    finally:
        await until("the server is back", own.url())


async def test_what_failed_to_prepare_is_told_and_leaves_no_connection(own: Postgres) -> None:
    async def fails(connection: asyncpg.Connection) -> None:
        raise ValueError("a newer schema")

    base = Database(own.url(), {"admit": 1}, fails)
    with pytest.raises(ValueError, match="a newer schema"):
        await base.rows("admit", ONE)
    await base.aclose()


async def test_a_standby_that_does_not_write_is_down_until_it_does(own: Postgres) -> None:
    admin = await asyncpg.connect(own.url())
    async with opened(own.url()) as base:
        await base.start()
        await admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        try:
            with pytest.raises(DatabaseDown, match="ReadOnly"):
                await base.rows("admit", "UPDATE t SET n = n + 1 WHERE id = 1 RETURNING n")
            assert await refused(base) < 0.05
        finally:
            await admin.execute("SET transaction_read_only = off")
            await admin.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        await answers(base, 3)
    await admin.close()


async def test_a_row_that_another_session_holds_harms_no_other_row(own: Postgres) -> None:
    locked = (
        "WITH l AS (SELECT set_config('lock_timeout', '100ms', true)) "
        "UPDATE t SET n = 1 FROM l WHERE id = {0} RETURNING id"
    )
    async with opened(own.url()) as base:
        await base.start()
        other = await asyncpg.connect(own.url())
        async with other.transaction():
            await other.execute("SELECT * FROM t WHERE id = 1 FOR UPDATE")
            waiting = asyncio.ensure_future(base.rows("admit", locked.format(1)))
            assert len(await base.rows("admit", locked.format(2))) == 1
            with pytest.raises(DatabaseDown, match="a row is locked by another session"):
                await waiting
            assert len(await base.rows("admit", ONE)) == 1
        await other.close()


async def test_a_pool_that_is_used_up_is_told_and_the_other_pools_work(own: Postgres) -> None:
    async with opened(own.url(), admit=2) as base:
        slow = [asyncio.ensure_future(base.rows("admit", "SELECT pg_sleep(0.9)")) for _ in range(2)]
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(DatabaseDown, match="all connections to the database are in use"):
            await base.rows("admit", ONE)
        assert time.monotonic() - begun < 0.6
        assert len(await base.rows("settle", ONE)) == 1
        await asyncio.gather(*slow)
        assert len(await base.rows("admit", ONE)) == 1


async def test_an_answer_never_goes_to_another_caller(own: Postgres) -> None:
    async with opened(own.url(), admit=2) as base:
        await base.start()

        async def ask(n: int) -> None:
            rows = await base.rows("admit", "SELECT $1::int, pg_sleep(0.002)", n)
            assert rows[0][0] == n

        for round in range(10):
            asked = [asyncio.ensure_future(ask(round * 10 + i)) for i in range(10)]
            await asyncio.sleep(0.001 * round)
            for one in asked[::2]:
                one.cancel()
            done = await asyncio.gather(*asked, return_exceptions=True)
            assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done)


async def test_a_deadlock_is_tried_again(own: Postgres) -> None:
    """Two sessions lock two rows crosswise: the database ends one of them, and that one is asked again."""
    both = (
        "DO $$ BEGIN UPDATE t SET n = n + 1 WHERE id = {0}; PERFORM pg_sleep(0.1); "
        "UPDATE t SET n = n + 1 WHERE id = {1}; END $$"
    )
    async with opened(own.url()) as base:
        await base.rows("admit", "SET deadlock_timeout = '50ms'")
        (before,) = await base.rows("admit", "SELECT sum(n) FROM t")
        await asyncio.gather(base.rows("admit", both.format(1, 2)), base.rows("settle", both.format(2, 1)))
        (after,) = await base.rows("admit", "SELECT sum(n) FROM t")
        assert after[0] - before[0] == 4


async def test_what_the_database_refuses_is_told_as_it_is(own: Postgres) -> None:
    async with opened(own.url()) as base:
        with pytest.raises(asyncpg.UndefinedTableError):
            await base.rows("admit", "SELECT * FROM nowhere")
        assert len(await base.rows("admit", ONE)) == 1
