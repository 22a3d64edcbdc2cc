"""No path past a budget: every route, every form of a key, every scope; and what is free is never stopped by one."""

from __future__ import annotations

import inspect
import re
from typing import Any

import httpx2
import pytest

from gateway.app import Gateway
from tests.running import KEY, config, running
from tests.scripted import plain, scripted

NOTHING = [{"limit_usd": 0, "per": "day"}]
SCOPES: dict[str, dict[str, Any]] = {
    "organisation": {"budgets": NOTHING},
    "model": {"models": {"m": {"budgets": NOTHING}}},
    "team": {"teams": {"checkout": {"budgets": NOTHING}}},
    "user": {"teams": {"checkout": {"user_budgets": NOTHING}}},
    "feature": {"teams": {"checkout": {"feature_budgets": NOTHING}}},
    "key": {"teams": {"checkout": {"keys": [{"name": "web", "key": KEY, "budgets": NOTHING}]}}},
}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
# Each route that can cost money, as its path and a call.  /v1/responses and what follows are relayed.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/completions", {"model": "m", "prompt": "hi"}),
    ("/v1/embeddings", {"model": "m", "input": "hi"}),
    ("/v1/responses", {"model": "m", "input": "hi"}),
    ("/v1/images/generations", {"model": "m", "prompt": "hi"}),
    ("/v1/audio/speech", {"model": "m", "input": "hi", "voice": "v"}),
    ("/v1/moderations", {"model": "m", "input": "hi"}),
    ("/v1/something/new", {"model": "m"}),
]
FREE_ROUTES = {"/v1/models", "/v1/models/"}  # answered here: no provider hears of them
CREDENTIALS = ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"api-key": KEY})


def test_each_route_of_the_url_table_is_among_those_that_are_tried() -> None:
    """A route that is added fails here until it is."""
    table = set(re.findall(r'"(/v1/[^"]+)"', inspect.getsource(Gateway._urls)))
    assert len(table) > 3
    assert table - FREE_ROUTES <= {path for path, _ in CALLS}


@pytest.mark.parametrize("scope", SCOPES)
async def test_an_exhausted_budget_of_any_scope_stops_every_route_with_every_form_of_a_key(scope: str) -> None:
    said = SCOPES[scope]
    bounded = {"m": {**said.get("models", {}).get("m", {}), "max_cost_usd": 1}}  # what is relayed has no bound else
    async with scripted(plain) as up:
        async with (
            running(config(up.url, **(said | {"models": bounded}))) as gateway,
            httpx2.AsyncClient(base_url=gateway.url) as client,
        ):
            for path, body in CALLS:
                for key in CREDENTIALS:
                    headers = key | {"x-user-id": "u", "x-feature": "f"}
                    reply = await client.post(path, json=body, headers=headers)
                    case = (path, key, reply.status_code, reply.text[:200])
                    assert reply.status_code == 429, case
                    assert reply.json()["error"]["code"] == "budget_exhausted", case
        assert up.asked == []


async def test_a_call_whose_cost_nobody_knows_is_refused_where_there_is_a_budget_and_passes_where_there_is_none() -> (
    None
):
    unpriced = {"models": {"x": {"targets": [{"provider": "up", "model": "nobody-knows-it"}]}}}
    for budgets, status in ((None, 200), ([{"limit_usd": 5, "per": "day"}], 400)):
        async with scripted(plain) as up:
            teams = {"checkout": {"budgets": budgets}} if budgets else {}
            async with running(config(up.url, **unpriced, teams=teams)) as gateway:
                reply = await gateway.chat(model="x")
                assert reply.status_code == status, reply.text
                assert len(up.asked) == (status == 200)
                if status == 400:
                    assert reply.json()["error"]["code"] == "model_unpriced"
                else:
                    assert "x-tollkeeper-cost-usd" not in reply.headers  # unknown is not 0
                    assert "tollkeeper_unpriced_requests_total 1.0" in (await gateway.client.get("/metrics")).text


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_model_that_costs_nothing_answers_although_a_budget_is_exhausted(scope: str) -> None:
    said = SCOPES[scope]
    free = {"m": {**said.get("models", {}).get("m", {}), "price": {"input": 0, "output": 0}}}
    async with scripted(plain) as up, running(config(up.url, **(said | {"models": free}))) as gateway:
        reply = await gateway.chat(headers={"x-user-id": "u", "x-feature": "f"})
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-tollkeeper-cost-usd"] == "0.000000000"
