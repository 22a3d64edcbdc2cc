"""A database asked from threads and event loops alike; what the stores make of it is in their own tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.database import DatabaseDown
from gateway.store import RecordRefused, StoreError
from gateway.store.aside import Aside, Schema, mapped
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

EMPTY = Schema("tollkeeper_empty", "nothing", (), 1)
NOWHERE = "postgresql://u@127.0.0.1:1/db"


@pytest.fixture
async def aside(server: Postgres) -> AsyncIterator[Aside]:
    async with server.database() as url:
        aside = Aside(url, EMPTY, {"one": 2})
        aside.start(30)
        yield aside
        await asyncio.to_thread(aside.close)


async def test_threads_and_loops_ask_at_the_same_time_and_each_gets_its_own_answer(aside: Aside) -> None:
    def from_thread(number: int) -> int:
        return int(aside.run(aside.rows("one", "SELECT $1::int, pg_sleep(0.01)", number))[0][0])

    async def from_loop(number: int) -> int:
        return int((await aside.wait(aside.rows("one", "SELECT $1::int, pg_sleep(0.01)", number)))[0][0])

    asked = [asyncio.to_thread(from_thread, n) if n % 2 else from_loop(n) for n in range(20)]
    assert await asyncio.gather(*asked) == list(range(20))


async def test_a_caller_who_goes_away_takes_his_question_with_him(aside: Aside) -> None:
    asked = asyncio.ensure_future(aside.wait(aside.rows("one", "SELECT pg_sleep(30)")))
    await asyncio.sleep(0.2)
    asked.cancel()
    begun = time.monotonic()
    assert len(await asyncio.gather(*(aside.wait(aside.rows("one", "SELECT 1")) for _ in range(4)))) == 4
    assert time.monotonic() - begun < 10


async def test_what_was_closed_says_so_and_may_be_closed_again(aside: Aside) -> None:
    slow = asyncio.ensure_future(asyncio.to_thread(lambda: aside.run(aside.rows("one", "SELECT pg_sleep(30)"))))
    await asyncio.sleep(0.2)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.database.STATEMENT", 0.2)
            await asyncio.to_thread(aside.close)
    with pytest.raises((DatabaseDown, asyncio.CancelledError, StoreError)):
        await slow
    with pytest.raises(StoreError, match="the store of nothing is closed"):
        aside.run(aside.rows("one", "SELECT 1"))


def test_a_database_that_is_not_there_is_told_at_the_start() -> None:
    aside = Aside(NOWHERE, EMPTY, {"one": 1})
    with pytest.raises(DatabaseDown):
        aside.start(30)
    aside.close()


@pytest.mark.parametrize(
    ("error", "becomes", "says"),
    [
        (asyncpg.UniqueViolationError("twice"), RecordRefused, "it failed: UniqueViolationError: twice"),
        (asyncpg.UndefinedTableError("none"), StoreError, "it failed: UndefinedTableError: none"),
        (DatabaseDown("does not answer"), StoreError, "it failed: does not answer"),
        (KeyError("ours"), KeyError, "ours"),
    ],
)
def test_errors_of_the_database_become_ours_and_no_other(error: Exception, becomes: type[Exception], says: str) -> None:
    with pytest.raises(becomes, match=says) as raised, mapped("it failed"):
        raise error
    assert type(raised.value) is becomes
    with pytest.raises(type(error)), mapped("it failed", type(error)):
        raise error
