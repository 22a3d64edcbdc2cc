"""Gateways killed under traffic: afterwards the ledger and the provider's own bill agree, call by call."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from gateway.demo.simulator import Spawned, spawn
from tests.policies.test_budget import simulated
from tests.processes import Process, serving
from tests.running import KEY

BUDGETS = {"budgets": [{"limit_usd": 1000, "per": "month"}, {"limit_usd": 10_000, "per": "total", "hard": False}]}


@pytest.fixture(scope="module")
def simulator() -> Any:
    with spawn() as spawned:
        yield spawned


def entries(folder: Path) -> dict[str, tuple[int, bool]]:
    """Hold -> what the team's month was charged for it, and whether that is more than the truth at most."""
    file = apsw.Connection(str(folder / "tollkeeper.ledger.db"))
    try:
        rows = file.execute(
            "SELECT hold, sum(amount), max(coalesce(note, '')) FROM entry WHERE window = "
            "(SELECT id FROM budget_window WHERE budget = 'team checkout month') GROUP BY hold"
        )
        found = {}
        for hold, amount, note in rows:
            words = json.loads(note or "{}")
            found[hold] = amount, bool(words.get("in_doubt") or words.get("estimated"))
        return found
    finally:
        file.close()


async def traffic(url: str, dice: random.Random, until: asyncio.Event, answered: list[int]) -> None:
    """Calls of every kind, until told to stop; what a killed gateway does to them is no concern of theirs."""
    async with httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=10) as client:
        while not until.is_set():
            body = {
                "model": dice.choice(["m", "large", "reason", "twice"]),
                "stream": dice.random() < 0.5,
                "max_tokens": dice.choice([20, 100, 300]),
                "messages": [{"role": "user", "content": "Tell me about " + "the sea " * dice.randrange(1, 20)}],
            }
            headers = {"x-sim-fault": "status=429"} if dice.random() < 0.1 else {}
            try:
                async with asyncio.timeout(dice.choice([0.02, 0.2, 5, 5])):
                    reply = await client.post("/v1/chat/completions", json=body, headers=headers)
                    await reply.aread()
                    answered.append(reply.status_code)
            except (httpx2.HTTPError, TimeoutError):
                await asyncio.sleep(0.02)


async def ready(process: Process) -> None:
    async with httpx2.AsyncClient() as client:
        for _ in range(200):
            try:
                if (await client.get(f"{process.url}/readyz")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kills", [4, pytest.param(250, marks=pytest.mark.long)])
async def test_after_kills_under_traffic_every_nano_dollar_is_explained(
    kills: int, simulator: Spawned, tmp_path: Path
) -> None:
    dice = random.Random(kills)
    said = simulated(simulator.url, BUDGETS)
    for number in range(kills + 1):
        with serving(said, folder=tmp_path) as process:
            await ready(process)
            until = asyncio.Event()
            answered: list[int] = []
            callers = [asyncio.create_task(traffic(process.url, dice, until, answered)) for _ in range(12)]
            async with asyncio.timeout(20):
                while answered.count(200) < 25:
                    await asyncio.sleep(dice.random() * 0.2)
            if number < kills:
                process.popen.kill()
                process.popen.wait()
            until.set()
            await asyncio.gather(*callers)
            if number == kills:
                assert process.stop() == 0
    async with httpx2.AsyncClient() as client:
        rows = (await client.get(f"{simulator.url}/sim/bill")).json()["rows"]
    bill = {row["attempt"]: row["nano_usd"] for row in rows if row["billed"]}
    charged = entries(tmp_path)
    doubted = sum(1 for _, doubt in charged.values() if doubt)
    print(f"{kills} kills: {len(bill)} billed, {len(charged)} charged, of which {doubted} not known exactly")
    assert len(bill) > 20 * kills
    unpaid = {attempt for attempt in bill if attempt not in charged}
    assert unpaid == set()
    for hold, (amount, doubt) in charged.items():
        if doubt:
            assert amount >= bill.get(hold, 0), hold
        else:
            assert amount == bill.get(hold, 0), hold
    assert not list(tmp_path.glob("*.journal"))
    file = apsw.Connection(str(tmp_path / "tollkeeper.ledger.db"))
    assert list(file.execute("SELECT sum(reserved) FROM budget_window")) == [(0,)]
    file.close()
