"""What every store of records promises, shown on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.exchange import Usage
from gateway.store import (
    Content,
    DecisionRecord,
    Fault,
    Query,
    RecordRefused,
    RecordStore,
    Timings,
    Tokens,
    write_time,
)
from tests.recorded import START, ids, record, record_store
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

HOSTILE = ["' OR '1'='1", "x'; DROP TABLE exchange; --", '" OR ""="', "%", "_", "\\", "\x00", "💥' --", "?1", "NULL"]


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[RecordStore]:
    async with record_store(request.param, tmp_path, server) as opened:
        yield opened


async def test_a_record_comes_back_as_it_was_written_with_its_content(store: RecordStore) -> None:
    plain, told = record(1), record(2, content=Content("asked \x00 💥", "answered"))
    store.write([plain, told])
    assert await store.get(plain.id) == plain
    assert await store.get(told.id) == told
    assert await store.get("req_none") is None


async def test_nothing_of_a_long_story_is_lost_on_the_way_there_and_back(store: RecordStore) -> None:
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


async def test_a_line_of_the_list_says_what_the_record_says(store: RecordStore) -> None:
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


async def test_a_record_that_is_offered_twice_is_kept_once_as_it_was_first(store: RecordStore) -> None:
    many = [record(n, content=Content("a", "b")) for n in range(70)]  # more than a chunk
    store.write(many)
    store.write([msgspec.structs.replace(r, team="other", content=Content("c", "d")) for r in many])
    assert len(await ids(store, limit=1000)) == 70
    assert await store.get(many[3].id) == many[3]


async def test_ten_thousand_rows_are_paged_exactly_once_newest_first_while_rows_are_added(
    store: RecordStore,
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


async def test_a_full_last_page_has_no_cursor(store: RecordStore) -> None:
    store.write([record(n) for n in range(10)])
    first = await store.find(Query(limit=5))
    assert (await store.find(Query(limit=5, cursor=first.next_cursor))).next_cursor is None
    assert (await store.find(Query(limit=10))).next_cursor is None
    assert (await store.find(Query(team="nobody"))) == (
        await store.find(Query(team="nobody", cursor=first.next_cursor))
    )


async def test_each_filter_finds_its_rows_and_they_narrow_each_other(store: RecordStore) -> None:
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
    assert await ids(store, teams=frozenset("ac")) == [2, 1]
    assert await ids(store, teams=frozenset("ab"), model="m1", team="b") == [4, 3]
    assert await ids(store, teams=frozenset()) == []
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


@pytest.mark.parametrize("words", HOSTILE)
async def test_words_of_sql_are_values_in_every_place(store: RecordStore, words: str) -> None:
    store.write([record(1), record(2, team=words, model=words, session=words, user=words, error=Fault(words, words))])
    for place in ("team", "model", "session", "user", "code"):
        assert await ids(store, **{place: words}) == [2]
    assert await store.get(words) is None
    assert await ids(store) == [2, 1]


@pytest.mark.parametrize(
    "cursor", ["", "x", "MQ", "MS4y.", "LTEuMQ", "é", "1" * 500, "OTk5OTk5OTk5OTk5OTk5OTk5OTk5LjE", *HOSTILE]
)
async def test_a_cursor_that_is_none_of_ours_is_a_value_error(store: RecordStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        await store.find(Query(cursor=cursor))


async def test_retention_deletes_the_oldest_in_bounded_batches_with_their_content(store: RecordStore) -> None:
    store.write([record(n, content=Content("a", "b")) for n in range(100)])
    assert [store.expire(START + 90, 40) for _ in range(4)] == [40, 40, 10, 0]
    assert await ids(store) == list(range(99, 89, -1))
    assert await store.get(record(89).id) is None


async def test_a_reader_sees_whole_batches_while_a_writer_writes(store: RecordStore) -> None:
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


@pytest.mark.parametrize(
    "strange", [{"cost_nano": 2**70}, {"tokens": Tokens(input=2**70)}, {"sent_bytes": 2**70}, {"team": None}]
)
async def test_a_record_that_cannot_be_written_is_refused_with_its_batch(
    store: RecordStore, strange: dict[str, Any]
) -> None:
    with pytest.raises(RecordRefused):
        store.write([record(1), msgspec.structs.replace(record(2), **strange)])
    assert await ids(store) == []
    store.write([record(1)])
    assert await ids(store) == [1]


async def test_halves_of_characters_are_stored_as_the_mark_for_what_cannot_be_read(store: RecordStore) -> None:
    half = "a\ud83db"
    strange = record(1, model=half, session=half, tags=[half], client=half, error=Fault("c", half))
    strange = msgspec.structs.replace(strange, content=Content(half, half))
    store.write([record(0), strange])
    kept = await store.get(strange.id)
    assert kept is not None
    assert kept.error is not None
    assert {kept.model, kept.session, kept.client, *kept.tags, kept.error.message} == {"a\ufffdb"}
    assert kept.content == Content("a\ufffdb", "a\ufffdb")
    assert await ids(store, model=half) == [1]
    assert await ids(store) == [1, 0]


async def test_a_zero_character_in_a_word_costs_no_record_and_is_found_again(store: RecordStore) -> None:
    """PostgreSQL's text holds every character but that one."""
    strange = record(
        1, model="a\x00b", user="\x00", tags=["\x00"], content=Content("\x00", "\x00"), error=Fault("c", "\x00")
    )
    store.write([record(0), strange])
    assert await ids(store, model="a\x00b") == await ids(store, user="\x00") == [1]
    kept = await store.get(strange.id)
    assert kept is not None
    assert kept.model in ("a\x00b", "a\ufffdb")
    assert msgspec.structs.replace(kept, model="", user="") == msgspec.structs.replace(strange, model="", user="")
