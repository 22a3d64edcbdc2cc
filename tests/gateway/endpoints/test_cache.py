"""What was answered is forgotten by team, by key, by model or all of it: by those who may, and told in the log."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policies.test_cache import CRON, OTHER, ask, cached, said, word
from tests.running import KEY, Running, running
from tests.scripted import plain, scripted

CALLERS = (KEY, CRON, OTHER)


async def forget(gateway: Running, token: str = "", **body: Any) -> Any:
    given = {"token": token} if token else {}
    return await gateway.admin("POST", "/cache/forget", body, **given)


FORGET: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "a team": ({"team": "checkout"}, "team checkout", ["miss", "hit"]),
    "another team": ({"team": "guests"}, "team guests", ["hit", "miss"]),
    "a key": ({"team": "checkout", "key": "web"}, "key checkout web", ["miss", "hit"]),
    "a key that answered nothing first": ({"team": "checkout", "key": "cron"}, "key checkout cron", ["hit", "hit"]),
    "a model": ({"model": "m"}, "model m", ["miss", "miss"]),
    "all": ({"all": True}, "all", ["miss", "miss"]),
}


@pytest.mark.parametrize("what", FORGET)
async def test_what_is_forgotten_is_asked_anew_and_the_rest_is_not(what: str) -> None:
    body, name, words = FORGET[what]
    async with cached() as (gateway, _):
        for key in (KEY, OTHER):
            await ask(gateway, key=key)
        answer = await forget(gateway, **body)
        assert (answer.status_code, answer.json()) == (200, {"forgotten": name})
        assert [word(await ask(gateway, key=key)) for key in (KEY, OTHER)] == words
        row = (await gateway.admin("GET", "/audit")).json()["data"][0]
        assert (row["actor"], row["action"], row["object"]) == ("root", "forget", f"answers of {name}")
        assert not (await gateway.admin("GET", "/audit/verify")).json()["problem"]


async def test_a_saved_answer_of_an_idempotency_key_is_forgotten_too() -> None:
    async with cached() as (gateway, up):
        headers = {"idempotency-key": "one"}
        await ask(gateway, headers=headers, temperature=1)
        await forget(gateway, team="checkout")
        await ask(gateway, headers=headers, temperature=1)
        assert len(up.asked) == 2


async def test_an_owner_forgets_its_own_teams_answers_and_no_others() -> None:
    async with cached() as (gateway, _):
        made = [
            await gateway.made("/tokens", name=name, role=role, teams=["checkout"])
            for name, role in (("own", "owner"), ("view", "viewer"))
        ]
        owner, viewer = [one["token"] for one in made]
        assert (await forget(gateway, owner, team="checkout")).status_code == 200
        refused = [
            await forget(gateway, owner, team="guests"),
            await forget(gateway, owner, model="m"),
            await forget(gateway, owner, all=True),
            await forget(gateway, viewer, team="checkout"),
        ]
        assert [one.status_code for one in refused] == [404, 403, 403, 403]


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "team"),
    ({"team": "checkout", "all": True}, 400, "team"),
    ({"key": "web", "all": True}, 400, "key"),
    ({"team": "nobody"}, 404, "team"),
    ({"model": "nothing"}, 404, "model"),
    ({"teem": "checkout"}, 400, "teem"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD)
async def test_what_makes_no_sense_is_told_and_forgets_nothing(body: dict[str, Any], status: int, param: str) -> None:
    async with cached() as (gateway, _):
        await ask(gateway)
        answer = await forget(gateway, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert word(await ask(gateway)) == "hit"


async def test_a_store_that_cannot_be_asked_is_told() -> None:
    async with scripted(plain) as up:
        settings = said(up.url, store="valkey://127.0.0.1:1/0", secret="s" * 32)
        async with running(settings) as gateway:
            answer = await forget(gateway, team="checkout")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
