"""Several gateways on one Valkey: what one was answered the others answer, and a Valkey that fails fails no call."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis import Redis

from tests.policies.test_cache import CRON, OTHER, ask, said, word
from tests.running import KEY, Running, running
from tests.scripted import plain, scripted
from tests.valkeys import Valkey, empty_server, up_valkey  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

SECRET = "a secret that all gateways are given"


def settings(url: str, server: Valkey, **over: Any) -> dict[str, Any]:
    return said(url, **({"store": server.url, "secret": SECRET} | over))


async def written(gateway: Running) -> None:
    """What waited for the server is there."""
    (store,) = gateway.app.answers.stores
    async with asyncio.timeout(5):
        while store.entries:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)


async def test_what_one_gateway_was_answered_another_answers_and_forgets_at_once(server: Valkey) -> None:
    async with (
        scripted(plain) as up,
        running(settings(up.url, server)) as one,
        running(settings(up.url, server)) as two,
    ):
        await ask(one, stream=True)
        await written(one)
        hit = await ask(two, key=CRON)
        assert (word(hit), hit.json()["choices"][0]["message"]["content"]) == ("hit", "Hello")
        assert word(await ask(two, key=OTHER)) == "miss"
        assert (await one.admin("POST", "/cache/forget", {"team": "checkout"})).status_code == 200
        assert word(await ask(two)) == "miss"
        assert len(up.asked) == 3


async def test_a_gateway_with_another_secret_finds_nothing_and_no_alarm(server: Valkey) -> None:
    async with (
        scripted(plain) as up,
        running(settings(up.url, server)) as one,
        running(settings(up.url, server, secret="b" * 32)) as two,
    ):
        await ask(one)
        await written(one)
        assert word(await ask(two)) == "miss"
        assert two.app.answers.stores[0].defects == 0


async def test_entries_that_were_swapped_are_misses_and_an_alarm_in_the_metrics(server: Valkey) -> None:
    async with scripted(plain) as up, running(settings(up.url, server)) as gateway:
        await ask(gateway, key=KEY)
        await ask(gateway, key=OTHER)
        await written(gateway)
        with Redis(port=server.port) as wire:
            entries: Any = wire.keys("*answer *")
            values: Any = [wire.get(entry) for entry in entries]
            assert len(entries) == 2
            for entry, value in zip(entries, reversed(values), strict=True):
                wire.set(entry, value)
        assert [word(await ask(gateway, key=key)) for key in (KEY, OTHER)] == ["miss", "miss"]
        assert "tollkeeper_cache_defects_total 2.0" in (await gateway.client.get("/metrics")).text


async def test_no_name_and_no_key_of_a_caller_stands_in_the_server(server: Valkey) -> None:
    async with scripted(plain) as up, running(settings(up.url, server)) as gateway:
        await ask(gateway, headers={"idempotency-key": "a-word-of-the-caller"})
        await written(gateway)
        with Redis(port=server.port) as wire:
            keys: Any = wire.keys("*")
            marks = str(wire.hgetall("{tollkeeper}:generations")).encode()
            kept = [wire.get(key) or b"" for key in keys if not key.endswith(b":generations")]
            everything = b"".join([*keys, marks, *kept])  # type: ignore[list-item]
    for secret in (KEY.encode(), b"a-word-of-the-caller", SECRET.encode()):
        assert secret not in everything


async def test_a_frozen_server_delays_one_call_by_a_tenth_of_a_second_and_fails_none(server: Valkey) -> None:
    async with scripted(plain) as up, running(settings(up.url, server)) as gateway:
        await ask(gateway)
        server.freeze()
        took = []
        for _ in range(20):
            began = time.perf_counter()
            response = await ask(gateway)
            took.append(time.perf_counter() - began)
            assert (response.status_code, word(response)) == (200, "miss")
        server.thaw()
        assert took[0] < 0.5
        assert sorted(took)[10] < 0.05
        async with asyncio.timeout(5):
            while word(await ask(gateway)) != "hit":
                await asyncio.sleep(0.02)


async def test_a_dead_server_fails_no_call_and_calls_are_still_shared_within_the_gateway(server: Valkey) -> None:
    async with scripted(plain) as up, running(settings(up.url, server)) as gateway:
        server.kill()
        try:
            words = [word(one) for one in await asyncio.gather(*[ask(gateway, stream=True) for _ in range(5)])]
            assert len(up.asked) <= 5
            assert set(words) <= {"miss", "coalesced"}
            assert word(await ask(gateway)) == "miss"
        finally:
            server.start()


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"store": "valkey://h:1/0"}, "needs `secret`"),
        ({"store": "memcached://h"}, "store"),
        ({"secret": "short"}, "secret"),
        ({"share": "key", "groups": [["a", "b"]]}, "take one of the two"),
        ({"groups": [["a", "b"], ["b", "c"]]}, "twice"),
        ({"temprature": "any"}, "temperature"),
        ({"ttl": "1 fortnight"}, "ttl"),
        ({"temperature": 0.7}, "temperature"),
    ],
)
async def test_what_makes_no_sense_stops_the_start_and_is_named(cache: dict[str, Any], says: str) -> None:
    from gateway.config import ConfigError

    with pytest.raises(ConfigError) as raised:
        async with running(said("http://127.0.0.1:1/v1", **cache)):
            pass
    assert says in str(raised.value)
    assert "short" not in str(raised.value)
