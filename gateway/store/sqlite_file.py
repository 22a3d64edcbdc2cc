"""A SQLite file of ours: opened for its owner only, told from others, brought to the newest schema."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from gateway.store import StoreError

BUSY_MS: Final = 1000  # how long another process may hold the file before a write is given back


def opened(path: str, application_id: int, migrations: Sequence[str]) -> apsw.Connection:
    """A connection that writes, with a write-ahead log.  Migration n takes user_version from n to n + 1.

    application_id: SQLite's own place to say whose file it is.  Raises StoreError where it is another program's or a
    newer Tollkeeper's; apsw.Error and OSError where it cannot be opened.
    """
    is_new = not Path(path).exists()
    connection = apsw.Connection(path)
    try:
        if is_new:  # by name: closing a descriptor of ours would let go of every lock this process has on it
            Path(path).chmod(0o600)
        connection.set_busy_timeout(BUSY_MS)
        with transaction(connection):  # a second process that starts now waits here, and then finds nothing to do
            _migrate(connection, path, application_id, migrations)
        _use_write_ahead_log(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


def _migrate(connection: apsw.Connection, path: str, application_id: int, migrations: Sequence[str]) -> None:
    if connection.pragma("application_id") != application_id and connection.pragma("schema_version"):
        raise StoreError(f"{path} is a database of another program; name another file")
    version = connection.pragma("user_version")
    if version > len(migrations):
        raise StoreError(
            f"{path} has schema {version} and this Tollkeeper knows up to {len(migrations)}: "
            "run the newer Tollkeeper that wrote it, or name another file"
        )
    if version < len(migrations):
        for migration in migrations[version:]:
            connection.execute(migration)
        connection.pragma("application_id", application_id)
        connection.pragma("user_version", len(migrations))


def _use_write_ahead_log(connection: apsw.Connection) -> None:
    """Waits as a write would: for this switch SQLite itself does not wait while others have the file open."""
    give_up = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return
