"""Who shares is who they are, not what they are called: a team or a key that is made anew finds nothing of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.policies.test_cache import OTHER, ask, said, word
from tests.running import KEY, Running, running
from tests.scripted import Asked, Scripted, plain, scripted
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

SECRET = "a secret that all gateways are given"


@asynccontextmanager
async def cached(place: str, server: Valkey, **cache: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    server.say("FLUSHALL")
    shared = {"store": server.url, "secret": SECRET} if place == "valkey" else {}
    async with scripted(plain) as up, running(said(up.url, **shared, **cache)) as gateway:
        yield gateway, up


async def team(gateway: Running, name: str = "search") -> str:
    """A team that is created, and a key of it."""
    await gateway.made("/teams", name=name)
    return await key(gateway, name)


async def key(gateway: Running, team: str = "search", name: str = "app") -> str:
    made: str = (await gateway.made("/keys", team=team, name=name))["key"]
    return made


async def revoke(gateway: Running, team: str = "search") -> None:
    for one in (await gateway.admin("GET", f"/keys?team={team}")).json()["data"]:
        assert (await gateway.admin("DELETE", f"/keys/{one['id']}")).status_code == 200


async def again(gateway: Running, name: str = "search") -> str:
    """The same, deleted and created anew."""
    await revoke(gateway, name)
    assert (await gateway.admin("DELETE", f"/teams/{name}")).status_code == 200
    return await team(gateway, name)


async def kept(gateway: Running) -> None:
    """What waited for a server is there."""
    (store,) = gateway.app.answers.stores
    async with asyncio.timeout(5):
        while store.shared and store.entries:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)


@pytest.mark.parametrize("place", ["memory", "valkey"])
@pytest.mark.parametrize(
    "cache", [{}, {"share": "key"}, {"share": "user"}, {"groups": [["search", "checkout"]]}], ids=str
)
async def test_a_team_that_is_deleted_and_created_anew_reads_nothing_of_the_old_one(
    place: str, cache: dict[str, Any], server: Valkey
) -> None:
    async with cached(place, server, **cache) as (gateway, up):
        ann = {"x-user-id": "ann"}
        old = await team(gateway)
        assert word(await ask(gateway, key=old, headers=ann)) == "miss"
        await kept(gateway)
        assert word(await ask(gateway, key=old, headers=ann)) == "hit"
        new = await again(gateway)
        assert (await ask(gateway, key=old, headers=ann)).status_code == 401
        assert word(await ask(gateway, key=new, headers=ann)) == "miss"
        await kept(gateway)
        assert word(await ask(gateway, key=new, headers=ann)) == "hit"
        assert len(up.asked) == 2


@pytest.mark.parametrize("place", ["memory", "valkey"])
async def test_nor_its_saved_answers(place: str, server: Valkey) -> None:
    async with cached(place, server) as (gateway, up):
        once = {"idempotency-key": "one"}
        old = await team(gateway)
        await ask(gateway, key=old, headers=once, temperature=1)
        await kept(gateway)
        saved = await ask(gateway, key=old, headers=once, temperature=1)
        assert saved.headers["idempotent-replayed"] == "true"
        new = await again(gateway)
        other = await ask(gateway, "something else", key=new, headers=once, temperature=1)
        assert other.status_code == 200  # not 422: it is another's key
        assert len(up.asked) == 2


async def test_nor_what_lies_near(server: Valkey) -> None:
    pytest.importorskip("wordllama")
    async with cached("memory", server, semantic={"shadow": False}) as (gateway, up):
        old = await team(gateway)
        asked = ["How do I reset my password?", "How can I reset my password, please?"]
        assert [word(await ask(gateway, text, key=old)) for text in asked] == ["miss", "semantic"]
        new = await again(gateway)
        assert [word(await ask(gateway, text, key=new)) for text in reversed(asked)] == ["miss", "semantic"]
        assert len(up.asked) == 2


async def test_a_call_of_the_old_team_that_ends_late_leaves_the_new_one_nothing_and_is_not_shared_with_it() -> None:
    gate = asyncio.Event()

    async def script(asked: Asked) -> None:
        await gate.wait()
        await plain(asked)

    async with scripted(script) as up, running(said(up.url)) as gateway:
        late = asyncio.create_task(ask(gateway, key=await team(gateway)))
        while not up.asked:
            await asyncio.sleep(0.005)
        new = await again(gateway)
        soon = asyncio.create_task(ask(gateway, key=new))
        while len(up.asked) < 2:
            await asyncio.sleep(0.005)
        gate.set()
        assert [word(await one) for one in (late, soon)] == ["miss", "miss"]
        assert word(await ask(gateway, key=new)) == "hit"


async def test_teams_of_a_group_share_on(server: Valkey) -> None:
    async with cached("memory", server, groups=[["search", "checkout"], ["one", "two"]]) as (gateway, _):
        mine = await team(gateway)
        assert [word(await ask(gateway, key=one)) for one in (KEY, mine, OTHER)] == ["miss", "hit", "miss"]
        new = await again(gateway)
        assert [word(await ask(gateway, key=one)) for one in (new, KEY)] == ["miss", "hit"]


@pytest.mark.parametrize(("share", "anew"), [("team", "hit"), ("key", "miss")])
async def test_a_key_that_is_made_anew_is_another_and_one_that_is_rotated_is_the_same(
    share: str, anew: str, server: Valkey
) -> None:
    async with cached("memory", server, share=share) as (gateway, _):
        old = await team(gateway)
        assert [word(await ask(gateway, key=old)) for _ in range(2)] == ["miss", "hit"]
        (one,) = (await gateway.admin("GET", "/keys?team=search")).json()["data"]
        rotated = (await gateway.admin("POST", f"/keys/{one['id']}/rotate", {})).json()["key"]
        assert word(await ask(gateway, key=rotated)) == "hit"
        await revoke(gateway)
        assert word(await ask(gateway, key=await key(gateway))) == anew


async def test_a_key_that_is_created_for_a_declared_team_shares_with_those_that_config_yaml_declares(
    server: Valkey,
) -> None:
    async with cached("memory", server) as (gateway, _):
        made = await key(gateway, "checkout")
        assert [word(await ask(gateway, key=one)) for one in (KEY, made)] == ["miss", "hit"]


async def test_a_gateway_that_begins_anew_knows_the_team_as_the_same(server: Valkey, tmp_path: Path) -> None:
    server.say("FLUSHALL")
    async with scripted(plain) as up:
        settings = said(up.url, store=server.url, secret=SECRET) | {"store": f"sqlite:///{tmp_path}/tollkeeper.db"}
        async with running(settings) as gateway:
            mine = await team(gateway)
            assert word(await ask(gateway, key=mine)) == "miss"
        async with running(settings) as gateway:
            assert word(await ask(gateway, key=mine)) == "hit"
