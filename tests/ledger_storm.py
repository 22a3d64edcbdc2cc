"""Many callers at one ledger, with a history of what they asked and were told; run as a process that may be killed.

python -m tests.ledger_storm PLACE HISTORY NAME COUNT TASKS      asks COUNT times and ends
python -m tests.ledger_storm PLACE HISTORY NAME COUNT TASKS KILLS   is that KILLS times over, killed each time
python -m tests.ledger_storm PLACE steps STRIDE                     see `killed_at_each_step`
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.ledger import Budget, Granted, Ledger, LedgerUnavailable, Posting, Refused
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger

if TYPE_CHECKING:
    from tests.ledgers import House

BUDGETS = [Budget(f"storm:{i}/total", "total", "UTC", 4000, True) for i in range(5)]


def opened(place: str) -> Ledger:
    return PostgresLedger(place, size=4) if place.startswith("postgresql://") else SqliteLedger(place)


class Storm:
    """What one process asks, written down before and after each question."""

    def __init__(self, ledger: Ledger, history: int, name: str) -> None:
        self.ledger = ledger
        self.history = history
        self.name = name
        self.random = random.Random(name)

    def write(self, *words: object) -> None:
        """One line in one call: a kill loses it or leaves it whole, and the page cache outlives the process."""
        os.write(self.history, (" ".join(str(word) for word in words) + "\n").encode())

    async def run(self, count: int, tasks: int) -> None:
        windows = [window.id for window in await self.ledger.open_windows(BUDGETS)]
        await asyncio.gather(*(self.task(windows, f"{self.name}.{i}", count // tasks) for i in range(tasks)))

    async def task(self, windows: list[int], name: str, count: int) -> None:
        for i in range(count):
            try:
                await self.one(windows, f"{name}.{i}")
            except LedgerUnavailable:  # what was asked is in doubt: the history says so by saying no more
                await asyncio.sleep(0.005)

    async def one(self, windows: list[int], id: str) -> None:
        chosen = self.random.sample(windows, self.random.randint(1, 3))
        amount = self.random.randint(1, 400)
        minimum = 1 if len(chosen) == 1 else None
        self.write("ask", id, amount, *chosen)
        answer = await self.ledger.reserve(id, chosen, amount, minimum=minimum, owner=self.name, ttl=600)
        if isinstance(answer, Refused):
            self.write("refused", id)
            return
        self.write("granted", id, answer.amount)
        if minimum and self.random.random() < 0.3:
            await self.ledger.grow(id, 50, 1)
        await self.pay(id, answer)

    async def pay(self, id: str, answer: Granted) -> None:
        drawn = self.random.random()
        if drawn < 0.5:
            self.write("release", id)
            await self.ledger.release(id)
            return
        cost = self.random.choice([0, 1, 2, 3]) if drawn < 0.98 else answer.amount + 1  # now and then: an overrun
        self.write("post", f"{id}.1", id, cost)
        said = await self.ledger.post(
            [Posting(f"{id}.1", id, cost, answer.amount, note={"team": self.name}, last=True)]
        )
        self.write("posted", f"{id}.1", said[0])


async def check(history: Path, at: House) -> int:
    """Raises where the ledger is not what its callers were told; how many reservations were granted."""
    asked: dict[str, list[int]] = {}
    granted: set[str] = set()
    refused: set[str] = set()
    posts: dict[str, tuple[str, int]] = {}
    posted: set[str] = set()
    for line in history.read_text().splitlines():
        word, id, *rest = line.split()
        if word == "ask":
            asked[id] = [int(one) for one in rest[1:]]
        elif word == "granted":
            granted.add(id)
        elif word == "refused":
            refused.add(id)
        elif word == "post":
            posts[id] = (rest[0], int(rest[1]))
        elif word == "posted":
            assert rest[0] in ("ok", "overrun"), line
            posted.add(id)
    kept = {str(id) for (id,) in await at.sql("SELECT id FROM tollkeeper.reservation")}
    assert granted <= kept, "an acknowledged reservation is lost"
    assert kept <= asked.keys() - refused, "a reservation that nobody asked for, or that was refused"
    certain, possible = defaultdict(int), defaultdict(int)
    for hold, (reservation, cost) in posts.items():
        for window in asked[reservation]:
            possible[window] += cost
            certain[window] += cost if hold in posted else 0
    for window in await at.ledger.windows("storm:"):
        used = window.spent + window.overrun
        assert certain[window.id] <= used <= possible[window.id], f"{certain[window.id]} {window} {possible[window.id]}"
        assert window.spent + window.reserved <= window.limit
    assert await at.ledger.audit() == []
    return len(granted)


def killed(place: str, history: Path, name: str, size: tuple[int, int], kills: int) -> None:
    """The storm in a child that is killed at a random moment, again and again; at last one that may finish."""
    chance = random.Random(name)
    for number in range(kills + 1):
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            stormed(place, history, f"{name}k{number}", size)
            os._exit(0)
        if number < kills:
            time.sleep(chance.uniform(0.02, 0.25))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if number == kills and status:
            sys.exit(f"the last child ended with {status} after {time.monotonic() - begun:.1f} s")


def stormed(place: str, history: Path, name: str, size: tuple[int, int]) -> None:
    file = os.open(history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def run() -> None:
        ledger = opened(place)
        try:
            await Storm(ledger, file, name).run(*size)
        finally:
            await ledger.aclose()

    asyncio.run(run())


async def life(ledger: Ledger) -> None:
    """A bit of everything; done again with the same ids, or from the middle, it comes to the same."""
    windows = [window.id for window in await ledger.open_windows(BUDGETS[:2])]
    await ledger.reserve("paid", windows, 100, owner="me", ttl=600)
    await ledger.reserve("lease", windows[:1], 1000, minimum=1, owner="me", ttl=600)
    await ledger.post([Posting("paid.1", "paid", 70, 100, note={"team": "a"}, last=True)])
    await ledger.post([Posting(f"lease.{i}", "lease", 10 * i, 20) for i in range(4)])
    await ledger.reserve("void", windows, 50, owner="me", ttl=600)
    await ledger.release("void")
    await ledger.release("lease")
    await ledger.reserve("late", windows, 30, owner="you", ttl=0.001)
    await asyncio.sleep(0.005)
    await ledger.expire(lambda id: None)
    await ledger.post([Posting("late.1", "late", 20, 30, last=True)])


def killed_at_each_step(place: str, stride: int) -> None:
    """`life` in a new file, in a child killed before its k-th statement, for k = 1, 1 + stride, … until it is done."""
    step, status = 1 - stride, 1
    while status:
        step += stride
        file = f"{place}.{step}"
        child = os.fork()
        if child == 0:
            ledger = SqliteLedger(file)
            left = step

            def traced(*_: object) -> bool:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return True

            ledger._write.exec_trace = traced
            asyncio.run(life(ledger))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status not in (0, signal.SIGKILL):
            sys.exit(f"step {step} ended with {status}")


def main(place: str, *words: str) -> None:
    if words[0] == "steps":
        killed_at_each_step(place, int(words[1]))
        return
    history, name, size = Path(words[0]), words[1], (int(words[2]), int(words[3]))
    if len(words) > 4:
        killed(place, history, name, size, int(words[4]))
    else:
        stormed(place, history, name, size)


if __name__ == "__main__":
    main(*sys.argv[1:])
