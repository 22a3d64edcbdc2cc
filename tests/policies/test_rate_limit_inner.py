"""Calls that policies make (a judge, an embedding) count for the limits of who they are made for, and none refuses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.running import KEY, Running, config, running
from tests.scripted import Asked, Scripted, answer, scripted
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

SAFE = json.dumps({"score": 0, "confidence": 1, "label": "safe"})
JUDGED = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
VECTOR: Any = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "model": "up-embed",
    "usage": {"prompt_tokens": 100, "total_tokens": 100},
}
JUDGE = {"use": "judge", "model": "judge", "criteria": "It asks for a way to hurt somebody.", "stages": ["input"]}
SAFETY = {"use": "safety", "assessors": [JUDGE]}
SEMANTIC = {"use": "cache", "semantic": {"shadow": True, "model": "embed"}}
BY = pytest.mark.parametrize(("policy", "model"), [(SAFETY, "judge"), (SEMANTIC, "embed")], ids=["judge", "embedding"])


async def provider(asked: Asked) -> None:
    """An answer takes 7 tokens, a judgement and an embedding 100."""
    if asked.path.endswith("/embeddings"):
        await asked.wire.whole(200, json.dumps(VECTOR).encode())
    elif asked.json["model"] == "up-judge":
        await asked.wire.whole(200, answer(SAFE, usage=JUDGED))
    else:
        await asked.wire.whole(200, answer())


@asynccontextmanager
async def limited(
    policy: dict[str, Any], script: Any = provider, models: dict[str, Any] | None = None, **over: Any
) -> AsyncIterator[tuple[Running, Scripted]]:
    """over: of the team checkout, or counters."""
    priced = {"price": {"input": 1, "output": 1}}
    known: dict[str, Any] = {
        name: {"targets": [{"provider": "up", "model": f"up-{name}"}], **priced, **(models or {}).get(name, {})}
        for name in ("m", "judge", "embed")
    }
    counters = {"counters": over.pop("counters")} if "counters" in over else {}
    keys = {"keys": [{"name": "web", "key": KEY, "limits": over.pop("web", {})}]}
    async with scripted(script) as up:
        policies = [{"use": "rate_limit", "output_tokens": 50}, policy]
        said = config(up.url, models=known, policies=policies, teams={"checkout": keys | over})
        async with running(said | counters) as gateway:
            yield gateway, up


async def chat(gateway: Running, number: int, **body: Any) -> httpx2.Response:
    return await gateway.chat(f"question {number} of how many?", temperature=0, **body)


async def left(gateway: Running, number: int) -> int:
    return int((await chat(gateway, number)).headers["x-ratelimit-remaining-tokens"])


@BY
@pytest.mark.parametrize("counters", ["memory", "valkey"])
async def test_its_tokens_count_for_the_team_it_is_made_for(
    policy: dict[str, Any], model: str, counters: str, server: Valkey
) -> None:
    server.say("FLUSHALL")
    over = {"counters": server.url} if counters == "valkey" else {}
    async with limited(policy, limits={"tokens_per_day": 10_000}, **over) as (gateway, up):
        first = await left(gateway, 1)
        await gateway.finished(2)
        await asyncio.sleep(0.1)
        assert first - await left(gateway, 2) == 107
        assert len(up.asked) == 4


@BY
@pytest.mark.parametrize("place", ["web", "users"])
async def test_and_for_its_key_and_its_user(policy: dict[str, Any], model: str, place: str) -> None:
    async with limited(policy, **{place: {"tokens_per_day": 10_000}}) as (gateway, _):
        first = await left(gateway, 1)
        await gateway.finished(2)
        assert first - await left(gateway, 2) == 107


@BY
async def test_a_call_that_was_admitted_is_not_refused_for_it_and_those_that_follow_wait(
    policy: dict[str, Any], model: str
) -> None:
    async with limited(policy, limits={"tokens_per_minute": 170}) as (gateway, up):
        codes = [(await chat(gateway, number)).status_code for number in range(4)]
        assert codes == [
            200,
            200,
            429,
            429,
        ]  # 107 used, and 57 reserved for the second, before its own 100 are asked for
        assert len(up.asked) == 4
        assert [x.error for x in gateway.seen if x.inner] == [None, None]


@BY
async def test_it_is_no_request_of_the_team_and_takes_no_place_among_its_calls_at_once(
    policy: dict[str, Any], model: str
) -> None:
    async with limited(policy, limits={"requests_per_minute": 3, "concurrent": 1}) as (gateway, up):
        found = [await chat(gateway, number) for number in range(4)]
        assert [one.status_code for one in found] == [200, 200, 200, 429]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in found] == ["2", "1", "0", "0"]
        assert len(up.asked) == 6


@BY
async def test_it_counts_for_the_limits_of_its_model_but_is_not_refused_by_them(
    policy: dict[str, Any], model: str
) -> None:
    models = {model: {"limits": {"requests_per_minute": 2, "tokens_per_day": 10_000}}}
    async with limited(policy, models=models) as (gateway, _):
        assert [(await chat(gateway, number)).status_code for number in range(3)] == [200] * 3
        assert [x.status for x in gateway.seen if x.inner] == [200] * 3
        if model == "judge":
            own = await gateway.chat(model=model)
        else:
            own = await gateway.client.post("/v1/embeddings", json={"model": model, "input": "hi"})
        assert (own.status_code, own.json()["error"]["code"]) == (429, "rate_limited")
        assert "2 requests per minute" in own.json()["error"]["message"]


@BY
async def test_while_it_runs_it_is_one_of_its_models_calls_at_once(policy: dict[str, Any], model: str) -> None:
    gate = asyncio.Event()

    async def slow(asked: Asked) -> None:
        if asked.json["model"] == f"up-{model}":
            await gate.wait()
        await provider(asked)

    async with limited(policy, slow, {model: {"limits": {"concurrent": 1}}}) as (gateway, up):
        calls = [asyncio.create_task(chat(gateway, number)) for number in range(2)]
        async with asyncio.timeout(5):
            while len(up.asked) < 2:  # both: neither refuses the other
                await asyncio.sleep(0.005)
        body = {"model": model, "input": "hi", "messages": [{"role": "user", "content": "hi"}]}
        path = "/v1/chat/completions" if model == "judge" else "/v1/embeddings"
        assert (await gateway.client.post(path, json=body)).status_code == 429
        gate.set()
        assert [(await call).status_code for call in calls] == [200, 200]
        await gateway.finished(5)
        if model == "embed":  # a judge would be judged
            assert (await gateway.client.post(path, json=body)).status_code == 200  # its place is free again


@BY
async def test_what_it_did_not_use_is_given_back(policy: dict[str, Any], model: str) -> None:
    async def refuses(asked: Asked) -> None:
        if asked.json["model"] == f"up-{model}":
            await asked.wire.whole(429, b"{}")
        await provider(asked)

    async with limited(policy, refuses, limits={"tokens_per_day": 10_000}) as (gateway, up):
        first = await left(gateway, 1)
        await gateway.finished(2)
        used = first - await left(gateway, 2)
        assert used == (7 if policy is SEMANTIC else 0)  # where the judge fails, the call is not sent
        assert up.asked[0].json["model"] == f"up-{model}"
