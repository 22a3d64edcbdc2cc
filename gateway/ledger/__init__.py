"""Who may still spend how much: budgets, their periods, what is reserved in them and what was spent.

Money is an integer of nano-USD (1e-9 USD).  For each window (one budget in one period) a ledger keeps, at every commit:

    spent + reserved <= ceiling               the database itself refuses anything else
    reserved = what open reservations still hold
    spent + overrun = the sum of the entries  which are never changed and never deleted

A reservation is asked for before a call leaves (reserve), charged with what the call cost (post), and what it did not
need is given back (release).  One whose owner died is charged by what is known of it (expire); the truth that arrives
later becomes one correcting entry.  A lease is a reservation from which its owner pays for many calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

Period = Literal["day", "week", "month", "total"]
Reason = Literal["exhausted", "contended", "frozen", "window_over", "unknown_window", "lost"]
Dimension = Literal["team", "key", "user", "feature", "model", "provider", "day"]
Note = Mapping[str, str | int | bool | None]

PERIODS: Final = ("day", "week", "month", "total")
DIMENSIONS: Final = ("team", "key", "user", "feature", "model", "provider")  # of a note, that spend() can ask for
MAX_NANO: Final = 9_200_000_000_000_000_000  # 9.2 billion USD: what a 64-bit integer holds, rounded down
CONTENDED_RETRY: Final = 1.0  # seconds after which what others hold may be free again
EXPIRE_AT_MOST: Final = 100  # reservations in one call of expire: a clock that leapt must not end them all at once
UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")  # what PostgreSQL or UTF-8 has no place for
OVERDUE: Final = 30  # seconds after which a reservation past its time should have been expired by somebody


class LedgerError(Exception):
    """The ledger cannot do this; nothing was changed.  The message says what to mend."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be asked now.  The same question, with the same ids, may be asked again."""


class Budget(NamedTuple):
    """What is limited.  id: unique per scope and period, such as "team:checkout/month" or "user:checkout/u-17/day".

    zone: IANA name; days, ISO weeks and months begin at its midnight.  limit: nano-USD, 0 … MAX_NANO.
    hard: refuses what does not fit.  A soft one only counts: it never refuses, and its ceiling is the largest integer.
    """

    id: str
    period: Period
    zone: str
    limit: int
    hard: bool


class Window(Struct, frozen=True, gc=False):
    """One budget in one period, as it stood when it was read.  start, end: ns since the epoch; None: "total".

    limit: what admission is held to.  ceiling: the limit, or what was committed already when the limit was lowered.
    overrun: what was billed above what had been held.  seq: grows with each change.
    seconds_left: until the window ends, by the database's clock; None: it does not end.
    """

    id: int
    budget: str
    start: int | None
    end: int | None
    limit: int
    ceiling: int
    spent: int
    reserved: int
    overrun: int
    frozen: bool
    hard: bool
    seq: int
    seconds_left: float | None

    @property
    def available(self) -> int:
        """nano-USD that a reservation may still take; 0 for a hard window that is full, MAX_NANO for a soft one."""
        return max(self.limit - self.spent - self.overrun - self.reserved, 0) if self.hard else MAX_NANO


class Granted(NamedTuple):
    """The reservation is committed.  amount: nano-USD: what was asked, or, for a lease, what fitted.

    left: what its fullest hard window can still take after it; None: all are soft, or this is a replay.
    replay: the same id was granted this before.
    """

    reservation: str
    amount: int
    left: int | None = None
    replay: bool = False


class Refused(NamedTuple):
    """Nothing was reserved.  window: the one that refused.  available: what would fit into all of them now.

    exhausted: what is spent already leaves too little; retrying helps when the window has ended (retry; None: never).
    contended: it would fit were it not for what others hold; retry: a guess.
    frozen: an operator or an alarm stopped this budget.  window_over: open the windows again.
    unknown_window: no such window.  lost: the reservation is no longer held (expired or closed): ask under a new id.
    """

    reason: Reason
    window: int | None
    retry: float | None = None
    available: int = 0


class Posting(NamedTuple):
    """What one hold really cost.

    hold: the gateway-made id of the attempt, such as "req_….1", never the reservation's own: a second posting of it
    changes nothing, except that a bill is charged still where none was expected (amount=None leaves no entry).
    reservation: the reservation or lease it is paid from.  held: nano-USD it had held.
    amount: nano-USD; None: it certainly billed nothing.  What lies above `held` is overrun.
    kind: "settle": this is the truth.  "expire": it is not known; this is charged until the truth arrives (<= held).
    note: kept on the entry for spend questions (see DIMENSIONS; anything else small may be in it); characters that a
    database cannot hold become U+FFFD.
    last: nothing else will be paid from the reservation: its rest is given back in the same step.
    counted: spend() counts it.  A call that is paid from several leases is counted in one of them.
    """

    hold: str
    reservation: str
    amount: int | None
    held: int
    kind: Literal["settle", "expire"] = "settle"
    note: Note | None = None
    last: bool = False
    counted: bool = True


class Spend(NamedTuple):
    """One line of an answer to a spend question.  values: of the dimensions asked for, in that order; None: unknown.

    amount: nano-USD, overruns included.  overrun: the part that was billed above what had been held.
    entries: how many entries this is the sum of.
    """

    values: tuple[str | None, ...]
    amount: int
    overrun: int
    entries: int


class Holder(NamedTuple):
    """Who holds part of a window.  rest: nano-USD still reserved.  since: ns since the epoch.

    seconds_left: until it expires unless renewed; below 0: it is due.
    """

    reservation: str
    owner: str
    rest: int
    since: int
    seconds_left: float
    note: dict[str, str | int | bool | None]


class Defect(NamedTuple):
    """What must not be.  found, expected: nano-USD, or seconds where overdue.

    over: more committed than the ceiling.  reserved_drift: a window's reserved is not what open reservations hold.
    ledger_drift: its spent and overrun are not the sum of its entries.  overdue: nobody expired what should have been.
    """

    kind: Literal["over", "reserved_drift", "ledger_drift", "overdue"]
    window: int | None
    reservation: str | None
    found: int
    expected: int


Journal = Callable[[str], "list[Posting] | None"]


class Ledger(Protocol):
    """Every method raises LedgerUnavailable where the database does not answer, and never waits for it for long.

    What was returned is durable.  Arguments that cannot be (a negative amount, no window) raise ValueError.
    """

    async def open_windows(self, budgets: Sequence[Budget]) -> list[Window]:
        """The current window of each, in the order given, by the database's clock; made where missing.

        A new period is a new row.  A window that is still running is kept when the zone of its budget changed; the
        next one begins where it ended, so that no moment lies in two of them or in none.
        A limit that changed is changed at once; lowered below what is committed, the ceiling stays above it.
        """

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
        """Holds `amount` in all of the windows, or in none.  Asked again with the same id, it answers the same.

        minimum: a lease: with exactly one window, what fits between minimum and amount is granted.
        ttl: seconds until it may be expired unless renewed.  note: kept for holders(), and for spend() if it is charged
        when it expires.
        """

    async def post(self, postings: Sequence[Posting]) -> list[str]:
        """Charges.  One transaction; for each posting, in order, one word:

        ok: charged.  overrun: charged, and more was billed than was held.
        corrected: the reservation, or the hold, had expired: one entry corrects what was charged then.
        already: this hold was posted before; nothing changed.  unknown: no such reservation; nothing changed.
        """

    async def release(self, reservation: str, amount: int | None = None) -> str:
        """Gives back part of what is still held, or (None) all of it: released | closed | already | unknown.

        unknown: no such reservation; where all of it was given back, there never will be: reserve answers lost.
        closed: nothing is left, so nothing more can be taken.  Of an expired reservation, what was charged for it and
        what no posting has claimed is given back by one correcting entry.
        """

    async def grow(self, reservation: str, amount: int, minimum: int) -> Granted | Refused:
        """A lease takes between minimum and amount more from its window.  Granted.amount: what was added."""

    async def renew(self, owner: str, ttl: float) -> list[str]:
        """Prolongs all that this owner holds by ttl seconds from now.

        The ids of its reservations that have expired and not been released since.
        """

    async def expire(self, journal: Journal) -> int:
        """Ends reservations whose time is over, one in each transaction; how many (at most EXPIRE_AT_MOST a call).

        journal: what is known of a reservation's holds: they are posted and the rest is given back.  None: nothing is
        known: hard windows are charged all that is left, soft ones nothing.  Called on the event loop.
        One that cannot be ended does not keep the others; what was wrong with the first of them is raised at the end.
        """

    async def freeze(self, windows: Sequence[int], frozen: bool = True) -> int:
        """Stops these windows from granting anything, or lets them again.  How many changed."""

    async def audit(self) -> list[Defect]:
        """Must be empty, at any moment."""

    async def windows(
        self,
        prefix: str = "",
        *,
        ids: Sequence[int] | None = None,
        current: bool = True,
        limit: int = 1000,
        after: int = 0,
    ) -> list[Window]:
        """Windows by id, above `after`.  prefix: of the budget's id.  current: only those that are running now."""

    async def spend(
        self,
        by: Sequence[Dimension],
        *,
        since: int | None = None,
        until: int | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[Spend]:
        """Each hold is counted once, however many windows it lay in; largest first.

        since, until: ns since the epoch, by the time of posting; until is not included.  day: in UTC.
        filters: dimension -> the value it must have.
        """

    async def holders(self, window: int) -> list[Holder]:
        """Who holds what in a window now; largest first."""

    async def clock(self) -> int:
        """Now, by the clock that decides periods and expiry; ns since the epoch."""

    async def aclose(self) -> None: ...


def check_budget(budget: Budget) -> None:
    """Raises ValueError that names the field and the mend."""
    if not budget.id or len(budget.id) > 512 or UNSTORABLE.search(budget.id):
        raise ValueError("a budget's id has 1 to 512 characters, none of them NUL or a lone surrogate")
    if budget.period not in PERIODS:
        raise ValueError(f"budget {budget.id}: period {budget.period!r} is not one of {', '.join(PERIODS)}")
    check_amount(f"budget {budget.id}: limit", budget.limit)
    try:
        ZoneInfo(budget.zone)
    except (ValueError, OSError, LookupError):
        raise ValueError(
            f"budget {budget.id}: no time zone {budget.zone!r}; use an IANA name such as Asia/Tokyo"
        ) from None


def check_amount(what: str, amount: int, least: int = 0) -> None:
    if type(amount) is not int or not least <= amount <= MAX_NANO:
        raise ValueError(f"{what}: {amount!r} is not a whole number of nano-USD from {least} to {MAX_NANO}")


def check_reserve(id: str, windows: Sequence[int], amount: int, minimum: int | None, ttl: float) -> None:
    check_amount("amount", amount)
    if not id or not windows or len(set(windows)) != len(windows):
        raise ValueError("a reservation needs an id and at least one window, each named once")
    check_ttl(ttl)
    if minimum is not None:
        if len(windows) != 1:
            raise ValueError("a lease (minimum=…) is taken from exactly one window")
        check_lease(amount, minimum)


def check_lease(amount: int, minimum: int) -> None:
    check_amount("amount", amount, 1)
    check_amount("minimum", minimum, 1)
    if minimum > amount:
        raise ValueError(f"minimum: {minimum} is above amount: {amount}")


def check_ttl(ttl: float) -> None:
    if not 0 < ttl <= 366 * 86400:
        raise ValueError(f"ttl: {ttl!r} is not between 0 seconds and a year")


def check_posting(posting: Posting) -> None:
    hold, reservation, amount, held, kind, *_ = posting
    if (
        kind == "settle"
        and hold
        and hold != reservation
        and type(held) is int
        and 0 <= held <= MAX_NANO
        and (amount is None or (type(amount) is int and 0 <= amount <= MAX_NANO))
    ):
        return  # as nearly all are: nothing is worded for them
    check_amount(f"posting {hold}: held", held)
    if not hold or hold == reservation:
        raise ValueError("a posting names its hold, which is never the reservation's own id")
    if amount is not None:
        check_amount(f"posting {hold}: amount", amount)
    if kind not in ("settle", "expire"):
        raise ValueError(f"posting {hold}: kind {kind!r} is neither settle nor expire")
    if kind == "expire" and (amount is None or amount > held):
        raise ValueError(f"posting {hold}: what expires is charged between 0 and what it held")


def check_spend(by: Sequence[str], filters: Mapping[str, str]) -> None:
    for word in by:
        if word not in DIMENSIONS and word != "day":
            raise ValueError(f"by: {word!r} is not one of {', '.join(DIMENSIONS)}, day")
    if len(set(by)) != len(by):
        raise ValueError("by: each dimension can be asked for once")
    for word in filters:
        if word not in DIMENSIONS:
            raise ValueError(f"filters: {word!r} is not one of {', '.join(DIMENSIONS)}")


def storable(note: Note | None) -> Note | None:
    """What callers wrote must not stop their own bill, let alone those that are posted beside it."""
    if note is None or not UNSTORABLE.search("".join([*note, *[v for v in note.values() if isinstance(v, str)]])):
        return note
    return {
        UNSTORABLE.sub("\ufffd", word): UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value
        for word, value in note.items()
    }


def write_note(note: Note | None) -> str | None:
    return None if note is None else json.dumps(storable(note), separators=(",", ":"), ensure_ascii=False)


async def expire_each(
    due: Sequence[str], journal: Journal, end: Callable[[str, list[Posting] | None], Awaitable[bool]]
) -> int:
    """How many of these reservations `end` has ended.  Raises, at the end, what the first that failed raised."""
    ended = 0
    failed: Exception | None = None
    for id in due:
        try:
            known = journal(id)
            for posting in known or ():
                check_posting(posting)
                if posting.reservation != id:
                    raise ValueError(f"the journal was asked for {id} and told of {posting.reservation}")
            ended += await end(id, known)
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return ended
