"""What this process holds, in a file of its own that outlives a kill: from it the next process settles what was open.

One JSON array a line, in a file that is mapped into memory: a line costs a copy and no call into the kernel, and it
survives the death of the process, for the pages are the kernel's.  Nothing is synced: after a loss of power the ledger
charges what was leased, which is never too little.

    ["l", lease]                                    before the lease is asked for
    ["h", hold, held, [[part, lease, hard]…], note] before the call leaves
    ["s", hold, amount | null, estimated]           when it is over
    ["p", [hold…]]                                  when the ledger has it
    ["r", lease]                                    when the lease was given back

The file is locked while its process lives: whoever can lock it knows that its owner is gone.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.ledger import Note, Posting

SIZE: Final = 4 * 1024 * 1024  # bytes; when they are full, what is not over yet goes on in a new file

HALF_MADE_NS: Final = 60 * 10**9  # after which a file that never got its name belongs to a process that was killed

log = logging.getLogger("gateway")

_encode = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(list[Any]).decode


class Part(NamedTuple):
    """A hold in one of its budgets.  id: under which it is posted."""

    id: str
    lease: str
    hard: bool


class Left(NamedTuple):
    """What a process that has ended left behind.  The file stays locked until `forget`, which removes it."""

    postings: list[Posting]
    leases: list[str]
    path: Path
    file: int

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)

    def keep(self) -> None:
        """For a later try."""
        os.close(self.file)


class Journal:
    """This process's own.  prefix: path of its file, up to the name of its owner."""

    def __init__(self, prefix: Path, owner: str, size: int = SIZE) -> None:
        """Raises OSError where there is no room for it."""
        self.path = prefix.with_name(f"{prefix.name}.{owner}.journal")
        self.lost = 0  # settlements that could not be written: after a crash their holds would be charged in full
        self._size = size
        self._leases: set[str] = set()
        self._open: dict[str, bytes] = {}  # the lines of holds that are not over yet
        self._at = 0
        self._create()

    def lease(self, id: str) -> None:
        """Raises OSError, and then the lease must not be asked for."""
        self._write(("l", id))
        self._leases.add(id)

    def returned(self, id: str) -> None:
        self._leases.discard(id)
        self._try(("r", id))

    def hold(self, id: str, amount: int, parts: Sequence[Part], note: Note) -> None:
        """amount: nano-USD.  note: what its postings carry.  Raises OSError, and then the call must not leave."""
        self._open[id] = self._write(("h", id, amount, parts, note))

    def settled(self, hold: str, amount: int | None, estimated: bool) -> None:
        line = self._try(("s", hold, amount, estimated))
        if hold in self._open:
            self._open[hold] += line

    def posted(self, holds: Sequence[str]) -> None:
        for hold in holds:
            self._open.pop(hold, None)
        self._try(("p", holds))

    def close(self, *, clean: bool) -> None:
        """clean: nothing is open: the file goes."""
        if clean:
            self.path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._file)

    def _create(self) -> None:
        """Locked before it has its name, so that nobody takes it for a dead one's; and all of its room is its own."""
        made = self.path.with_suffix(".new")
        made.unlink(missing_ok=True)
        lines = b"".join(self._lines())
        size = max(self._size, 2 * len(lines))
        file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(file, 0, size)  # or a full disk would be told by a signal that kills
            mapped = mmap.mmap(file, size)
            mapped[: len(lines)] = lines
            os.replace(made, self.path)
        except BaseException:
            os.close(file)
            made.unlink(missing_ok=True)
            raise
        self._file, self._map, self._size, self._at = file, mapped, size, len(lines)

    def _lines(self) -> Iterator[bytes]:
        """What is not over yet."""
        for lease in self._leases:
            yield _encode((("l", lease),))
        yield from self._open.values()

    def _write(self, line: tuple[Any, ...]) -> bytes:
        data = _encode((line,))
        end = self._at + len(data)
        if end > self._size:
            file, mapped = self._file, self._map
            self._create()
            mapped.close()
            os.close(file)
            end = self._at + len(data)
            if end > self._size:
                raise OSError(f"the journal {self.path} has no room for {len(data)} bytes")
        self._map[self._at : end] = data
        self._at = end
        return data

    def _try(self, line: tuple[Any, ...]) -> bytes:
        """Nothing where it cannot be written."""
        try:
            return self._write(line)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                log.error("the journal of open holds cannot be written: %s", error)
            return b""


def left_behind(prefix: Path) -> Iterator[Left]:
    """The journals beside this one whose processes have ended."""
    for half in prefix.parent.glob(f"{prefix.name}.*.new"):
        with suppress(FileNotFoundError):
            if time.time_ns() - half.stat().st_mtime_ns > HALF_MADE_NS:
                half.unlink()
    for path in sorted(prefix.parent.glob(f"{prefix.name}.*.journal")):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.fstat(file).st_ino != path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):  # its owner lives, or another was faster
            gone = True
        if gone:
            os.close(file)
            continue
        postings, leases = read(path.read_bytes().partition(b"\0")[0])
        yield Left(postings, leases, path, file)


def read(data: bytes) -> tuple[list[Posting], list[str]]:
    """The postings that are missing in the ledger, and the leases to give back.

    A hold whose call was not over is charged in full where it is hard, and nothing where it is soft.
    """
    leases: dict[str, None] = {}
    holds: dict[str, tuple[int, list[Part], Note]] = {}
    settled: dict[str, tuple[int | None, bool]] = {}
    for line in data.splitlines():
        try:
            kind, *facts = _decode(line)
        except (msgspec.DecodeError, ValueError):
            continue  # torn when its process died or its disk was full: what it would have said did not happen
        if kind == "l":
            leases[facts[0]] = None
        elif kind == "r":
            leases.pop(facts[0], None)
        elif kind == "h":
            id, amount, parts, note = facts
            holds[id] = amount, [Part(*part) for part in parts], note
        elif kind == "s":
            settled[facts[0]] = facts[1], facts[2]
        elif kind == "p":
            for hold in facts[0]:
                holds.pop(hold, None)
    return [posting for id, hold in holds.items() for posting in _postings(*hold, settled.get(id))], list(leases)


def _postings(held: int, parts: Sequence[Part], note: Note, truth: tuple[int | None, bool] | None) -> Iterator[Posting]:
    for number, part in enumerate(parts):
        counted = number == 0
        if truth is None:
            amount = held if part.hard else 0  # the last word on it: so it is claimed from a lease that expired, too
            yield Posting(part.id, part.lease, amount, held, note={**note, "in_doubt": True}, counted=counted)
        else:
            said = {**note, "estimated": True} if truth[1] else note
            yield Posting(part.id, part.lease, truth[0], held, note=said, counted=counted)
