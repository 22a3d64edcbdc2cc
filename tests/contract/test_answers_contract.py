"""What a store of answers promises, in this process and in a real Valkey: what was put comes back, until it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from gateway.answers import Kept, Question, Store, Tenants, mark
from gateway.answers.memory import MemoryStore
from gateway.answers.valkey import ValkeyStore
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

TENANTS = Tenants(b"root secret of these tests")


@pytest.fixture(params=["memory", "valkey"])
async def store(request: pytest.FixtureRequest, server: Valkey) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(1_000_000)
        return
    assert server.say("FLUSHALL") == "+OK"
    store = ValkeyStore(server.url, patience=5.0)  # what a late server does is told elsewhere
    yield store
    await store.aclose()
    assert not store.away


def question(key: bytes = b"k", team: str = "red", caller: str = "web", tenant: str = "", model: str = "m") -> Question:
    return Question(TENANTS[tenant or team], key * 32, team, caller, model)


async def keep(store: Store, asked: Question, body: bytes = b"an answer", seconds: float = 60) -> None:
    """As the cache does: looked up first, put under the generations that held then."""
    now = (await store.get(asked)).now
    assert now is not None
    at = time.time_ns()
    store.put(asked, Kept(body, at, at + int(seconds * 1e9), 5, asked.team, asked.caller, now))


async def found(store: Store, asked: Question) -> bytes | None:
    """What is there once all that was put is written."""
    for _ in range(200):
        if not store.entries or isinstance(store, MemoryStore):
            break
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.01)
    kept = (await store.get(asked)).kept
    return kept.body if kept is not None else None


async def test_what_was_put_comes_back_whole(store: Store) -> None:
    assert (await store.get(question())).kept is None
    body = bytes(range(256)) * 40
    await keep(store, question(), body)
    assert await found(store, question()) == body
    kept = (await store.get(question())).kept
    assert kept is not None
    assert (kept.cost, kept.team, kept.caller) == (5, "red", "web")


async def test_the_last_one_put_counts(store: Store) -> None:
    await keep(store, question(), b"old")
    assert await found(store, question()) == b"old"
    await keep(store, question(), b"new")
    assert await found(store, question()) == b"new"


async def test_another_key_is_another_entry(store: Store) -> None:
    await keep(store, question(b"a"))
    assert await found(store, question(b"b")) is None


async def test_an_entry_ends(store: Store) -> None:
    await keep(store, question(), seconds=0.3)
    assert await found(store, question()) == b"an answer"
    await asyncio.sleep(0.35)
    assert await found(store, question()) is None


FORGET = {
    "all": ("all", [True, True, True, True]),
    "its team": (mark("team", "red"), [True, True, False, True]),
    "its key": (mark("key", "red", "web"), [True, False, False, True]),
    "its model": (mark("model", "m"), [True, True, True, False]),
    "another team": (mark("team", "blue"), [False, False, True, False]),
    "another model": (mark("model", "n"), [False, False, False, True]),
}


@pytest.mark.parametrize("what", FORGET)
async def test_what_is_forgotten_is_gone_and_nothing_else(store: Store, what: str) -> None:
    name, gone = FORGET[what]
    asked = [question(b"a"), question(b"b", caller="cron"), question(b"c", team="blue"), question(b"d", model="n")]
    for one in asked:
        await keep(store, one)
    assert [await found(store, one) for one in asked] == [b"an answer"] * 4
    assert await store.forget(name)
    assert [await found(store, one) is None for one in asked] == gone
    await keep(store, asked[0], b"afterwards")
    assert await found(store, asked[0]) == b"afterwards"


async def test_an_answer_that_was_under_way_when_its_team_was_forgotten_is_not_kept(store: Store) -> None:
    now = (await store.get(question())).now
    assert now is not None
    await store.forget(mark("team", "red"))
    store.put(question(), Kept(b"late", 0, time.time_ns() + 10**10, 0, "red", "web", now))
    assert await found(store, question()) is None


async def test_what_a_team_of_a_group_put_is_the_groups_until_that_team_is_forgotten(store: Store) -> None:
    mine = question(team="red", tenant="pool")
    theirs = question(team="blue", caller="cron", tenant="pool")
    await keep(store, mine)
    assert await found(store, theirs) == b"an answer"
    await store.forget(mark("team", "blue"))  # the reader's own: this entry is not of it
    assert await found(store, theirs) == b"an answer"
    await store.forget(mark("key", "red", "web"))
    assert await found(store, theirs) is None


async def test_a_claim_is_one_callers_until_it_is_released(store: Store) -> None:
    asked, other = b"a" * 32, b"b" * 32
    assert await store.claim(question(b"a"), asked) is None
    assert [await store.claim(question(b"a"), one) for one in (asked, other)] == [asked, asked]
    assert await store.claim(question(b"b"), other) is None
    store.release(question(b"a"))
    assert await store.claim(question(b"a"), other) is None


async def test_who_gets_a_claim_next_finds_what_was_put_before(store: Store) -> None:
    assert await store.claim(question(), b"a" * 32) is None
    await keep(store, question())
    store.release(question())
    assert await store.claim(question(), b"a" * 32) is None
    assert await found(store, question()) == b"an answer"


async def test_of_two_stores_on_one_server_one_gets_a_claim_and_the_other_once_it_is_released(server: Valkey) -> None:
    server.say("FLUSHALL")
    stores = [ValkeyStore(server.url, patience=5.0) for _ in range(2)]
    for at in range(20):
        one, other = stores[at % 2], stores[1 - at % 2]
        assert await one.claim(question(), b"a" * 32) is None
        assert await other.claim(question(), b"b" * 32) == b"a" * 32
        await keep(one, question(), b"%d" % at)
        one.release(question())
        while await other.claim(question(), b"b" * 32) is not None:
            await asyncio.sleep(0.001)
        kept = (await other.get(question())).kept  # at once: the answer was there before the claim was free
        assert kept is not None
        assert kept.body == b"%d" % at
        other.release(question())
        await found(other, question())
    for store in stores:
        await store.aclose()
