"""What only the SQLite ledger promises: one file, one gateway, a clock that never goes back, nothing lost silently."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from gateway.ledger import Budget, Granted, LedgerError, LedgerUnavailable, Posting, Refused
from gateway.ledger.sqlite import SqliteLedger, check_library
from tests.ledgers import SECOND

ALL = Budget("all", "total", "UTC", 10**9, True)
HOUR = 3600 * SECOND
ROOT = Path(__file__).parents[3]


class Clock:
    def __init__(self) -> None:
        self.now = 1_770_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    made = SqliteLedger(path)
    yield made
    await made.aclose()


async def held(ledger: SqliteLedger, id: str, amount: int = 10) -> Granted:
    (window,) = await ledger.open_windows([ALL])
    answer = await ledger.reserve(id, [window.id], amount, owner="me", ttl=60)
    assert isinstance(answer, Granted)
    return answer


def test_a_second_gateway_on_the_same_file_is_refused_with_the_mend(path: Path) -> None:
    script = "import sys; from gateway.ledger.sqlite import SqliteLedger; SqliteLedger(sys.argv[1])"
    first = SqliteLedger(path)
    with pytest.raises(LedgerError, match=r"another gateway uses the ledger .* set `store: postgresql://"):
        SqliteLedger(path)
    other = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, check=False)
    assert b"another gateway uses the ledger" in other.stderr
    asyncio.run(first.aclose())
    asyncio.run(SqliteLedger(path).aclose())


async def test_a_watcher_sees_what_the_gateway_does_and_changes_nothing(ledger: SqliteLedger, path: Path) -> None:
    await held(ledger, "r")
    watcher = SqliteLedger(path, watch=True)
    assert [window.reserved for window in await watcher.windows()] == [10]
    assert await watcher.audit() == []
    with pytest.raises(LedgerError, match="to be looked at only"):
        await watcher.release("r")
    await watcher.aclose()
    with pytest.raises(LedgerError, match="there is no ledger"):
        SqliteLedger(path.with_name("none.db"), watch=True)
    assert not path.with_name("none.db").exists()


def test_the_file_is_its_owners_only(path: Path) -> None:
    asyncio.run(SqliteLedger(path).aclose())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2"])
def test_a_library_that_can_lose_commits_is_refused(version: str) -> None:
    with pytest.raises(LedgerError, match=rf"SQLite {version} can lose commits; install apsw 3.51.3 or newer"):
        check_library(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0.0"])
def test_a_newer_library_is_taken(version: str) -> None:
    check_library(version)


async def test_each_commit_waits_for_the_disk_and_is_checked(ledger: SqliteLedger) -> None:
    run = ledger._write
    assert (run.pragma("journal_mode"), run.pragma("synchronous"), run.pragma("foreign_keys")) == ("wal", 2, 1)


def test_a_newer_schema_another_program_and_a_damaged_file_are_refused(path: Path) -> None:
    asyncio.run(held_once(path))
    whole = path.read_bytes()
    file = apsw.Connection(str(path))
    file.pragma("user_version", 99)
    file.close()
    with pytest.raises(LedgerError, match="has schema 99 and this Tollkeeper knows up to 1"):
        SqliteLedger(path)
    other = path.with_name("other.db")
    file = apsw.Connection(str(other))
    file.execute("CREATE TABLE theirs(x)")
    file.close()
    with pytest.raises(LedgerError, match="is not a ledger of Tollkeeper"):
        SqliteLedger(other)
    path.write_bytes(whole[:8192] + b"\xff" * 4096 + whole[12288:])
    with pytest.raises(LedgerError, match=r"damaged|malformed"):
        SqliteLedger(path)
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        SqliteLedger(path)


async def held_once(path: Path) -> None:
    ledger = SqliteLedger(path)
    await held(ledger, "r")
    await ledger.aclose()


async def test_the_clock_never_goes_back_not_even_over_a_restart(path: Path) -> None:
    clock = Clock()
    ledger = SqliteLedger(path, now=clock)
    first = (await ledger.open_windows([Budget("d", "day", "UTC", 1, True)]))[0]
    clock.now -= 48 * HOUR
    assert await ledger.clock() == clock.now + 48 * HOUR
    assert (await ledger.open_windows([Budget("d", "day", "UTC", 1, True)]))[0].id == first.id
    await ledger.aclose()
    ledger = SqliteLedger(path, now=clock)
    assert (await ledger.open_windows([Budget("d", "day", "UTC", 1, True)]))[0].id == first.id
    assert ledger.clock_leaps == 0  # a stop of days is no leap
    await ledger.aclose()


async def test_a_leap_of_the_clock_is_logged_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ledger = SqliteLedger(path, now=clock)
    clock.now += 299 * SECOND
    await ledger.clock()
    assert ledger.clock_leaps == 0
    with caplog.at_level(logging.WARNING):
        clock.now += HOUR
        await ledger.clock()
    assert ledger.clock_leaps == 1
    assert "the clock of this machine leapt by +3599 seconds" in caplog.text or "+3600" in caplog.text
    await ledger.aclose()


async def test_a_file_that_is_removed_or_replaced_grants_nothing(
    ledger: SqliteLedger, path: Path, tmp_path: Path
) -> None:
    await held(ledger, "r")
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    path.rename(tmp_path / "moved.db")
    with pytest.raises(LedgerUnavailable, match="was removed or replaced while it was in use: restart the gateway"):
        await held(ledger, "s")
    copy.rename(path)
    with pytest.raises(LedgerUnavailable, match="was removed or replaced"):
        await held(ledger, "s")


async def test_a_file_that_another_process_locks_is_told_within_its_time_and_works_again(
    ledger: SqliteLedger, path: Path
) -> None:
    await held(ledger, "r")
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="BusyError"):
        await held(ledger, "s")
    assert time.monotonic() - begun < 3
    assert [window.reserved for window in await ledger.windows()] == [10]  # who only reads does not wait
    other.execute("ROLLBACK")
    other.close()
    await held(ledger, "s")


def limited(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


async def reserved(ledger: SqliteLedger, id: str, window: int) -> Granted | Refused | LedgerUnavailable:
    try:
        return await ledger.reserve(id, [window], 1, owner="me", ttl=60)
    except LedgerUnavailable as error:
        return error


async def test_a_full_disk_refuses_and_keeps_what_was_granted(path: Path) -> None:
    """A limit on the size of files stands for the disk: the same error comes to SQLite at the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    ledger = SqliteLedger(path)
    (window,) = await ledger.open_windows([ALL])
    try:
        limited(path.with_name("ledger.db-wal").stat().st_size + 100_000)
        granted = 0
        while not isinstance(await reserved(ledger, f"r{granted}", window.id), LedgerUnavailable):
            granted += 1
        assert granted > 0
        assert (await ledger.windows())[0].reserved == granted
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert isinstance(await ledger.reserve("again", [window.id], 1, owner="me", ttl=60), Granted)
    assert (await ledger.windows())[0].reserved == granted + 1
    assert await ledger.audit() == []
    await ledger.aclose()


async def test_a_power_cut_at_any_length_of_the_log_keeps_every_acknowledged_commit(path: Path, tmp_path: Path) -> None:
    """What is on the disk at the moment of an acknowledgement holds it, with or without what came after."""
    ledger = SqliteLedger(path)
    wal = path.with_name("ledger.db-wal")
    (window,) = await ledger.open_windows([ALL])
    for i in range(30):
        await ledger.reserve(f"r{i}", [window.id], 10, owner="me", ttl=60)
        if i % 2:
            await ledger.post([Posting(f"r{i}.1", f"r{i}", 3, 10, last=True)])
        acknowledged = wal.stat().st_size
        await ledger.reserve(f"later{i}", [window.id], 1, owner="me", ttl=60)
        cut = tmp_path / f"cut{i}.db"
        shutil.copy(path, cut)
        length = acknowledged + i * 97 % max(wal.stat().st_size - acknowledged, 1)
        cut.with_name(cut.name + "-wal").write_bytes(wal.read_bytes()[:length])
        after = SqliteLedger(cut)
        held = {holder.reservation for holder in await after.holders(window.id)}
        assert {f"r{n}" for n in range(0, i + 1, 2)} <= held
        assert (await after.windows())[0].spent == 3 * ((i + 1) // 2)
        assert await after.audit() == []
        await after.aclose()
    await ledger.aclose()


async def test_a_long_reader_sees_one_moment_and_stops_nobody(ledger: SqliteLedger, path: Path) -> None:
    await held(ledger, "r")
    reader = apsw.Connection(str(path))
    with reader:
        assert list(reader.execute("SELECT sum(reserved) FROM budget_window")) == [(10,)]
        await held(ledger, "s")
        assert list(reader.execute("SELECT sum(reserved) FROM budget_window")) == [(10,)]
    assert list(reader.execute("SELECT sum(reserved) FROM budget_window")) == [(20,)]
    reader.close()


async def test_closing_leaves_the_file_to_the_next_gateway_whole(path: Path) -> None:
    ledger = SqliteLedger(path)
    await held(ledger, "r")
    await ledger.aclose()
    assert not path.with_name("ledger.db-wal").exists()
    with pytest.raises(LedgerUnavailable, match="closed"):
        await held(ledger, "s")
    assert os.path.getsize(path) > 0


async def test_what_was_renewed_between_being_found_due_and_being_expired_is_left_alone(ledger: SqliteLedger) -> None:
    await held(ledger, "r")
    assert not await ledger._commits.run(lambda: ledger._accounts.expire("r", None, time.time_ns()))
    assert await ledger._commits.run(lambda: ledger._accounts.expire("r", None, time.time_ns() + 61 * SECOND))
