"""Nobody far below a budget is refused: 50 agents at once, until nine tenths of it are spent.

A refusal is false here if it comes before 90 % of the budget is spent (by the provider's own bill), whatever others
hold at that moment.  Agents are ordinary: each waits for its answer, then asks again; a call holds ten times what it
costs on average.  `held` says how much of the budget 50 such calls hold together: 5 % is a budget that fits its team,
20 % is one that is nearly too small for it: in its last fifth every call waits for what others hold.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.processes import serving
from tests.running import config
from tests.scripted import Asked, answer, scripted
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a call waits five seconds for what others hold: a busy machine would use them up

AGENTS = 50
KEYS = 5
CAP = 1000  # tokens that a call may answer, at 1 USD per million: it holds 1,000,000 nano-USD …
LEAST, MOST = 20, 180  # … and answers so many
TOKEN = 1000  # nano-USD


@dataclass
class Run:
    limit: int  # nano-USD
    spent: int = 0
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def over(self) -> bool:
        return self.spent >= self.limit * 9 // 10

    @property
    def refused(self) -> float:
        """The part of all calls before 90 % that was refused."""
        return sum(count for code, count in self.codes.items() if code != "200") / self.codes.total()


def said(provider: str, limit: int) -> dict[str, Any]:
    models = {"m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 0, "output": 1}}}
    keys = [{"name": f"k{number}", "key": f"tk-{number}-of-the-agents-team"} for number in range(KEYS)]
    team = {"checkout": {"keys": keys, "budgets": [{"limit_usd": f"{limit / 1e9:.9f}", "per": "month"}]}}
    return config(provider, models=models, teams=team, server={"key_pepper": "a-pepper-that-all-of-the-gateways-share"})


async def agent(run: Run, url: str, key: str) -> None:
    """Asks again and again over one connection, by hand: a client library would need more CPU than the gateway."""
    body = json.dumps({"model": "m", "max_tokens": CAP, "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    asked = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        while not run.over:
            writer.write(asked)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(lines.partition("content-length: ")[2].partition("\r\n")[0])
            told = json.loads(await reader.readexactly(length))
            if not run.over:
                run.codes[told["error"]["code"] if "error" in told else "200"] += 1
    finally:
        writer.close()


async def spent_to_nine_tenths(held: float, gateways: int, pause: float, folder: Path, store: str | None) -> Run:
    """pause: seconds a call takes, on average."""
    run = Run(round(AGENTS * CAP * TOKEN / held))
    dice = random.Random(gateways)

    async def provider(asked: Asked) -> None:
        tokens = dice.randint(LEAST, MOST)
        await asyncio.sleep(dice.uniform(0.5, 1.5) * pause)
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        run.spent += tokens * TOKEN
        await asked.wire.whole(200, answer(usage=usage))

    async with scripted(provider) as up:
        with ExitStack() as stack:
            urls = []
            for number in range(gateways):
                place = folder / f"g{number}"
                place.mkdir()
                settings = said(up.url, run.limit) | ({"store": store} if store else {})
                urls.append(stack.enter_context(serving(settings, folder=place)).url)
            agents = [agent(run, urls[n % gateways], f"tk-{n % KEYS}-of-the-agents-team") for n in range(AGENTS)]
            async with asyncio.timeout(400):
                await asyncio.gather(*agents)
    return run


@pytest.mark.parametrize(
    ("held", "pause", "most"),
    [
        (0.1, 0.03, 0.01),  # also where other programs take most of the processor
        pytest.param(0.2, 0.03, 0.01, marks=pytest.mark.long),
        pytest.param(0.05, 0.03, 0.01, marks=pytest.mark.long),
        pytest.param(0.2, 1.0, 0.01, marks=pytest.mark.long),
        pytest.param(0.2, 3.0, 0.01, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("gateways", [1, 3])
async def test_of_50_agents_calls_hardly_one_is_refused_before_nine_tenths_are_spent(
    gateways: int, held: float, pause: float, most: float, tmp_path: Path, server: Postgres
) -> None:
    if gateways == 1:
        run = await spent_to_nine_tenths(held, 1, pause, tmp_path, None)
    else:
        async with server.database() as url:
            run = await spent_to_nine_tenths(held, gateways, pause, tmp_path, url)
    print(
        f"{gateways} gateways, calls of {pause} s, 50 of them hold {held:.0%} of the budget: "
        f"{dict(run.codes)}, refused {run.refused:.2%}"
    )
    assert run.codes["200"] > 0.8 * run.limit / (TOKEN * (LEAST + MOST) / 2)
    assert run.refused <= most
