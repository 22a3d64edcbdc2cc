"""A SQLite file is opened if it is ours, brought to the newest schema once, and closed to others."""

from __future__ import annotations

import threading
from pathlib import Path

import apsw
import pytest

from gateway.store import StoreError
from gateway.store.sqlite_file import opened, transaction

ID = 0x546F6C54
FIRST = "CREATE TABLE one(n INTEGER NOT NULL) STRICT"
SECOND = "CREATE TABLE two(n INTEGER NOT NULL) STRICT"


def tables(connection: apsw.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]


def test_a_file_is_its_owners_only_and_grows_with_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    opened(str(path), ID, [FIRST]).close()
    assert path.stat().st_mode & 0o777 == 0o600
    later = opened(str(path), ID, [FIRST, SECOND])
    assert tables(later) == ["one", "two"]
    assert later.pragma("journal_mode") == "wal"
    later.close()
    with pytest.raises(StoreError, match="has schema 2 and this Tollkeeper knows up to 1"):
        opened(str(path), ID, [FIRST])


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE theirs(n)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        opened(str(path), ID, [FIRST])
    assert path.read_bytes() == before


def test_of_many_who_open_it_at_once_one_makes_the_schema(tmp_path: Path) -> None:
    found: list[apsw.Connection] = []
    threads = [
        threading.Thread(target=lambda: found.append(opened(str(tmp_path / "a.db"), ID, [FIRST, SECOND])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tables(connection) for connection in found] == [["one", "two"]] * 8
    for connection in found:
        connection.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    connection = opened(str(tmp_path / "a.db"), ID, [FIRST])

    def fail() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO one VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with transaction(connection):
        connection.execute("INSERT INTO one VALUES (2)")
    assert connection.execute("SELECT n FROM one").fetchall() == [(2,)]
    connection.close()
