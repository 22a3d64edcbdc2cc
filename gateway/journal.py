"""What this process holds, in a file of its own that outlives a kill: from it the next process settles what was open.

One JSON array a line, appended with one write each.  The page cache survives the death of a process, so nothing is
synced: after a loss of power the ledger charges what was leased, which is never too little.

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
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.ledger import Note, Posting

LARGEST: Final = 16 * 1024 * 1024  # bytes, after which what is over is left out of a new file

log = logging.getLogger("gateway")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Any]).decode


class Part(NamedTuple):
    """A hold in one of its budgets.  id: under which it is posted."""

    id: str
    lease: str
    hard: bool


class Entry(NamedTuple):
    """A hold.  amount: nano-USD.  note: what its postings carry."""

    id: str
    amount: int
    parts: Sequence[Part]
    note: Note


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

    def __init__(self, prefix: Path, owner: str, largest: int = LARGEST) -> None:
        self.path = prefix.with_name(f"{prefix.name}.{owner}.journal")
        self.lost = 0  # settlements that could not be written: after a crash their holds would be charged in full
        self._largest = largest
        self._leases: set[str] = set()
        self._open: dict[str, Entry] = {}
        self._settled: dict[str, tuple[int | None, bool]] = {}
        self._torn = False
        self._size = 0
        self._file = self._create()

    def lease(self, id: str) -> None:
        """Raises OSError, and then the lease must not be asked for."""
        self._write(["l", id])
        self._leases.add(id)

    def returned(self, id: str) -> None:
        self._leases.discard(id)
        self._try(["r", id])

    def hold(self, entry: Entry) -> None:
        """Raises OSError, and then the call must not leave."""
        self._write(["h", *entry])
        self._open[entry.id] = entry

    def settled(self, hold: str, amount: int | None, estimated: bool) -> None:
        self._settled[hold] = amount, estimated
        self._try(["s", hold, amount, estimated])

    def posted(self, holds: Sequence[str]) -> None:
        for hold in holds:
            self._open.pop(hold, None)
            self._settled.pop(hold, None)
        self._try(["p", holds])
        if self._size > self._largest:
            self._renew()

    def close(self, *, clean: bool) -> None:
        """clean: nothing is open: the file goes."""
        if clean:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _create(self) -> int:
        """Locked before it has its name, so that nobody takes it for a dead one's."""
        made = self.path.with_suffix(".new")
        made.unlink(missing_ok=True)
        file = os.open(made, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lines = b"".join(self._lines())
        if os.write(file, lines) != len(lines):
            os.close(file)
            raise OSError(f"the journal {made} could not be written whole")
        os.replace(made, self.path)
        self._size = len(lines)
        return file

    def _lines(self) -> Iterator[bytes]:
        """What is not over yet."""
        for lease in self._leases:
            yield _encode(["l", lease]) + b"\n"
        for entry in self._open.values():
            yield _encode(["h", *entry]) + b"\n"
            if entry.id in self._settled:
                yield _encode(["s", entry.id, *self._settled[entry.id]]) + b"\n"

    def _renew(self) -> None:
        old = self._file
        try:
            self._file = self._create()
        except OSError as error:
            log.warning("the journal of open holds grows on: %s", error)
            self._largest *= 2
            return
        os.close(old)
        self._torn = False

    def _write(self, line: list[Any]) -> None:
        data = _encode(line) + b"\n"
        if self._torn:
            data = b"\n" + data
        written = os.write(self._file, data)
        self._size += written
        self._torn = written != len(data)
        if self._torn:
            raise OSError(f"the journal {self.path} could not be written whole: is its disk full?")

    def _try(self, line: list[Any]) -> None:
        try:
            self._write(line)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                log.error("the journal of open holds cannot be written: %s", error)


def left_behind(prefix: Path) -> Iterator[Left]:
    """The journals beside this one whose processes have ended."""
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
        postings, leases = read(path.read_bytes())
        yield Left(postings, leases, path, file)


def read(data: bytes) -> tuple[list[Posting], list[str]]:
    """The postings that are missing in the ledger, and the leases to give back.

    A hold whose call was not over is charged in full where it is hard, and nothing where it is soft.
    """
    leases: dict[str, None] = {}
    holds: dict[str, Entry] = {}
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
            holds[id] = Entry(id, amount, [Part(*part) for part in parts], note)
        elif kind == "s":
            settled[facts[0]] = facts[1], facts[2]
        elif kind == "p":
            for hold in facts[0]:
                holds.pop(hold, None)
    return [posting for entry in holds.values() for posting in _postings(entry, settled.get(entry.id))], list(leases)


def _postings(entry: Entry, truth: tuple[int | None, bool] | None) -> Iterator[Posting]:
    for number, part in enumerate(entry.parts):
        counted = number == 0
        if truth is None:
            amount = entry.amount if part.hard else 0
            doubt = {**entry.note, "in_doubt": True}
            yield Posting(part.id, part.lease, amount, entry.amount, "expire", doubt, counted=counted)
        else:
            note = {**entry.note, "estimated": True} if truth[1] else entry.note
            yield Posting(part.id, part.lease, truth[0], entry.amount, note=note, counted=counted)
