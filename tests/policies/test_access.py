"""A team uses the models it is allowed, by whatever name it calls them."""

from __future__ import annotations

from tests.running import KEY, config, running
from tests.scripted import plain, scripted

MODELS = {
    "m": {"targets": [{"provider": "up", "model": "up"}], "aliases": ["fast"], "price": {"input": 1, "output": 2}},
    "other": {"targets": [{"provider": "up", "model": "up2"}], "price": {"input": 1, "output": 2}},
}


async def test_only_the_listed_models_answer() -> None:
    teams = {"checkout": {"models": ["m"], "keys": [{"name": "web", "key": KEY}]}}
    async with scripted(plain) as up, running(config(up.url, models=MODELS, teams=teams)) as gateway:
        assert (await gateway.chat()).status_code == 200
        assert (await gateway.chat(model="fast")).status_code == 200
        refused = await gateway.chat(model="other")
        listed = (await gateway.client.get("/v1/models")).json()
        hidden = await gateway.client.get("/v1/models/other")
        assert len(up.asked) == 2
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "model_not_allowed"
    assert "checkout" in refused.json()["error"]["message"]
    assert [card["id"] for card in listed["data"]] == ["m"]
    assert hidden.status_code == 404


async def test_a_team_without_a_list_may_use_every_model() -> None:
    async with scripted(plain) as up, running(config(up.url, models=MODELS)) as gateway:
        assert (await gateway.chat(model="other")).status_code == 200
        listed = (await gateway.client.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["m", "other"]
