"""Every open hold of this process: taken from leases in memory, journalled, reported, posted; never forgotten.

A lease is part of a budget's window that the ledger has reserved for this process.  A call holds its worst cost in one
lease for each of its budgets, in one step that nothing interrupts; so admission asks no database unless a lease is too
small.  What a call really cost is *reported*, which never waits; a task of this file's own posts it to the ledger.

    free = granted - what open holds hold - what ended holds cost          of each lease, at any moment

Before a call leaves, its hold is in the journal, from which a successor settles what a crash left open.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from gateway import journal
from gateway.journal import Journal
from gateway.leases import Account, Claim, Lease, Leases, Shortage
from gateway.ledger import Ledger, LedgerError, LedgerUnavailable, Note, Posting

TTL: Final = 60.0  # seconds a lease lives unless its owner says that it lives
RENEW: Final = 15.0  # seconds between two such words, and between two looks for leases whose owner is gone
FLUSH: Final = 0.05  # seconds a report may wait for company
BATCH: Final = 500  # postings in one transaction
LOOK: Final = 2.0  # seconds between two looks at the windows, for what other processes spent and an operator changed
AUDIT: Final = 60.0  # seconds between two audits
TEND: Final = 0.5  # seconds between two looks for leases that nobody uses
POLL: Final = 0.1  # seconds between two tries of a call that waits for what others hold
AGAIN: Final = 1.0  # seconds until a ledger that did not answer is asked again
ROUNDS: Final = 256  # tries to have all leases large enough at once, while others take from them

log = logging.getLogger("gateway")


class Part(NamedTuple):
    """A hold in one of its budgets.  lease: None: a soft budget whose ledger did not answer: charged when it does."""

    account: Account
    lease: Lease | None


class Hold:
    """A call's worst cost, held in each of its budgets.  Open until it is reported, once."""

    __slots__ = ("amount", "cost", "id", "key", "note", "parts", "reported", "unposted")

    def __init__(self, id: str, amount: int, parts: Sequence[Part], key: str, note: Note) -> None:
        self.id = id
        self.amount = amount  # nano-USD, in each part
        self.cost: int | None = None  # nano-USD, once it is reported; None: it certainly billed nothing
        self.parts = parts
        self.key = key
        self.note = note
        self.reported = False
        self.unposted = len(parts)


_Report = tuple[Hold, int]  # one part of a hold that is over; it waits to be posted


class Books:
    """One for the process.  `open` before the first hold, `aclose` after the last."""

    def __init__(self, ledger: Ledger, prefix: Path, *, wait: float = 2.0) -> None:
        """prefix: path of the journals, up to their owner's name.  wait: seconds a call waits for what others hold."""
        self.owner = uuid4().hex
        self.holds: dict[str, Hold] = {}
        self.defects = 0  # what the last audit found
        self.overruns = 0  # postings above their hold
        self.ledger = ledger
        self._prefix = prefix
        self._journal = Journal(prefix, self.owner)
        self._leases = Leases(ledger, self._journal, self.owner, TTL)
        self._wait = wait
        self._reports: deque[_Report] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._audited = -math.inf

    @property
    def accounts(self) -> Mapping[str, Account]:
        """Budget id -> what this process knows of it."""
        return self._leases.accounts

    # ── admission ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def hold(self, id: str, claims: Sequence[Claim], amount: int, key: str, note: Note) -> Hold | Shortage:
        """Holds `amount` nano-USD in each of the budgets, or in none.  The first of them counts for spend questions.

        key: whose hold it is.
        """
        loop = asyncio.get_running_loop()
        parts = self._at_once(claims, amount, key, loop.time())
        if parts is not None:
            return self._take(Hold(id, amount, parts, key, note), loop.time())
        accounts = [self._leases.account(claim) for claim in claims]
        deadline = loop.time() + self._wait
        offline: set[Account] = set()
        for _ in range(ROUNDS):
            now = loop.time()
            found = _short(accounts, offline, amount, now)
            if found is None:
                found = _greedy(accounts, claims, amount, key)
            if found is None:
                parts = [Part(account, None if account in offline else account.lease) for account in accounts]
                return self._take(Hold(id, amount, parts, key, note), now)
            account, shortage = found
            if shortage is None:
                shortage = await self._leases.refill(account, amount)
            if shortage is None:
                continue
            if shortage.reason == "unavailable" and not account.budget.hard:
                offline.add(account)
            elif shortage.reason != "contended" or now >= deadline:
                return shortage
            else:
                await _pause(account, deadline - now)
        return Shortage(accounts[0].budget, "contended", 1.0, 0)

    def _at_once(self, claims: Sequence[Claim], amount: int, key: str, now: float) -> list[Part] | None:
        """Where all leases are large enough, as nearly always; None: to be looked at with patience."""
        accounts = self._leases.accounts
        parts = []
        for budget, most, _ in claims:
            account = accounts.get(budget.id)
            if account is None or account.frozen or now >= account.ends or account.budget != budget:
                return None
            lease = account.lease
            if lease is None or lease.free < amount:
                return None
            held = account.held.get(key)
            if held and held + amount > most:
                return None
            parts.append(Part(account, lease))
        return parts

    def _take(self, hold: Hold, now: float) -> Hold | Shortage:
        """One step: no await between the look and the taking."""
        amount, key = hold.amount, hold.key
        kept = [
            journal.Part(_part_id(hold.id, number), lease.id, account.budget.hard)
            for number, (account, lease) in enumerate(hold.parts)
            if lease is not None
        ]
        try:
            self._journal.hold(hold.id, amount, kept, hold.note)
        except OSError as error:
            log.error("no call leaves that cannot be journalled: %s", error)
            return Shortage(hold.parts[0].account.budget, "unavailable", AGAIN, 0)
        for account, lease in hold.parts:
            held = account.held
            held[key] = held.get(key, 0) + amount
            if lease is not None:
                lease.free -= amount
                lease.open += 1
                lease.used = now
        self.holds[hold.id] = hold
        return hold

    # ── settlement ──────────────────────────────────────────────────────────────────────────────────────────────────

    def report(self, hold: Hold, cost: int | None, *, estimated: bool = False) -> None:
        """What the call cost, in nano-USD; None: it certainly billed nothing.  Never waits; a second report is ignored.

        estimated: the truth is not known, and is taken to be this.
        """
        if hold.reported:
            return
        hold.reported, hold.cost = True, cost
        del self.holds[hold.id]
        self._journal.settled(hold.id, cost, estimated)
        if estimated:
            hold.note = {**hold.note, "estimated": True}
        amount, key = hold.amount, hold.key
        for number, (account, lease) in enumerate(hold.parts):
            left = account.held.pop(key, 0) - amount
            if left:  # 0 where its other open holds cost nothing: that is the same as none
                account.held[key] = left
            if lease is not None and not lease.lost:
                lease.free += amount - _own(hold, account)
            self._reports.append((hold, number))
            if account.waiting:
                account.wake()
        self._wake.set()

    async def _post(self) -> None:
        """Posts what was reported.  What the ledger does not take stays in its place."""
        while self._reports:
            batch = [self._reports.popleft() for _ in range(min(BATCH, len(self._reports)))]
            done: set[_Report] = set()
            try:
                for hold, number in batch:
                    if hold.parts[number].lease is None:
                        await self._lease_late(hold, number)
                leased = [report for report in batch if report[0].parts[report[1]].lease is not None]
                words = await self.ledger.post([_posting(*report) for report in leased]) if leased else []
                for report, word in zip(leased, words, strict=True):
                    done.add(report)
                    self._posted(*report, word)
            finally:
                self._reports.extendleft(report for report in reversed(batch) if report not in done)
                over = {hold.id: None for hold, _ in done if not hold.unposted}
                if over:
                    self._journal.posted(list(over))
            if not done:
                return

    async def _lease_late(self, hold: Hold, number: int) -> None:
        """For a soft budget whose ledger did not answer when the call came; nothing where it does not answer still."""
        account = hold.parts[number].account
        held = hold.cost or 0
        shortage = await self._leases.refill(account, held)
        lease = account.lease
        if shortage is not None or lease is None:  # no lease: its window has just ended; the next try finds one
            return
        lease.free -= held
        lease.open += 1
        hold.parts = [*hold.parts[:number], Part(account, lease), *hold.parts[number + 1 :]]

    def _posted(self, hold: Hold, number: int, word: str) -> None:
        account, lease = hold.parts[number]
        assert lease is not None
        lease.open -= 1
        hold.unposted -= 1
        if word == "overrun":
            self.overruns += 1
            log.error(
                "budget '%s': a call was billed %d nano-USD, above the %d it held; look at the price of its model",
                account.budget.id, hold.cost, hold.amount, extra={"request_id": hold.id.rpartition(".")[0]},
            )  # fmt: skip
        elif word == "unknown":
            log.error("the ledger does not know lease %s, from which %s was paid", lease.id, hold.id)
        elif word == "corrected":
            lease.lose()

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Settles what processes before this one left open (later, where the ledger is away), and starts the tasks."""
        try:
            await self.recover()
        except LedgerUnavailable as error:
            log.warning("hard budgets refuse until the ledger answers: %s", error)
        self._tasks = [asyncio.create_task(self._flushing()), asyncio.create_task(self._tending())]

    async def recover(self) -> None:
        """By the journals of processes that have ended: what they knew is posted, the rest of their leases given back.

        Raises LedgerError; the journals stay then, for a later try.
        """
        for left in journal.left_behind(self._prefix):
            try:
                for start in range(0, len(left.postings), BATCH):
                    await self.ledger.post(left.postings[start : start + BATCH])
                for lease in left.leases:
                    await self.ledger.release(lease)
            except BaseException:
                left.keep()
                raise
            left.forget()
            log.info("a process before this one left %d postings and %d leases", len(left.postings), len(left.leases))

    async def _flushing(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH)
            self._wake.clear()
            await self._trying("what calls cost waits to be posted", self._post)
            if self._reports:
                self._wake.set()

    async def _tending(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = looked = loop.time()
        while True:
            await asyncio.sleep(TEND)
            now = loop.time()
            if now - renewed >= RENEW:
                renewed = now
                await self._trying("leases wait to be renewed", self._renew)
            await self._trying("leases wait to be given back", self._leases.return_idle)
            if now - looked >= LOOK:
                looked = now
                await self._trying("budgets wait to be looked at", self._look)

    async def _trying(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """These tasks are the only ones of their kind: whatever happens, they go on."""
        try:
            await step()
        except LedgerUnavailable as error:
            log.warning("%s: %s", what, error)
            await asyncio.sleep(AGAIN)
        except Exception:
            log.exception("%s, for a defect of ours", what)
            await asyncio.sleep(AGAIN)

    async def _renew(self) -> None:
        for id in await self.ledger.renew(self.owner, TTL):
            await self._leases.lost(id)
        await self.recover()
        await self.ledger.expire(lambda reservation: None)

    async def _look(self) -> None:
        await self._leases.look()
        now = asyncio.get_running_loop().time()
        if now - self._audited >= AUDIT:
            self._audited = now
            found = await self.ledger.audit()
            self.defects = len(found)
            for defect in found:
                log.error("the ledger has a defect: %s", defect)

    async def aclose(self, seconds: float = 5.0) -> None:
        """Posts all reports and gives every lease back; what the ledger does not take stays in the journal."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for hold in list(self.holds.values()):  # its call did not end in an orderly way
            log.error("hold %s was never reported; it is charged in full", hold.id)
            self.report(hold, hold.amount, estimated=True)
        clean = False
        until = time.monotonic() + seconds
        while not clean and time.monotonic() < until:
            try:
                await self._post()
                await self._leases.give_all_back()
                clean = not self._reports
            except LedgerError as error:
                log.warning("the ledger does not answer: %s", error)
                await asyncio.sleep(min(0.2, seconds / 10))
        if not clean:
            log.error("%d reports stay in the journal: the next start posts them", len(self._reports))
        self._journal.close(clean=clean)
        await self.ledger.aclose()


def _own(hold: Hold, account: Account) -> int:
    """nano-USD of its cost that the lease pays.  A soft budget pays all: what it holds is a guess, no bound."""
    cost = hold.cost or 0
    return min(cost, hold.amount) if account.budget.hard else cost


def _posting(hold: Hold, number: int) -> Posting:
    account, lease = hold.parts[number]
    assert lease is not None
    held = max(hold.amount, _own(hold, account))
    return Posting(_part_id(hold.id, number), lease.id, hold.cost, held, "settle", hold.note, False, number == 0)


def _part_id(hold: str, number: int) -> str:
    """A hold is posted once in each of its budgets, each time under a name of its own."""
    return hold if number == 0 else f"{hold}+{number}"


def _short(
    accounts: Sequence[Account], offline: set[Account], amount: int, now: float
) -> tuple[Account, Shortage | None] | None:
    """The first account that cannot hold this now, and, where asking the ledger cannot help, why."""
    for account in accounts:
        lease = account.lease
        if account in offline:
            continue
        if account.frozen:
            return account, Shortage(account.budget, "frozen", None, 0)
        if lease is None or lease.free < amount or now >= account.ends:
            return account, None
    return None


def _greedy(
    accounts: Sequence[Account], claims: Sequence[Claim], amount: int, key: str
) -> tuple[Account, Shortage] | None:
    """The first account in which this key's open holds would hold more than its share; one call always may."""
    for account, claim in zip(accounts, claims, strict=True):
        held = account.held.get(key, 0)
        if held and held + amount > claim.most:
            return account, Shortage(account.budget, "contended", 1.0, 0)
    return None


async def _pause(account: Account, seconds: float) -> None:
    """Until something is given back here, or it is time to ask whether another process gave something back."""
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    account.waiting.append(waiting)
    try:
        async with asyncio.timeout(max(0.001, min(seconds, POLL))):
            await waiting
    except TimeoutError:
        pass
    finally:
        if waiting in account.waiting:
            account.waiting.remove(waiting)
