"""What the tests of real clients share: a simulator in its own process, a gateway on it, and its bill to compare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.demo.bill import PRICES
from gateway.demo.simulator import Spawned, spawn
from gateway.exchange import Exchange
from tests.running import KEY, Running, config, running

GUEST = "tk-test-key-of-the-guests-team"
NAMES = {"small": "sim-small", "reason": "sim-reason", "embed": "sim-embed", "free": "sim-free", "locked": "sim-large"}


@dataclass
class House:
    """The running gateway, and the provider's view of what was sent through it."""

    run: Running
    provider: httpx2.AsyncClient
    at: int = 0  # exchanges of `run.seen` that were looked at

    @property
    def url(self) -> str:
        return f"{self.run.url}/v1"

    async def finished(self, count: int = 1) -> list[Exchange]:
        """The next `count` finished exchanges, and no more of them."""
        await self.run.finished(self.at + count)
        assert len(self.run.seen) == self.at + count, "more calls reached the gateway than were meant"
        self.at += count
        return self.run.seen[-count:]

    async def billed(self, count: int = 1) -> list[Exchange]:
        """The same, each call answered in full, with usage and cost equal to the provider's bill to the nano-dollar."""
        exchanges = await self.finished(count)
        for x in exchanges:
            assert x.error is None
            (attempt,) = x.attempts
            row = await self.row(x)
            assert row["complete"]
            assert row["billed"]
            assert attempt.usage is not None
            assert not attempt.usage.estimated
            usage = attempt.usage
            told = {
                "input": usage.input,
                "cached": usage.cache_read,
                "output": usage.output,
                "reasoning": usage.reasoning,
            }
            assert told == {name: row[name] for name in told}
            assert x.cost == row["nano_usd"]
            record = await self.run.record(x.id)
            assert record.cost_nano == row["nano_usd"]
            assert (record.tokens.input, record.tokens.output) == (row["input"], row["output"])
        return exchanges

    async def row(self, x: Exchange) -> dict[str, Any]:
        """The bill's row of this exchange's only attempt."""
        rows = (await self.provider.get("/sim/bill")).json()["rows"]
        (row,) = [row for row in rows if row["attempt"] == f"{x.id}.1"]
        return dict(row)

    async def abandoned(self, x: Exchange) -> dict[str, Any]:
        """How the provider saw a call end whose caller hung up: waits until it does, 1 s at most."""
        async with asyncio.timeout(1):
            while True:
                requests = (await self.provider.get("/sim/connections")).json()["requests"]
                (seen,) = [request for request in requests if request["attempt"] == f"{x.id}.1"]
                if seen["closed"] is not None:
                    return dict(seen)
                await asyncio.sleep(0.01)

    async def under_way(self) -> Exchange:
        """The one call that the provider is working on."""
        async with asyncio.timeout(5):
            while True:
                requests = (await self.provider.get("/sim/connections")).json()["requests"]
                working = {request["attempt"] for request in requests if request["closed"] is None}
                for x in self.run.app.pipeline.running:
                    if f"{x.id}.1" in working:
                        return x
                await asyncio.sleep(0.005)


def said(url: str) -> dict[str, Any]:
    """Two teams: checkout may use all but `locked`; guests only `small`.  Prices are the simulator's own list."""
    models = {
        name: {"targets": [{"provider": "up", "model": model}], "price": _price(model)} for name, model in NAMES.items()
    }
    mine = [name for name in NAMES if name != "locked"]
    return config(
        f"{url}/v1",
        server={"body_limit_mb": 1},
        models=models | {"m": {"targets": [{"provider": "up", "model": "sim-small"}]}},
        teams={
            "checkout": {"models": mine, "provider": "up"},
            "guests": {"keys": [{"name": "web", "key": GUEST}], "models": ["small"]},
        },
    )


def _price(model: str) -> dict[str, str]:
    """pico-USD per token as USD per million tokens."""
    price = PRICES[model]
    parts = {"input": price.input, "cached_input": price.cached, "output": price.output}
    return {part: str(Decimal(pico) / 1_000_000) for part, pico in parts.items()}


@pytest.fixture(scope="session")
def simulator() -> Iterator[Spawned]:
    with spawn() as spawned:
        yield spawned


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(simulator: Spawned) -> AsyncIterator[House]:
    async with running(said(simulator.url)) as run, httpx2.AsyncClient(base_url=simulator.url) as provider:
        yield House(run, provider)


async def rested(house: House) -> House:
    """Nothing under way, and nothing of other tests to look at."""
    async with asyncio.timeout(5):
        while house.run.app.pipeline.running:
            await asyncio.sleep(0.005)
    house.at = len(house.run.seen)
    return house


@pytest_asyncio.fixture(loop_scope="module")
async def house(gateway: House) -> House:
    """The module's gateway, with nothing under way and nothing of other tests to look at."""
    return await rested(gateway)


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def guest() -> str:
    return GUEST
