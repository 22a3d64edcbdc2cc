"""Twenty tenants ask the same few questions at once: each gets answers that were made for it, whatever happens."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import nullcontext
from typing import Any

import httpx2
import pytest

from tests.running import config, running
from tests.scripted import Asked, answer, events, say, scripted
from tests.valkeys import valkey

TEAMS, PROMPTS = 20, 10
KEYS = {f"tk-key-{key}-of-tenant-{team:02}": f"team-{team}" for team in range(TEAMS) for key in ("a", "b")}


async def provider(asked: Asked) -> None:
    """Answers with the id of the call that it is asked by: whoever gets it can be held against whose call it was."""
    id = asked.headers["x-tollkeeper-attempt"].partition(".")[0]
    if asked.json.get("stream"):
        await say(asked, events(id[:7], id[7:]))
    else:
        await asked.wire.whole(200, answer(id))


def said(url: str, **cache: Any) -> dict[str, Any]:
    teams = {
        f"team-{team}": {
            "keys": [{"name": key, "key": f"tk-key-{key}-of-tenant-{team:02}"} for key in ("a", "b")],
        }
        for team in range(TEAMS)
    }
    uses = [{"use": "access"}, {"use": "rate_limit"}, {"use": "cache", "ttl": 0.5, **cache}, {"use": "budget"}]
    records = {"records": {"enabled": False}, "logs": {"access": False}}
    return config(url, policies=uses, telemetry=records) | {"teams": teams}


def origin(response: httpx2.Response) -> str:
    """The id of the call that this answer was made for."""
    assert response.status_code == 200, response.text
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    text = ""
    for line in response.text.split("\n\n"):
        if line.startswith("data: {"):
            text += "".join(one["delta"].get("content") or "" for one in json.loads(line[6:])["choices"])
    return text


async def storm(requests: int, **cache: Any) -> tuple[int, Counter[str]]:
    """Foreign answers, and how often the cache said what."""
    heard: list[tuple[str, str]] = []  # whose key asked, whose call it was
    words: Counter[str] = Counter()
    async with scripted(provider) as up, running(said(up.url, **cache)) as gateway:
        chance = random.Random(7)
        left = iter(range(requests))
        limits = httpx2.Limits(max_connections=32)
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client:

            async def worker() -> None:
                for number in left:
                    key = chance.choice(list(KEYS))
                    call = {
                        "model": "m",
                        "messages": [{"role": "user", "content": f"question {chance.randrange(PROMPTS)}"}],
                        "temperature": 0,
                        "stream": chance.random() < 0.5,
                    }
                    headers = {"authorization": f"Bearer {key}"}
                    if chance.random() < 0.02:
                        headers["idempotency-key"] = f"key-{number}"
                    if chance.random() < 0.02:
                        headers["cache-control"] = "no-cache"
                    response = await client.post("/v1/chat/completions", json=call, headers=headers)
                    words[response.headers["x-tollkeeper-cache"]] += 1
                    heard.append((KEYS[key], origin(response)))
                    if number % 1000 == 999:
                        what = chance.choice([{"all": True}, {"team": "team-3"}, {"model": "m"}])
                        assert (await gateway.admin("POST", "/cache/forget", what)).status_code == 200

            await asyncio.gather(*[worker() for _ in range(32)])
        await gateway.finished(requests)
        whose = {x.id: x.caller.team for x in gateway.seen}
        assert sum(store.defects for store in gateway.app.answers.stores) == 0
    assert len(heard) == requests
    return sum(whose[id] != team for team, id in heard), words


@pytest.mark.parametrize("store", ["memory", "valkey"])
async def test_no_tenant_gets_what_was_made_for_another(store: str) -> None:
    with valkey() if store == "valkey" else nullcontext() as server:
        shared = {} if server is None else {"store": server.url, "secret": "s" * 32}
        foreign, words = await storm(1500, **shared)
    print(f"{store}: 1,500 requests of {TEAMS} tenants: {foreign} foreign answers; {dict(words)}")
    assert foreign == 0
    assert min(words[word] for word in ("hit", "miss")) > 100


@pytest.mark.long
@pytest.mark.parametrize("store", ["memory", "valkey"])
async def test_nor_in_a_hundred_thousand_requests(store: str) -> None:
    with valkey() if store == "valkey" else nullcontext() as server:
        shared = {} if server is None else {"store": server.url, "secret": "s" * 32}
        foreign, words = await storm(100_000, **shared)
    print(f"{store}: 100,000 requests of {TEAMS} tenants: {foreign} foreign answers; {dict(words)}")
    assert foreign == 0
    assert words["hit"] > 20_000


async def test_the_storm_sees_a_leak_where_there_is_one() -> None:
    """All teams in one group share, which is what this test would find."""
    foreign, _ = await storm(300, groups=[[f"team-{team}" for team in range(TEAMS)]])
    assert foreign > 100
