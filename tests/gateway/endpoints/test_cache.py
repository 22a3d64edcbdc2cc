"""What was answered is forgotten by team, by key, by model or all of it: by those who may, and told in the log."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.store import StoreError
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


def beside(url: str, folder: Path, **cache: Any) -> dict[str, Any]:
    """One of several gateways on one database; without budgets, for a SQLite ledger serves one of them only."""
    policies = [{"use": "access"}, {"use": "cache", **cache}]
    return said(url) | {"policies": policies, "store": f"sqlite:///{folder}/tollkeeper.db"}


@pytest.mark.parametrize("what", ["a team", "a key", "a model", "all"])
async def test_what_is_forgotten_at_one_gateway_is_soon_forgotten_by_all_that_share_its_database(
    tmp_path: Path, what: str
) -> None:
    """Each keeps answers in its own memory."""
    body, _, _ = FORGET[what]
    async with (
        scripted(plain) as up,
        running(beside(up.url, tmp_path)) as one,
        running(beside(up.url, tmp_path)) as two,
        running(beside(up.url, tmp_path)) as three,
    ):
        for gateway in (one, two, three):
            assert [word(await ask(gateway)) for _ in range(2)] == ["miss", "hit"]
            assert word(await ask(gateway, key=OTHER)) == "miss"
        await one.admin("POST", "/organisations", {"name": "acme"})  # something else to read first
        began = time.monotonic()
        assert (await forget(one, **body)).status_code == 200
        assert word(await ask(one)) == "miss"  # at once
        for gateway in (two, three):
            while word(await ask(gateway)) == "hit":
                assert time.monotonic() - began < 5
                await asyncio.sleep(0.02)
            assert word(await ask(gateway)) == "hit"  # and not again
            assert word(await ask(gateway, key=OTHER)) == ("miss" if what in ("a model", "all") else "hit")
        assert [word(await ask(one)) for _ in range(2)] == ["hit", "hit"]


async def test_a_gateway_whose_database_was_away_forgets_when_it_can_read_it_again(tmp_path: Path) -> None:
    async with (
        scripted(plain) as up,
        running(beside(up.url, tmp_path)) as one,
        running(beside(up.url, tmp_path)) as two,
    ):
        assert [word(await ask(two)) for _ in range(2)] == ["miss", "hit"]
        assert two.app.roster is not None
        directory: Any = two.app.roster.directory
        audit = directory.audit
        directory.audit = failing
        await forget(one, team="checkout")
        await asyncio.sleep(1.5)
        assert word(await ask(two)) == "hit"
        directory.audit = audit
        async with asyncio.timeout(5):
            while word(await ask(two)) == "hit":
                await asyncio.sleep(0.02)


async def failing(*_: object) -> None:
    raise StoreError("the directory cannot be asked")
