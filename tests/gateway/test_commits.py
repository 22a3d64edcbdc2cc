"""Writes of many callers are committed together, each of them whole or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from gateway.commits import CommitFailed, Commits

Make = Callable[..., Commits]


@pytest.fixture
def file(tmp_path: Path) -> str:
    connection = apsw.Connection(str(tmp_path / "one.db"))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t(n INTEGER PRIMARY KEY) STRICT")
    connection.close()
    return str(tmp_path / "one.db")


@pytest.fixture
def writer(file: str) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(file)
    connection.set_busy_timeout(50)
    yield connection
    connection.close()


@pytest.fixture
def commits(writer: apsw.Connection) -> Iterator[Commits]:
    made = Commits(writer, "test", lambda: None)
    yield made
    made.close()


def kept(file: str) -> list[int]:
    connection = apsw.Connection(file)
    try:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


async def test_what_is_answered_is_committed(commits: Commits, writer: apsw.Connection, file: str) -> None:
    def write() -> int:
        writer.execute("INSERT INTO t VALUES (1)")
        return 7

    assert await commits.run(write) == 7
    assert kept(file) == [1]


async def test_many_who_wait_share_a_commit(commits: Commits, writer: apsw.Connection, file: str) -> None:
    async def write(n: int) -> None:
        await commits.run(lambda: writer.execute("INSERT INTO t VALUES (?)", (n,)))

    await asyncio.gather(*(write(n) for n in range(500)))
    assert kept(file) == list(range(500))
    assert commits.commits < 250


async def test_one_that_fails_leaves_its_neighbours_of_the_same_commit_whole(
    commits: Commits, writer: apsw.Connection, file: str
) -> None:
    hold = threading.Event()

    def half() -> None:
        writer.execute("INSERT INTO t VALUES (2)")
        raise ValueError("half way")

    waiting = asyncio.ensure_future(commits.run(lambda: hold.wait(5)))
    three = [
        asyncio.ensure_future(commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)"))),
        asyncio.ensure_future(commits.run(half)),
        asyncio.ensure_future(commits.run(lambda: writer.execute("INSERT INTO t VALUES (3)"))),
    ]
    await asyncio.sleep(0)
    hold.set()
    await waiting
    answers = await asyncio.gather(*three, return_exceptions=True)
    assert [type(answer) for answer in answers].count(ValueError) == 1
    assert isinstance(answers[1], ValueError)
    assert kept(file) == [1, 3]


async def test_a_file_that_another_holds_is_told_and_works_again_afterwards(
    commits: Commits, writer: apsw.Connection, file: str
) -> None:
    other = apsw.Connection(file)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CommitFailed, match="Busy"):
        await commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)"))
    other.execute("ROLLBACK")
    other.close()
    await commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)"))
    assert kept(file) == [1]


async def test_a_commit_that_fails_is_told_to_all_of_its_callers(
    commits: Commits, writer: apsw.Connection, file: str
) -> None:
    writer.set_commit_hook(lambda: True)  # SQLite turns the COMMIT into a ROLLBACK
    write = (commits.run(lambda n=n: writer.execute("INSERT INTO t VALUES (?)", (n,))) for n in range(3))
    answers = await asyncio.gather(*write, return_exceptions=True)
    assert [type(answer) for answer in answers] == [CommitFailed] * 3
    writer.set_commit_hook(None)
    assert kept(file) == []


async def test_what_the_beginning_of_a_transaction_finds_wrong_fails_it(writer: apsw.Connection, file: str) -> None:
    def begun() -> None:
        raise OSError("the file is gone")

    commits = Commits(writer, "test", begun)
    with pytest.raises(CommitFailed, match="the file is gone"):
        await commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)"))
    commits.close()
    assert kept(file) == []


async def test_closing_finishes_what_was_asked_and_takes_nothing_more(
    commits: Commits, writer: apsw.Connection, file: str
) -> None:
    asked = [
        asyncio.ensure_future(commits.run(lambda n=n: writer.execute("INSERT INTO t VALUES (?)", (n,))))
        for n in range(20)
    ]
    await asyncio.sleep(0)
    await asyncio.to_thread(commits.close)
    await asyncio.gather(*asked)
    assert kept(file) == list(range(20))
    with pytest.raises(CommitFailed, match="closed"):
        await commits.run(lambda: None)


async def test_a_caller_that_is_cancelled_takes_nobody_with_it(
    commits: Commits, writer: apsw.Connection, file: str
) -> None:
    gone = asyncio.ensure_future(commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)")))
    await asyncio.sleep(0)
    gone.cancel()
    await commits.run(lambda: writer.execute("INSERT INTO t VALUES (2)"))
    assert kept(file) == [1, 2]


def test_a_loop_that_is_gone_stops_nobody(commits: Commits, writer: apsw.Connection, file: str) -> None:
    hold = threading.Event()

    async def leave() -> None:
        asyncio.ensure_future(commits.run(lambda: hold.wait(5)))  # noqa: RUF006  (it is left behind on purpose)
        await asyncio.sleep(0.01)

    asyncio.run(leave())
    hold.set()

    async def write() -> None:
        await commits.run(lambda: writer.execute("INSERT INTO t VALUES (1)"))

    asyncio.run(write())
    assert kept(file) == [1]
