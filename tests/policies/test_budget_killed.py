"""Gateways killed at every named point of a call's way: each nano-USD of the ledger is a bill, or a call in doubt."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.demo.simulator import Spawned, spawn
from tests.killed_books import Compared
from tests.killed_gateway import POINTS
from tests.policies.test_budget import simulated
from tests.processes import Ended, Process, serving
from tests.running import KEY
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

CALLERS = 8
PATIENCE = 20  # seconds until a point must have come
# A user's own budget is small: it is asked for, enlarged, near its end and given back all the time.
BUDGETS = {
    "budgets": [{"limit_usd": 1000, "per": "month"}, {"limit_usd": 1000, "per": "total", "hard": False}],
    "user_budgets": [{"limit_usd": "0.02", "per": "day"}],
}
RARE = ("lease", "recovery", "reserve")  # points that few calls pass


@pytest.fixture(scope="module")
def simulator() -> Any:
    with spawn() as spawned:
        yield spawned


@asynccontextmanager
async def compared(kind: str, folder: Path, simulator: Spawned, server: Postgres | None) -> AsyncIterator[Compared]:
    """kind: sqlite | postgres."""
    async with httpx2.AsyncClient() as client:
        await client.post(f"{simulator.url}/sim/reset")
    if server is None or kind == "sqlite":
        yield Compared(folder, str(folder / "tollkeeper.ledger.db"), simulator.url)
        return
    async with server.database() as url:
        yield Compared(folder, url, simulator.url)


class Lives:
    """One gateway after the other on one volume, each killed; between two of them all must add up."""

    def __init__(self, books: Compared, client: httpx2.AsyncClient, dice: random.Random) -> None:
        self.books = books
        self.client = client
        self.dice = dice
        self.number = 0
        self.missed = 0  # points that did not come before patience was over
        said = simulated(books.provider, BUDGETS)
        if "://" in books.place:
            said |= {
                "store": books.place,
                "server": said["server"] | {"key_pepper": "a-pepper-of-32-characters-for-all"},
            }
        self.said = said

    async def live(self, point: str = "", count: int = 1, seconds: float = PATIENCE) -> None:
        """Until it dies at a point, or after so many seconds.  What it finds at its start is compared first."""
        self.number += 1
        program = ("tests.killed_gateway", str(self.books.history), point, str(count))
        try:
            with serving(self.said, folder=self.books.folder, program=program) as process:
                await self.books.look(self.client)
                await self._traffic(process, seconds)
                self.missed += bool(point) and process.popen.poll() is None
                process.popen.kill()
                process.popen.wait()
        except Ended:
            assert point in POINTS
        log = (self.books.folder / "stderr.log").read_text()
        assert "Traceback" not in log, log

    async def rest(self) -> None:
        """The last one, which may end in peace."""
        with serving(self.said, folder=self.books.folder) as process:
            assert process.stop() == 0
        await self.books.look_at_all(self.client)
        await self.books.audit()
        assert not list(self.books.folder.glob("*.journal"))

    async def _traffic(self, process: Process, seconds: float) -> None:
        until = time.monotonic() + seconds
        callers = [asyncio.create_task(self._call(process.url)) for _ in range(CALLERS)]
        while process.popen.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.005)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    async def _call(self, url: str) -> None:
        dice = self.dice
        while True:
            body = {
                "model": dice.choice(["m", "large", "reason", "twice"]),
                "stream": dice.random() < 0.6,
                "max_tokens": dice.choice([20, 100, 300]),
                "messages": [{"role": "user", "content": "Tell me about " + "the sea " * dice.randrange(1, 20)}],
            }
            headers = {"authorization": f"Bearer {KEY}", "x-user-id": f"u-{self.number}-{dice.randrange(10)}"}
            if dice.random() < 0.4:
                headers["x-sim-fault"] = dice.choice(["status=429", "status=500", "pace=500", "ttft=0.05"])
            try:
                async with asyncio.timeout(dice.choice([0.03, 5, 5, 5])):
                    answer = await self.client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
                    await answer.aread()
            except (httpx2.HTTPError, TimeoutError):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def lives(
    kind: str, folder: Path, simulator: Spawned, server: Postgres | None, seed: int
) -> AsyncIterator[Lives]:
    async with compared(kind, folder, simulator, server) as books, httpx2.AsyncClient(timeout=10) as client:
        made = Lives(books, client, random.Random(seed))
        yield made
        await made.rest()
        print(
            f"{kind}: {made.number} kills, {len(books.died)} of them at {len(set(books.died))} named points, "
            f"{len(books.held)} calls held, {books.certain} nano-USD as billed, {books.doubted} in doubt or estimated "
            f"({books.in_doubt} calls in doubt), 0 unexplained"
        )


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_killed_at_each_named_point_every_nano_dollar_is_explained(
    kind: str, simulator: Spawned, tmp_path: Path, server: Postgres
) -> None:
    async with lives(kind, tmp_path, simulator, server, 1) as made:
        for number, point in enumerate(POINTS):
            if POINTS[point].recovery:
                await made.live("first byte", 7)  # something is left behind to recover
            await made.live(point, 1 + number % 3 * (not point.startswith(RARE)))
    assert set(made.books.died) == set(POINTS)
    assert made.missed == 0


@pytest.mark.long
@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 700), ("postgres", 300)])
async def test_after_a_thousand_kills_at_named_and_random_points_every_nano_dollar_is_explained(
    kind: str, kills: int, simulator: Spawned, tmp_path: Path, server: Postgres
) -> None:
    async with lives(kind, tmp_path, simulator, server, 2) as made:
        dice = made.dice
        for _ in range(kills):
            point = dice.choice([*POINTS, "", "", ""])
            if point:
                rare = point.startswith(RARE)
                seconds = 0.3 if POINTS[point].recovery else 3.0  # then it is a kill at a random moment
                await made.live(point, dice.randint(1, 4 if rare else 40), seconds)
            else:
                await made.live(seconds=dice.uniform(0.01, 0.6))
    assert set(made.books.died) == set(POINTS)
