"""Records for the tests, and the store that keeps them: SQLite, or PostgreSQL in a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from gateway.store import Query, Record, RecordStore, write_time
from gateway.store.postgres import PostgresRecordStore
from gateway.store.sqlite import SqliteRecordStore
from tests.servers import Postgres

START = 1_760_000_000_000_000_000


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


async def ids(store: RecordStore, **wanted: Any) -> list[int]:
    """The numbers of the records that are found, in the order of the list."""
    page = await store.find(Query(**wanted))
    return [int(line.id[4:], 16) for line in page.data]


@asynccontextmanager
async def record_store(kind: str, folder: Path, server: Postgres) -> AsyncIterator[RecordStore]:
    """kind: sqlite | postgres."""
    if kind == "sqlite":
        store: RecordStore = SqliteRecordStore(folder / "records.db")
        try:
            yield store
        finally:
            await store.aclose()
        return
    async with server.database() as url:
        store = PostgresRecordStore(url)
        try:
            yield store
        finally:
            await store.aclose()
