"""A disk that fails to sync, at any of its syncs: who was told yes finds it there, and who was not is told so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from gateway.ledger import Budget, Granted, LedgerUnavailable, Posting
from gateway.ledger.sqlite import SqliteLedger

BUDGET = Budget("all", "total", "UTC", 10_000, True)
CALLS = 12


class Disk(apsw.VFS):
    """The system's own, but its n-th sync fails.  0: none."""

    fails_at = 0
    synced = 0

    def __init__(self) -> None:
        super().__init__("failing", "unix")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return File(name, flags)


class File(apsw.VFSFile):
    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:
        Disk.synced += 1
        if Disk.synced == Disk.fails_at:
            raise apsw.IOError("the disk failed")
        super().xSync(flags)


@pytest.fixture(autouse=True)
def disk() -> Iterator[None]:
    made = Disk()
    apsw.set_default_vfs("failing")
    Disk.fails_at = Disk.synced = 0
    try:
        yield
    finally:
        apsw.set_default_vfs("unix")
        made.unregister()


async def lived(path: Path) -> tuple[list[str], dict[str, int], int]:
    """What was granted, what was charged, and how many calls were told that the ledger is away."""
    granted: list[str] = []
    charged: dict[str, int] = {}
    away = 0
    ledger = SqliteLedger(path)
    (window,) = await ledger.open_windows([BUDGET])
    Disk.synced = 0
    for number in range(CALLS):
        id = f"r{number}"
        try:
            found = await ledger.reserve(id, [window.id], 10, owner="me", ttl=600)
            assert isinstance(found, Granted)
            granted.append(id)
            if number % 2:
                await ledger.post([Posting(f"{id}.1", id, 3, 10, last=True)])
                charged[f"{id}.1"] = 3
        except LedgerUnavailable:
            away += 1
    Disk.fails_at = 0
    await ledger.aclose()
    return granted, charged, away


async def test_a_sync_that_fails_is_told_and_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    _, _, away = await lived(tmp_path / "whole.db")
    steps = Disk.synced
    assert (away, steps >= CALLS) == (0, True)
    for step in range(1, CALLS + 1):
        path = tmp_path / f"{step}.db"
        Disk.fails_at = step
        granted, charged, away = await lived(path)
        assert away == 1, step
        after = SqliteLedger(path)
        (window,) = await after.windows()
        assert await after.audit() == []
        entries = dict(apsw.Connection(str(path)).execute("SELECT hold, amount FROM entry"))
        assert charged.items() <= entries.items(), step
        held = {holder.reservation for holder in await after.holders(window.id)}
        assert {id for id in granted if f"{id}.1" not in entries} <= held, step
        await after.aclose()
