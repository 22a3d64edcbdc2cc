"""The parts of budgets that the ledger has reserved for this process: taken, enlarged, given back, lost.

A lease is large while much is left of its budget, so that the ledger is asked seldom, and no larger than needed near
the end, so that nothing lies idle here that another process could use.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Final, NamedTuple
from uuid import uuid4

import msgspec

from gateway.journal import Journal
from gateway.ledger import MAX_NANO, Budget, Granted, Ledger, LedgerUnavailable, Refused, Window

LARGEST: Final = 5_000_000_000  # nano-USD a lease takes at once, at most …
PART: Final = 50  # … and not more than this part of what is left
NEAR_END: Final = 20  # a window is near its end when less than this part of its limit is left
IDLE: Final = 2.0  # seconds after which a lease that nobody used is given back
AGAIN: Final = 1.0  # seconds after which a ledger that did not answer may be asked again


log = logging.getLogger("gateway")


class Claim(NamedTuple):
    """A budget that a call is held in.

    most: nano-USD that the open holds of one key may hold in it together.
    warn_at: parts of the limit whose spending is told in the log, once a window.
    """

    budget: Budget
    most: int = MAX_NANO
    warn_at: tuple[float, ...] = ()


class Shortage(NamedTuple):
    """Why nothing was held.  retry: seconds; None: waiting does not help.  available: nano-USD that would have fitted.

    reason: one of the ledger's refusals, or "unavailable": the ledger does not answer.
    """

    budget: Budget
    reason: str
    retry: float | None
    available: int


class Lease:
    """A reservation of this process in one window."""

    __slots__ = ("asking", "budget", "doubted", "free", "id", "lost", "open", "used")

    def __init__(self, id: str, budget: str, used: float) -> None:
        self.id = id
        self.budget = budget
        self.free = 0  # nano-USD
        self.open = 0  # holds that have not been posted
        self.used = used  # loop time of the last hold
        self.asking = False  # the ledger is asked for it, or for more of it: whatever it looks like, it is in use
        self.doubted = False  # it may be larger than is known here: an answer was lost
        self.lost = False  # expired in the ledger: nothing more can be taken from it

    def lose(self) -> None:
        self.lost = True
        self.free = 0


class Account:
    """One budget, as this process knows it."""

    __slots__ = ("asking", "budget", "ends", "frozen", "held", "lease", "waiting", "warn_at", "warned", "window")

    def __init__(self, claim: Claim) -> None:
        self.budget = claim.budget
        self.warn_at = claim.warn_at
        self.warned = 0.0  # the highest of these that was told of this window
        self.window: Window | None = None
        self.ends = 0.0  # loop time at which the window is over; never later than the database's clock says
        self.frozen = False
        self.lease: Lease | None = None
        self.asking = asyncio.Lock()
        self.held: dict[str, int] = {}  # key -> nano-USD that its open holds hold here
        self.waiting: deque[asyncio.Future[None]] = deque()

    def wake(self) -> None:
        """Something was given back: the first that waits tries again."""
        while self.waiting:
            one = self.waiting.popleft()
            if not one.done():
                one.set_result(None)
                return

    @property
    def left(self) -> int:
        """nano-USD that can still be spent here, as far as is known; what this process has leased is not spent yet."""
        if self.window is None:
            return 0
        return self.window.available + (self.lease.free if self.lease is not None else 0)

    @property
    def near_end(self) -> bool:
        window = self.window
        return window is not None and window.hard and window.available * NEAR_END < window.limit


class Leases:
    """Keeps an account for each budget that is used, and at most one lease in it that new holds are taken from."""

    def __init__(self, ledger: Ledger, journal: Journal, owner: str, ttl: float) -> None:
        self.accounts: dict[str, Account] = {}
        self._ledger = ledger
        self._journal = journal
        self._owner = owner
        self._ttl = ttl
        self._asked: set[asyncio.Future[Shortage | None]] = set()
        self._all: dict[str, Lease] = {}  # also those of windows that are over

    def account(self, claim: Claim) -> Account:
        budget = claim.budget
        account = self.accounts.get(budget.id)
        if account is None:
            account = self.accounts[budget.id] = Account(claim)
        elif account.budget is not budget and account.budget != budget:  # changed: its window is to be opened anew
            account.budget, account.warn_at = budget, claim.warn_at
            account.ends = 0.0
        return account

    async def refill(self, account: Account, amount: int) -> Shortage | None:
        """Makes the lease large enough for `amount`, or says why that cannot be.

        A caller that is cancelled meanwhile cancels only its own waiting: what the ledger grants is noted in any case.
        """
        asked = asyncio.ensure_future(self._refill(account, amount))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        return await asyncio.shield(asked)

    async def _refill(self, account: Account, amount: int) -> Shortage | None:
        loop = asyncio.get_running_loop()
        async with account.asking:
            lease = account.lease
            if lease is not None and lease.free >= amount and loop.time() < account.ends:
                return None  # another has refilled it meanwhile
            try:
                if loop.time() >= account.ends:
                    await self._open_window(account)
                return await self._ask(account, amount)
            except LedgerUnavailable:
                return Shortage(account.budget, "unavailable", AGAIN, 0)

    async def _open_window(self, account: Account) -> None:
        """The window that runs now.  Its end is reckoned from before the question, so that it is never too late."""
        asked = asyncio.get_running_loop().time()
        (window,) = await self._ledger.open_windows([account.budget])
        if account.window is None or account.window.id != window.id:
            account.warned = 0.0
            account.lease = None  # its open holds settle in the window that admitted them; then it is given back
        account.window = window
        account.frozen = window.frozen
        account.ends = math.inf if window.seconds_left is None else asked + window.seconds_left
        lease = account.lease
        if lease is not None and lease.free:  # the same window: its limit was changed, and what is leased is under it
            await self._release(lease)

    async def _ask(self, account: Account, amount: int) -> Shortage | None:
        window, lease = account.window, account.lease
        assert window is not None
        if lease is not None and lease.doubted:
            account.lease = lease = None  # it is given back when its calls are over
        free = lease.free if lease is not None else 0
        least = max(amount - free, 1)
        wanted = _wanted(account, window, least, amount)
        if lease is None:
            found = await self._take(account, window, wanted, least)
        else:
            found = await self._grow(lease, wanted, least)
        if isinstance(found, Granted):
            if found.left is not None:
                reserved = max(window.limit - window.spent - window.overrun - found.left, 0)
                account.window = msgspec.structs.replace(window, reserved=reserved)
            return None
        if found.reason == "lost" and lease is not None:
            lease.lose()
            account.lease = None
            return None  # the next round takes a new one
        if found.reason in ("window_over", "unknown_window"):
            account.ends = 0.0
            return None
        account.frozen = found.reason == "frozen"
        return Shortage(account.budget, found.reason, found.retry, found.available + free)

    async def _grow(self, lease: Lease, wanted: int, least: int) -> Granted | Refused:
        lease.asking = lease.doubted = True
        try:
            found = await self._ledger.grow(lease.id, wanted, least)
        finally:
            lease.asking = False
        lease.doubted = False
        if isinstance(found, Granted) and not lease.lost:
            lease.free += found.amount
        return found

    async def _take(self, account: Account, window: Window, wanted: int, least: int) -> Granted | Refused:
        lease = Lease(f"lease_{uuid4().hex}", account.budget.id, asyncio.get_running_loop().time())
        try:
            self._journal.lease(lease.id)  # before it is asked for: should the answer be lost, it is given back
        except OSError as error:
            raise LedgerUnavailable(str(error)) from error
        self._all[lease.id] = lease
        lease.asking = True
        try:
            found = await self._ledger.reserve(
                lease.id, [window.id], wanted, minimum=least, owner=self._owner, ttl=self._ttl
            )
        finally:
            lease.asking = False
        if isinstance(found, Granted):
            lease.free = found.amount
            account.lease = lease
        else:
            del self._all[lease.id]
            self._journal.returned(lease.id)
        return found

    async def return_idle(self) -> None:
        """What nobody used for a while, or what others may need near the end of a window, is given back."""
        now = asyncio.get_running_loop().time()
        for account in list(self.accounts.values()):
            lease = account.lease
            if account.asking.locked():
                continue
            if lease is None:
                if not account.held and not account.waiting:  # callers choose some of the names: they must not pile up
                    del self.accounts[account.budget.id]
            elif lease.lost or (not lease.open and now - lease.used > IDLE):
                account.lease = None
            elif lease.free and (now - lease.used > IDLE or account.near_end):
                await self._release(lease)
        for lease in list(self._all.values()):
            mine = self.accounts.get(lease.budget)  # looked up each time: while one is given back, others are taken
            current = mine is not None and mine.lease is lease
            if not (lease.open or lease.asking or current):
                await self._give_back(lease)

    async def _release(self, lease: Lease) -> None:
        """What no hold holds.  Where the answer is lost it may be reserved still: another lease takes its place."""
        rest, lease.free = lease.free, 0
        try:
            await self._ledger.release(lease.id, rest)
        except BaseException:
            lease.doubted = True
            raise

    async def lost(self, id: str) -> None:
        """The ledger has ended this lease.  When all its calls are over, what it was charged beyond them comes back."""
        lease = self._all.get(id)
        if lease is not None:
            lease.lose()
        if lease is None or not lease.open:
            await self._ledger.release(id)
            self._all.pop(id, None)
            self._journal.returned(id)

    async def look(self) -> None:
        """What others spent, and what an operator changed."""
        known = {account.window.id: account for account in self.accounts.values() if account.window is not None}
        for window in await self._ledger.windows(ids=list(known), limit=len(known)) if known else ():
            account = known[window.id]
            account.window = window
            account.frozen = window.frozen
            _warn(account, window)

    async def give_all_back(self) -> None:
        for lease in list(self._all.values()):
            await self._give_back(lease)

    async def _give_back(self, lease: Lease) -> None:
        lease.free = 0
        await self._ledger.release(lease.id)
        self._all.pop(lease.id, None)
        self._journal.returned(lease.id)


def _wanted(account: Account, window: Window, least: int, unit: int) -> int:
    """nano-USD to ask for: for many calls where much is left, and whole calls, so that no part of one lies idle."""
    if not window.hard:
        return max(LARGEST, least)
    if account.near_end:
        return least
    more = min(LARGEST, window.available // PART)
    return least + more // unit * unit if unit else least + more


def _warn(account: Account, window: Window) -> None:
    """Once for each threshold and window; where several are passed at once, the highest is told."""
    used = window.spent + window.overrun
    passed = max((part for part in account.warn_at if used >= part * window.limit), default=0.0)
    if passed > account.warned and window.limit:
        account.warned = passed
        spent, limit = used / 1e9, window.limit / 1e9
        log.warning(
            "budget '%s': %.2f of %.2f USD are spent (%.0f %%)", window.budget, spent, limit, 100 * spent / limit
        )
