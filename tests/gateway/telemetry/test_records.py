"""Records of real exchanges in real SQLite files, whatever happens to the file meanwhile."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from gateway.dialects import openai
from gateway.errors import BadCall, GatewayError, UpstreamError
from gateway.exchange import Answer, Attempt, Caller, Content, Decision, Exchange, Trace, Usage
from gateway.store import Query, Record
from gateway.store.sqlite import SqliteRecordStore
from gateway.telemetry import records as recording
from gateway.telemetry.records import Records, build

STARTED_AT = 1_760_000_000_123_456_789
T = 7_000_000_000_000  # perf_counter_ns has no epoch


@dataclass
class Provider:
    name: str


@dataclass
class Target:
    provider: Provider
    model: str
    alias: str = "gpt"


def attempt(provider: str = "openai", **said: Any) -> Attempt:
    target: Any = Target(Provider(provider), "gpt-4o-mini")
    facts: dict[str, Any] = {
        "started": T + 1_000_000, "sent": T + 2_500_999, "headers": T + 300_000_000, "first_byte": T + 300_100_000,
        "ended": T + 800_000_000, "status": 200,
        "answer": Answer(id="chatcmpl-1", model="gpt-4o-mini-2024", finish=["stop"]),
        "usage": Usage(input=100, output=20, cache_read=30, cache_write=4, cache_write_1h=5, reasoning=6),
        "cost": 27_000, "price": "config:gpt@2026-01-01", "complete": True, "why": "first",
        "provider_request_id": "pr-1",
    }  # fmt: skip
    return Attempt(target, **(facts | said))


def exchange(number: int = 1, content: Content = "none", **said: Any) -> Exchange:
    facts: dict[str, Any] = {
        "id": f"req_{number:032x}", "endpoint": "chat", "operation": "chat", "method": "POST",
        "path": "/v1/chat/completions", "route": "/v1/chat/completions", "started": T,
        "started_at": STARTED_AT + number, "trace": Trace(2**127, 0, 1, True),
        "caller": Caller("checkout", "web", content=content), "dialect": openai, "model": "gpt", "stream": True,
        "session": "s", "user": "u", "feature": "f", "tags": ("a", "b"), "client": "10.0.0.1", "cache": "miss",
        "attempts": [attempt()], "decisions": [Decision("access", "admit", "passed", 12_345)], "status": 200,
        "first_byte": T + 301_000_000, "ended": T + 801_000_000, "sent_bytes": 1234, "upstream": 299_000_000,
        "body": b'{"model":"gpt"}',
    }  # fmt: skip
    return Exchange(**(facts | said))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteRecordStore]:
    opened = SqliteRecordStore(tmp_path / "records.db")
    yield opened
    await opened.aclose()


@pytest.fixture
async def records(store: SqliteRecordStore) -> AsyncIterator[Records]:
    observer = Records(store, days=36_500)
    yield observer
    await observer.aclose()


async def count(store: SqliteRecordStore) -> int:
    return len((await store.find(Query(limit=100_000))).data)


def test_a_record_says_all_that_happened_in_microseconds_since_the_request_began() -> None:
    refused = attempt(
        "first",
        status=503,
        headers=T + 200_000_000,
        first_byte=0,
        ended=T + 201_000_000,
        usage=None,
        cost=0,
        price="",
        complete=False,
        free=True,
        error=UpstreamError("The provider failed.", code="upstream_unavailable"),
        answer=Answer(),
    )
    won = attempt("second", why="fallback: upstream_unavailable")
    facts = msgspec.json.decode(msgspec.json.encode(build(exchange(attempts=[refused, won]))))
    assert facts.pop("attempts") == [
        {
            "provider": "first", "model": "gpt-4o-mini", "why": "first", "status": 503,
            "error": {"code": "upstream_unavailable", "message": "The provider failed."}, "started_us": 1000,
            "sent_us": 2500, "headers_us": 200_000, "first_byte_us": None, "ended_us": 201_000, "usage": None,
            "cost_usd": "0", "cost_nano": 0, "price_revision": "", "finish": [], "response_id": "",
            "response_model": "", "provider_request_id": "pr-1", "complete": False, "free": True,
        },
        {
            "provider": "second", "model": "gpt-4o-mini", "why": "fallback: upstream_unavailable", "status": 200,
            "error": None, "started_us": 1000, "sent_us": 2500, "headers_us": 300_000, "first_byte_us": 300_100,
            "ended_us": 800_000,
            "usage": {
                "input": 100, "output": 20, "cache_read": 30, "cache_write": 4, "cache_write_1h": 5, "reasoning": 6,
                "audio_input": 0, "audio_cache_read": 0, "audio_output": 0, "image_input": 0, "image_cache_read": 0,
                "image_output": 0, "estimated": False,
            },
            "cost_usd": "0.000027", "cost_nano": 27_000, "price_revision": "config:gpt@2026-01-01",
            "finish": ["stop"], "response_id": "chatcmpl-1", "response_model": "gpt-4o-mini-2024",
            "provider_request_id": "pr-1", "complete": True, "free": False,
        },
    ]  # fmt: skip
    assert facts == {
        "id": f"req_{1:032x}", "at": "2025-10-09T08:53:20.123456790Z", "team": "checkout", "key": "web",
        "endpoint": "chat", "operation": "chat", "method": "POST", "path": "/v1/chat/completions",
        "route": "/v1/chat/completions", "model": "gpt", "stream": True, "client": "10.0.0.1", "session": "s",
        "user": "u", "feature": "f", "tags": ["a", "b"], "trace_id": "8" + "0" * 31, "status": 200, "error": None,
        "cache": "miss", "decisions": [{"policy": "access", "hook": "admit", "outcome": "passed", "took_us": 12.345}],
        "timings": {"total_us": 801_000, "overhead_us": 2000, "first_byte_us": 301_000, "upstream_us": 299_000},
        "tokens": {"input": 100, "output": 20, "cache_read": 30, "cache_write": 9, "reasoning": 6, "estimated": False},
        "cost_nano": 27_000, "cost_usd": "0.000027", "sent_bytes": 1234, "content": None, "assessments": [],
        "saved_nano": None,
    }  # fmt: skip


def test_what_one_attempt_costs_unknown_makes_the_whole_cost_unknown() -> None:
    record = build(exchange(attempts=[attempt(), attempt(cost=None)]))
    assert (record.cost_nano, record.cost_usd) == (None, None)
    assert record.tokens.input == 200


def test_a_request_that_was_refused_before_any_attempt_has_a_record() -> None:
    record = build(exchange(attempts=[], status=400, error=BadCall("m", code="invalid_json"), first_byte=0, upstream=0))
    assert record.error is not None
    assert (record.error.code, record.attempts, record.timings.first_byte_us) == ("invalid_json", [], None)
    assert record.timings.overhead_us == 801_000


PROMPT = "my address is ann@example.org"


@pytest.mark.parametrize(
    ("content", "asked", "answered", "words"),
    [
        (
            "none",
            None,
            None,
            "the provider's words are not kept, for they may repeat the prompt (team's `content: none`)",
        ),
        ("redacted", '{"p":"my address is [email_1]"}', "[email_1] and [email_2]", "refused: my address is [email_1]"),
        (
            "full",
            '{"p":"my address is ann@example.org"}',
            "ann@example.org and bob@example.org",
            "refused: my address is [email_1]",
        ),
    ],
)
def test_prompts_answers_and_a_providers_words_are_kept_only_as_far_as_the_team_says(
    content: Content, asked: str | None, answered: str | None, words: str
) -> None:
    error = UpstreamError(f"refused: {PROMPT}", code="upstream_refused")
    body, output = b'{"p":"%s"}' % PROMPT.encode(), ["ann@exam", "ple.org and bob@example.org"]
    record = build(
        exchange(content=content, body=body, output=output, error=error, attempts=[attempt(status=400, error=error)])
    )
    kept = record.content
    assert (kept.input if kept else None, kept.output if kept else None) == (asked, answered)
    assert record.error is not None
    assert record.attempts[0].error is not None
    assert record.error.message == record.attempts[0].error.message == words
    if content != "full":
        assert b"example.org" not in msgspec.json.encode(record)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UpstreamError("ours", code="upstream_unavailable"), 0),
        (UpstreamError("ours", code="upstream_broke_off"), 200),
        (BadCall("ours"), 200),
    ],
)
def test_our_own_words_are_kept_for_every_team(error: GatewayError, status: int) -> None:
    record = build(exchange(error=error, attempts=[attempt(status=status, error=error)]))
    assert record.error is not None
    assert record.error.message == "ours"


def test_long_content_and_long_names_are_cut_and_it_is_said() -> None:
    long = "é" * 300_000
    record = build(exchange(content="full", body=long.encode(), output=[long], session="s" * 9999))
    assert record.content is not None
    assert record.content.input == record.content.output == "é" * 262_144 + "… [cut after 262144 characters]"
    assert len(record.session) == 512


async def test_a_hundred_finished_exchanges_and_aclose_at_once_are_a_hundred_rows(store: SqliteRecordStore) -> None:
    records = Records(store, days=36_500)
    for number in range(100):
        records.finished(exchange(number))
    await records.aclose()
    assert await count(store) == 100
    assert records.dropped == 0


async def test_a_request_is_found_right_after_it_finished(records: Records, store: SqliteRecordStore) -> None:
    for number in range(50):
        records.finished(exchange(number))
        began = time.perf_counter()
        await records.flush()
        assert time.perf_counter() - began < recording.DELAY_SECONDS, "it waited for the next round"
        assert await store.get(f"req_{number:032x}") is not None


async def test_records_are_written_without_anybody_asking(records: Records, store: SqliteRecordStore) -> None:
    records.finished(exchange(1))
    await asyncio.sleep(3 * recording.DELAY_SECONDS)
    assert await count(store) == 1


async def test_a_flush_that_is_given_up_harms_nobody(records: Records, store: SqliteRecordStore) -> None:
    for number in range(20):
        records.finished(exchange(number))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(records.flush(), 0)
    await records.flush()
    assert await count(store) == 20


async def test_a_flush_after_or_during_the_end_returns(store: SqliteRecordStore) -> None:
    records = Records(store)
    await asyncio.wait_for(asyncio.gather(records.flush(), records.aclose(), records.flush()), 5)
    await asyncio.wait_for(records.flush(), 5)
    records.finished(exchange())
    assert records.dropped == 1


async def test_rows_wait_while_another_process_holds_the_file_and_are_written_after(
    records: Records, store: SqliteRecordStore
) -> None:
    other = apsw.Connection(store.path)
    other.execute("BEGIN IMMEDIATE")
    for number in range(700):
        records.finished(exchange(number))
    await records.flush()
    assert await count(store) == 0
    other.execute("ROLLBACK")
    other.close()
    await records.flush()
    assert await count(store) == 700
    assert records.dropped == 0


async def test_a_full_queue_loses_the_newest_and_counts_them(
    store: SqliteRecordStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "CLOSE_SECONDS", 0.1)
    other = apsw.Connection(store.path)
    other.execute("BEGIN IMMEDIATE")
    records = Records(store, queue=30)
    for number in range(50):
        records.finished(exchange(number))
    assert records.dropped == 20
    with caplog.at_level(logging.ERROR, "tollkeeper.telemetry"):
        await records.aclose()
    assert records.dropped == 50, "what is left at the end is counted too"
    assert "30 records are lost" in caplog.text
    other.close()


async def test_content_that_piles_up_while_the_store_fails_is_let_go_before_memory_is_full(
    records: Records, store: SqliteRecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CONTENT_WAITING", 1000)
    other = apsw.Connection(store.path)
    other.execute("BEGIN IMMEDIATE")
    for number in range(10):
        records.finished(exchange(number, content="full", body=b"x" * 300))
    await records.flush()
    other.close()
    await records.flush()
    kept = [record for n in range(10) if (record := await store.get(f"req_{n:032x}")) is not None]
    assert [record.content is not None for record in kept] == [True] * 3 + [False] * 7
    assert (records.bare, records.dropped) == (7, 0)


async def test_long_contents_are_offered_few_at_a_time_and_one_that_is_longer_alone(
    store: SqliteRecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CONTENT_AT_ONCE", 1000)
    offered: list[int] = []
    write = store.write

    def noted(records: list[Record]) -> None:
        offered.append(len(records))
        write(records)

    monkeypatch.setattr(store, "write", noted)
    records = Records(store, days=36_500)
    with monkeypatch.context() as patch:
        patch.setattr(records, "_offer", lambda: None)  # until all are there
        for number, size in enumerate([300, 300, 300, 300, 3000, 300, 0, 0]):
            records.finished(exchange(number, content="full" if size else "none", body=b"x" * size))
        await records.flush()
    await records.flush()
    assert offered == [3, 1, 1, 3]
    assert await count(store) == 8
    await records.aclose()


@pytest.mark.parametrize(
    "strange", [{"ended": None}, {"sent_bytes": 2**70}, {"attempts": [attempt(usage=Usage(input=2**70))]}]
)
async def test_one_strange_request_costs_the_others_nothing(
    records: Records, store: SqliteRecordStore, strange: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        records.finished(exchange(number, **(strange if number == 17 else {})))
    with caplog.at_level(logging.ERROR, "tollkeeper.telemetry"):
        await records.flush()
    assert await count(store) == 39
    assert records.dropped == 1
    assert [getattr(r, "request_id", "") for r in caplog.records] == [f"req_{17:032x}"]


async def test_what_is_too_old_is_deleted_and_the_rest_stays(store: SqliteRecordStore) -> None:
    day = 86_400 * 10**9
    now = time.time_ns()
    old = [build(exchange(n, started_at=now - 8 * day)) for n in range(recording.EXPIRE_ROWS + 10)]
    store.write([*old, build(exchange(9999, started_at=now - 6 * day))])
    records = Records(store, days=7)
    left = await count(store)
    end = time.monotonic() + 5
    while left > 1 and time.monotonic() < end:
        await asyncio.sleep(0.02)
        left = await count(store)
    await records.aclose()
    assert [line.id for line in (await store.find(Query())).data] == [f"req_{9999:032x}"]


async def test_noting_a_finished_request_takes_less_than_a_microsecond_or_two(records: Records) -> None:
    xs = [exchange(n) for n in range(5000)]
    best = 1e9
    for start in range(0, 5000, 500):
        began = time.perf_counter_ns()
        for x in xs[start : start + 500]:
            records.finished(x)
        best = min(best, (time.perf_counter_ns() - began) / 500)
    print(f"finished: {best:.0f} ns")
    assert best < 2000


async def test_a_record_costs_the_thread_little(store: SqliteRecordStore) -> None:
    xs = [exchange(n) for n in range(5000)]
    began = time.thread_time_ns()
    built: list[Record] = [build(x) for x in xs]
    building = (time.thread_time_ns() - began) / 5000
    began = time.thread_time_ns()
    for start in range(0, 5000, 500):
        store.write(built[start : start + 500])
    writing = (time.thread_time_ns() - began) / 5000
    print(f"build: {building / 1000:.1f} us, write: {writing / 1000:.1f} us CPU per record")
    assert building + writing < 100_000  # 100 us: five times and more what was measured; catches a slip, not noise
