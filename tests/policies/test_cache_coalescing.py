"""Calls that ask the same at once share one answer: each gets all of it, one of them pays."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from gateway import flights
from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy
from policies.cache import Cache
from tests.running import KEY, Running, config, running
from tests.scripted import DONE, Asked, Scripted, answer, event, events, say, scripted

CRON = "tk-test-key-of-the-same-team"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
TEXT = "abcdefgh"


class Gate:
    """A provider that waits for the test before it answers."""

    def __init__(self, status: int = 200) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        self.status = status
        self.closed = asyncio.Event()  # the gateway hung up on a stream

    async def __call__(self, asked: Asked) -> None:
        self.asked.set()
        await self.open.wait()
        if self.status != 200:
            await asked.wire.whole(self.status, b'{"error":{"message":"no"}}')
        elif asked.json.get("stream"):
            try:
                await say(asked, events(*TEXT), pause=0.05)
            except ConnectionError:
                self.closed.set()
                raise
        else:
            await asked.wire.whole(200, answer(TEXT))


def said(url: str, **cache: Any) -> dict[str, Any]:
    uses = [{"use": use} for use in ("access", "rate_limit")] + [{"use": "cache", **cache}, {"use": "budget"}]
    keys = [{"name": "web", "key": KEY}, {"name": "cron", "key": CRON}]
    return config(url, policies=uses, teams={"checkout": {"keys": keys}})


@asynccontextmanager
async def gated(gate: Gate, **cache: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    async with scripted(gate) as up, running(said(up.url, **cache)) as gateway:
        yield gateway, up


def call(gateway: Running, key: str = KEY, **body: Any) -> asyncio.Task[httpx2.Response]:
    headers = {"authorization": f"Bearer {key}"}
    return asyncio.create_task(
        gateway.client.post("/v1/chat/completions", json=BODY | body, headers=headers)  # type: ignore[arg-type]
    )


async def under_way(gateway: Running, count: int) -> None:
    """Returns when so many exchanges are under way, and have had time to wait for one another."""
    async with asyncio.timeout(5):
        while len(gateway.app.pipeline.running) < count:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)


def text_of(response: httpx2.Response) -> str:
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    assert response.content.endswith(DONE), response.text
    texts = ""
    for line in response.text.split("\n\n"):
        if line.startswith("data: {"):
            texts += "".join(one["delta"].get("content") or "" for one in json.loads(line[6:])["choices"])
    return texts


@pytest.mark.parametrize("streams", [[True] * 5, [False] * 5, [True, False, True], [False, True, False]])
async def test_one_call_answers_all_whether_streamed_or_not(streams: list[bool]) -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        first = call(gateway, stream=streams[0])
        await gate.asked.wait()
        others = [call(gateway, stream=stream) for stream in streams[1:]]
        await under_way(gateway, len(streams))
        gate.open.set()
        responses = await asyncio.gather(first, *others)
        assert len(up.asked) == 1
        await gateway.finished(len(streams))
        costs = sorted((x.cost or 0, x.saved or 0) for x in gateway.seen)
    assert [text_of(one) for one in responses] == [TEXT] * len(streams)
    words = [one.headers["x-tollkeeper-cache"] for one in responses]
    assert words == ["miss", *["coalesced"] * (len(streams) - 1)]
    paid = 5 * 1000 + 2 * 2000  # the leader's, in nano-USD: charged once
    assert costs == [(0, paid)] * (len(streams) - 1) + [(paid, 0)]


async def test_who_comes_later_gets_every_byte_from_the_first() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        gate.open.set()
        first = call(gateway, stream=True)
        await gate.asked.wait()
        late = []
        for _ in range(4):
            await asyncio.sleep(0.06)
            late.append(call(gateway, stream=True))
        responses = await asyncio.gather(first, *late)
        assert len(up.asked) == 1
    assert [text_of(one) for one in responses] == [TEXT] * 5
    assert late[-1].result().headers["x-tollkeeper-cache"] == "coalesced"


async def test_each_gets_the_usage_that_it_asked_for_and_no_other() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        first = call(gateway, stream=True)
        await gate.asked.wait()
        other = call(gateway, stream=True, stream_options={"include_usage": True})
        await under_way(gateway, 2)
        gate.open.set()
        one, two = await asyncio.gather(first, other)
        assert len(up.asked) == 1
    assert '"usage"' not in one.text
    assert two.text.count('"usage"') == 1


async def test_a_leader_that_hangs_up_does_not_cut_those_who_follow_and_pays() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        gate.open.set()
        leader = call(gateway, stream=True)
        await gate.asked.wait()
        follower = call(gateway, stream=True)
        await under_way(gateway, 2)
        leader.cancel()
        response = await follower
        assert text_of(response) == TEXT
        assert len(up.asked) == 1
        await gateway.finished(2)
        by_word = {x.cache: x for x in gateway.seen}
        assert by_word["miss"].cost == 9000
        assert by_word["coalesced"].cost == 0
        hit = await call(gateway)  # and its answer is kept
        assert hit.headers["x-tollkeeper-cache"] == "hit"


async def test_when_all_have_hung_up_the_provider_is_stopped() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, _):
        leader = call(gateway)  # not streamed: nothing comes that could wake anybody
        await gate.asked.wait()
        follower = call(gateway)
        await under_way(gateway, 2)
        leader.cancel()
        await asyncio.sleep(0.1)
        assert len(gateway.app.pipeline.running) == 2
        follower.cancel()
        async with asyncio.timeout(2):
            while gateway.app.pipeline.running:
                await asyncio.sleep(0.005)
        gate.open.set()


async def test_a_follower_that_hangs_up_disturbs_nobody() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        leader = call(gateway)
        await gate.asked.wait()
        gone, stays = call(gateway), call(gateway)
        await under_way(gateway, 3)
        gone.cancel()
        await asyncio.sleep(0.05)
        gate.open.set()
        assert [text_of(one) for one in await asyncio.gather(leader, stays)] == [TEXT] * 2
        assert len(up.asked) == 1


async def test_a_providers_refusal_is_everybodys_who_asked_in_that_form() -> None:
    gate = Gate(400)
    async with gated(gate) as (gateway, up):
        first = call(gateway)
        await gate.asked.wait()
        others = [call(gateway, stream=True), call(gateway), call(gateway), call(gateway, stream=True)]
        await under_way(gateway, 5)
        gate.open.set()
        responses = await asyncio.gather(first, *others)
        assert len(up.asked) == 2
    assert {one.status_code for one in responses} == {400}
    assert {one.json()["error"]["code"] for one in responses} == {"upstream_refused"}


async def test_a_leaders_own_refusal_is_not_and_the_next_one_leads_and_pays() -> None:
    class Poor(Policy[None]):
        """One key's calls cannot be paid, which is found out late."""

        async def attempt(self, x: Exchange, attempt: Any) -> None:
            if x.caller.key == "cron":
                await gate.open.wait()
                raise Denied("no money", code="budget_exhausted", status=429)

    gate = Gate()
    async with scripted(gate) as up, running(said(up.url)) as gateway:
        gateway.app.pipeline._attempts.append(Poor())
        leader = call(gateway, CRON)
        await under_way(gateway, 1)
        others = [call(gateway), call(gateway, stream=True)]
        await under_way(gateway, 3)
        gate.open.set()
        refused, *served = await asyncio.gather(leader, *others)
        assert len(up.asked) == 1
    assert refused.status_code == 429
    assert [text_of(one) for one in served] == [TEXT] * 2
    assert sorted(one.headers["x-tollkeeper-cache"] for one in served) == ["coalesced", "miss"]


async def test_a_stream_that_breaks_off_breaks_off_for_all() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.head()
        await asked.wire.chunk(event({"content": "half"}))
        await asyncio.sleep(0.3)
        asked.wire.reset()

    async with scripted(script) as up, running(said(up.url)) as gateway:
        responses = await asyncio.gather(*[call(gateway, stream=True) for _ in range(3)])
        assert len(up.asked) == 1
    for response in responses:
        assert "half" in response.text
        assert "upstream_broke_off" in response.text
        assert "[DONE]" not in response.text


async def test_what_may_not_be_kept_is_not_shared() -> None:
    gate = Gate()
    async with gated(gate) as (gateway, up):
        calls = [call(gateway, temperature=1) for _ in range(3)]
        await under_way(gateway, 3)
        gate.open.set()
        await asyncio.gather(*calls)
        assert len(up.asked) == 3


async def test_nor_where_it_is_switched_off() -> None:
    gate = Gate()
    async with gated(gate, coalesce=False) as (gateway, up):
        calls = [call(gateway) for _ in range(3)]
        await under_way(gateway, 3)
        gate.open.set()
        await asyncio.gather(*calls)
        assert len(up.asked) == 3


async def test_a_hundred_streams_at_once_are_one_call() -> None:
    gate = Gate()
    async with (
        gated(gate) as (gateway, up),
        httpx2.AsyncClient(base_url=gateway.url, timeout=20, limits=httpx2.Limits(max_connections=200)) as client,
    ):
        headers = {"authorization": f"Bearer {KEY}"}
        post = client.post
        calls = [
            asyncio.create_task(post("/v1/chat/completions", json=BODY | {"stream": True}, headers=headers))
            for _ in range(100)
        ]
        await under_way(gateway, 100)
        gate.open.set()
        responses = await asyncio.gather(*calls)
        assert len(up.asked) == 1
    assert [text_of(one) for one in responses] == [TEXT] * 100
    bodies = {one.text.split(": tollkeeper")[0] for one in responses}
    assert len(bodies) == 1  # byte for byte, but for the summary, which names the request


async def big(asked: Asked) -> None:
    """12 MB, more than sockets hold; begins when the others had time to join."""
    await asked.wire.head()
    await asyncio.sleep(0.3)
    for _ in range(120):
        await asked.wire.chunk(event({"content": "x" * 100_000}))
    await asked.wire.chunk(event({}, "stop") + DONE)
    await asked.wire.chunk(b"")


async def deaf(gateway: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller who asks and then reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    body = json.dumps(BODY | {"stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def test_a_leader_that_reads_nothing_is_cut_and_does_not_hold_up_those_who_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flights, "PATIENCE", 0.4)
    async with scripted(big) as up, running(said(up.url)) as gateway:
        _, writer = await deaf(gateway)
        await under_way(gateway, 1)
        response = await call(gateway, stream=True)
        assert len(text_of(response)) == 12_000_000
        assert response.headers["x-tollkeeper-cache"] == "coalesced"
        assert len(up.asked) == 1
        leader = next(x for x in gateway.seen if x.cache == "miss")
        assert leader.error is not None
        assert leader.error.code == "client_gone"
        writer.close()


async def test_a_follower_that_reads_nothing_holds_up_nobody_and_is_cut_when_it_is_far_behind() -> None:
    async with scripted(big) as up, running(said(up.url)) as gateway:
        leader = call(gateway, stream=True)
        await under_way(gateway, 1)
        reader, writer = await deaf(gateway)
        response = await leader
        assert len(text_of(response)) == 12_000_000
        (cache,) = [use for use in gateway.app.pipeline._screens if isinstance(use, Cache)]
        assert cache._room.used < flights.LONGEST + 200_000
        assert len(up.asked) == 1
        heard = b""
        async with asyncio.timeout(10):
            while piece := await reader.read(1 << 20):
                heard = (heard + piece)[-4096:]
        assert b"[DONE]" not in heard
        assert b"overloaded" in heard
        writer.close()
