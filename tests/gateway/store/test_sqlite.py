"""The record store on real SQLite files: what is SQLite's own; tests/contract/test_records_contract.py has the rest."""

import asyncio
import resource
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from gateway.store import Content, Query, Record, RecordRefused, StoreError
from gateway.store.rows import refusals, select
from gateway.store.sqlite import MIGRATIONS, SqliteRecordStore
from gateway.store.sqlite_file import BUSY_MS
from tests.recorded import START, ids, record


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteRecordStore]:
    opened = SqliteRecordStore(tmp_path / "records.db")
    yield opened
    await opened.aclose()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(), "exchange_at"),
        (Query(team="a"), "exchange_team"),
        (Query(model="a"), "exchange_model"),
        (Query(session="a"), "exchange_session"),
        (Query(user="a"), "exchange_user"),
        (Query(code="a"), "exchange_code"),
        (Query(failed=True), "exchange_failed"),
        (Query(status=(500, 599)), "exchange_failed"),
        (Query(team="a", since=1, cursor="MS4x"), "exchange_team"),
    ],
)
async def test_every_question_is_answered_from_an_index_in_order_without_sorting(
    store: SqliteRecordStore, query: Query, index: str
) -> None:
    sql, values = select(query, "exchange")
    plan = " ".join(str(row[3]) for row in store._read.execute("EXPLAIN QUERY PLAN " + sql, values))
    assert f"USING INDEX {index}" in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(codes=("a", "b")), "exchange_code (code=?"),
        (Query(codes=("a", "b"), since=1, until=9), "exchange_code (code=? AND at>? AND at<?"),
        (Query(team="a", since=1), "exchange_team (team=? AND at>?"),
    ],
)
async def test_refusals_are_counted_from_an_index(store: SqliteRecordStore, query: Query, index: str) -> None:
    sql, values = refusals(("team", "code"), query, "exchange")
    plan = " ".join(str(row[3]) for row in store._read.execute("EXPLAIN QUERY PLAN " + sql, values))
    assert f"SEARCH exchange USING INDEX {index}" in plan
    assert "SCAN exchange" not in plan


async def test_content_goes_with_its_record(store: SqliteRecordStore) -> None:
    store.write([record(n, content=Content("a", "b")) for n in range(10)])
    store.expire(START + 7, 100)
    assert store._read.execute("SELECT count(*) FROM content").get == 3


async def test_the_event_loop_turns_while_a_slow_read_runs(store: SqliteRecordStore) -> None:
    store._read.create_scalar_function("slow", lambda: time.sleep(0.3))
    slow = asyncio.ensure_future(store._on_reader(lambda: store._read.execute("SELECT slow()").fetchall()))
    turns = 0
    while not slow.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10


async def test_a_file_that_another_process_holds_is_a_store_error_and_nothing_is_half_written(
    store: SqliteRecordStore,
) -> None:
    other = apsw.Connection(store.path)  # the same library: two in one process do not see each other's locks
    other.execute("BEGIN IMMEDIATE")
    began = time.perf_counter()
    with pytest.raises(StoreError, match="Busy") as raised:
        store.write([record(1)])
    assert not isinstance(raised.value, RecordRefused)
    assert BUSY_MS / 1000 * 0.9 < time.perf_counter() - began < BUSY_MS / 1000 + 1
    assert await ids(store) == []
    other.execute("ROLLBACK")
    other.close()
    store.write([record(1)])
    assert await ids(store) == [1]


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """A full disk, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_a_store_error_reads_go_on_and_writes_recover(store: SqliteRecordStore) -> None:
    store.write([record(1)])
    many = [record(n) for n in range(2, 2000)]
    with no_file_grows_beyond(Path(store.path + "-wal").stat().st_size + 20_000):
        with pytest.raises(StoreError) as raised:
            store.write(many)
        assert not isinstance(raised.value, RecordRefused)
        assert await ids(store) == [1]
    store.write(many)
    assert len(await ids(store, limit=5000)) == 1999


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    asyncio.run(SqliteRecordStore(path).aclose())
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(
        StoreError, match=f"schema {len(MIGRATIONS) + 1} and this Tollkeeper knows up to {len(MIGRATIONS)}"
    ):
        SqliteRecordStore(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    db.close()


def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE exchange(x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SqliteRecordStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "nowhere/records.db"])
def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path}"):
        SqliteRecordStore(tmp_path / name)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_text("not a database, but long enough to have a header of its own" * 100)
    with pytest.raises(StoreError, match="NotADB"):
        SqliteRecordStore(path)


def test_records_outlive_the_process_and_the_file_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "records.db"

    async def write() -> None:
        store = SqliteRecordStore(path)
        store.write([record(1)])
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
        await store.aclose()

    async def read() -> Record | None:
        store = SqliteRecordStore(path)
        found = await store.get(record(1).id)
        await store.aclose()
        return found

    asyncio.run(write())
    assert asyncio.run(read()) == record(1)


async def test_two_stores_that_open_a_new_file_at_once_make_one_schema(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    stores = await asyncio.gather(*(asyncio.to_thread(SqliteRecordStore, path) for _ in range(4)))
    for number, store in enumerate(stores):
        store.write([record(number)])
    assert len(await ids(stores[0])) == 4
    for store in stores:
        await store.aclose()


def test_the_library_is_free_of_the_write_ahead_log_reset_race() -> None:
    assert tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) >= (3, 51, 3)
