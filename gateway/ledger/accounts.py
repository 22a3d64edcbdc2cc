"""The bookkeeping of the SQLite ledger: each method is one step inside a transaction that its caller began.

`now` is always ns since the epoch, by the ledger's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import apsw

from gateway.ledger import (
    CONTENDED_RETRY,
    DIMENSIONS,
    Budget,
    Granted,
    LedgerError,
    Note,
    Posting,
    Refused,
    Window,
    write_note,
)
from gateway.periods import period_of

SOFT_CEILING: Final = 2**63 - 1
SECOND: Final = 1_000_000_000
WINDOW: Final = (
    "SELECT id, budget, CASE WHEN ends IS NULL THEN NULL ELSE starts END, ends, limit_nano, ceiling, spent, reserved, "
    "overrun, frozen, hard, seq FROM budget_window "
)
WINDOWS: Final = (
    WINDOW + "WHERE id > ?1 AND substr(budget, 1, length(?2)) = ?2 "  # noqa: S608  (constants only)
    "AND (?3 IS NULL OR id IN (SELECT value FROM json_each(?3))) "
    "AND (NOT ?4 OR ends IS NULL OR starts <= ?5 AND ?5 < ends) ORDER BY id LIMIT ?6"
)
ENTRY: Final = (
    "INSERT INTO entry(at, hold, reservation, window, kind, amount, moved, prime, "
    'team, "key", "user", feature, model, provider, note) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)'
)


class Reservation(NamedTuple):
    id: str
    granted: int
    rest: int
    state: str
    note: str | None
    owner: str


class Share(NamedTuple):
    """A reservation in one of its windows.  charged: when it expired, and claimed by no posting yet."""

    window: int
    prime: int
    charged: int


class Change(NamedTuple):
    """What one posting does to one window.  entry: the amount of its own entry, which may be below 0."""

    entry: int
    reserved: int
    over: int
    moved: int


def read_window(row: Sequence[object], now: int) -> Window:
    id, budget, start, end, limit, ceiling, spent, reserved, overrun, frozen, hard, seq = row
    assert isinstance(id, int)
    left = None if end is None else (end - now) / SECOND  # type: ignore[operator]  # apsw tells no column types
    return Window(
        id, budget, start, end, limit, ceiling, spent, reserved, overrun, bool(frozen), bool(hard), seq, left  # type: ignore[arg-type]  # as above
    )  # fmt: skip


def admit(windows: Sequence[Window], amount: int, minimum: int | None) -> Refused | int:
    """What may be reserved in all of these windows: a refusal, or the amount that is granted."""
    least = amount if minimum is None else minimum
    available = min(window.available for window in windows)
    found: dict[str, Window] = {}
    for window in windows:
        used = window.spent + window.overrun
        if window.frozen:
            found.setdefault("frozen", window)
        elif window.seconds_left is not None and window.seconds_left <= 0:
            found.setdefault("window_over", window)
        elif window.hard and used + least > window.limit:
            found.setdefault("exhausted", window)
        elif window.hard and used + window.reserved + least > window.limit:
            found.setdefault("contended", window)
    if "frozen" in found:
        return Refused("frozen", found["frozen"].id, None, 0)
    if "window_over" in found:
        return Refused("window_over", found["window_over"].id, 0.0, 0)
    if "exhausted" in found:
        # With several of them a retry helps when the last has ended.
        ends = [w.seconds_left for w in windows if w.hard and w.spent + w.overrun + least > w.limit]
        retry = None if None in ends else max(end for end in ends if end is not None)
        return Refused("exhausted", found["exhausted"].id, retry, available)
    if "contended" in found:
        return Refused("contended", found["contended"].id, CONTENDED_RETRY, available)
    return min(amount, available) if minimum is not None else amount


def charge(window: tuple[int, int, int], posting: Posting, covered: int, claimed: int, moved: int) -> Change:
    """What a posting does to a window of (ceiling, spent, reserved).

    covered: taken from what is still reserved.  claimed: charged for this hold when it, or its reservation, expired.
    What is neither covered nor claimed, but within the hold, is charged as far as the ceiling allows; the rest of it,
    and what is above the hold, is overrun.
    """
    ceiling, spent, reserved = window
    amount = posting.amount or 0
    own = min(amount, posting.held)
    base = min(own, covered or claimed)
    spent += base - claimed
    extra = min(own - base, max(ceiling - spent - (reserved - covered), 0))
    return Change(base - claimed + extra, -covered, amount - base - extra, moved)


class Accounts:
    """Windows, reservations and entries in one SQLite file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.run = connection.execute
        self._connection = connection

    def open_window(self, budget: Budget, now: int) -> Window:
        """The one that is running, with today's limit; a new one where none is."""
        window = self._running(budget.id, now)
        if window is None:
            starts, ends = period_of(budget.period, budget.zone, now) or (0, None)
            ((last,),) = self.run("SELECT coalesce(max(ends), 0) FROM budget_window WHERE budget = ?", (budget.id,))
            starts = max(starts, last)  # it may reach back into an older one where the zone changed
            ceiling = budget.limit if budget.hard else SOFT_CEILING
            self.run(
                "INSERT INTO budget_window(budget, starts, ends, limit_nano, ceiling, hard) VALUES (?,?,?,?,?,?)",
                (budget.id, starts, ends, budget.limit, ceiling, budget.hard),
            )
            window = self._running(budget.id, now)
            assert window is not None
        elif (window.limit, window.hard) != (budget.limit, budget.hard):
            self.run(
                "UPDATE budget_window SET limit_nano = ?1, hard = ?2, seq = seq + 1, "
                "ceiling = CASE WHEN ?2 THEN max(?1, spent + reserved) ELSE ?3 END WHERE id = ?4",
                (budget.limit, budget.hard, SOFT_CEILING, window.id),
            )
            window = self.window(window.id, now)
            assert window is not None
        return window

    def _running(self, budget: str, now: int) -> Window | None:
        found = self.run(
            WINDOW + "WHERE budget = ? AND (ends IS NULL OR starts <= ? AND ? < ends) ORDER BY starts DESC LIMIT 1",
            (budget, now, now),
        ).fetchone()
        return None if found is None else read_window(found, now)

    def window(self, id: int, now: int) -> Window | None:
        found = self.run(WINDOW + "WHERE id = ?", (id,)).fetchone()
        return None if found is None else read_window(found, now)

    def replay(self, id: str, windows: Sequence[int]) -> Granted | Refused | None:
        """What was answered to this id before; None: it is new."""
        reservation = self.reservation(id)
        if reservation is None:
            return None
        if not reservation.owner:  # released before it came
            return Refused("lost", None)
        if sorted(windows) != [share.window for share in self.shares(id)]:
            raise LedgerError(f"reservation {id} was made for other windows: an id names one reservation only")
        if reservation.state != "held":
            return Refused("lost", None)
        return Granted(id, reservation.granted, None, replay=True)

    def reserve(
        self,
        id: str,
        windows: Sequence[int],
        amount: int,
        minimum: int | None,
        now: int,
        told: tuple[str, int, Note | None],
    ) -> Granted | Refused:
        """told: owner, when it expires, note."""
        before = self.replay(id, windows)
        if before is not None:
            return before
        rows = []
        for number in sorted(windows):
            window = self.window(number, now)
            if window is None:  # never "missing = unlimited"
                return Refused("unknown_window", number)
            rows.append(window)
        granted = admit(rows, amount, minimum)
        if isinstance(granted, Refused):
            return granted
        prime = next((window.id for window in rows if window.hard), rows[0].id)
        owner, expires, note = told
        self.run(
            "INSERT INTO reservation VALUES (?,?,?,'held',?,?,?,?)",
            (id, granted, granted, owner, now, expires, write_note(note)),
        )
        for window in rows:
            self.run("INSERT INTO share VALUES (?,?,?,0)", (id, window.id, window.id == prime))
            self.move(window.id, reserved=granted)
        hard = [window.available - granted for window in rows if window.hard]
        return Granted(id, granted, min(hard) if hard else None)

    def grow(self, id: str, amount: int, minimum: int, now: int) -> Granted | Refused:
        reservation = self.reservation(id)
        if reservation is None or reservation.state != "held":
            return Refused("lost", None)
        shares = self.shares(id)
        if len(shares) != 1:
            raise ValueError(f"reservation {id} lies in {len(shares)} windows: only a lease of one window grows")
        window = self.window(shares[0].window, now)
        assert window is not None
        granted = admit([window], amount, minimum)
        if isinstance(granted, Refused):
            return granted
        self.move(window.id, reserved=granted)
        self.run("UPDATE reservation SET rest = rest + ? WHERE id = ?", (granted, id))
        return Granted(id, granted, window.available - granted if window.hard else None)

    def post(self, posting: Posting, now: int) -> str:
        reservation = self.reservation(posting.reservation)
        if reservation is None:
            return "unknown"
        charged = dict[int, int]()
        for window, kind, amount in self.run("SELECT window, kind, amount FROM entry WHERE hold = ?", (posting.hold,)):
            if kind != "expire" or posting.kind == "expire":
                return "already"
            charged[window] = amount
        late = reservation.state != "held" or bool(charged)
        if late and posting.kind == "expire":
            return "already"
        if late and posting.amount is None and not charged and not any(s.charged for s in self.shares(reservation.id)):
            return "already"  # nothing was billed and nothing is charged for it
        if posting.kind == "expire":  # what is in doubt is charged only from what is still reserved: never an overrun
            posting = posting._replace(amount=min(posting.amount or 0, reservation.rest))
        over = False
        if late or posting.amount is not None:
            rest = 0 if late else reservation.rest
            over = self._post(posting, rest, charged if late else None, now)
        if posting.last:
            self.release(posting.reservation, None, now)
        return "overrun" if over else "corrected" if late else "ok"

    def _post(self, posting: Posting, rest: int, charged: Mapping[int, int] | None, now: int) -> bool:
        """Whether there was an overrun.

        charged: None: the posting is in time; else window -> what this hold was charged when it expired.
        """
        covered = min(posting.amount or 0, posting.held, rest)
        if covered:
            self.run("UPDATE reservation SET rest = rest - ? WHERE id = ?", (covered, posting.reservation))
        overrun = False
        for share in self.shares(posting.reservation):
            moved = 0
            if charged is not None and not charged:  # not the hold but its reservation expired: claim from that
                moved = min(posting.held, share.charged)
                self._claim(posting.reservation, share.window, moved)
            claimed = moved or (charged or {}).get(share.window, 0)
            sums = self.run(
                "SELECT ceiling, spent, reserved FROM budget_window WHERE id = ?", (share.window,)
            ).fetchone()
            assert sums is not None
            change = charge(sums, posting, covered, claimed, moved)
            self.move(share.window, reserved=change.reserved, spent=change.entry, overrun=change.over)
            kind = posting.kind if charged is None else "correct"
            note = write_note(posting.note)
            told = (posting.hold, posting.reservation, share._replace(prime=share.prime and posting.counted), note)
            self._enter(told, kind, change.entry, now, moved)
            if change.over:
                self._enter(told, "overrun", change.over, now)
                overrun = True
        return overrun

    def release(self, id: str, amount: int | None, now: int) -> str:
        reservation = self.reservation(id)
        if reservation is None:
            if amount is None:  # it never will be: what was asked for before a crash may still be on its way
                self.run("INSERT INTO reservation VALUES (?,0,0,'closed','',?,?,NULL)", (id, now, now))
            return "unknown"
        if reservation.state == "closed" or (reservation.state == "expired" and amount is not None):
            return "already"
        shares = self.shares(id)
        if reservation.state == "expired":
            for share in shares:
                if share.charged:
                    self._claim(id, share.window, share.charged)
                    self.move(share.window, spent=-share.charged)
                    self._enter((id, id, share, reservation.note), "correct", -share.charged, now)
            self._set(id, "closed", 0)
            return "closed"
        given = reservation.rest if amount is None else min(amount, reservation.rest)
        for share in shares:
            self.move(share.window, reserved=-given)
        rest = reservation.rest - given
        self._set(id, "held" if rest else "closed", rest)
        return "released" if rest else "closed"

    def renew(self, owner: str, expires: int) -> list[str]:
        self.run("UPDATE reservation SET expires = ? WHERE owner = ? AND state = 'held'", (expires, owner))
        lost = self.run("SELECT id FROM reservation WHERE owner = ? AND state = 'expired' ORDER BY id", (owner,))
        return [id for (id,) in lost]

    def due(self, now: int, limit: int) -> list[str]:
        found = self.run(
            "SELECT id FROM reservation WHERE state = 'held' AND expires <= ? ORDER BY expires, id LIMIT ?",
            (now, limit),
        )
        return [id for (id,) in found]

    def expire(self, id: str, known: Sequence[Posting] | None, now: int) -> bool:
        """Whether it was due still.  known: what its holds cost; None: nothing is known of them."""
        if not self.run(
            "SELECT 1 FROM reservation WHERE id = ? AND state = 'held' AND expires <= ?", (id, now)
        ).fetchone():
            return False
        for posting in known or ():
            self.post(posting._replace(last=False), now)
        reservation = self.reservation(id)
        assert reservation is not None
        rest = reservation.rest
        for share in self.shares(id):
            window = self.window(share.window, now)
            assert window is not None
            charged = rest if known is None and window.hard else 0
            self.move(share.window, reserved=-rest, spent=charged)
            if charged:
                self._claim(id, share.window, -charged)
                self._enter((id, id, share, reservation.note), "expire", charged, now)
        self._set(id, "expired", 0)
        return True

    def freeze(self, windows: Sequence[int], frozen: bool) -> int:
        changed = 0
        for number in windows:
            self.run(
                "UPDATE budget_window SET frozen = ?1, seq = seq + 1 WHERE id = ?2 AND frozen <> ?1", (frozen, number)
            )
            changed += self._connection.changes()
        return changed

    def reservation(self, id: str) -> Reservation | None:
        found = self.run("SELECT id, granted, rest, state, note, owner FROM reservation WHERE id = ?", (id,)).fetchone()
        return None if found is None else Reservation(*found)

    def shares(self, id: str) -> list[Share]:
        found = self.run("SELECT window, prime, charged FROM share WHERE reservation = ? ORDER BY window", (id,))
        return [Share(*row) for row in found]

    def _set(self, id: str, state: str, rest: int) -> None:
        self.run("UPDATE reservation SET state = ?, rest = ? WHERE id = ?", (state, rest, id))

    def _claim(self, id: str, window: int, amount: int) -> None:
        if amount:
            self.run(
                "UPDATE share SET charged = charged - ? WHERE reservation = ? AND window = ?", (amount, id, window)
            )

    def move(self, window: int, *, reserved: int = 0, spent: int = 0, overrun: int = 0) -> None:
        """All three at once, so that the CHECK sees no state between."""
        self.run(
            "UPDATE budget_window SET reserved = reserved + ?, spent = spent + ?, overrun = overrun + ?, seq = seq + 1 "
            "WHERE id = ?",
            (reserved, spent, overrun, window),
        )

    def _enter(
        self, told: tuple[str, str, Share, str | None], kind: str, amount: int, now: int, moved: int = 0
    ) -> None:
        """told: hold, reservation, share, note.  The note stands in the prime window's entry only."""
        hold, reservation, share, note = told
        note = note if share.prime else None
        words = json.loads(note) if note else {}
        facts = (now, hold, reservation, share.window, kind, amount, moved, share.prime)
        self.run(ENTRY, (*facts, *values(words), note))


def values(words: Mapping[str, object]) -> list[str | None]:
    """What spend questions can be asked by."""
    return [None if words.get(name) is None else str(words[name]) for name in DIMENSIONS]
