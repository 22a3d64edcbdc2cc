"""Keeps the directory of teams and keys in one SQLite file, which every gateway on this machine may share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

import apsw
import msgspec

from gateway.store import StoreError
from gateway.store.directory import (
    KINDS,
    START,
    AuditEntry,
    Changes,
    Checked,
    Entry,
    Item,
    Row,
    Stale,
    Walk,
    chain,
    kind,
)
from gateway.store.sqlite_file import opened, transaction

T = TypeVar("T")

APPLICATION_ID: Final = 0x546F6C44  # "TolD": SQLite's own place to say whose file this is
PAGE: Final = 1000  # rows of the log that are checked at once

MIGRATIONS: Final = (
    """
    CREATE TABLE item(
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        body TEXT,
        PRIMARY KEY (kind, id)
    ) STRICT;
    CREATE INDEX item_revision ON item(revision);
    CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE audit(
        seq INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        object TEXT NOT NULL,
        before TEXT,
        after TEXT,
        hash TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER audit_is_not_altered BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'rows stay'); END;
    CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'rows stay'); END;
    """,
)  # migration n takes user_version from n to n + 1; what was released is never edited

_ROW: Final = "seq, at, actor, action, object, before, after, hash"
_PUT: Final = (
    "INSERT INTO item(kind, id, revision, body) VALUES (?, ?, ?, ?) "
    "ON CONFLICT(kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body"
)
_encode = msgspec.json.Encoder(order="sorted").encode


class SqliteDirectory:
    """A Directory in one file.  Raises StoreError where the file cannot be opened or is not ours.

    One connection in one thread: changes are rare, and what is asked often is kept in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._thread = ThreadPoolExecutor(1, "directory")
        with _mapped(f"the directory {self.path} cannot be opened"):
            self._connection = opened(self.path, APPLICATION_ID, MIGRATIONS)
            self._connection.pragma("synchronous", "full")  # a key that was revoked stays so, also after a power cut

    def seal(self, mark: str) -> str:
        with _mapped("the directory cannot be read"), transaction(self._connection):
            self._connection.execute("INSERT INTO meta VALUES ('pepper', ?) ON CONFLICT(name) DO NOTHING", (mark,))
            return cast(str, self._connection.execute("SELECT value FROM meta WHERE name = 'pepper'").get)

    async def revision(self) -> int:
        return await self._run(self._revision)

    async def read(self, since: int = 0) -> Changes:
        return await self._run(lambda: self._read(since))

    async def commit(self, base: int, entry: Entry, put: Sequence[Item], drop: Sequence[Item]) -> int:
        return await self._run(lambda: self._commit(base, entry, put, drop))

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        return await self._run(lambda: self._audit(before, limit))

    async def check(self) -> Checked:
        walk = Walk()
        while True:
            rows, newest, items = await self._run(lambda: self._page(walk.rows))
            if not all(walk.step(row) for row in rows) or len(rows) < PAGE:
                return walk.end(newest, items)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    # ── in the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _revision(self) -> int:
        return cast(int, self._connection.execute("SELECT coalesce(max(seq), 0) FROM audit").get)

    def _read(self, since: int) -> Changes:
        with _snapshot(self._connection):
            return Changes(self._revision(), *self._items(since))

    def _items(self, since: int) -> tuple[list[Item], list[tuple[str, str]]]:
        """What is there and what is gone, of what changed after this revision."""
        rows = self._connection.execute(
            "SELECT kind, id, body FROM item WHERE revision > ? ORDER BY kind, id", (since,)
        ).fetchall()
        items: list[Item] = []
        gone: list[tuple[str, str]] = []
        for name, id, body in cast("list[tuple[str, str, str | None]]", rows):
            if body is None:
                gone.append((name, id))
            else:
                items.append(msgspec.json.decode(body, type=KINDS[name]))
        return items, gone

    def _commit(self, base: int, entry: Entry, put: Sequence[Item], drop: Sequence[Item]) -> int:
        with transaction(self._connection):
            last = self._connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
            revision, previous = cast("tuple[int, str]", last or (0, START))
            if revision != base:
                raise Stale
            revision += 1
            facts = (entry.at, entry.actor, entry.action, entry.object, entry.before, entry.after)
            row = (revision, *facts, chain(previous, revision, entry))
            self._connection.execute(f"INSERT INTO audit({_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608  (constants only)
            written = [(kind(item), item.id, revision, _encode(item).decode()) for item in put]
            self._connection.executemany(_PUT, [*written, *((kind(item), item.id, revision, None) for item in drop)])
        return revision

    def _audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        rows = self._connection.execute(
            f"SELECT {_ROW} FROM audit WHERE ? IS NULL OR seq < ? ORDER BY seq DESC LIMIT ?",  # noqa: S608  (constants only)
            (before, before, limit),
        ).fetchall()
        return [_entry(row) for row in cast("list[Row]", rows)]

    def _page(self, after: int) -> tuple[list[Row], int, list[Item]]:
        """Rows in the order of their numbers, the newest revision that any object has, and with the last page every
        object: all read at one moment."""
        with _snapshot(self._connection):
            rows = self._connection.execute(
                f"SELECT {_ROW} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",  # noqa: S608  (constants only)
                (after, PAGE),
            ).fetchall()
            newest = self._connection.execute("SELECT coalesce(max(revision), 0) FROM item").get
            items = self._items(0)[0] if len(rows) < PAGE else []
        return cast("list[Row]", rows), cast(int, newest), items

    async def _run(self, work: Callable[[], T]) -> T:
        with _mapped("the directory cannot be asked"):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


def _entry(row: Row) -> AuditEntry:
    *facts, before, after, hash = row
    told = [None if text is None else msgspec.json.decode(text) for text in (before, after)]
    return AuditEntry(*facts, *told, hash)  # type: ignore[call-arg,arg-type]  # the order of _ROW


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """The one place where SQLite's errors become ours."""
    try:
        yield
    except (apsw.Error, OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def _snapshot(connection: apsw.Connection) -> Iterator[None]:
    """Several reads of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
