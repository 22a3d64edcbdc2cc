"""Real calls through a whole gateway: the provider's own bill for each stays within its bound."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.bounds import Bound, bound, shrunk
from gateway.demo.bill import PRICES
from gateway.demo.simulator import running as simulating
from gateway.exchange import Attempt, Exchange
from gateway.policy import Policy
from gateway.prices import Prices
from gateway.settings import Config
from tests.nasty import NASTY
from tests.running import config, running

CALLS = 300
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "é" * 30, "parameters": {
        "type": "object", "properties": {"place": {"type": "string", "description": "日本"}, "n": {"type": "integer"}},
        "required": ["place"]}}}
    for name in ("weather", "train")
]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


class Bounds(Policy[None]):
    """Bounds every attempt and sends its cap; available: what a budget has left."""

    looks = False

    def __init__(self, said: Config, available: int | None = None) -> None:
        self._config, self._prices, self._available = said, Prices(said), available
        self.found: dict[str, Bound] = {}

    async def attempt(self, x: Exchange, attempt: Attempt) -> None:
        target, model = attempt.target, self._config.models[attempt.target.alias]
        rate = self._prices.rate(target.alias, target.provider.name, target.model, datetime.now(UTC).date())
        found: Bound | None
        if self._available is None:
            found = bound(x, target, rate, model)
        else:
            found = shrunk(x, target, rate, model, self._available)
            assert found is not None
        self.found[f"{x.id}.{len(x.attempts)}"] = found
        attempt.cap = found.cap


def asked(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A call of a random kind: its path and body."""
    text = rng.choice([rng.choice(NASTY), "use tools please", "say: " + rng.choice(NASTY), "hello", "long " * 3_000])
    cap = rng.choice([None, 1, 5, 60, 700, 5_000])
    more: dict[str, Any] = rng.choice([{}, {"n": 3}, {"temperature": 0.5}, {"n": 2, "seed": 1}])
    if rng.random() < 0.5:
        more |= {"stream": True}
    if cap is not None:
        more = more | {"max_tokens": cap}
    kind = rng.random()
    if kind < 0.15:
        inputs = [text or "x", [text or "x", "second"], [1, 22, 333], [[1, 2], [999_999]]]
        return "/v1/embeddings", {"model": "sim-embed", "input": rng.choice(inputs)}
    if kind < 0.3:
        prompt = rng.choice([text, [text, "b"], [1, 2, 3], [[1, 123_456_789], [3]]])
        return "/v1/completions", {"model": rng.choice(["sim-small", "sim-reason"]), "prompt": prompt, **more}
    if cap is not None and rng.random() < 0.5:
        more["max_completion_tokens"] = more.pop("max_tokens")
    if rng.random() < 0.3:
        more |= {"tools": TOOLS, "tool_choice": rng.choice(["auto", "required", "none"])}
    elif rng.random() < 0.2:
        more["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    content = rng.choice([text, [{"type": "text", "text": text}, PICTURE], [{"type": "text", "text": text}]])
    roles = rng.choices(["user", "system", "assistant"], k=rng.randrange(4))
    turns = [{"role": role, "content": rng.choice(NASTY)} for role in roles]
    return "/v1/chat/completions", {
        "model": rng.choice(["sim-small", "sim-large", "sim-reason"]),
        "messages": [*turns, {"role": "user", "content": content}],
        **more,
    }


def said(url: str, **of_model: Any) -> dict[str, Any]:
    models = {
        name: {
            "targets": [{"provider": "up", "model": name}],
            "price": {"input": price.input / 1e6, "cached_input": price.cached / 1e6, "output": price.output / 1e6},
            **of_model,
        }
        for name, price in PRICES.items()
    }
    return {**config(f"{url}/v1"), "models": models}


def as_config(raw: dict[str, Any]) -> Config:
    return Config.model_validate(raw)


async def send(gateway: Any, calls: Sequence[tuple[str, dict[str, Any]]]) -> None:
    gate = asyncio.Semaphore(8)

    async def one(path: str, body: dict[str, Any]) -> None:
        async with gate:
            answer = await gateway.client.post(path, json=body)
            assert answer.status_code == 200, answer.text

    await asyncio.gather(*(one(*call) for call in calls))


@pytest.mark.parametrize("of_model", [{}, {"output_tokens": 40, "max_output_tokens": 300}])
async def test_no_real_call_is_billed_above_its_bound(of_model: dict[str, Any]) -> None:
    rng = random.Random(str(of_model))
    calls = [asked(rng) for _ in range(CALLS)]
    async with simulating() as provider:
        raw = said(provider.url, **of_model)
        policy = Bounds(as_config(raw))
        async with running(raw, [policy]) as gateway:
            await send(gateway, calls)
            await gateway.finished(CALLS)
            costs = {f"{x.id}.1": x.cost for x in gateway.seen}
        rows = provider.bill.rows
    assert len(rows) == CALLS
    held = 0
    for row in rows:
        assert row.attempt is not None
        most = policy.found[row.attempt]
        assert row.nano_usd <= most.amount
        assert row.charge.input <= most.input
        assert row.charge.output <= most.output
        cost = costs[row.attempt]
        assert cost is not None
        assert cost <= most.amount
        held += most.amount
    spent = sum(row.nano_usd for row in rows)
    assert any(row.charge.reasoning for row in rows)
    print(f"held {held / spent:.1f} times what was spent")


async def test_a_shrunken_call_fits_what_is_left_and_is_cut_short() -> None:
    async with simulating() as provider:
        raw = said(provider.url)
        policy = Bounds(as_config(raw), available=5_000_000)
        async with running(raw, [policy]) as gateway:
            body = {"model": "sim-small", "messages": [{"role": "user", "content": "say: " + "word " * 5_000}], "n": 4}
            answer = await gateway.client.post("/v1/chat/completions", json=body)
            assert {choice["finish_reason"] for choice in answer.json()["choices"]} == {"length"}
        (row,) = provider.bill.rows
    (most,) = policy.found.values()
    assert most.cap is not None
    assert row.nano_usd <= most.amount <= 5_000_000
    assert row.charge.output == 4 * most.cap
