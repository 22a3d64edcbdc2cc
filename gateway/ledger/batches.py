"""Many postings at once, in the SQLite ledger: what is ordinary among them costs a fifth of what it does one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Final

from gateway.ledger import DIMENSIONS, Posting, storable, write_note
from gateway.ledger.accounts import ENTRY, Accounts, Share, values

ROWS: Final = 64  # entries in one statement
_MORE: Final = ",(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_COLUMNS: Final = frozenset(DIMENSIONS)


def post_all(accounts: Accounts, postings: Sequence[Posting], now: int) -> list[str]:
    """As accounts.post for one after the other."""
    ordinary = _ordinary(accounts, postings)
    if ordinary is None:
        return [accounts.post(posting, now) for posting in postings]
    paid = [posting for posting in postings if posting.amount is not None]
    rows = [_row(posting, share, now) for posting in paid for share in ordinary[posting.reservation]]
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        accounts.run(ENTRY + _MORE * (len(part) - 1), tuple(chain.from_iterable(part)))
    spent: dict[str, int] = {}
    for posting in paid:
        spent[posting.reservation] = spent.get(posting.reservation, 0) + (posting.amount or 0)
    for id, amount in spent.items():
        accounts.run("UPDATE reservation SET rest = rest - ? WHERE id = ?", (amount, id))
        for share in ordinary[id]:
            accounts.move(share.window, reserved=-amount, spent=amount)
    return ["ok"] * len(postings)


def _ordinary(accounts: Accounts, postings: Sequence[Posting]) -> dict[str, list[Share]] | None:
    """The shares of each reservation, where all of these are the first of their hold, in time, and within it."""
    holds = {posting.hold for posting in postings}
    if len(holds) < len(postings) or any(posting.kind != "settle" or posting.last for posting in postings):
        return None
    asked = (json.dumps(list(holds)),)
    if accounts.run("SELECT 1 FROM entry WHERE hold IN (SELECT value FROM json_each(?)) LIMIT 1", asked).fetchone():
        return None
    rests: dict[str, int] = {}
    for posting in postings:
        id, amount = posting.reservation, posting.amount or 0
        if id not in rests:
            reservation = accounts.reservation(id)
            if reservation is None or reservation.state != "held":
                return None
            rests[id] = reservation.rest
        if amount > min(rests[id], posting.held):
            return None
        rests[id] -= amount
    return {id: accounts.shares(id) for id in rests}


def _row(posting: Posting, share: Share, now: int) -> tuple[object, ...]:
    """Its entry.  A note that says no more than the entry's columns do is not kept."""
    prime = share.prime and posting.counted
    note = (storable(posting.note) if prime else None) or {}
    kept = None if note.keys() <= _COLUMNS else write_note(note)
    told = (now, posting.hold, posting.reservation, share.window, "settle", posting.amount, 0, prime)
    return (*told, *values(note), kept)
