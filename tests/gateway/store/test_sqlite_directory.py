"""The directory's file: its owner's only, nobody else's, and a log in which no row can be altered, removed or moved.

What every directory promises is in tests/contract.
"""

from __future__ import annotations

import stat
from pathlib import Path

import apsw
import pytest

from gateway.store import StoreError
from gateway.store.directory import Entry, Team, told
from gateway.store.sqlite_directory import SqliteDirectory

AT = "2026-01-01T00:00:00.000000000Z"


async def filled(path: Path, count: int = 5) -> None:
    directory = SqliteDirectory(path)
    for number in range(count):
        team = Team(f"t{number}", AT)
        await directory.commit(number, Entry(AT, "root", "create", f"team {team.name}", None, told(team)), [team], [])
    await directory.aclose()


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 3", "row 3 is not as it was written"),
        ("UPDATE audit SET after = replace(after, 't2', 't9') WHERE seq = 3", "row 3 is not as it was written"),
        ("UPDATE audit SET before = '{}' WHERE seq = 3", "row 3 is not as it was written"),
        ("UPDATE audit SET at = '2027' WHERE seq = 1", "row 1 is not as it was written"),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE seq = 1) WHERE seq = 2", "row 2 is not"),
        ("DELETE FROM audit WHERE seq = 1", "row 1 is missing"),
        ("DELETE FROM audit WHERE seq = 3", "row 3 is missing"),
        ("DELETE FROM audit WHERE seq >= 4", "the rows after 3 are missing"),
        ("DELETE FROM audit", "the rows after 0 are missing"),
        (
            "UPDATE audit SET seq = 99 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3; "
            "UPDATE audit SET seq = 3 WHERE seq = 99",
            "row 2 is not as it was written",
        ),
        (
            "INSERT INTO audit SELECT 6, at, actor, action, object, before, after, hash FROM audit WHERE seq = 5",
            "row 6 is not as it was written",
        ),
        ("UPDATE item SET body = replace(body, 'none', 'full') WHERE id = 't3'", "the team t3 is not as the log says"),
        ("DELETE FROM item WHERE id = 't1'", "the team t1 is gone"),
    ],
)
async def test_a_log_that_was_tampered_with_is_told_apart(tmp_path: Path, tampering: str, says: str) -> None:
    path = tmp_path / "d.db"
    await filled(path)
    raw = apsw.Connection(str(path))
    if "INSERT" not in tampering and "item" not in tampering:
        with pytest.raises(apsw.ConstraintError, match="rows stay"):
            raw.execute(tampering)
    raw.execute("DROP TRIGGER audit_is_not_altered; DROP TRIGGER audit_is_not_deleted")
    raw.execute(tampering)
    raw.close()
    directory = SqliteDirectory(path)
    assert says in (await directory.check()).problem
    await directory.aclose()


async def test_a_long_log_is_checked_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.sqlite_directory.PAGE", 2)
    for count in (0, 1, 2, 5):
        path = tmp_path / f"{count}.db"
        await filled(path, count)
        directory = SqliteDirectory(path)
        checked = await directory.check()
        assert (checked.rows, checked.problem) == (count, "")
        await directory.aclose()


async def test_the_file_is_its_owners_only_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    await filled(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = SqliteDirectory(path)
    assert len((await again.read()).items) == 5
    await again.aclose()


async def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    other, newer = tmp_path / "other.db", tmp_path / "newer.db"
    connection = apsw.Connection(str(other))
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteDirectory(other)
    (tmp_path / "text").write_text("not a database at all, but long enough" * 100)
    with pytest.raises(StoreError):
        SqliteDirectory(tmp_path / "text")
    with pytest.raises(StoreError):
        SqliteDirectory(tmp_path / "no" / "folder.db")
    await filled(newer)
    connection = apsw.Connection(str(newer))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StoreError, match="knows up to"):
        SqliteDirectory(newer)


async def test_while_another_holds_the_file_a_change_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.sqlite_file.BUSY_MS", 50)
    path = tmp_path / "d.db"
    await filled(path)
    directory = SqliteDirectory(path)
    holder = apsw.Connection(str(path))
    holder.execute("BEGIN IMMEDIATE")
    team = Team("late", AT)
    with pytest.raises(StoreError, match="BusyError"):
        await directory.commit(5, Entry(AT, "root", "create", "team late", None, None), [team], [])
    assert await directory.revision() == 5  # reading goes on
    holder.execute("ROLLBACK")
    holder.close()
    assert await directory.commit(5, Entry(AT, "root", "create", "team late", None, None), [team], []) == 6
    await directory.aclose()
