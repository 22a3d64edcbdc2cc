"""What is forgotten is not answered again: also what is under way, for whoever asks afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.policies.test_cache import CRON, ask, said, word
from tests.policies.test_cache_shared import SECRET, written
from tests.running import KEY, running
from tests.scripted import Asked, answer, plain, scripted
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

MARKED = {"all": ({"all": True}, True), "team": ({"team": "checkout"}, True), "model": ({"model": "m"}, True)}
MARKED |= {"key": ({"team": "checkout", "key": "web"}, True), "another": ({"team": "guests"}, False)}


class Gate:
    """A provider that waits for the test, and numbers its answers."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.count = 0

    async def __call__(self, asked: Asked) -> None:
        self.count += 1
        number = self.count
        await self.open.wait()
        await asked.wire.whole(200, answer(f"number {number}"))

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(5):
            while self.count < times:
                await asyncio.sleep(0.005)


def text(response: Any) -> str:
    found: str = response.json()["choices"][0]["message"]["content"]
    return found


@pytest.mark.serial
@pytest.mark.parametrize("later", [KEY, CRON], ids=["the same key", "another"])
@pytest.mark.parametrize("what", MARKED)
@pytest.mark.parametrize("store", ["memory", "valkey"])
async def test_who_asks_after_a_forget_follows_nobody_who_asked_before(
    store: str, what: str, later: str, server: Valkey
) -> None:
    body, forgotten = MARKED[what]
    where = {} if store == "memory" else {"store": server.url, "secret": SECRET}
    server.say("FLUSHALL")
    gate = Gate()
    async with scripted(gate) as up, running(said(up.url, **where)) as gateway:
        leader = asyncio.create_task(ask(gateway))
        await gate.asked(1)
        early = asyncio.create_task(ask(gateway, key=CRON))
        await asyncio.sleep(0.1)
        assert (await gateway.admin("POST", "/cache/forget", body)).status_code == 200
        after = asyncio.create_task(ask(gateway, key=later))
        if forgotten:
            await gate.asked(2)
        await asyncio.sleep(0.1)
        last = asyncio.create_task(ask(gateway, key=later))  # follows who asked anew
        await asyncio.sleep(0.1)
        gate.open.set()
        told = [text(response) for response in await asyncio.gather(leader, early, after, last)]
        assert told == ["number 1", "number 1", *["number 2" if forgotten else "number 1"] * 2]
        assert word(await last) == "coalesced"
        assert gate.count == 1 + forgotten


@pytest.mark.serial
@pytest.mark.parametrize("store", ["memory", "valkey"])
async def test_a_saved_answer_is_forgotten_with_the_model_that_gave_it_and_with_no_other(
    store: str, server: Valkey
) -> None:
    where = {} if store == "memory" else {"store": server.url, "secret": SECRET}
    server.say("FLUSHALL")
    key = {"idempotency-key": "k"}
    async with scripted(plain) as up:
        told = said(up.url, **where)
        told["models"]["other"] = {**told["models"]["m"], "targets": [{"provider": "up", "model": "another"}]}
        async with running(told) as gateway:
            for forgotten, replayed in (("other", True), ("m", False)):
                first = await gateway.chat(headers=key)
                assert first.status_code == 200
                if store == "valkey":
                    await written(gateway)
                assert (await gateway.chat(headers=key, model="other")).status_code == 422
                assert (await gateway.admin("POST", "/cache/forget", {"model": forgotten})).status_code == 200
                if replayed:
                    assert (await gateway.chat(headers=key, model="other")).status_code == 422
                again = await gateway.chat(headers=key)
                assert ("idempotent-replayed" in again.headers) is replayed
            assert [asked.json["model"] for asked in up.asked] == ["up", "up"]
