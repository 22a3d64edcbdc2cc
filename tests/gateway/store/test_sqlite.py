"""The record store on real SQLite files: what is written is found, in order, by one statement and its values."""

import asyncio
import resource
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from gateway.exchange import Usage
from gateway.store import (
    Content,
    DecisionRecord,
    Fault,
    Query,
    Record,
    RecordRefused,
    StoreError,
    Timings,
    Tokens,
    write_time,
)
from gateway.store.sqlite import BUSY_MS, MIGRATIONS, SqliteRecordStore, _select

START = 1_760_000_000_000_000_000
HOSTILE = ["' OR '1'='1", "x'; DROP TABLE exchange; --", '" OR ""="', "%", "_", "\\", "\x00", "💥' --", "?1", "NULL"]


def record(number: int, **said: Any) -> Record:
    attempt = {
        "provider": said.pop("provider", "openai"), "model": "gpt", "why": "first", "status": 200, "error": None,
        "started_us": 1, "sent_us": 2, "headers_us": 3, "first_byte_us": 4, "ended_us": 5,
        "usage": {"input": 3, "output": 4}, "cost_usd": "0.0000015", "cost_nano": 1500, "price_revision": "p1",
        "finish": ["stop"], "response_id": "r", "response_model": "gpt-1", "provider_request_id": "q",
        "complete": True, "free": False,
    }  # fmt: skip
    facts = {
        "id": f"req_{number:032x}", "at": write_time(START + said.pop("at", number)), "team": "checkout", "key": "web",
        "endpoint": "chat", "operation": "chat", "method": "POST", "path": "/v1/chat/completions", "route": "/v1/chat",
        "model": "gpt", "stream": False, "client": "10.0.0.1", "session": "", "user": "", "feature": "",
        "tags": ["a"], "trace_id": "0" * 32, "status": 200, "error": None, "cache": "", "decisions": [],
        "attempts": [attempt], "timings": {"total_us": 10, "overhead_us": 1, "first_byte_us": 9, "upstream_us": 8},
        "tokens": {"input": 3, "output": 4}, "cost_nano": 1500, "cost_usd": "0.0000015", "sent_bytes": 99,
    }  # fmt: skip
    return msgspec.convert(facts | said, Record)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteRecordStore]:
    opened = SqliteRecordStore(tmp_path / "records.db")
    yield opened
    await opened.aclose()


async def ids(store: SqliteRecordStore, **wanted: Any) -> list[int]:
    page = await store.find(Query(**wanted))
    return [int(line.id[4:], 16) for line in page.data]


async def test_a_record_comes_back_as_it_was_written_with_its_content(store: SqliteRecordStore) -> None:
    plain, told = record(1), record(2, content=Content("asked \x00 💥", "answered"))
    store.write([plain, told])
    assert await store.get(plain.id) == plain
    assert await store.get(told.id) == told
    assert await store.get("req_none") is None


async def test_nothing_of_a_long_story_is_lost_on_the_way_to_the_file_and_back(store: SqliteRecordStore) -> None:
    won = record(1).attempts[0]
    usage = Usage(**{name: n for n, name in enumerate(Usage.__struct_fields__[:-1], 1)}, estimated=True)
    story = record(
        1, at=-START + 1, operation="o", method="m", path="p", route="t", client="c", cache="hit", trace_id="1" * 32,
        sent_bytes=7, tags=[], session="s", user="u", feature="f", stream=True, error=Fault("broken", "words"),
        decisions=[DecisionRecord("access", "admit", "passed", 12.345), DecisionRecord("b", "settle", "failed", 0.0)],
        timings=Timings(10, 1, None, 8), tokens=Tokens(1, 2, 3, 4, 5, True), cost_nano=None, cost_usd=None,
    )  # fmt: skip
    failed = msgspec.structs.replace(
        won, error=Fault("upstream_auth", "no"), usage=None, sent_us=None, cost_nano=None, cost_usd=None, finish=[]
    )
    story = msgspec.structs.replace(story, attempts=[failed, msgspec.structs.replace(won, usage=usage)])
    none = msgspec.structs.replace(story, id="req_none", attempts=[], decisions=[], error=None)
    store.write([story, none])
    assert await store.get(story.id) == story
    assert await store.get(none.id) == none


async def test_a_line_of_the_list_says_what_the_record_says(store: SqliteRecordStore) -> None:
    store.write(
        [
            record(
                1,
                stream=True,
                session="s",
                status=502,
                error=Fault("upstream_error", "m"),
                cost_nano=None,
                cost_usd=None,
            )
        ]
    )
    line = (await store.find(Query())).data[0]
    assert msgspec.to_builtins(line) == {
        "id": f"req_{1:032x}",
        "at": write_time(START + 1),
        "team": "checkout",
        "key": "web",
        "model": "gpt",
        "provider": "openai",
        "endpoint": "chat",
        "status": 502,
        "code": "upstream_error",
        "stream": True,
        "session": "s",
        "user": None,
        "feature": None,
        "input": 3,
        "output": 4,
        "cost_nano": None,
        "cost_usd": None,
        "duration_us": 10,
    }


async def test_a_record_that_is_offered_twice_is_kept_once_as_it_was_first(store: SqliteRecordStore) -> None:
    many = [record(n, content=Content("a", "b")) for n in range(70)]  # more than a chunk
    store.write(many)
    store.write([msgspec.structs.replace(r, team="other", content=Content("c", "d")) for r in many])
    assert len(await ids(store, limit=1000)) == 70
    assert await store.get(many[3].id) == many[3]


async def test_ten_thousand_rows_are_paged_exactly_once_newest_first_while_rows_are_added(
    store: SqliteRecordStore,
) -> None:
    for start in range(0, 10_000, 500):
        store.write([record(n, at=n // 7) for n in range(start, start + 500)])  # seven share each nanosecond
    seen: list[int] = []
    cursor, added = None, 0
    while True:
        page = await store.find(Query(limit=97, cursor=cursor))
        seen += [int(line.id[4:], 16) for line in page.data]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        store.write([record(20_000 + added, at=5_000 + added)])  # newer than all
        added += 1
    assert seen == list(range(9_999, -1, -1))
    assert added == 10_000 // 97


async def test_a_full_last_page_has_no_cursor(store: SqliteRecordStore) -> None:
    store.write([record(n) for n in range(10)])
    first = await store.find(Query(limit=5))
    assert (await store.find(Query(limit=5, cursor=first.next_cursor))).next_cursor is None
    assert (await store.find(Query(limit=10))).next_cursor is None
    assert (await store.find(Query(team="nobody"))) == (
        await store.find(Query(team="nobody", cursor=first.next_cursor))
    )


async def test_each_filter_finds_its_rows_and_they_narrow_each_other(store: SqliteRecordStore) -> None:
    broke = Fault("upstream_broke_off", "m")
    store.write(
        [
            record(1, team="a", model="m1", session="s", user="u"),
            record(2, team="a", model="m2", status=404, error=Fault("not_found", "m")),
            record(3, team="b", model="m1", status=200, error=broke),
            record(4, team="b", model="m1", status=503, error=Fault("overloaded", "m")),
        ]
    )
    assert await ids(store, team="a") == [2, 1]
    assert await ids(store, model="m1") == [4, 3, 1]
    assert await ids(store, model="m1", team="b") == [4, 3]
    assert await ids(store, session="s") == [1]
    assert await ids(store, user="u") == [1]
    assert await ids(store, code="overloaded") == [4]
    assert await ids(store, status=(200, 200)) == [3, 1]
    assert await ids(store, status=(400, 499)) == [2]
    assert await ids(store, status=(500, 599)) == [4]
    assert await ids(store, failed=True) == [4, 3, 2]
    assert await ids(store, since=START + 2) == [4, 3, 2]
    assert await ids(store, until=START + 2) == [1]
    assert await ids(store, since=START + 2, until=START + 4, team="b") == [3]


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
    sql, values = _select(query)
    plan = " ".join(str(row[3]) for row in store._read.execute("EXPLAIN QUERY PLAN " + sql, values))
    assert f"USING INDEX {index}" in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("words", HOSTILE)
async def test_words_of_sql_are_values_in_every_place(store: SqliteRecordStore, words: str) -> None:
    store.write([record(1), record(2, team=words, model=words, session=words, user=words, error=Fault(words, words))])
    for place in ("team", "model", "session", "user", "code"):
        assert await ids(store, **{place: words}) == [2]
    assert await store.get(words) is None
    assert await ids(store) == [2, 1]


@pytest.mark.parametrize(
    "cursor", ["", "x", "MQ", "MS4y.", "LTEuMQ", "é", "1" * 500, "OTk5OTk5OTk5OTk5OTk5OTk5OTk5LjE", *HOSTILE]
)
async def test_a_cursor_that_is_none_of_ours_is_a_value_error(store: SqliteRecordStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        await store.find(Query(cursor=cursor))


async def test_retention_deletes_the_oldest_in_bounded_batches_with_their_content(store: SqliteRecordStore) -> None:
    store.write([record(n, content=Content("a", "b")) for n in range(100)])
    assert [store.expire(START + 90, 40) for _ in range(4)] == [40, 40, 10, 0]
    assert await ids(store) == list(range(99, 89, -1))
    assert next(iter(store._read.execute("SELECT count(*) FROM content"))) == (10,)


async def test_a_reader_sees_whole_batches_while_a_writer_writes(store: SqliteRecordStore) -> None:
    def write() -> None:
        for batch in range(60):
            store.write([record(batch * 50 + n) for n in range(50)])

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    while writer.is_alive():
        counts.append(len(await ids(store, limit=5000)))
    writer.join()
    assert len(await ids(store, limit=5000)) == 3000
    assert all(count % 50 == 0 for count in counts)
    assert counts == sorted(counts)
    assert len(set(counts)) > 1, "the reader never ran beside the writer"


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


@pytest.mark.parametrize("strange", [{"sent_bytes": 1, "team": "\ud800"}, {"cost_nano": 2**70}])
async def test_a_record_that_cannot_be_written_is_refused_with_its_batch(
    store: SqliteRecordStore, strange: dict[str, Any]
) -> None:
    with pytest.raises(RecordRefused):
        store.write([record(1), msgspec.structs.replace(record(2), **strange)])
    assert await ids(store) == []


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
