"""PostgreSQL frozen, and killed, under load: what is leased may be spent and nothing more; then on by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from gateway import database
from gateway.demo.simulator import Spawned, spawn
from gateway.ledger.postgres import PostgresLedger
from tests.policies.test_budget import price
from tests.processes import Process, serving
from tests.running import config
from tests.servers import Postgres, postgres

pytestmark = pytest.mark.serial  # how long callers wait is measured

TEAMS = ("leased", "fresh", "crowd")
ASKED = {"model": "m", "max_tokens": 300, "messages": [{"role": "user", "content": "Tell me about the sea"}]}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Spawned]:
    with spawn() as spawned:
        yield spawned


@pytest.fixture(scope="module", name="server")
def own_server() -> Iterator[Postgres]:
    """With fsync on: what it has acknowledged must outlive a kill."""
    with postgres() as server:
        yield server


def said(provider: str, store: str) -> dict[str, Any]:
    models = {"m": {"targets": [{"provider": "up", "model": "sim-small"}], "price": price("sim-small")}}
    keys = {team: {"keys": [{"name": "k", "key": f"tk-the-key-of-{team}"}]} for team in TEAMS}
    teams: dict[str, Any] = {
        "leased": keys["leased"] | {"budgets": [{"limit_usd": 1, "per": "month"}]},
        "fresh": keys["fresh"] | {"user_budgets": [{"limit_usd": 1, "per": "month"}]},
        "crowd": keys["crowd"] | {"budgets": [{"limit_usd": 50, "per": "month"}]},
    }
    made = config(f"{provider}/v1", models=models, server={"key_pepper": "a-pepper-of-32-characters-or-some-more"})
    return made | {"store": store, "teams": teams}


@dataclass
class Outage:
    gateway: Process
    client: httpx2.AsyncClient
    shell: asyncpg.Connection
    users: int = 0
    over: bool = False

    async def chat(self, team: str, user: str = "") -> tuple[httpx2.Response, float]:
        """The answer, and the seconds until it was there."""
        headers = {"authorization": f"Bearer tk-the-key-of-{team}", "x-user-id": user}
        begun = time.perf_counter()
        answer = await self.client.post(f"{self.gateway.url}/v1/chat/completions", json=ASKED, headers=headers)
        return answer, time.perf_counter() - begun

    async def without_lease(self) -> tuple[httpx2.Response, float]:
        self.users += 1
        return await self.chat("fresh", f"u-{self.users}")

    async def crowd(self) -> None:
        while not self.over:
            answer, _ = await self.chat("crowd")
            assert answer.status_code in (200, 503), answer.text
            await asyncio.sleep(0.005 if answer.status_code == 200 else 0.1)

    async def reserved(self) -> int:
        sql = "SELECT sum(reserved)::bigint FROM tollkeeper.budget_window WHERE budget = 'team leased month'"
        return int(await self.shell.fetchval(sql))


@asynccontextmanager
async def loaded(url: str, provider: str, folder: Path) -> AsyncIterator[Outage]:
    """A gateway with eight callers who do not stop before the end."""
    async with httpx2.AsyncClient(timeout=20) as client:
        await client.post(f"{provider}/sim/reset")
        with serving(said(provider, url), folder=folder) as gateway:
            shell = await asyncpg.connect(url)
            made = Outage(gateway, client, shell)
            assert (await made.without_lease())[0].status_code == 200
            callers = [asyncio.create_task(made.crowd()) for _ in range(8)]
            try:
                await asyncio.sleep(0.3)
                yield made
            finally:
                made.over = True
                ended = await asyncio.gather(*callers, return_exceptions=True)
            assert ended == [None] * 8
            assert gateway.stop() == 0
            assert "Traceback" not in gateway.log.read_text()


async def spent_at(provider: str, client: httpx2.AsyncClient) -> dict[str, int]:
    rows = (await client.get(f"{provider}/sim/bill")).json()["rows"]
    return {row["attempt"]: row["nano_usd"] for row in rows if row["billed"]}


def refused(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "budget_unavailable"
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_while_postgres_is_away_a_hard_budget_spends_its_lease_refuses_at_once_and_goes_on_by_itself(
    how: str, simulator: Spawned, server: Postgres, tmp_path: Path
) -> None:
    async with server.database() as url:
        async with loaded(url, simulator.url, tmp_path) as it:
            assert (await it.chat("leased"))[0].status_code == 200
            await asyncio.sleep(0.2)  # until it is posted: what is reserved now is what this gateway may still spend
            leased = await it.reserved()
            paused = server.pause() if how == "frozen" else server.kill()

            first, waited = await it.without_lease()
            refused(first)
            assert waited < (database.ADMIT + 0.25 if how == "frozen" else 0.5)
            waits = []
            for _ in range(40):
                answer, seconds = await it.without_lease()
                refused(answer)
                waits.append(seconds)
            assert sorted(waits)[-3] < 0.05, sorted(waits)[-5:]  # two may have waited for a busy machine

            costs = []
            while (found := await it.chat("leased"))[0].status_code == 200:
                costs.append(round(float(found[0].headers["x-tollkeeper-cost-usd"]) * 1e9))
            refused(found[0])
            assert 0 < sum(costs) <= leased
            assert leased - sum(costs) < 300_000, "a call that its lease could pay was refused"

            if paused is None:
                server.start()
            else:
                server.resume(paused)
            begun = time.perf_counter()
            while (await it.without_lease())[0].status_code != 200:
                await asyncio.sleep(0.02)
            back = time.perf_counter() - begun
            assert back < 3
            assert (await it.chat("leased"))[0].status_code == 200
        print(
            f"{how}: the first call waited {waited * 1000:.0f} ms, the next 40 at most {max(waits) * 1000:.0f} ms; "
            f"{len(costs)} calls from the lease; {back * 1000:.0f} ms after its return all went on"
        )
        await equal(url, simulator.url)


async def equal(url: str, provider: str) -> None:
    """The ledger is the provider's bill, call by call, and nothing is held."""
    ledger = PostgresLedger(url)
    shell = await asyncpg.connect(url)
    try:
        assert await ledger.audit() == []
        charged = {row[0]: row[1] for row in await shell.fetch("SELECT hold, amount FROM tollkeeper.entry")}
        assert await shell.fetchval("SELECT sum(reserved)::bigint FROM tollkeeper.budget_window") == 0
    finally:
        await shell.close()
        await ledger.aclose()
    async with httpx2.AsyncClient() as client:
        assert charged == await spent_at(provider, client)
