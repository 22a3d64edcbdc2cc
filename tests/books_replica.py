"""One gateway's books as a process of its own, for the tests that kill it; it writes down what it does.

    python -m tests.books_replica LEDGER FOLDER NAME COUNT AMOUNT LEAST CONCURRENCY

LEDGER: a file or a postgresql:// URL.  FOLDER: of the journals and of NAME.history, which has one line for each step:
`d <hold> <amount>` as the call leaves for the provider, `b <hold> <cost>` (LEAST to AMOUNT) as the provider bills it.
Ends with status 0 when COUNT calls were tried.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from gateway.books import Books, Hold
from gateway.leases import Claim
from gateway.ledger import Budget, Ledger
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger

LIMIT = 1_000_000
TEAM = Budget("team storm month", "month", "UTC", LIMIT, True)
ORG = Budget("organisation month", "month", "UTC", 10 * LIMIT, True)
NOTE = {"team": "storm", "key": "k"}


def opened(place: str) -> Ledger:
    return PostgresLedger(place) if place.startswith("postgresql://") else SqliteLedger(place)


async def main(place: str, folder: Path, name: str, count: int, amount: int, least: int, concurrency: int) -> None:
    history = os.open(folder / f"{name}.history", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    dice = random.Random(f"{name} {os.getpid()}")
    books = Books(opened(place), folder / "ledger", wait=0.0)
    await books.open()
    claims = [Claim(TEAM), Claim(ORG)]
    running = asyncio.Semaphore(concurrency)

    async def call(number: int) -> None:
        async with running:
            id = f"{name}_{os.getpid()}_{number}.1"
            found = await books.hold(id, claims, amount, "k", NOTE)
            if not isinstance(found, Hold):
                return
            os.write(history, f"d {id} {amount}\n".encode())
            await asyncio.sleep(dice.random() * 0.004)
            cost = dice.randrange(least, amount + 1)
            os.write(history, f"b {id} {cost}\n".encode())
            await asyncio.sleep(0)
            books.report(found, cost)

    await asyncio.gather(*(call(number) for number in range(count)))
    await books.aclose()


if __name__ == "__main__":
    place, folder, name, *numbers = sys.argv[1:]
    asyncio.run(main(place, Path(folder), name, *map(int, numbers)))
