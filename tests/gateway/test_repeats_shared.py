"""Idempotency-Key over several gateways on one Valkey: one call at a time, one answer for all, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from openai import AsyncOpenAI
from redis import Redis

from gateway import opened
from gateway.answers import valkey as stores
from gateway.valkey import ANSWER
from tests.gateway.test_repeats import ask, key
from tests.policies.test_cache_shared import settings, written
from tests.processes import serving
from tests.running import KEY, Running, running
from tests.scripted import Asked, Scripted, plain, scripted
from tests.valkeys import Valkey, empty_server, up_valkey  # noqa: F401  (pytest finds the fixture by this import)

LATE = 5.0  # seconds, where lateness is not what is told: these gateways share one loop with their callers
pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be


class Gate:
    """A provider that waits for the test before it answers."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, asked: Asked) -> None:
        await self.open.wait()
        await plain(asked)


@asynccontextmanager
async def several(
    server: Valkey, script: Any, count: int = 2, patience: float = LATE
) -> AsyncIterator[tuple[list[Running], Scripted]]:
    """patience: seconds that the server has for each answer."""

    def store(place: str, limit: int) -> stores.ValkeyStore:
        return stores.ValkeyStore(place, patience)

    async with scripted(script) as up:
        async with asyncio.TaskGroup() as group:
            done = asyncio.Event()
            ready: list[asyncio.Future[Running]] = [asyncio.get_running_loop().create_future() for _ in range(count)]

            async def run(at: int) -> None:
                async with running(settings(up.url, server)) as gateway:
                    ready[at].set_result(gateway)
                    await done.wait()

            with patch.object(opened, "answers", store):
                for at in range(count):
                    group.create_task(run(at))
                gateways = [await one for one in ready]
            try:
                yield gateways, up
            finally:
                done.set()


async def asked(up: Scripted, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while len(up.asked) < count:
            await asyncio.sleep(0.002)


async def served(gateway: Running, word: str, **body: Any) -> httpx2.Response:
    """Asks until it is not told to come again."""
    async with asyncio.timeout(20):
        while (response := await ask(gateway, word, **body)).status_code == 409:
            await asyncio.sleep(0.02)
    return response


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_while_it_is_under_way_at_one_gateway_every_other_refuses_it_and_then_serves_its_answer(
    server: Valkey,
) -> None:
    gate = Gate()
    async with several(server, gate) as ((one, two), up):
        first = asyncio.create_task(ask(one, "word"))
        await asked(up)
        early, other = await ask(two, "word"), await ask(two, "word", "something else")
        gate.open.set()
        answered = await first
        again = await served(two, "word")
        late = await ask(two, "word", "something else")
        assert len(up.asked) == 1
    assert (code(early), early.headers["retry-after"]) == ((409, "idempotency_in_flight"), "1")
    assert code(other) == code(late) == (422, "idempotency_mismatch")
    assert other.headers["x-should-retry"] == "false"
    assert again.content == answered.content
    assert again.headers["idempotent-replayed"] == "true"


async def test_of_sixty_at_once_to_three_gateways_one_is_sent_and_nobody_who_comes_again_is_refused(
    server: Valkey,
) -> None:
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.3)
        await plain(asked)

    async with several(server, slow, 3) as (gateways, up):
        found = await asyncio.gather(*(ask(gateways[number % 3], "word") for number in range(60)))
        assert Counter(one.status_code for one in found) == {200: 1, 409: 59}
        again = await asyncio.gather(*(served(gateways[number % 3], "word") for number in range(60)))
        assert {one.content for one in again} == {next(one.content for one in found if one.status_code == 200)}
        more = await asyncio.gather(*(ask(gateways[number % 3], "word") for number in range(60)))
        assert {one.status_code for one in more} == {200}  # those who get a saved answer are in nobody's way
        assert len(up.asked) == 1


async def test_the_sdk_asks_again_by_itself_and_gets_the_answer_whichever_gateway_it_meets(server: Valkey) -> None:
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.5)
        await plain(asked)

    async def create(gateway: Running) -> Any:
        async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=3, timeout=10) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            headers = {"Idempotency-Key": "order-17"}
            return await client.chat.completions.create(model="m", messages=messages, extra_headers=headers)

    async with several(server, slow, 3) as (gateways, up):
        first, *others = await asyncio.gather(*(create(gateways[number % 3]) for number in range(6)))
        assert others == [first] * 5
        assert len(up.asked) == 1


async def test_who_asks_again_at_once_is_served_and_whose_call_failed_is_sent_again(server: Valkey) -> None:
    """What was answered is written, and what was held is freed, beside the calls: nobody sees that."""

    async def script(asked: Asked) -> None:
        if "bad" in asked.body.decode():
            await asked.wire.whole(400, b"{}")
        await plain(asked)

    async with several(server, script, 1) as ((one,), up):
        for number in range(50):
            found = [await ask(one, f"word {number}") for _ in range(3)]
            assert [response.status_code for response in found] == [200] * 3
            assert len(up.asked) == number + 1
        for _ in range(50):
            assert (await ask(one, "another word", "bad")).status_code == 400


async def test_one_that_failed_or_whose_caller_hung_up_may_be_asked_at_another_gateway(server: Valkey) -> None:
    gate = Gate()

    async def script(asked: Asked) -> None:
        if "bad" in asked.body.decode():
            await asked.wire.whole(500, b"")
        await gate(asked)

    async with several(server, script) as ((one, two), up):
        assert (await ask(one, "failed", "bad")).status_code == 502
        gate.open.set()
        assert (await served(two, "failed", text="good")).status_code == 200
        gate.open.clear()
        call = asyncio.create_task(ask(one, "gone"))
        await asked(up, 3)
        assert code(await ask(two, "gone")) == (409, "idempotency_in_flight")
        call.cancel()
        gate.open.set()
        began = time.monotonic()
        assert (await served(two, "gone")).status_code == 200
        assert time.monotonic() - began < 1  # not by expiry


async def test_no_store_keeps_nothing_and_still_refuses_a_second_at_once_elsewhere(server: Valkey) -> None:
    gate = Gate()
    headers = key("word") | {"cache-control": "no-store"}
    async with several(server, gate) as ((one, two), up):
        first = asyncio.create_task(one.chat(headers=headers))
        await asked(up)
        assert (await two.chat(headers=headers)).status_code == 409
        gate.open.set()
        await first
        await asyncio.sleep(0.2)
        assert "idempotent-replayed" not in (await two.chat(headers=headers)).headers
        assert len(up.asked) == 2


async def test_a_call_that_takes_longer_than_a_claim_lasts_keeps_it(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "HELD", 0.6)
    gate = Gate()
    async with several(server, gate) as ((one, two), up):
        first = asyncio.create_task(ask(one, "word"))
        await asked(up)
        for _ in range(20):
            assert (await ask(two, "word")).status_code == 409
            await asyncio.sleep(0.1)
        gate.open.set()
        assert (await first).content == (await served(two, "word")).content
        assert len(up.asked) == 1


async def test_a_server_that_forgot_everything_is_told_again(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "HELD", 0.6)
    gate = Gate()
    async with several(server, gate) as ((one, two), up):
        first = asyncio.create_task(ask(one, "word"))
        await asked(up)
        server.say("FLUSHALL")
        await asyncio.sleep(0.4)
        assert (await ask(two, "word")).status_code == 409
        gate.open.set()
        await first
        assert len(up.asked) == 1


async def test_what_another_holds_is_neither_renewed_nor_ended(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """One gateway stood still for longer than its claim lasts; another took it meanwhile."""
    monkeypatch.setattr(stores, "HELD", 0.3)
    gate, awake = Gate(), asyncio.Event()
    async with several(server, gate, 3) as ((one, two, three), up):
        first = asyncio.create_task(ask(one, "word"))
        await asked(up)
        store: Any = one.app.answers.stores[0]
        keep = store._keep

        async def stands_still() -> None:
            await awake.wait()
            await keep()

        store._keep = stands_still
        await asyncio.sleep(0.5)
        monkeypatch.setattr(stores, "HELD", 60)  # nobody renews what is broken now
        second = asyncio.create_task(ask(two, "word"))
        await asked(up, 2)
        awake.set()
        first.cancel()  # ends what it believes to hold
        await one.finished(1)
        async with asyncio.timeout(5):
            while store.entries or store._leaving:
                await asyncio.sleep(0.01)
        assert (await ask(three, "word")).status_code == 409
        gate.open.set()
        assert (await second).status_code == 200
        assert len(up.asked) == 2


async def test_a_killed_gateway_frees_its_keys_by_expiry(server: Valkey, tmp_path: Path) -> None:
    gate = Gate()

    async def script(asked: Asked) -> None:
        if len(up.asked) == 1:
            await gate(asked)
        await plain(asked)

    async with scripted(script) as up:
        with ExitStack() as stack:
            gateways = []
            for number in range(2):
                folder = tmp_path / f"g{number}"
                folder.mkdir()
                gateways.append(stack.enter_context(serving(settings(up.url, server), folder=folder)))
            one, two = gateways
            call = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            async with httpx2.AsyncClient(headers=key("word"), timeout=20) as client:

                async def chat(url: str) -> httpx2.Response:
                    return await client.post(f"{url}/v1/chat/completions", json=call)

                first = asyncio.create_task(chat(one.url))
                await asked(up)
                one.popen.kill()
                await asyncio.gather(first, return_exceptions=True)
                began = time.monotonic()
                assert (await chat(two.url)).status_code == 409
                while (response := await chat(two.url)).status_code == 409:
                    assert time.monotonic() - began < stores.HELD + 1
                    await asyncio.sleep(0.1)
                print(f"a killed gateway's key was free after {time.monotonic() - began:.1f} s")
                assert response.status_code == 200
            gate.open.set()


async def test_while_the_server_is_frozen_calls_go_on_each_gateway_by_itself_and_none_waits_for_long(
    server: Valkey,
) -> None:
    gate = Gate()
    async with several(server, gate, patience=ANSWER) as ((one, two), up):
        gate.open.set()
        assert (await ask(one, "warm")).status_code == (await ask(two, "warmer")).status_code == 200
        server.freeze()
        took = []
        for number in range(20):
            began = time.perf_counter()
            assert (await ask(one, f"word {number}")).status_code == 200
            took.append(time.perf_counter() - began)
        print(f"frozen: the first call {took[0] * 1000:.0f} ms, later ones {sorted(took[1:])[9] * 1000:.1f} ms")
        assert took[0] < 0.5  # a tenth of a second for the server, the rest is the call
        assert sorted(took)[10] < 0.05
        gate.open.clear()
        first = asyncio.create_task(ask(one, "under way"))
        await asked(up, 23)
        assert code(await ask(one, "under way")) == (409, "idempotency_in_flight")  # what it knows itself
        assert code(await ask(one, "under way", "other")) == (422, "idempotency_mismatch")
        second = asyncio.create_task(ask(two, "under way"))  # fails open: it cannot know
        await asked(up, 24)
        server.thaw()
        third = "begun when it was away"
        begun = asyncio.create_task(ask(one, third))
        await asked(up, 25)
        async with asyncio.timeout(5):
            while one.app.answers.stores[0].away or two.app.answers.stores[0].away:  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (await ask(two, third)).status_code == 409  # told as soon as the server is there again
        gate.open.set()
        assert {one.status_code for one in await asyncio.gather(first, second, begun)} == {200}


async def test_a_dead_server_fails_no_call_and_each_gateway_refuses_its_own(server: Valkey) -> None:
    gate = Gate()
    async with several(server, gate, patience=ANSWER) as ((one, _), up):
        server.kill()
        try:
            first = asyncio.create_task(ask(one, "word"))
            await asked(up)
            assert (await ask(one, "word")).status_code == 409
            gate.open.set()
            assert (await first).status_code == 200
            assert (await ask(one, "word")).status_code == 200  # nothing could be saved: it is asked again
            assert len(up.asked) == 2
        finally:
            server.start()


@pytest.mark.parametrize("junk", [b"", b"x", b"\x00" * 80, "another's"])
async def test_a_claim_that_is_not_what_was_put_there_refuses_nobody_and_is_an_alarm(
    server: Valkey, junk: bytes | str
) -> None:
    gate = Gate()
    async with several(server, gate) as ((one, two), up):
        first = asyncio.create_task(ask(one, "word"))
        other = asyncio.create_task(ask(one, "another"))
        await asked(up, 2)
        with Redis(port=server.port) as wire:
            claims: Any = wire.keys("*claim *")
            values: Any = [wire.get(claim) for claim in claims]
            assert len(claims) == 2
            for claim, value in zip(claims, reversed(values), strict=True):
                wire.set(claim, value if isinstance(junk, str) else junk)
        second = asyncio.create_task(ask(two, "word"))
        await asked(up, 3)
        gate.open.set()
        assert {one.status_code for one in await asyncio.gather(first, second, other)} == {200}
        assert "tollkeeper_cache_defects_total 1.0" in (await two.client.get("/metrics")).text


async def test_a_full_server_takes_no_claims_and_fails_no_call(server: Valkey) -> None:
    async with several(server, plain) as ((one, _), _):
        await ask(one, "warm")
        server.say("CONFIG", "SET", "maxmemory", "1")
        try:
            assert (await ask(one, "word")).status_code == 200
            assert not one.app.answers.stores[0].away  # type: ignore[attr-defined]
        finally:
            server.say("CONFIG", "SET", "maxmemory", "0")


async def test_a_call_without_the_header_asks_the_server_no_more_than_before(server: Valkey) -> None:
    def commands() -> Counter[str]:
        with Redis(port=server.port) as wire:
            told: Any = wire.info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): said["calls"] for name, said in told.items()})

    async with several(server, plain, 1) as ((one,), _):
        await one.chat(temperature=0)  # connected
        await asyncio.sleep(0.2)
        before = commands()
        for _ in range(10):
            await one.chat(temperature=0)
            await one.chat(temperature=1)  # not for the cache at all
        after = commands() - before
    del after["info"]
    assert {name: count for name, count in after.items() if name.split("|")[0] not in ("client", "hello")} == {
        "get": 10,
        "hmget": 10,  # in one round trip
    }


async def test_what_was_answered_before_the_rules_changed_is_judged_by_those_of_now(server: Valkey) -> None:
    rule = {"use": "words", "words": ["zephyr"], "action": "block", "stages": ["input"]}
    async with scripted(plain) as up:
        told = settings(up.url, server)
        async with running(told) as gateway:
            for word in ("one", "two"):
                assert (await ask(gateway, word, "about zephyr" if word == "one" else "hi")).status_code == 200
            await written(gateway)
        async with running(told) as gateway:  # the same rules
            assert "idempotent-replayed" in (await ask(gateway, "one", "about zephyr")).headers
        changed = told | {"policies": [*told["policies"], {"use": "safety", "assessors": [rule]}]}
        async with running(changed) as gateway:
            assert (await ask(gateway, "one", "something else")).status_code == 422
            refused = await ask(gateway, "one", "about zephyr")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "blocked_by_safety")
            anew = await ask(gateway, "two")
            assert (anew.status_code, "idempotent-replayed" in anew.headers) == (200, False)
            await written(gateway)
            assert "idempotent-replayed" in (await ask(gateway, "two")).headers
        assert len(up.asked) == 3
