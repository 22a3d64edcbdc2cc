"""Many postings at once, in the SQLite ledger: what is ordinary among them costs a fifth of what it does one by one.

They are made ready where they are asked for, as JSON that SQLite reads by itself: so the thread that writes them runs
without the interpreter's lock nearly all the time, and does not fight over it with the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.ledger import DIMENSIONS, Note, Posting, storable, write_note
from gateway.ledger.accounts import Accounts, values

_COLUMNS: Final = frozenset(DIMENSIONS)
_UNTOLD: Final = (None,) * (len(DIMENSIONS) + 1)
_ENTRIES: Final = (
    "INSERT INTO entry(at, hold, reservation, window, kind, amount, moved, prime, "
    'team, "key", "user", feature, model, provider, note) '
    "SELECT ?1, value->>0, ?2, ?3, 'settle', value->>1, 0, value->>2, "
    "value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9 FROM json_each(?4)"
)
_POSTED: Final = "SELECT 1 FROM entry WHERE hold IN (SELECT value FROM json_each(?)) LIMIT 1"
_LEASE: Final = (
    "SELECT r.rest, min(s.window), count(*) FROM reservation r JOIN share s ON s.reservation = r.id "
    "WHERE r.id = ? AND r.state = 'held' GROUP BY r.id"
)


class Lot(NamedTuple):
    """What is paid from one reservation.  amount: nano-USD in all.  rows: its entries, JSON."""

    reservation: str
    amount: int
    rows: str


class Batch(NamedTuple):
    """holds: ids, JSON.  lots: None where some posting is not ordinary, whatever the ledger holds."""

    postings: Sequence[Posting]
    holds: str = ""
    lots: Sequence[Lot] | None = None


def ready(postings: Sequence[Posting]) -> Batch:
    """Ordinary: the only one of its hold, the truth, within what was held."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    sums: dict[str, int] = {}
    known: Note | None = None
    told: tuple[str | None, ...] = _UNTOLD
    for hold, reservation, amount, held, kind, note, last, counted in postings:
        if kind != "settle" or last or (amount or 0) > held:
            return Batch(postings)
        if reservation not in sums:
            sums[reservation], rows[reservation] = 0, []
        if amount is None:
            continue  # it leaves no entry
        sums[reservation] += amount
        if counted and note is not known:
            known, told = note, _told(note)
        rows[reservation].append((hold, amount, counted, *(told if counted else _UNTOLD)))
    holds = {posting.hold for posting in postings}
    if len(holds) < len(postings):
        return Batch(postings)
    lots = [Lot(id, amount, _json(rows[id])) for id, amount in sums.items()]
    return Batch(postings, _json(list(holds)), lots)


def post_all(accounts: Accounts, batch: Batch, now: int) -> list[str]:
    """As accounts.post for one after the other."""
    windows = _windows(accounts, batch)
    if windows is None or batch.lots is None:
        return [accounts.post(posting, now) for posting in batch.postings]
    for (id, amount, rows), window in zip(batch.lots, windows, strict=True):
        accounts.run(_ENTRIES, (now, id, window, rows))
        accounts.run("UPDATE reservation SET rest = rest - ? WHERE id = ?", (amount, id))
        accounts.move(window, reserved=-amount, spent=amount)
    return ["ok"] * len(batch.postings)


def _windows(accounts: Accounts, batch: Batch) -> list[int] | None:
    """The window of each lot, where all of its postings come in time, for the first time, and find what they need."""
    if batch.lots is None or accounts.run(_POSTED, (batch.holds,)).fetchone():
        return None
    windows = []
    for id, amount, _ in batch.lots:
        found = accounts.run(_LEASE, (id,)).fetchone()
        if found is None or found[0] < amount or found[2] != 1:
            return None
        windows.append(found[1])
    return windows


def _told(note: Note | None) -> tuple[str | None, ...]:
    """What an entry's columns say of it.  A note that says no more than they do is not kept."""
    note = storable(note) or {}
    return (*values(note), None if note.keys() <= _COLUMNS else write_note(note))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
