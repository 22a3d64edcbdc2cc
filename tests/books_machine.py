"""The books under every order of events that Hypothesis can think of, beside a model that is a list of calls.

Time stands still until it is moved, for the books and for their ledger alike; what the books do by themselves once in a
while (posting, giving back, looking, renewing) is done here when the machine says so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.books import TTL, Books, Hold
from gateway.leases import IDLE, Claim
from gateway.ledger import Budget, LedgerUnavailable
from gateway.ledger.sqlite import SqliteLedger
from tests.ledgers import SECOND, ns

T = TypeVar("T")
AMOUNTS = st.integers(0, 40)
DAY = 86_400


class StandingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when it is moved."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class Faulty:
    """A ledger that does not answer (`mode` "down"), does not answer although it has done it ("lost"), or answers when
    it may (`gate`)."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.mode = ""
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ledger, name)

        async def asked(*told: Any, **named: Any) -> Any:
            if self.mode == "down":
                raise LedgerUnavailable("it is down")
            answer = await method(*told, **named)
            if self.gate is not None:
                self.waiting += 1
                await self.gate.wait()
            if self.mode == "lost":
                raise LedgerUnavailable("its answer was lost")
            return answer

        return asked


@dataclass
class Call:
    hold: Hold
    windows: dict[int, bool]  # those it is held in, and whether they are hard …
    offline: bool  # … beside a soft budget whose ledger did not answer: it is charged later, if nothing kills the books
    amount: int
    state: str = "open"  # | ended | killed
    cost: int | None = None

    def charge(self, hard: bool) -> int:
        """What it comes to at last."""
        if self.state == "killed":
            return self.amount if hard else 0
        return self.cost or 0

    def least(self, hard: bool) -> int:
        """What must not be spent by others now."""
        return self.amount if self.state == "open" else self.charge(hard)


@dataclass
class Model:
    calls: list[Call] = field(default_factory=list)
    forgotten: int = 0  # nano-USD that soft budgets were to be charged later, when the books were killed

    def used(self, window: int, hard: bool) -> int:
        return sum(call.least(hard) for call in self.calls if window in call.windows)

    def charged(self, window: int, hard: bool) -> int:
        return sum(call.charge(hard) for call in self.calls if window in call.windows)

    def later(self) -> int:
        """What soft budgets are charged in whatever window runs then."""
        return sum(call.charge(False) for call in self.calls if call.offline) - self.forgotten


class Machine(RuleBasedStateMachine):
    """`folder` and `loop` are set by the test."""

    folder: Path
    loop: StandingLoop
    examples = 0

    def do(self, step: Awaitable[T]) -> T:
        return self.loop.run_until_complete(step)

    @initialize(limits=st.lists(st.integers(0, 200), min_size=3, max_size=3))
    def begin(self, limits: list[int]) -> None:
        Machine.examples += 1
        self.place = self.folder / f"e{Machine.examples}"
        self.place.mkdir()
        self.clock = ns("2026-03-16T23:59:45+00:00")
        self.ledger = Faulty(SqliteLedger(self.place / "ledger.db", now=lambda: self.clock))
        self.limits = limits
        self.model = Model()
        self.number = 0
        self.books = self.born()

    @contextmanager
    def failing(self, how: str) -> Iterator[None]:
        self.ledger.mode = how
        try:
            yield
        finally:
            self.ledger.mode = ""

    def born(self) -> Books:
        return Books(self.ledger, self.place / "ledger", wait=0.0)  # type: ignore[arg-type]  # it answers like one

    def claims(self, which: set[int]) -> list[Claim]:
        """Hard ones first, as the policy has them."""
        all = (
            Budget("team total", "total", "UTC", self.limits[0], True),
            Budget("key day", "day", "UTC", self.limits[1], True),
            Budget("organisation month", "month", "UTC", self.limits[2], False),
        )
        return [Claim(all[number]) for number in sorted(which)]

    # ── what callers do ─────────────────────────────────────────────────────────────────────────────────────────────

    @rule(which=st.sets(st.integers(0, 2), min_size=1), amount=AMOUNTS, fault=st.sampled_from(["", "", "down", "lost"]))
    def hold(self, which: set[int], amount: int, fault: str) -> None:
        with self.failing(fault):
            found = self.do(self.asked(which, amount))
        self.taken(found, amount)

    @rule(which=st.sets(st.integers(0, 2), min_size=1), amount=AMOUNTS)
    def hold_and_hang_up_while_the_ledger_is_asked(self, which: set[int], amount: int) -> None:
        self.taken(self.do(self.cancelled(which, amount)), amount)

    def asked(self, which: set[int], amount: int) -> Awaitable[object]:
        self.number += 1
        return self.books.hold(f"req_{self.number}.1", self.claims(which), amount, "web", {"team": "t"})

    async def cancelled(self, which: set[int], amount: int) -> object:
        ledger = self.ledger
        ledger.gate, ledger.waiting = asyncio.Event(), 0
        task = asyncio.ensure_future(self.asked(which, amount))
        while not task.done() and not ledger.waiting:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ledger.gate.set()
        ledger.gate = None
        while self.books._leases._asked:
            await asyncio.sleep(0)
        return None if task.cancelled() else task.result()

    def taken(self, found: object, amount: int) -> None:
        if isinstance(found, Hold):
            windows = {a.window.id: a.budget.hard for a, lease in found.parts if lease is not None and a.window}
            offline = any(lease is None for _, lease in found.parts)
            self.model.calls.append(Call(found, windows, offline, amount))
            for account, lease in found.parts:
                if lease is not None and (window := account.window) is not None:
                    assert window.end is None or self.clock < window.end, "held in a window that is over"
                    if window.hard:  # never over, whatever was lost, changed, or ended meanwhile
                        assert self.model.used(window.id, True) <= account.budget.limit

    def open_calls(self) -> list[Call]:
        return [call for call in self.model.calls if call.state == "open"]

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data(), part=st.none() | st.integers(0, 120), again=st.booleans())
    def report(self, data: st.DataObject, part: int | None, again: bool) -> None:
        """part: of what was held, in hundredths: above 100 it is an overrun."""
        call = data.draw(st.sampled_from(self.open_calls()))
        call.state, call.cost = "ended", None if part is None else call.amount * part // 100
        self.books.report(call.hold, call.cost)
        if again:
            self.books.report(call.hold, 1_000_000)

    # ── what the books do now and then ──────────────────────────────────────────────────────────────────────────────

    @rule(step=st.sampled_from(["post", "give back", "look", "renew"]), fault=st.sampled_from(["", "", "down", "lost"]))
    def tend(self, step: str, fault: str) -> None:
        books = self.books
        steps = {
            "post": books._post,
            "give back": books._leases.return_idle,
            "look": books._look,
            "renew": books._renew,
        }
        try:
            with self.failing(fault):
                self.do(steps[step]())
        except LedgerUnavailable:
            assert fault

    @rule(seconds=st.sampled_from([0.5, IDLE + 0.1, 20.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        """Over an hour without a word, all that the books hold expires in the ledger, where another looks for it."""
        self.clock += int(seconds * SECOND)
        self.loop.now += seconds
        if seconds > TTL:
            self.do(self.ledger.ledger.expire(lambda reservation: None))
            self.do(self.books._renew())

    @rule()
    def wait_until_shortly_before_midnight(self) -> None:
        """Twenty seconds more, and the day is over while its leases live."""
        rest = (DAY - 10) * SECOND - self.clock % (DAY * SECOND)
        if rest > 0:
            self.wait(rest / SECOND)

    @rule(which=st.integers(0, 2), limit=st.integers(0, 200))
    def change_a_limit(self, which: int, limit: int) -> None:
        self.limits[which] = limit

    @rule(recovered=st.booleans())
    def kill(self, recovered: bool) -> None:
        """What the process knew is gone but for its journal; the next may find the ledger down at first."""
        waiting = [hold for hold, number in self.books._reports if hold.parts[number].lease is None]
        self.model.forgotten += sum(hold.cost or 0 for hold in waiting)
        for call in self.open_calls():
            call.state = "killed"
        self.books._journal.close(clean=False)
        self.books = self.born()
        if not recovered:
            with self.failing("down"), suppress(LedgerUnavailable):
                self.do(self.books.recover())
        self.do(self.books.recover())

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def nothing_is_over_and_each_lease_is_what_the_books_think(self) -> None:
        if not hasattr(self, "books"):
            return
        read = self.ledger.ledger._read.execute
        posted = {hold for (hold,) in read("SELECT hold FROM entry")}  # perhaps, and its answer was lost
        unposted: dict[str, int] = {}
        for hold, number in self.books._reports:
            account, lease = hold.parts[number]
            if lease is not None and (f"{hold.id}+{number}" if number else hold.id) not in posted:
                own = min(hold.cost or 0, hold.amount) if account.budget.hard else hold.cost or 0
                unposted[lease.id] = unposted.get(lease.id, 0) + own
        for hold in self.books.holds.values():
            for _, lease in hold.parts:
                if lease is not None:
                    unposted[lease.id] = unposted.get(lease.id, 0) + hold.amount
        rests = {id: (rest, state) for id, rest, state in read("SELECT id, rest, state FROM reservation")}
        for lease in self.books._leases._all.values():
            rest, state = rests.get(lease.id, (0, ""))
            if state == "held" and not lease.lost:
                known = lease.free + unposted.get(lease.id, 0)
                account = self.books.accounts.get(lease.budget)
                granted = lease.open or (account is not None and account.lease is lease)
                assert rest == known or (rest > known and (lease.doubted or not granted)), (rest, known)
        assert [one for one in self.do(self.ledger.ledger.audit()) if one.kind != "overdue"] == []

    def teardown(self) -> None:
        """All ends: the ledger is the bill, in each window, and nothing is held."""
        if not hasattr(self, "books"):
            return
        for call in self.open_calls():
            call.state, call.cost = "ended", call.amount
            self.books.report(call.hold, call.amount)
        ledger = self.ledger.ledger
        self.do(self.books._renew())
        for _ in range(3):  # what found no lease at the first try
            self.do(self.books._post())
        self.do(self.books._leases.give_all_back())
        later = -self.model.later()
        for window in self.do(ledger.windows(current=False)):
            assert window.reserved == 0, window
            more = window.spent + window.overrun - self.model.charged(window.id, window.hard)
            assert more == 0 if window.hard else more >= 0, (window, more)
            later += more
        assert later == 0
        assert self.do(ledger.audit()) == []
        self.books._journal.close(clean=True)
        assert not list(self.place.glob("*.journal"))
        self.do(ledger.aclose())
