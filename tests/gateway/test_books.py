"""The books on a real ledger: what is held, reported and posted adds up, whatever happens in between."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.books import Books, Hold
from gateway.leases import Claim, Shortage
from gateway.ledger import Budget, LedgerUnavailable, Window
from gateway.ledger.sqlite import SqliteLedger

USD = 1_000_000_000
TEAM = Budget("team checkout month", "month", "UTC", 10 * USD, True)
KEY = Budget("key checkout web day", "day", "UTC", 4 * USD, True)
SOFT = Budget("organisation month", "month", "UTC", 1 * USD, False)


def claims(*budgets: Budget) -> list[Claim]:
    return [Claim(budget) for budget in budgets]


class Weak:
    """A ledger that does not answer while `down`, and counts what it is asked."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.down = False
        self.slow = 0.0  # seconds before it hears
        self.late = 0.0  # seconds after it has done it
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ledger, name)
        if name in ("aclose", "clock"):
            return method

        async def asked(*args: Any, **named: Any) -> Any:
            self.asked.append(name)
            if self.down:
                raise LedgerUnavailable("the database is down")
            await asyncio.sleep(self.slow)
            answer = await method(*args, **named)
            await asyncio.sleep(self.late)
            return answer

        return asked


@asynccontextmanager
async def keeping(folder: Path, wait: float = 0.0) -> AsyncIterator[tuple[Books, Weak]]:
    ledger = Weak(SqliteLedger(folder / "ledger.db"))
    books = Books(ledger, folder / "ledger", wait=wait)  # type: ignore[arg-type]  # it answers like one
    await books.open()
    try:
        yield books, ledger
    finally:
        ledger.down = False
        await books.aclose()


async def held(books: Books, id: str, amount: int, *budgets: Budget, key: str = "web") -> Hold:
    found = await books.hold(id, claims(*budgets), amount, key, {"team": "checkout", "key": key})
    assert isinstance(found, Hold), found
    return found


async def windows(folder: Path) -> dict[str, Window]:
    """What a second process sees; nothing contradicts itself in it."""
    ledger = SqliteLedger(folder / "ledger.db", watch=True)
    try:
        assert await ledger.audit() == []
        return {window.budget: window for window in await ledger.windows(current=False)}
    finally:
        await ledger.aclose()


async def test_a_call_is_held_in_each_of_its_budgets_charged_what_it_cost_and_counted_once(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, ledger):
        hold = await held(books, "req_1.1", USD, TEAM, KEY, SOFT)
        assert len(books.holds) == 1
        books.report(hold, USD // 4)
        assert not books.holds
        await asyncio.sleep(0.2)
        (line,) = await ledger.spend(["team", "key"])
        assert (line.values, line.amount, line.entries) == (("checkout", "web"), USD // 4, 1)
    found = await windows(tmp_path)
    assert {window.spent for window in found.values()} == {USD // 4}
    assert {window.reserved for window in found.values()} == {0}
    assert not list(tmp_path.glob("*.journal"))


async def test_most_calls_are_admitted_without_asking_the_ledger(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, ledger):
        books.report(await held(books, "req_0.1", 1000, TEAM, KEY), 10)
        await asyncio.sleep(0.2)
        ledger.asked.clear()
        took = []
        for number in range(1, 1001):
            began = time.perf_counter_ns()
            hold = await held(books, f"req_{number}.1", 1000, TEAM, KEY)
            took.append(time.perf_counter_ns() - began)
            books.report(hold, 10)
        assert "reserve" not in ledger.asked
        assert "grow" not in ledger.asked
        print(f"admission by lease, p50: {statistics.median(took) / 1000:.1f} us")


async def test_exactly_as_many_calls_are_admitted_as_the_budget_can_pay(tmp_path: Path) -> None:
    for limit, amount in ((10 * USD, USD // 5), (10 * USD + 7, USD // 5), (49, 1)):
        budget = Budget(f"team t{limit} month", "month", "UTC", limit, True)
        async with keeping(tmp_path) as (books, _):
            found = await asyncio.gather(
                *(books.hold(f"req_{limit}_{n}.1", claims(budget), amount, "web", {}) for n in range(200))
            )
            admitted = [one for one in found if isinstance(one, Hold)]
            assert len(admitted) == limit // amount
            assert {one.reason for one in found if isinstance(one, Shortage)} == {"contended"}
            for hold in admitted:
                books.report(hold, amount)
            await asyncio.sleep(0.3)
            last = await books.hold("req_last.1", claims(budget), amount, "web", {})
            assert isinstance(last, Shortage)
            assert last.reason == "exhausted"
        window = (await windows(tmp_path))[budget.id]
        assert (window.spent, window.reserved) == (limit // amount * amount, 0)


async def test_a_call_waits_for_what_others_hold_before_it_is_refused(tmp_path: Path) -> None:
    async with keeping(tmp_path, wait=2.0) as (books, _):
        first = await held(books, "req_1.1", 10 * USD, TEAM)
        waiting = asyncio.create_task(held(books, "req_2.1", 9 * USD, TEAM))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        books.report(first, USD)
        books.report(await waiting, USD)
        assert (await windows(tmp_path))[TEAM.id].spent <= 2 * USD


async def test_what_certainly_billed_nothing_is_given_back_whole(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, ledger):
        books.report(await held(books, "req_1.1", 10 * USD, TEAM), None)
        books.report(await held(books, "req_2.1", 10 * USD, TEAM), 0)
        await held(books, "req_3.1", 10 * USD, TEAM)
        await asyncio.sleep(0.2)
        assert sum(line.amount for line in await ledger.spend(["team"])) == 0


async def test_a_bill_above_its_hold_is_an_overrun_and_stops_the_next_call(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, _):
        books.report(await held(books, "req_1.1", 2 * USD, KEY), 5 * USD)
        await asyncio.sleep(0.2)
        assert books.overruns == 1
        found = await books.hold("req_2.1", claims(KEY), USD, "web", {})
        assert isinstance(found, Shortage)
        assert found.reason == "exhausted"


async def test_a_soft_budget_pays_what_a_call_cost_although_nobody_knew_its_bound(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, _):
        for number in range(20):
            books.report(await held(books, f"req_{number}.1", 0, SOFT), USD)
        await asyncio.sleep(0.3)
        assert books.overruns == 0
    window = (await windows(tmp_path))[SOFT.id]
    assert (window.spent, window.overrun, window.reserved) == (20 * USD, 0, 0)


async def test_a_start_while_the_ledger_is_away_settles_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(tmp_path, 0.1)
    monkeypatch.setattr("gateway.books.RENEW", 0.1)
    monkeypatch.setattr("gateway.books.TEND", 0.05)
    ledger = Weak(SqliteLedger(tmp_path / "ledger.db"))
    ledger.down = True
    books = Books(ledger, tmp_path / "ledger")  # type: ignore[arg-type]  # it answers like one
    await books.open()
    found = await books.hold("req_1.1", claims(TEAM), 1, "web", {})
    assert isinstance(found, Shortage)
    assert found.reason == "unavailable"
    ledger.down = False
    async with asyncio.timeout(10):
        while len(list(tmp_path.glob("*.journal"))) > 1:
            await asyncio.sleep(0.05)
    await books.aclose()
    assert (await windows(tmp_path))[TEAM.id].reserved == 0


async def test_one_key_cannot_hold_all_of_a_shared_budget(tmp_path: Path) -> None:
    share = [Claim(TEAM, most=TEAM.limit // 4)]
    async with keeping(tmp_path) as (books, _):
        big = await books.hold("req_0.1", share, 5 * USD, "batch", {})
        assert isinstance(big, Hold)  # one call always may
        greedy = await books.hold("req_1.1", share, USD, "batch", {})
        assert isinstance(greedy, Shortage)
        assert greedy.reason == "contended"
        assert isinstance(await books.hold("req_2.1", share, USD, "web", {}), Hold)


@pytest.mark.serial
async def test_while_the_ledger_is_down_hard_budgets_spend_what_was_leased_and_refuse_the_rest_at_once(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path, wait=2.0) as (books, ledger):
        books.report(await held(books, "req_0.1", 1000, TEAM), 1000)
        ledger.down = True
        books.report(await held(books, "req_1.1", 1000, TEAM), 1000)
        began = time.perf_counter()
        refused = await books.hold("req_2.1", claims(TEAM), 9 * USD, "web", {})
        assert time.perf_counter() - began < 0.05
        assert isinstance(refused, Shortage)
        assert refused.reason == "unavailable"
        soft = await held(books, "req_3.1", USD, SOFT)
        books.report(soft, 777)
        await asyncio.sleep(0.2)
        ledger.down = False
    found = await windows(tmp_path)
    assert found[TEAM.id].spent == 2000
    assert found[SOFT.id].spent == 777


async def test_a_caller_who_hangs_up_while_the_ledger_is_asked_takes_nothing_along(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, ledger):
        books.report(await held(books, "req_0.1", 1, TEAM), 1)
        ledger.slow = 0.05
        asking = asyncio.create_task(books.hold("req_1.1", claims(TEAM), 9 * USD, "web", {}))
        await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.1)
        ledger.slow = 0
        await held(books, "req_2.1", 9 * USD, TEAM)
    assert (await windows(tmp_path))[TEAM.id].reserved == 0


async def test_what_was_granted_stays_held_although_the_answer_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that is asked for, or enlarged, is not taken for an idle one meanwhile."""
    monkeypatch.setattr("gateway.books.TEND", 0.01)
    monkeypatch.setattr("gateway.leases.IDLE", 0.0)
    async with keeping(tmp_path) as (books, ledger):
        for number, amount in enumerate((USD, 3 * USD, 2 * USD)):
            ledger.late = 0.1
            await held(books, f"req_{number}.1", amount, TEAM)
            ledger.late = 0.0
            (window,) = await ledger.windows("team")
            assert window.reserved >= sum(hold.amount for hold in books.holds.values())


async def test_a_limit_that_is_lowered_takes_back_what_was_leased(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, _):
        books.report(await held(books, "req_1.1", USD // 1000, TEAM), USD // 1000)
        await asyncio.sleep(0.2)
        for number in range(3):
            found = await books.hold(f"req_2.{number}", claims(TEAM._replace(limit=USD // 1000)), 1, "web", {})
            assert isinstance(found, Shortage)
            assert found.reason == "exhausted"


async def test_an_idle_lease_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.leases.IDLE", 0.1)
    monkeypatch.setattr("gateway.books.TEND", 0.05)
    async with keeping(tmp_path) as (books, _):
        books.report(await held(books, "req_1.1", 1000, TEAM), 1000)
        await asyncio.sleep(0.6)
        window = (await windows(tmp_path))[TEAM.id]
        assert (window.spent, window.reserved) == (1000, 0)
        assert not books.accounts


async def test_a_frozen_budget_admits_nothing_until_it_thaws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.books.LOOK", 0.05)
    monkeypatch.setattr("gateway.books.TEND", 0.05)
    async with keeping(tmp_path) as (books, ledger):
        books.report(await held(books, "req_1.1", 1000, TEAM), 1000)
        window = books.accounts[TEAM.id].window
        assert window is not None
        await ledger.freeze([window.id])
        await asyncio.sleep(0.2)
        found = await books.hold("req_2.1", claims(TEAM), 1, "web", {})
        assert isinstance(found, Shortage)
        assert found.reason == "frozen"
        await ledger.freeze([window.id], False)
        await asyncio.sleep(0.2)
        books.report(await held(books, "req_3.1", 1, TEAM), 1)


async def test_a_changed_limit_counts_for_the_next_call(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (books, _):
        books.report(await held(books, "req_1.1", 3 * USD, KEY), 3 * USD)
        await asyncio.sleep(0.2)
        raised = KEY._replace(limit=20 * USD)
        books.report(await held(books, "req_2.1", 10 * USD, raised), USD)
        await asyncio.sleep(0.2)
        lowered = await books.hold("req_3.1", claims(KEY._replace(limit=2 * USD)), USD, "web", {})
        assert isinstance(lowered, Shortage)
    assert (await windows(tmp_path))[KEY.id].spent == 4 * USD


async def test_a_storm_of_calls_ends_to_the_nano_dollar(tmp_path: Path) -> None:
    """Hung up, failed, over the bound of nothing, paid: in any order, on three budgets, while the ledger goes away."""
    dice = random.Random(7)
    bill: dict[str, int] = {TEAM.id: 0, KEY.id: 0, SOFT.id: 0}

    async def call(books: Books, number: int, budgets: Sequence[Budget]) -> None:
        await asyncio.sleep(dice.random() * 0.5)
        amount = dice.randrange(1, USD // 20)
        found = await books.hold(f"req_{number}.1", claims(*budgets), amount, f"k{number % 3}", {"team": "t"})
        if isinstance(found, Shortage):
            return
        cost: int | None = None
        try:
            await asyncio.sleep(dice.random() * 0.1)
            cost = None if dice.random() < 0.2 else dice.randrange(0, amount + 1)
        finally:
            books.report(found, cost)
            for budget in budgets:
                bill[budget.id] += cost or 0

    async with keeping(tmp_path, wait=0.2) as (books, ledger):
        sets = ([TEAM], [TEAM, KEY], [KEY, SOFT], [TEAM, KEY, SOFT])
        calls = [asyncio.create_task(call(books, n, dice.choice(sets))) for n in range(1500)]
        for _ in range(6):
            await asyncio.sleep(0.08)
            ledger.down = not ledger.down
            for one in dice.sample(calls, 60):
                one.cancel()
        ledger.down = False
        await asyncio.gather(*calls, return_exceptions=True)
        assert not books.holds
    found = await windows(tmp_path)
    for id, total in bill.items():
        assert (found[id].spent, found[id].reserved, found[id].overrun) == (total, 0, 0), id
        assert not found[id].hard or found[id].spent <= found[id].limit


CRASH = """
import asyncio, os, sys
from pathlib import Path
from gateway.books import Books
from gateway.leases import Claim
from gateway.ledger import Budget
from gateway.ledger.sqlite import SqliteLedger

async def main() -> None:
    folder = Path(sys.argv[1])
    team = Budget("team checkout month", "month", "UTC", 10_000_000_000, True)
    soft = Budget("organisation month", "month", "UTC", 1_000_000_000, False)
    books = Books(SqliteLedger(folder / "ledger.db"), folder / "ledger")
    await books.open()
    for number in range(100_000):
        claims = [Claim(team), Claim(soft)]
        hold = await books.hold(f"{os.getpid()}_{number}.1", claims, 1000, "web", {"team": "checkout"})
        os.write(1, f"held {number}\\n".encode())  # whole or not at all
        if number % 3:
            books.report(hold, number % 700)
            os.write(1, f"cost {number} {number % 700}\\n".encode())
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


def crashed(folder: Path, after: float) -> tuple[set[int], dict[int, int]]:
    """Runs a process that holds and reports, kills it, and returns what it said it did."""
    command = [sys.executable, "-c", CRASH, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines()]
    words = [line.split() for line in lines if line.split()]
    taken = {int(word[1]) for word in words if word[0] == "held"}
    return taken, {int(word[1]): int(word[2]) for word in words if word[0] == "cost" and len(word) == 3}


async def test_after_a_kill_what_was_settled_is_charged_and_what_was_open_is_charged_in_full(tmp_path: Path) -> None:
    low = high = 0
    for after in (0.0, 0.04, 0.11, 0.3):
        taken, costs = crashed(tmp_path, after)
        low += sum(costs.values()) + 1000 * len([n for n in taken if n % 3 == 0])
        high += 1000  # the last step may have happened without being told
        async with keeping(tmp_path):
            pass
        window = (await windows(tmp_path))["team checkout month"]
        assert low <= window.spent <= low + high
        assert window.reserved == 0
        assert not list(tmp_path.glob("*.journal"))
    assert os.listdir(tmp_path)
