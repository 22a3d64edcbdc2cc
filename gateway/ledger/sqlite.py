"""The money of one node, in one SQLite file that nothing else is kept in: a full log never stops money."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final, TextIO, TypeVar

import apsw

from gateway.commits import CommitFailed, Commits
from gateway.ledger import (
    EXPIRE_AT_MOST,
    OVERDUE,
    Budget,
    Defect,
    Dimension,
    Granted,
    Holder,
    Journal,
    LedgerError,
    LedgerUnavailable,
    Note,
    Posting,
    Refused,
    Spend,
    Window,
    check_amount,
    check_budget,
    check_lease,
    check_posting,
    check_reserve,
    check_spend,
    check_ttl,
    expire_each,
)
from gateway.ledger.accounts import SECOND, WINDOWS, Accounts, read_window
from gateway.ledger.batches import post_all, ready

T = TypeVar("T")

APPLICATION_ID: Final = 0x546F6C6D  # "Tolm": SQLite's own place to say whose file this is
BUSY_MS: Final = 1000  # how long another process may hold the file before a caller is told so
CHECKED: Final = 2**29  # bytes up to which the whole file is checked at the start: less than a second
LEAP_NS: Final = 300 * SECOND  # a step of the wall clock that is logged and counted
OLDEST_LIBRARY: Final = (3, 51, 3)  # below it, a checkpoint that meets a reset of the write-ahead log can lose commits
MIGRATIONS: Final = ("001_ledger.sql",)  # migration n takes user_version from n to n + 1; none is edited once released

log = logging.getLogger(__name__)


class SqliteLedger:
    """A Ledger in one file, for one gateway.

    now: wall clock, ns since the epoch.  watch: only look, beside the gateway that owns the file; writing raises.
    clock_leaps: how often the wall clock stepped by more than five minutes.
    Raises LedgerError where the file cannot be opened, is not ours, or belongs to a gateway that is running.
    """

    def __init__(self, path: str | Path, *, now: Callable[[], int] = time.time_ns, watch: bool = False) -> None:
        self.path = Path(path)
        self.clock_leaps = 0
        self._now = now
        self._clock = threading.Lock()
        self._watch = watch
        self._lock: TextIO | None = None
        check_library(apsw.sqlite_lib_version())
        with _mapped(f"the ledger {self.path} cannot be opened"):
            if watch and not self.path.exists():
                raise LedgerError(f"there is no ledger {self.path}")
            self._lock = None if watch else _lock(self.path)
            try:
                self._open()
            except BaseException:
                self._unlock()
                raise

    def _open(self) -> None:
        is_new = not self.path.exists()
        self._read = apsw.Connection(str(self.path))
        if is_new:
            self.path.chmod(0o600)
        self._read.set_busy_timeout(BUSY_MS)
        self._write = apsw.Connection(str(self.path))
        self._write.set_busy_timeout(BUSY_MS)
        self._check_file()
        if not self._watch:
            self._prepare()
        self._read.pragma("query_only", True)
        self._file = self.path.stat().st_ino
        self._seen: int
        ((self._seen,),) = self._read.execute("SELECT seen FROM clock")
        self._kept = self._seen
        self._last = self._now(), time.monotonic_ns()
        self._reader = ThreadPoolExecutor(1, "ledger-read")
        self._accounts = Accounts(self._write)
        self._commits = Commits(self._write, "ledger", self._begun)

    async def open_windows(self, budgets: Sequence[Budget]) -> list[Window]:
        for budget in budgets:
            check_budget(budget)

        def step() -> list[Window]:
            now = self._time()
            return [self._accounts.open_window(budget, now) for budget in budgets]

        return await self._commit(step)

    async def reserve(
        self,
        id: str,
        windows: Sequence[int],
        amount: int,
        *,
        minimum: int | None = None,
        owner: str,
        ttl: float,
        note: Note | None = None,
    ) -> Granted | Refused:
        check_reserve(id, windows, amount, minimum, ttl)

        def step() -> Granted | Refused:
            now = self._time()
            told = (owner, now + int(ttl * SECOND), note)
            return self._accounts.reserve(id, windows, amount, minimum, now, told)

        return await self._commit(step)

    async def post(self, postings: Sequence[Posting]) -> list[str]:
        for posting in postings:
            check_posting(posting)
        batch = ready(postings)
        return await self._commit(lambda: post_all(self._accounts, batch, self._time()))

    async def release(self, reservation: str, amount: int | None = None) -> str:
        if amount is not None:
            check_amount("amount", amount)
        return await self._commit(lambda: self._accounts.release(reservation, amount, self._time()))

    async def grow(self, reservation: str, amount: int, minimum: int) -> Granted | Refused:
        check_lease(amount, minimum)
        return await self._commit(lambda: self._accounts.grow(reservation, amount, minimum, self._time()))

    async def renew(self, owner: str, ttl: float) -> list[str]:
        check_ttl(ttl)
        return await self._commit(lambda: self._accounts.renew(owner, self._time() + int(ttl * SECOND)))

    async def expire(self, journal: Journal) -> int:
        async def end(id: str, known: list[Posting] | None) -> bool:
            return await self._commit(lambda: self._accounts.expire(id, known, self._time()))

        due = await self._commit(lambda: self._accounts.due(self._time(), EXPIRE_AT_MOST))
        return await expire_each(due, journal, end)

    async def freeze(self, windows: Sequence[int], frozen: bool = True) -> int:
        return await self._commit(lambda: self._accounts.freeze(windows, frozen))

    async def audit(self) -> list[Defect]:
        return await self._on_reader(self._audit)

    async def windows(
        self,
        prefix: str = "",
        *,
        ids: Sequence[int] | None = None,
        current: bool = True,
        limit: int = 1000,
        after: int = 0,
    ) -> list[Window]:
        def read() -> list[Window]:
            now = self._time()
            rows = self._read.execute(
                WINDOWS,
                (after, prefix, None if ids is None else json.dumps(list(ids)), current, now, limit),
            )
            return [read_window(row, now) for row in rows]

        return await self._on_reader(read)

    async def spend(
        self,
        by: Sequence[Dimension],
        *,
        since: int | None = None,
        until: int | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[Spend]:
        check_spend(by, filters or {})
        bounds = (0 if since is None else since, 2**63 - 1 if until is None else until)
        return await self._on_reader(lambda: self._spend(by, bounds, filters or {}))

    async def holders(self, window: int) -> list[Holder]:
        def read() -> list[Holder]:
            now = self._time()
            rows = self._read.execute(
                "SELECT r.id, r.owner, r.rest, r.since, r.expires, r.note FROM share s "
                "JOIN reservation r ON r.id = s.reservation "
                "WHERE s.window = ? AND r.state = 'held' AND r.rest > 0 ORDER BY r.rest DESC, r.id",
                (window,),
            )
            return [
                Holder(id, owner, rest, since, (expires - now) / SECOND, json.loads(note or "{}"))
                for id, owner, rest, since, expires, note in rows
            ]

        return await self._on_reader(read)

    async def clock(self) -> int:
        return self._time()

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._commits.close()
        self._reader.shutdown()
        self._read.close()
        self._write.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _commit(self, step: Callable[[], T]) -> T:
        if self._watch:
            raise LedgerError("this ledger was opened to be looked at only")
        try:
            return await self._commits.run(step)
        except CommitFailed as error:
            raise LedgerUnavailable(f"the ledger {self.path} cannot be written: {error}") from error.__cause__
        except apsw.Error as error:
            raise LedgerError(f"the ledger refused this: {type(error).__name__}: {error}") from error

    async def _on_reader(self, read: Callable[[], T]) -> T:
        def snapshot() -> T:
            with self._read:  # one snapshot for all it selects
                found = read()
            return found  # noqa: RET504  (mypy: what a `with` of apsw returns from may be swallowed)

        with _mapped(f"the ledger {self.path} cannot be read"):
            return await asyncio.get_running_loop().run_in_executor(self._reader, snapshot)

    def _time(self) -> int:
        """Never earlier than what the file has seen."""
        with self._clock:
            wall, steady = self._now(), time.monotonic_ns()
            leap = (wall - self._last[0]) - (steady - self._last[1])
            self._last = wall, steady
            self._seen = seen = max(self._seen, wall)
        if abs(leap) > LEAP_NS:
            self.clock_leaps += 1
            log.warning("the clock of this machine leapt by %+d seconds", leap // SECOND)
        return seen

    def _begun(self) -> None:
        """At the start of each transaction: what was granted in a file that is gone would be forgotten."""
        try:
            is_ours = self.path.stat().st_ino == self._file
        except OSError:
            is_ours = False
        if not is_ours:
            raise LedgerUnavailable(f"{self.path} was removed or replaced while it was in use: restart the gateway")
        now = self._time()
        if now - self._kept >= SECOND:
            self._write.execute("UPDATE clock SET seen = ?", (now,))
            self._kept = now

    def _check_file(self) -> None:
        """Raises LedgerError where the file is not a ledger, is damaged, or was written by a newer Tollkeeper."""
        pragma = self._write.pragma
        if pragma("application_id") != APPLICATION_ID and (self._watch or pragma("schema_version")):
            raise LedgerError(f"{self.path} is not a ledger of Tollkeeper; name another file")
        version = pragma("user_version")
        if version > len(MIGRATIONS):
            raise LedgerError(
                f"{self.path} has schema {version} and this Tollkeeper knows up to {len(MIGRATIONS)}: "
                "run the newer Tollkeeper that wrote it, or name another file"
            )
        if self.path.stat().st_size <= CHECKED and (found := pragma("quick_check", 1)) != "ok":
            raise LedgerError(f"{self.path} is damaged ({found}): restore it from a copy")

    def _prepare(self) -> None:
        """Brings the schema to the newest known version and sets the connection up."""
        run, pragma = self._write.execute, self._write.pragma
        pragma("journal_mode", "wal")
        pragma("synchronous", "full")  # what was granted is on the disk before its request is sent
        pragma("foreign_keys", True)
        run("BEGIN IMMEDIATE")
        for migration in MIGRATIONS[pragma("user_version") :]:
            run((files("gateway.ledger") / "migrations" / "sqlite" / migration).read_text(encoding="utf-8"))
        pragma("application_id", APPLICATION_ID)
        pragma("user_version", len(MIGRATIONS))
        run("COMMIT")

    def _audit(self) -> list[Defect]:
        now = self._time()
        rows = self._read.execute(AUDIT, (now, OVERDUE * SECOND))
        return [Defect(*row) for row in rows]

    def _spend(self, by: Sequence[Dimension], bounds: tuple[int, int], filters: Mapping[str, str]) -> list[Spend]:
        sums: dict[tuple[str | None, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        for kind in ("own", "moved"):
            columns = [_column(word, kind) for word in by]
            terms = [f"AND {_column(word, kind)} = ?" for word in filters]  # type: ignore[arg-type]  # checked before
            group = " GROUP BY " + ", ".join(_grouped(word, kind) for word in by) if by else ""
            sql = f"SELECT {', '.join([*columns, SUMS[kind]])} {FROM[kind]} {' '.join(terms)}{group}"
            for *values, amount, overrun, entries in self._read.execute(sql, (*bounds, *filters.values())):
                for place, value in enumerate((amount, overrun, entries)):
                    sums[tuple(values)][place] += value or 0
        found = [Spend(values, *three) for values, three in sums.items() if any(three)]
        return sorted(found, key=lambda line: (-line.amount, str(line.values)))


AUDIT: Final = """
SELECT 'over', id, NULL, spent + reserved, ceiling FROM budget_window WHERE reserved > ceiling - spent
UNION ALL
SELECT 'reserved_drift', w.id, NULL, w.reserved, coalesce(h.rest, 0) FROM budget_window w
  LEFT JOIN (SELECT s.window, sum(r.rest) rest FROM reservation r JOIN share s ON s.reservation = r.id
             WHERE r.state = 'held' GROUP BY s.window) h ON h.window = w.id
  WHERE w.reserved <> coalesce(h.rest, 0)
UNION ALL
SELECT 'ledger_drift', w.id, NULL, w.spent + w.overrun, coalesce(e.amount, 0) FROM budget_window w
  LEFT JOIN (SELECT window, sum(amount) amount FROM entry GROUP BY window) e ON e.window = w.id
  WHERE w.spent + w.overrun <> coalesce(e.amount, 0)
UNION ALL
SELECT 'overdue', NULL, id, (?1 - expires) / 1000000000, 0 FROM reservation
  WHERE state = 'held' AND expires < ?1 - ?2
    AND EXISTS (SELECT 1 FROM reservation WHERE state = 'held' AND expires > ?1)
"""  # `overdue` is a defect only while an owner lives: after a stop of all, nobody was there to expire anything
SUMS: Final = {
    "own": "sum(entry.amount + entry.moved), sum(iif(entry.kind = 'overrun', entry.amount, 0)), count(*)",
    "moved": "-sum(late.moved), 0, 0",
}
FROM: Final = {
    "own": "FROM entry WHERE entry.prime AND entry.at >= ? AND entry.at < ?",
    # What a correction took over from the expiry of its reservation is not spent by whom that was charged to.
    "moved": "FROM entry late JOIN entry ON entry.hold = late.reservation AND entry.window = late.window "
    "AND entry.kind = 'expire' WHERE entry.prime AND late.moved <> 0 AND late.at >= ? AND late.at < ?",
}


def _column(word: Dimension, kind: str) -> str:
    if word == "day":
        return f"strftime('%Y-%m-%d', {'entry' if kind == 'own' else 'late'}.at / 1000000000, 'unixepoch')"
    return f'entry."{word}"'


def _grouped(word: Dimension, kind: str) -> str:
    """A day is written once for each group, not once for each entry."""
    return f"{'entry' if kind == 'own' else 'late'}.at / 86400000000000" if word == "day" else _column(word, kind)


def check_library(version: str) -> None:
    """Raises LedgerError for a SQLite that could lose what it has committed."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_LIBRARY:
        wanted = ".".join(str(part) for part in OLDEST_LIBRARY)
        raise LedgerError(f"SQLite {version} can lose commits; install apsw {wanted} or newer")


def _lock(path: Path) -> TextIO:
    """Held while the process lives, however it ends."""
    file = path.with_name(path.name + ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LedgerError(
            f"another gateway uses the ledger {path}: one SQLite ledger serves one process; "
            "stop the other one, or set `store: postgresql://…` to share a ledger"
        ) from None
    return file


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise LedgerError(f"{what}: {error}") from error
    except (apsw.Error, OSError) as error:
        raise LedgerUnavailable(f"{what}: {type(error).__name__}: {error}") from error
