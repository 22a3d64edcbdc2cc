"""What a directory promises, whatever keeps it: one change at a time, nothing lost, a log that shows tampering."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.store.directory import (
    AdminToken,
    BudgetSetting,
    Directory,
    Entry,
    Item,
    Key,
    Organisation,
    Secret,
    Stale,
    Team,
    User,
    kind,
    told,
)
from gateway.store.postgres_directory import PostgresDirectory
from gateway.store.sqlite_directory import SqliteDirectory
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

AT = "2026-01-01T00:00:00.000000000Z"
SECRET = Secret("ab" * 32, "wxyz")
ITEMS: list[Item] = [
    Organisation("acme", AT, disabled=True),
    Team("checkout", AT, "acme", ["m"], "up", "redacted", {"concurrent": 2}, {"tokens_per_day": 10**12}),
    Key("key_1", "checkout", "web", SECRET, AT, "root", [Secret("cd" * 32, "abcd", 5)], ["m"], "none", {}, AT, AT),
    User("user_1", "checkout", "ünï'; DROP TABLE item; --", AT, {"concurrent": 1}),
    BudgetSetting("budget_1", "team", "9200000000.000000001", "month", AT, "root", warn_at=[0.5, 1.0], team="checkout"),
    AdminToken("token_1", "ci", "owner", SECRET, AT, "root", ["checkout"]),
]


@pytest.fixture(params=["sqlite", "postgres"])
async def pair(
    request: pytest.FixtureRequest, tmp_path: Path, server: Postgres
) -> AsyncIterator[tuple[Directory, Directory]]:
    """Two that share one store, as two gateways do."""
    async with two(request.param, tmp_path, server) as pair:
        yield pair


@asynccontextmanager
async def two(store: str, folder: Path, server: Postgres) -> AsyncIterator[tuple[Directory, Directory]]:
    if store == "sqlite":
        pair: list[Directory] = [SqliteDirectory(folder / "d.db") for _ in range(2)]
        yield pair[0], pair[1]
        await asyncio.gather(*(one.aclose() for one in pair))
        return
    async with server.database() as url:
        pair = await asyncio.gather(*(asyncio.to_thread(PostgresDirectory, url) for _ in range(2)))
        yield pair[0], pair[1]
        await asyncio.gather(*(one.aclose() for one in pair))


def entry(item: Item, action: str = "create") -> Entry:
    return Entry(AT, "root", action, f"{kind(item)} {item.id}", None, None if action == "delete" else told(item))


async def test_what_is_written_is_read_by_the_other_and_nothing_more(pair: tuple[Directory, Directory]) -> None:
    one, other = pair
    assert (await other.read()).items == []
    for number, item in enumerate(ITEMS):
        assert await one.commit(number, entry(item), [item], []) == number + 1
    read = await other.read()
    assert sorted(read.items, key=repr) == sorted(ITEMS, key=repr)
    assert (read.revision, read.gone) == (6, [])
    assert (await other.read(4)).items == sorted(ITEMS[4:], key=lambda item: item.id)
    assert await other.commit(6, entry(ITEMS[1], "delete"), [], [ITEMS[1], ITEMS[0]]) == 7
    assert await one.read(6) == type(read)(7, [], [("organisation", "acme"), ("team", "checkout")])
    assert (await one.read(7)).revision == await one.revision() == 7


async def test_a_change_decided_upon_an_old_revision_writes_nothing(pair: tuple[Directory, Directory]) -> None:
    one, other = pair
    await one.commit(0, entry(ITEMS[0]), [ITEMS[0]], [])
    for base in (0, 2, -1):
        with pytest.raises(Stale):
            await other.commit(base, entry(ITEMS[1]), [ITEMS[1]], [])
    assert (await other.read()).items == [ITEMS[0]]
    assert [row.seq for row in await other.audit(None, 10)] == [1]


async def test_of_many_at_once_each_is_written_once_and_in_one_order(pair: tuple[Directory, Directory]) -> None:
    async def write(directory: Directory, name: str) -> None:
        team = Team(name, AT)
        while True:
            try:
                await directory.commit(await directory.revision(), entry(team), [team], [])
            except Stale:
                await asyncio.sleep(random.random() / 500)
            else:
                return

    await asyncio.gather(*(write(pair[number % 2], f"t{number}") for number in range(40)))
    rows = await pair[0].audit(None, 100)
    assert [row.seq for row in rows] == list(range(40, 0, -1))
    assert {row.object for row in rows} == {f"team t{number}" for number in range(40)}
    assert (await pair[1].check()).problem == ""


async def test_the_log_holds_no_secret_and_is_paged(pair: tuple[Directory, Directory]) -> None:
    one, _ = pair
    for number, item in enumerate(ITEMS):
        await one.commit(number, entry(item), [item], [])
    rows = await one.audit(None, 4)
    rows += await one.audit(rows[-1].seq, 4)
    assert [row.seq for row in rows] == [6, 5, 4, 3, 2, 1]
    assert rows[3].after is not None
    assert rows[3].after["hint"] == "wxyz"
    assert "ab" * 32 not in repr(rows)
    assert "cd" * 32 not in repr(rows)
    checked = await one.check()
    assert (checked.rows, checked.problem, checked.last_hash) == (6, "", rows[0].hash)


async def test_the_mark_that_was_set_first_stays(pair: tuple[Directory, Directory]) -> None:
    assert [pair[0].seal("a"), pair[1].seal("b"), pair[0].seal("c")] == ["a", "a", "a"]
