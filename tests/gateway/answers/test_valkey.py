"""A Valkey that is dead, frozen, full or was written to by others: misses, at once, and alarms; never an error."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from redis import Redis

from gateway.answers import Kept, Question, Tenants
from gateway.answers.valkey import ValkeyStore
from tests.gateway.counters.test_valkey import between
from tests.valkeys import Valkey, empty_server, up_valkey  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

TENANTS = Tenants(b"root secret of these tests")


@pytest.fixture
async def store(server: Valkey) -> AsyncIterator[ValkeyStore]:
    store = ValkeyStore(server.url)
    await store.get(question())  # connected
    yield store
    await store.aclose()


def question(key: bytes = b"k", team: str = "red") -> Question:
    return Question(TENANTS[team], key * 32, team, "web", "m")


async def keep(store: ValkeyStore, asked: Question, body: bytes = b"an answer") -> None:
    now = (await store.get(asked)).now
    assert now is not None
    at = time.time_ns()
    store.put(asked, Kept(body, at, at + 60 * 10**9, 5, asked.team, "web", now))
    while store.entries:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.02)


async def body(store: ValkeyStore, asked: Question) -> bytes | None:
    kept = (await store.get(asked)).kept
    return kept.body if kept is not None else None


def entry(key: bytes) -> bytes:
    return b"{tollkeeper}:answer " + key * 32


async def test_an_entry_swapped_with_another_tenants_is_a_miss_and_an_alarm(
    store: ValkeyStore, server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(store, question(b"r", "red"), b"red's secret")
    await keep(store, question(b"b", "blue"), b"blue's secret")
    with Redis(port=server.port) as wire:
        red, blue = wire.get(entry(b"r")), wire.get(entry(b"b"))
        wire.set(entry(b"r"), blue)  # type: ignore[arg-type]  # bytes
        wire.set(entry(b"b"), red)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        assert await body(store, question(b"r", "red")) is None
        assert await body(store, question(b"b", "blue")) is None
    assert store.defects == 2
    assert "altered" in caplog.text
    assert len(caplog.records) == 1  # more of it is only counted
    assert "secret" not in caplog.text


async def test_an_entry_moved_to_another_question_of_its_tenant_is_too(store: ValkeyStore, server: Valkey) -> None:
    await keep(store, question(b"a"))
    with Redis(port=server.port) as wire:
        wire.copy(entry(b"a"), entry(b"z"))
    assert await body(store, question(b"z")) is None
    assert store.defects == 1
    assert await body(store, question(b"a")) == b"an answer"


@pytest.mark.parametrize("junk", [b"", b"x", b"\x00" * 100])
async def test_junk_is_too(store: ValkeyStore, server: Valkey, junk: bytes) -> None:
    with Redis(port=server.port) as wire:
        wire.set(entry(b"j"), junk)
    assert await body(store, question(b"j")) is None
    assert store.defects == 1


async def test_every_byte_of_an_entry_is_sealed(store: ValkeyStore, server: Valkey) -> None:
    await keep(store, question(b"a"))
    with Redis(port=server.port) as wire:
        data = bytes(wire.get(entry(b"a")))  # type: ignore[arg-type]
        for at in range(len(data)):
            wire.set(entry(b"a"), data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert await body(store, question(b"a")) is None
    assert store.defects == len(data)


@pytest.mark.parametrize("what", ["all", "model m", "team red", "key red web"])
async def test_what_was_forgotten_stays_so_when_the_server_evicts_that_it_was(
    store: ValkeyStore, server: Valkey, what: str
) -> None:
    await keep(store, question())
    assert await store.forget(what)
    assert await body(store, question()) is None
    assert server.say("DEL", "{tollkeeper}:generations") == ":1"
    assert await body(store, question()) is None
    await keep(store, question(), b"anew")
    assert await body(store, question()) == b"anew"
    with Redis(port=server.port) as wire:
        assert len(wire.keys("*")) == 2  # type: ignore[arg-type]  # the entry, and what can be evicted at once only


async def test_two_gateways_that_begin_a_generation_at_once_begin_the_same(server: Valkey) -> None:
    stores = [ValkeyStore(server.url, patience=5.0) for _ in range(4)]
    told = await asyncio.gather(*[store.get(question()) for store in stores for _ in range(5)])
    assert len({found.now for found in told}) == 1
    assert told[0].now is not None
    for store in stores:
        await store.aclose()


async def test_a_generation_that_is_no_number_is_a_miss(store: ValkeyStore, server: Valkey) -> None:
    await keep(store, question(b"a"))
    assert server.say("HSET", "{tollkeeper}:generations", "all", "junk") == ":0"
    assert await store.get(question(b"a")) == (None, None)


async def test_a_full_server_keeps_nothing_more_and_answers_what_it_has(store: ValkeyStore, server: Valkey) -> None:
    await keep(store, question(b"a"))
    server.say("CONFIG", "SET", "maxmemory", "1000000")
    try:
        for number in range(40):
            store.put(question(bytes([number])), Kept(b"x" * 100_000, 0, 2**62, 0, "red", "web", (0, 0, 0, 0)))
        while store.entries:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert store.lost > 0
        assert not store.away
        assert await body(store, question(b"a")) == b"an answer"
    finally:
        server.say("CONFIG", "SET", "maxmemory", "0")


async def test_a_full_server_that_has_no_generations_keeps_nothing(store: ValkeyStore, server: Valkey) -> None:
    server.say("FLUSHALL")
    server.say("CONFIG", "SET", "maxmemory", "1")
    try:
        assert await store.get(question()) == (None, None)
        assert not store.away
    finally:
        server.say("CONFIG", "SET", "maxmemory", "0")
    assert (await store.get(question())).now is not None


async def test_more_than_may_wait_is_lost_and_counted(store: ValkeyStore) -> None:
    for number in range(40):
        store.put(question(bytes([number])), Kept(b"x" * 1_000_000, 0, 2**62, 0, "red", "web", (0, 0, 0, 0)))
    assert store.size <= 16 * 1024 * 1024
    assert store.lost == 40 - store.entries > 0


async def test_a_frozen_server_costs_a_tenth_of_a_second_once_and_is_found_again(
    store: ValkeyStore, server: Valkey
) -> None:
    await keep(store, question(b"a"))
    server.freeze()
    began = time.perf_counter()
    assert await store.get(question(b"a")) == (None, None)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(100):
        assert await store.get(question(b"a")) == (None, None)
    later = (time.perf_counter() - began) / 100
    print(f"frozen: the first look-up {first * 1000:.0f} ms, later ones {later * 1e6:.0f} us")
    assert first < 0.3
    assert later < 0.005
    server.thaw()
    async with asyncio.timeout(5):
        while await body(store, question(b"a")) != b"an answer":
            await asyncio.sleep(0.02)


async def test_a_server_that_answers_in_time_is_not_left_because_a_connection_takes_several_answers(
    server: Valkey,
) -> None:
    async with between(server) as wire:
        wire.delay = 0.04
        store = ValkeyStore(wire.url)
        assert await store.claim(question(), b"a" * 32) is None
        assert (await store.get(question())).now is not None
        assert not store.away
        store.release(question())
        await store.aclose()


async def test_a_dead_server_likewise_and_forgetting_says_that_it_did_not(store: ValkeyStore, server: Valkey) -> None:
    server.kill()
    began = time.perf_counter()
    assert await store.get(question(b"a")) == (None, None)
    assert time.perf_counter() - began < 0.3
    assert await store.forget("all") is False
    store.put(question(b"a"), Kept(b"x", 0, 2**62, 0, "red", "web", (0, 0, 0, 0)))
    assert store.lost == 1
    server.start()
    async with asyncio.timeout(5):
        while store.away:
            await asyncio.sleep(0.02)
    await keep(store, question(b"a"))
    assert await body(store, question(b"a")) == b"an answer"


async def test_one_that_was_never_there_lets_the_gateway_go_quickly() -> None:
    store = ValkeyStore("valkey://127.0.0.1:1/0")
    assert await store.get(question()) == (None, None)
    began = time.perf_counter()
    await store.aclose()
    assert time.perf_counter() - began < 2
