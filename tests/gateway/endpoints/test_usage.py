"""What a provider's figures are compared with, over real sockets: tokens by day and model, and what it calls each."""

from __future__ import annotations

import time

import pytest

from tests.running import config, running
from tests.scripted import plain, scripted


async def test_tokens_are_told_by_the_day_and_the_providers_name_of_the_model() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for _ in range(3):
            assert (await gateway.chat()).status_code == 200
        (line,) = (await gateway.admin("GET", "/usage")).json()["data"]
        used = [x.attempts[0].usage for x in gateway.seen]
        assert line["day"] == time.strftime("%Y-%m-%d", time.gmtime())
        assert (line["provider"], line["attempts"], line["untold"]) == ("up", 3, 0)
        assert (line["input"], line["output"]) == (sum(u.input for u in used if u), sum(u.output for u in used if u))
        assert (await gateway.admin("GET", "/usage?provider=other")).json()["data"] == []
        assert (await gateway.admin("GET", "/usage?until=1h")).json()["data"] == []


async def test_what_providers_call_each_model_is_told() -> None:
    more = {"n": {"targets": [{"provider": "up", "model": "a"}, {"provider": "up", "model": "b"}]}}
    async with scripted(plain) as up, running(config(up.url, models=more)) as gateway:
        told = (await gateway.admin("GET", "/targets")).json()
        assert told["providers"] == ["up"]
        assert told["data"] == [
            {"model": "m", "provider": "up", "provider_model": "up"},
            {"model": "n", "provider": "up", "provider_model": "a"},
            {"model": "n", "provider": "up", "provider_model": "b"},
        ]


@pytest.mark.parametrize("path", ["/usage", "/targets"])
async def test_they_are_for_those_who_see_all_teams(path: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        token = (await gateway.made("/tokens", name="v", role="viewer", teams=["checkout"]))["token"]
        assert (await gateway.admin("GET", path, token=token)).status_code == 403


async def test_without_records_there_are_no_tokens_to_tell_of() -> None:
    said = config("http://127.0.0.1:9/v1", telemetry={"records": {"enabled": False}})
    async with running(said) as gateway:
        assert (await gateway.admin("GET", "/usage")).status_code == 404
        assert (await gateway.admin("GET", "/targets")).status_code == 200
