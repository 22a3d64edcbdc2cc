"""Records in a real PostgreSQL that is shared, locked, killed under load, hung, or not there: what is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.ledger import Budget, Granted
from gateway.ledger.postgres import PostgresLedger
from gateway.store import Content, Query, RecordRefused, StoreError
from gateway.store import postgres as stores
from gateway.store.postgres import SCHEMA, PostgresRecordStore
from gateway.store.rows import refusals, select
from gateway.telemetry import records as recording
from gateway.telemetry.records import Records
from tests.gateway.telemetry.test_records import exchange
from tests.recorded import START, ids, record
from tests.servers import Postgres, postgres, shared_server, until  # noqa: F401  (pytest finds the fixture by this import)

TABLE = "tollkeeper_records.exchange"


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server of this module, which its tests stop and pause."""
    with postgres("fsync=off") as server:
        yield server


@pytest.fixture
async def url(server: Postgres) -> AsyncIterator[str]:
    async with server.database() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresRecordStore]:
    async with opened(url) as store:
        yield store


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresRecordStore]:
    store = await asyncio.to_thread(PostgresRecordStore, url)
    try:
        yield store
    finally:
        await store.aclose()


async def ask(url: str, *statements: str) -> Any:
    """What the last one answers."""
    connection = await asyncpg.connect(url)
    try:
        for sql in statements:
            answer = await connection.fetchval(sql)
        return answer
    finally:
        await connection.close()


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Somebody holds the whole table."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(), "exchange_at"),
        (Query(team="7"), "exchange_team"),
        (Query(model="7"), "exchange_model"),
        (Query(session="7"), "exchange_session"),
        (Query(user="7"), "exchange_user"),
        (Query(code="c7"), "exchange_code"),
        (Query(failed=True), "exchange_failed"),
        (Query(status=(500, 599)), "exchange_failed"),
        (Query(team="7", since=START + 1, cursor="MTg2MDAwMDAwMDAwMDAwMDAwMC4x"), "exchange_team"),
    ],
)
async def test_every_question_is_answered_from_an_index_in_order_without_sorting(
    url: str, store: PostgresRecordStore, query: Query, index: str
) -> None:
    many = [
        {"team": f"{n % 50}", "model": f"{n % 50}", "session": f"{n % 50}", "user": f"{n % 50}"} for n in range(5000)
    ]
    for start in range(0, 5000, 500):
        store.write([record(n, **many[n], **failure(n)) for n in range(start, start + 500)])
    sql, values = select(replace(query, limit=5), TABLE)
    connection = await asyncpg.connect(url)
    await connection.execute(f"VACUUM ANALYZE {TABLE}")
    plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN " + sql, *values))
    await connection.close()
    assert f"using {index} on exchange" in plan, plan
    assert "Sort" not in plan


@pytest.mark.parametrize(
    "query", [Query(codes=("c7", "c8")), Query(codes=("c7",), since=START + 100, until=START + 200)]
)
async def test_refusals_are_counted_from_an_index(url: str, store: PostgresRecordStore, query: Query) -> None:
    for start in range(0, 5000, 500):
        store.write([record(n, **failure(n)) for n in range(start, start + 500)])
    sql, values = refusals(("team", "code"), query, TABLE)
    connection = await asyncpg.connect(url)
    await connection.execute(f"VACUUM ANALYZE {TABLE}")
    plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN " + sql, *values))
    await connection.close()
    assert "on exchange_code" in plan or "using exchange_code" in plan, plan
    assert "Seq Scan" not in plan


def failure(number: int) -> dict[str, Any]:
    fault = {"code": f"c{number % 50}", "message": "m"}
    return {"error": fault, "status": 500 + number % 50} if number % 20 == 7 else {}


async def test_content_goes_with_its_record(url: str, store: PostgresRecordStore) -> None:
    store.write([record(n, content=Content("a", "b")) for n in range(10)])
    store.expire(START + 7, 100)
    assert await ask(url, "SELECT count(*) FROM tollkeeper_records.content") == 3


async def test_gateways_that_start_at_once_make_one_schema_and_see_each_others_records(url: str) -> None:
    found = await asyncio.gather(*(asyncio.to_thread(PostgresRecordStore, url) for _ in range(6)))
    for number, store in enumerate(found):
        store.write([record(number)])
    assert [await ids(store) for store in found] == [[5, 4, 3, 2, 1, 0]] * 6
    assert await ask(url, "SELECT count(*) FROM tollkeeper_records.migration") == len(SCHEMA.migrations)
    for store in found:
        await store.aclose()


async def test_gateways_that_expire_at_once_delete_each_record_once(url: str, store: PostgresRecordStore) -> None:
    for start in range(0, 2000, 500):
        store.write([record(n) for n in range(start, start + 500)])
    async with opened(url) as other:
        gone = 0
        while left := await ids(store, until=START + 1900, limit=1):
            batches = await asyncio.gather(
                *(asyncio.to_thread(one.expire, START + 1900, 150) for one in (store, other))
            )
            assert sum(batches), left
            gone += sum(batches)
    assert gone == 1900
    assert len(await ids(store, limit=1000)) == 100


async def test_a_newer_schema_is_refused_and_left_as_it_is(url: str, store: PostgresRecordStore) -> None:
    newer = len(SCHEMA.migrations) + 1
    await ask(url, f"INSERT INTO tollkeeper_records.migration VALUES ({newer}, 'later', now())")
    with pytest.raises(StoreError, match=f"schema {newer} and this Tollkeeper knows up to {len(SCHEMA.migrations)}"):
        await asyncio.to_thread(PostgresRecordStore, url)
    assert await ask(url, "SELECT max(version) FROM tollkeeper_records.migration") == newer


async def test_least_rights_are_enough_once_the_schema_is_made_and_too_few_are_told(url: str, server: Postgres) -> None:
    role = f"clerk_{url.rpartition('/')[2]}"
    least = url.replace("postgres@", f"{role}@")
    await ask(url, f"CREATE ROLE {role} LOGIN")
    with pytest.raises(StoreError, match="the schema of the records cannot be made: InsufficientPrivilege"):
        await asyncio.to_thread(PostgresRecordStore, least)
    async with opened(url):
        pass
    await ask(
        url,
        f"GRANT USAGE ON SCHEMA tollkeeper_records TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tollkeeper_records TO {role}",
    )
    async with opened(least) as store:
        store.write([record(1, content=Content("a", "b")), record(2)])
        assert await ids(store) == [2, 1]
        assert store.expire(START + 2, 10) == 1
    await ask(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_a_log_that_is_locked_stops_no_money_and_no_event_loop(
    url: str, store: PostgresRecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WRITE_SECONDS", 0.5)
    ledger = PostgresLedger(url)
    await ledger.start()
    (window,) = await ledger.open_windows([Budget("team:checkout/month", "month", "UTC", 1000, True)])
    async with locked(url):
        writing = asyncio.ensure_future(asyncio.to_thread(store.write, [record(1)]))
        reading = asyncio.ensure_future(ids(store))
        turns = 0
        while not writing.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(StoreError, match="does not answer") as raised:
            await writing
        assert not isinstance(raised.value, RecordRefused)
        assert turns > 20
        assert isinstance(await ledger.reserve("r", [window.id], 10, owner="me", ttl=60), Granted)
    await asyncio.gather(reading, return_exceptions=True)
    await eventually(store, [1])
    await ledger.aclose()


async def eventually(store: PostgresRecordStore, numbers: list[int]) -> None:
    """Writes them as the observer would: again, until they are taken."""
    end = time.monotonic() + 10
    while True:
        try:
            await asyncio.to_thread(store.write, [record(number) for number in numbers])
            assert await ids(store) == numbers
            return
        except StoreError:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


async def test_a_store_that_is_closed_says_so(url: str) -> None:
    async with opened(url) as store:
        pass
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        store.write([record(1)])
    with pytest.raises(StoreError, match="closed"):
        await store.get("x")


async def test_what_takes_an_answers_place_when_the_connection_breaks_is_no_second_record(
    url: str, store: PostgresRecordStore
) -> None:
    store.write([record(1)])
    await ask(
        url,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    store.write([record(1), record(2)])  # without an error: a connection that is dead is replaced
    assert await ids(store) == [2, 1]


@pytest.mark.serial
async def test_a_database_that_is_not_there_does_not_stop_the_start_and_gets_the_records_when_it_comes(
    own: Postgres,
) -> None:
    own.stop()
    try:
        begun = time.monotonic()
        async with opened(own.url()) as store:
            assert time.monotonic() - begun < 2
            with pytest.raises(StoreError, match=r"does not answer \(ConnectionRefusedError\)"):
                store.write([record(1)])
            with pytest.raises(StoreError, match="does not answer"):
                await store.find(Query())
            own.start()
            await eventually(store, [1])
    finally:
        await until("the server is back", own.url())
    await ask(own.url(), "DROP SCHEMA tollkeeper_records CASCADE")


@pytest.mark.serial
async def test_records_that_finish_while_the_database_is_killed_again_and_again_are_all_there_once(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.4)
    await until("the server is there", own.url())
    async with opened(own.url()) as store:
        records = Records(store, days=36_500)
        stop = threading.Event()

        def kill() -> None:
            for _ in range(3):
                time.sleep(0.4)
                own.stop()
                time.sleep(0.3)
                own.start()
            stop.set()

        killer = threading.Thread(target=kill)
        killer.start()
        count, worst = 0, 0.0
        while not stop.is_set() or count < 2000:
            begun = time.perf_counter()
            records.finished(exchange(count, session="load"))
            worst = max(worst, time.perf_counter() - begun)
            count += 1
            await asyncio.sleep(0.001)
        killer.join()
        end = time.monotonic() + 15
        while len(await found(store, "load")) < count and time.monotonic() < end:
            await asyncio.sleep(0.1)
        assert sorted(await found(store, "load")) == list(range(count))
        assert records.dropped == 0
        print(f"{count} records over 3 kills; the slowest to be noted took {worst * 1e6:.0f} us")
        await records.aclose()


async def found(store: PostgresRecordStore, session: str) -> list[int]:
    try:
        return await ids(store, session=session, limit=100_000)
    except StoreError:
        return []


@pytest.mark.serial
async def test_a_database_that_hangs_costs_requests_nothing_and_what_does_not_fit_is_counted(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.3)
    async with opened(own.url()) as store:
        records = Records(store, days=36_500, queue=300)
        paused = own.pause()
        try:
            begun = time.monotonic()
            for number in range(10_000, 10_400):
                records.finished(exchange(number, session="hung"))
            assert time.monotonic() - begun < stores.WRITE_SECONDS  # what one wait would take
            assert records.dropped == 100
            await records.flush()
            assert time.monotonic() - begun < 4
        finally:
            own.resume(paused)
        end = time.monotonic() + 15
        while len(await found(store, "hung")) < 300 and time.monotonic() < end:
            await asyncio.sleep(0.1)
        assert sorted(await found(store, "hung")) == list(range(10_000, 10_300))
        assert records.dropped == 100
        await records.aclose()
