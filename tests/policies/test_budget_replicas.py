"""Three gateways, each a process of its own, on one PostgreSQL: one budget holds for all of them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from tests.processes import Process, serving
from tests.running import KEY, config
from tests.scripted import Asked, answer, scripted
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

CALLS = 50  # of 2,000 tokens at 1 USD per million are what the budget pays
USAGE = {"prompt_tokens": 1, "completion_tokens": 2000, "total_tokens": 2001}


def said(provider: str, store: str) -> dict[str, Any]:
    models = {"m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 0, "output": 1}}}
    team = {"checkout": {"budgets": [{"limit_usd": "0.1", "per": "month"}]}}
    pepper = {"key_pepper": "a-pepper-that-all-three-of-them-share"}
    return config(provider, models=models, teams=team, server=pepper) | {"store": store}


async def chat(process: Process) -> int:
    body = {"model": "m", "max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}]}
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=30) as client:
        return (await client.post(f"{process.url}/v1/chat/completions", json=body)).status_code


async def test_of_200_calls_to_three_gateways_exactly_50_are_sent(
    tmp_path: Path,
    server: Postgres,
) -> None:
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.3)
        await asked.wire.whole(200, answer(usage=USAGE))

    async with server.database() as url, scripted(slow) as up:
        with ExitStack() as stack:
            gateways = []
            for number in range(3):
                folder = tmp_path / f"g{number}"
                folder.mkdir()
                gateways.append(stack.enter_context(serving(said(up.url, url), folder=folder)))
            codes = await asyncio.gather(*(chat(gateways[number % 3]) for number in range(200)))
            assert len(up.asked) == CALLS
            assert sorted(codes) == [200] * CALLS + [429] * (200 - CALLS)
            assert [gateway.stop() for gateway in gateways] == [0, 0, 0]
        assert not [file for folder in tmp_path.iterdir() for file in folder.glob("*.journal")]
