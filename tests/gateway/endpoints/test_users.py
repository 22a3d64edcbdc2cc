"""Users with limits of their own: in place of what the team gives each user, and within the team's own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.running import config, running
from tests.scripted import plain, scripted


async def test_a_users_own_limits_stand_in_place_of_the_teams_and_act_at_once() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        limits = {"limits": {"requests_per_minute": 100}, "users": {"requests_per_minute": 1}}
        await gateway.made("/teams", name="search", **limits)
        key = (await gateway.made("/keys", team="search", name="app"))["key"]

        async def calls(user: str, count: int) -> list[int]:
            headers = {"authorization": f"Bearer {key}", "x-user-id": user}
            return [(await gateway.chat(headers=headers)).status_code for _ in range(count)]

        assert await calls("anna", 2) == [200, 429]
        made = await gateway.made("/users", team="search", user="anna", limits={"requests_per_minute": 3})
        assert await calls("anna", 3) == [200, 200, 429]
        assert await calls("ben", 2) == [200, 429]
        await gateway.admin("PATCH", f"/users/{made['id']}", {"limits": {"requests_per_minute": 4}})
        assert await calls("anna", 2) == [200, 429]
        assert (await gateway.admin("DELETE", f"/users/{made['id']}")).json()["deleted"]
        assert await calls("anna", 1) == [429]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"user": "u"}, 400, "team"),
        ({"team": "checkout"}, 400, "user"),
        ({"team": "checkout", "user": ""}, 400, "user"),
        ({"team": "checkout", "user": "a\nb"}, 400, "user"),
        ({"team": "checkout", "user": "a\u0000b"}, 400, "user"),
        ({"team": "checkout", "user": "u" * 129}, 400, "user"),
        ({"team": "none", "user": "u"}, 404, "team"),
        ({"team": "checkout", "user": "there"}, 409, "user"),
        ({"team": "checkout", "user": "u", "limits": {"concurrent": 10}}, 403, "limits.concurrent"),
        ({"team": "checkout", "user": "u", "limits": {"concurrent": 0}}, 400, "limits.concurrent"),
    ],
)
async def test_what_makes_no_sense_is_named(body: dict[str, Any], status: int, param: str) -> None:
    teams = {"checkout": {"limits": {"concurrent": 9}}}
    async with scripted(plain) as up, running(config(up.url, teams=teams)) as gateway:
        await gateway.made("/users", team="checkout", user="there")
        answer = await gateway.admin("POST", "/users", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert len((await gateway.admin("GET", "/users")).json()["data"]) == 1


@pytest.mark.parametrize("user", ["' OR '1'='1", "x'; DROP TABLE item; --", "%", "ünï 💥", '" OR ""="', "\\"])
async def test_words_of_sql_are_only_words(user: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/users", team="checkout", user=user)
        assert (await gateway.admin("GET", f"/users/{made['id']}")).json()["user"] == user
        assert (await gateway.admin("GET", "/audit/verify")).json()["problem"] == ""
