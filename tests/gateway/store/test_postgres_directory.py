"""The directory in a real PostgreSQL: a log in which no row can be altered, removed or moved, whatever breaks off.

What every directory promises is in tests/contract.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from gateway.store import StoreError
from gateway.store.directory import Entry, Stale, Team, told
from gateway.store.postgres_directory import COMMIT, SCHEMA, PostgresDirectory
from tests.servers import Postgres, postgres, shared_server, until  # noqa: F401  (pytest finds the fixture by this import)

AT = "2026-01-01T00:00:00.000000000Z"
AUDIT, ITEM = "tollkeeper_directory.audit", "tollkeeper_directory.item"


@pytest.fixture
async def url(server: Postgres) -> AsyncIterator[str]:
    async with server.database() as url:
        yield url


@pytest.fixture
async def directory(url: str) -> AsyncIterator[PostgresDirectory]:
    directory = await asyncio.to_thread(PostgresDirectory, url)
    yield directory
    await directory.aclose()


async def create(directory: PostgresDirectory, number: int) -> int:
    team = Team(f"t{number}", AT)
    return await directory.commit(
        number, Entry(AT, "root", "create", f"team {team.name}", None, told(team)), [team], []
    )


async def sql(url: str, text: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        (f"UPDATE {AUDIT} SET actor = 'nobody' WHERE seq = 3", "row 3 is not as it was written"),
        (f"UPDATE {AUDIT} SET before = '{{}}' WHERE seq = 3", "row 3 is not as it was written"),
        (f"UPDATE {AUDIT} SET at = '2027' WHERE seq = 1", "row 1 is not as it was written"),
        (f"DELETE FROM {AUDIT} WHERE seq = 1", "row 1 is missing"),
        (f"DELETE FROM {AUDIT} WHERE seq = 3", "row 3 is missing"),
        (f"DELETE FROM {AUDIT} WHERE seq >= 4", "the rows after 3 are missing"),
        (
            f"DELETE FROM {AUDIT} WHERE seq >= 4; UPDATE tollkeeper_directory.head SET revision = 3",
            "the rows after 3 are missing",
        ),
        (f"TRUNCATE {AUDIT}", "the rows after 0 are missing"),
        (
            f"INSERT INTO {AUDIT} SELECT 6, at, actor, action, object, before, after, hash FROM {AUDIT} WHERE seq = 5",
            "row 6 is not as it was written",
        ),
        (
            f"UPDATE {ITEM} SET body = replace(body, 'none', 'full') WHERE id = 't3'",
            "the team t3 is not as the log says",
        ),
        (f"DELETE FROM {ITEM} WHERE id = 't1'", "the team t1 is gone"),
    ],
)
async def test_a_log_that_was_tampered_with_is_told_apart(
    url: str, directory: PostgresDirectory, tampering: str, says: str
) -> None:
    for number in range(5):
        await create(directory, number)
    assert (await directory.check()).problem == ""
    if "INSERT" not in tampering and "item" not in tampering:
        with pytest.raises(asyncpg.RaiseError, match="rows stay"):
            await sql(url, tampering)
    await sql(url, f"ALTER TABLE {AUDIT} DISABLE TRIGGER ALL")
    await sql(url, tampering)
    assert says in (await directory.check()).problem


async def test_a_long_log_is_checked_in_pages_while_it_grows(
    directory: PostgresDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.postgres_directory.PAGE", 2)
    for count in range(6):
        checked = await directory.check()
        assert (checked.rows, checked.problem) == (count, "")
        await create(directory, count)

    async def grow() -> None:
        for count in range(6, 60):
            await create(directory, count)

    growing = asyncio.ensure_future(grow())
    while not growing.done():
        assert (await directory.check()).problem == ""
    await growing


async def test_a_change_whose_answer_was_lost_is_done_once_and_told_as_done(
    directory: PostgresDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = directory._rows

    async def twice(text: str, *values: Any) -> list[asyncpg.Record]:
        """As the database's client does where a connection breaks after the question."""
        if text == COMMIT:
            await ask(text, *values)
        return await ask(text, *values)

    monkeypatch.setattr(directory, "_rows", twice)
    assert [await create(directory, number) for number in range(3)] == [1, 2, 3]
    assert len(await directory.audit(None, 10)) == 3
    with pytest.raises(Stale):
        await create(directory, 1)


async def test_two_that_change_at_the_same_moment_wait_for_each_other(url: str, directory: PostgresDirectory) -> None:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("UPDATE tollkeeper_directory.head SET revision = 1, hash = 'theirs'")
    changing = asyncio.ensure_future(create(directory, 0))
    await asyncio.sleep(0.3)
    assert not changing.done()
    assert await directory.revision() == 0  # reading goes on
    await transaction.commit()
    with pytest.raises(Stale):
        await changing
    assert (await directory.read()).items == []
    await connection.close()


async def test_a_newer_schema_is_refused(url: str, directory: PostgresDirectory) -> None:
    newer = len(SCHEMA.migrations) + 1
    await sql(url, f"INSERT INTO tollkeeper_directory.migration VALUES ({newer}, 'later', now())")
    with pytest.raises(StoreError, match="the directory has schema 2 and this Tollkeeper knows up to 1"):
        await asyncio.to_thread(PostgresDirectory, url)


async def test_least_rights_are_enough_once_the_schema_is_made(url: str, directory: PostgresDirectory) -> None:
    role = f"keeper_{url.rpartition('/')[2]}"
    schema = "tollkeeper_directory"
    await sql(
        url,
        f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}; "
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
        f"REVOKE UPDATE ON {AUDIT} FROM {role}",
    )
    least = await asyncio.to_thread(PostgresDirectory, url.replace("postgres@", f"{role}@"))
    assert least.seal("mark") == "mark"
    assert [await create(least, number) for number in range(2)] == [1, 2]
    assert (await least.check()).problem == ""
    assert len((await directory.read()).items) == 2
    await least.aclose()
    await sql(url, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_database_that_is_not_there_is_told_at_the_start() -> None:
    with pytest.raises(StoreError, match=r"the directory cannot be opened: the database does not answer"):
        PostgresDirectory("postgresql://u:hunter2@127.0.0.1:1/db")


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    with postgres("fsync=off") as server:
        yield server


def stop(server: Postgres) -> None:
    time.sleep(0.3)
    server.stop()


@pytest.mark.serial
async def test_while_the_database_is_killed_again_and_again_each_change_is_done_or_refused(own: Postgres) -> None:
    directory = await asyncio.to_thread(PostgresDirectory, own.url())
    done = refusals = 0
    for _ in range(3):
        refused = 0
        killing = asyncio.ensure_future(asyncio.to_thread(stop, own))
        while not killing.done() or refused == 0:
            try:
                assert await create(directory, done) == done + 1
                done += 1
            except StoreError:
                refused += 1
                await asyncio.sleep(0.01)
        await asyncio.to_thread(own.start)
        await until("the server is back", own.url())
        while True:
            try:
                revision = await directory.revision()
                break
            except StoreError:
                await asyncio.sleep(0.02)
        assert revision in (done, done + 1)  # a refusal may be of one that was done: its maker reads, and sees it
        done, refusals = revision, refusals + refused
    checked = await directory.check()
    assert (checked.rows, checked.problem) == (done, "")
    assert done > 10
    print(f"{done} changes done, {refusals} refused over 3 kills")
    await directory.aclose()
