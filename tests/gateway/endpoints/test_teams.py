"""Teams from the admin API act like those of config.yaml, and never against them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.running import config, running
from tests.scripted import plain, scripted


def error(answer: httpx2.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["param"]


async def test_a_team_is_created_changed_switched_off_and_deleted() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/organisations", name="acme")
        said = {"organisation": "acme", "models": ["m"], "provider": "up", "content": "redacted"}
        made = await gateway.made("/teams", name="search", **said, limits={"concurrent": 5}, users={"concurrent": 1})
        assert made == (await gateway.admin("GET", "/teams/search")).json()
        assert {word: made[word] for word in said} == said
        key = (await gateway.made("/keys", team="search", name="app"))["key"]
        headers = {"authorization": f"Bearer {key}"}
        assert (await gateway.chat(headers=headers)).status_code == 200
        caller = (await gateway.finished()).caller
        assert (caller.organisation, caller.models, caller.content, caller.provider) == (
            "acme",
            {"m"},
            "redacted",
            "up",
        )
        assert 'team="search"' in (await gateway.client.get("/metrics")).text
        changed = (await gateway.admin("PATCH", "/teams/search", {"models": [], "limits": {"concurrent": None}})).json()
        assert (changed["models"], changed["limits"], changed["users"]) == ([], {}, {"concurrent": 1})
        assert (await gateway.chat(headers=headers)).status_code == 403
        await gateway.admin("PATCH", "/teams/search", {"models": None})
        assert (await gateway.chat(headers=headers)).status_code == 200
        await gateway.admin("PATCH", "/teams/search", {"disabled": True})
        refused = await gateway.chat(headers=headers)
        assert (refused.status_code, "switched off" in refused.text) == (401, True)
        await gateway.admin("PATCH", "/teams/search", {"disabled": False})
        await gateway.admin("PATCH", "/organisations/acme", {"disabled": True})
        assert (await gateway.chat(headers=headers)).status_code == 401
        (listed,) = [one for one in (await gateway.admin("GET", "/keys")).json()["data"] if one["source"] == "api"]
        await gateway.made("/users", team="search", user="u")
        await gateway.made("/tokens", name="t", role="owner", teams=["search"])
        answer = await gateway.admin("DELETE", "/teams/search")
        assert error(answer) == (409, "in_use", "team")
        for what in ("the key app", "the user user_", "the admin token t"):
            assert what in answer.json()["error"]["message"]
        for path in ("users", "tokens"):
            (one,) = (await gateway.admin("GET", f"/{path}")).json()["data"]
            await gateway.admin("DELETE", f"/{path}/{one['id']}")
        await gateway.admin("DELETE", f"/keys/{listed['id']}")
        assert (await gateway.admin("DELETE", "/teams/search")).json() == {"id": "search", "deleted": True}
        assert error(await gateway.admin("GET", "/teams/search")) == (404, "not_found", "team")
        assert (await gateway.chat(headers=headers)).status_code == 401
        await gateway.made("/teams", name="search")  # whoever comes after has none of its keys
        assert (await gateway.chat(headers=headers)).status_code == 401


async def test_a_team_of_config_yaml_is_seen_and_cannot_be_changed_here() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        told = (await gateway.admin("GET", "/teams/checkout")).json()
        assert (told["source"], told["created"]) == ("config", None)
        for answer in (
            await gateway.admin("PATCH", "/teams/checkout", {"limits": {"concurrent": 1}}),
            await gateway.admin("DELETE", "/teams/checkout"),
        ):
            assert error(answer) == (409, "declared_in_config", "team")
        answer = await gateway.admin("POST", "/teams", {"name": "checkout"})
        assert error(answer) == (409, "declared_in_config", "name")


async def test_a_name_with_a_slash_has_its_path() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/teams", name="a/b")
        for path in ("/teams/a/b", "/teams/a%2Fb"):
            assert (await gateway.admin("GET", path)).json()["name"] == "a/b"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "invalid_request", "name"),
        ({"name": "x'; DROP TABLE item; --"}, 400, "invalid_request", "name"),
        ({"name": "a" * 129}, 400, "invalid_request", "name"),
        ({"name": "taken"}, 409, "already_exists", "name"),
        ({"name": "a", "organisation": "nobody"}, 404, "not_found", "organisation"),
        ({"name": "a", "provider": "nobody"}, 400, "invalid_request", "provider"),
        ({"name": "a", "models": ["nothing"]}, 400, "invalid_request", "models.0"),
        ({"name": "a", "models": "m"}, 400, "invalid_request", "models"),
        ({"name": "a", "content": "everything"}, 400, "invalid_request", "content"),
        ({"name": "a", "limits": {"requests_per_minute": -5}}, 400, "invalid_request", "limits.requests_per_minute"),
        ({"name": "a", "users": {"tokens_per_day": 10**30}}, 400, "invalid_request", "users.tokens_per_day"),
        ({"name": "a", "budgets": []}, 400, "invalid_request", "budgets"),
        ({"name": "a", "disabled": "no"}, 400, "invalid_request", "disabled"),
    ],
)
async def test_what_makes_no_sense_is_named(body: dict[str, Any], status: int, code: str, param: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/teams", name="taken")
        assert error(await gateway.admin("POST", "/teams", body)) == (status, code, param)
        change = {word: value for word, value in body.items() if word != "name"}
        if change:
            assert error(await gateway.admin("PATCH", "/teams/taken", change)) == (status, code, param)
        assert len((await gateway.admin("GET", "/teams")).json()["data"]) == 2


async def test_what_nobody_would_enforce_is_refused() -> None:
    async with scripted(plain) as up, running(config(up.url) | {"policies": []}) as gateway:
        for body, param in (
            ({"models": ["m"]}, "models"),
            ({"limits": {"concurrent": 1}}, "limits"),
            ({"users": {"concurrent": 1}}, "users"),
        ):
            answer = await gateway.admin("POST", "/teams", {"name": "a", **body})
            assert error(answer) == (400, "invalid_request", param)
            assert "to policies" in answer.json()["error"]["message"]


async def test_of_many_who_take_one_name_at_two_gateways_at_once_one_gets_it(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        said = config(up.url, policies=[{"use": "access"}]) | {"store": f"sqlite:///{tmp_path}/shared.db"}
        async with running(said) as one, running(said) as other:
            for round in range(5):
                body = {"name": f"team-{round}"}
                asked = [gateway.admin("POST", "/teams", body) for gateway in (one, other) for _ in range(4)]
                statuses = sorted(answer.status_code for answer in await asyncio.gather(*asked))
                assert statuses == [201] + [409] * 7
            checked = (await other.admin("GET", "/audit/verify")).json()
            assert (checked["rows"], checked["problem"]) == (5, "")
