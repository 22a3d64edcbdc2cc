"""What one caller's hanging up, budget, form or headers change for those who share its answer: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy
from tests.policies.test_cache import CRON, OTHER, ask, said, word
from tests.policies.test_cache_coalescing import text_of, under_way
from tests.running import Running, running
from tests.scripted import DONE, USAGE, Asked, Scripted, answer, event, events, say, scripted

LETTERS = "abcdefghijklmnop"


@asynccontextmanager
async def house(script: Any, change: Any = None, **cache: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    async with scripted(script) as up:
        told = said(up.url, **cache)
        if change is not None:
            change(told)
        async with running(told) as gateway:
            yield gateway, up


async def hangs_up(task: asyncio.Task[httpx2.Response]) -> None:
    task.cancel()
    await asyncio.sleep(0.1)


# ── a leader that hangs up ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False])
async def test_who_joins_a_call_whose_caller_is_gone_gets_all_of_it(stream: bool) -> None:
    """The provider is read on for a second, for its usage; from then on for who follows."""

    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, events(*LETTERS), pause=0.12)
        else:
            await asyncio.sleep(2)
            await asked.wire.whole(200, answer(LETTERS))

    def change(told: Any) -> None:
        told["providers"]["up"] |= {"on_hangup": "drain", "drain_seconds": 1}

    async with house(script, change) as (gateway, up):
        leader = asyncio.create_task(ask(gateway, stream=stream))
        await under_way(gateway, 1)
        await hangs_up(leader)
        response = await ask(gateway, stream=stream)
        assert (word(response), text_of(response)) == ("coalesced", LETTERS)
        assert len(up.asked) == 1


async def long_stream(asked: Asked, go: asyncio.Event, finish: str) -> None:
    if not asked.json.get("stream"):
        await asked.wire.whole(200, answer("second call"))
        return
    await asked.wire.head()
    await asked.wire.chunk(event({"role": "assistant", "content": "x" * 1000}))
    await go.wait()
    for _ in range(30):
        await asked.wire.chunk(event({"content": "x" * 10_000}))
    await asked.wire.chunk(event({}, finish) + event(None, usage=USAGE) + DONE)
    await asked.wire.chunk(b"")


async def test_a_long_stream_whose_caller_is_gone_serves_who_waits_for_the_whole() -> None:
    go = asyncio.Event()
    async with house(lambda asked: long_stream(asked, go, "length")) as (gateway, up):
        leader = asyncio.create_task(ask(gateway, stream=True))
        await under_way(gateway, 1)
        follower = asyncio.create_task(ask(gateway))
        await under_way(gateway, 2)
        await hangs_up(leader)
        go.set()
        response = await follower
        assert (word(response), len(text_of(response)), len(up.asked)) == ("coalesced", 301_000, 1)


async def test_and_is_saved_for_the_key_of_who_followed() -> None:
    go = asyncio.Event()
    async with house(lambda asked: long_stream(asked, go, "length")) as (gateway, up):
        leader = asyncio.create_task(ask(gateway, stream=True))
        await under_way(gateway, 1)
        follower = asyncio.create_task(ask(gateway, stream=True, headers={"idempotency-key": "one"}))
        await under_way(gateway, 2)
        await hangs_up(leader)
        go.set()
        await follower
        again = await ask(gateway, stream=True, headers={"idempotency-key": "one"})
        assert (again.headers.get("idempotent-replayed"), len(up.asked)) == ("true", 1)


async def test_a_long_stream_that_has_ended_is_answered_again_at_once_also_for_its_key() -> None:
    """It is made whole in a thread; who asks meanwhile waits for that."""

    async def script(asked: Asked) -> None:
        await say(asked, [event({"content": "word "})] * 8_000 + [event({}, "stop"), DONE])

    async with house(script, answer_kb=65_536) as (gateway, up):
        for each in range(3):
            headers = {"idempotency-key": f"key {each}"}
            first = await ask(gateway, f"question {each}", stream=True, headers=headers)
            assert first.content.endswith(DONE)
            same = await ask(gateway, f"question {each}", stream=True)
            again = await ask(gateway, f"question {each}", stream=True, headers=headers)
            assert word(same) in ("hit", "coalesced")
            assert again.headers.get("idempotent-replayed") == "true"
        assert len(up.asked) == 3


# ── a leader's money ────────────────────────────────────────────────────────────────────────────────────────────────


def poor(told: Any, limit: float, **budget: Any) -> None:
    """The key `cron` has little money, `web` has none to mind."""
    uses = [{"use": "budget", **budget} if use["use"] == "budget" else use for use in told["policies"]]
    told["policies"] = [use for use in uses if use["use"] != "budget"] + [use for use in uses if use["use"] == "budget"]
    told["teams"]["checkout"]["keys"][1]["budgets"] = [{"limit_usd": limit, "per": "day"}]


@pytest.mark.parametrize("streams", [(False, False), (True, True), (True, False)])
async def test_an_answer_that_was_cut_for_want_of_the_leaders_money_is_nobody_elses(streams: tuple[bool, bool]) -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        await go.wait()
        cap = asked.json.get("max_completion_tokens") or asked.json.get("max_tokens") or 1000
        finish = "length" if cap < 1000 else "stop"
        if asked.json.get("stream"):
            await say(asked, [event({"content": "w " * cap}), event({}, finish), DONE])
        else:
            message = {"role": "assistant", "content": "w " * cap}
            choices = [{"index": 0, "message": message, "finish_reason": finish}]
            await asked.wire.whole(200, answer(choices=choices))

    async with house(script, lambda told: poor(told, 0.002, shrink=True)) as (gateway, up):
        leader = asyncio.create_task(ask(gateway, key=CRON, stream=streams[0]))
        await under_way(gateway, 1)
        others = [asyncio.create_task(ask(gateway, stream=streams[1])) for _ in range(2)]
        await under_way(gateway, 3)
        late = None
        go.set()
        cut, *whole = await asyncio.gather(leader, *others)
        late = await ask(gateway, stream=streams[1])
        assert len(text_of(cut)) < 2000
        assert [len(text_of(one)) for one in (*whole, late)] == [2000] * 3
        assert len(up.asked) <= 4


async def test_a_fallback_that_the_leader_cannot_pay_is_its_own_affair() -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        if asked.json["model"] == "up":
            await go.wait()
            await asked.wire.whole(503, b'{"error":{"message":"down"}}')
        else:
            await asked.wire.whole(200, answer("from the fallback"))

    def change(told: Any) -> None:
        poor(told, 0.1)
        told["models"]["m"]["fallbacks"] = ["dear"]
        price = {"input": 100, "output": 200}
        told["models"]["dear"] = {"targets": [{"provider": "up", "model": "dear"}], "price": price}

    async with house(script, change) as (gateway, _):
        leader = asyncio.create_task(ask(gateway, key=CRON))
        await under_way(gateway, 1)
        follower = asyncio.create_task(ask(gateway))
        await under_way(gateway, 2)
        go.set()
        assert (await leader).status_code == 503
        assert text_of(await follower) == "from the fallback"


# ── a leader's form ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", [True, False])
async def test_a_refusal_of_a_form_is_told_to_those_alone_who_asked_in_it(first: bool) -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        await go.wait()
        if bool(asked.json.get("stream")) is first:
            await asked.wire.whole(400, b'{"error":{"message":"not in this form","param":"stream"}}')
        elif asked.json.get("stream"):
            await say(asked, events("yes"))
        else:
            await asked.wire.whole(200, answer("yes"))

    async with house(script) as (gateway, _):
        leader = asyncio.create_task(ask(gateway, stream=first))
        await under_way(gateway, 1)
        follower = asyncio.create_task(ask(gateway, stream=not first))
        await under_way(gateway, 2)
        go.set()
        assert (await leader).status_code == 400
        assert text_of(await follower) == "yes"


async def test_of_an_answer_too_long_to_be_shared_those_who_wait_ask_all_at_once() -> None:
    go = asyncio.Event()
    together = most = 0

    async def script(asked: Asked) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await go.wait()
        await asyncio.sleep(0.1)
        together -= 1
        await asked.wire.whole(200, answer("x" * 5_000_000))

    async with house(script) as (gateway, up):
        calls = [asyncio.create_task(ask(gateway)) for _ in range(5)]
        await under_way(gateway, 5)
        assert len(up.asked) == 1
        go.set()
        assert {len(text_of(one)) for one in await asyncio.gather(*calls)} == {5_000_000}
        assert (len(up.asked), most) == (5, 4)


async def test_a_silence_before_the_first_byte_begins_nothing() -> None:
    """A policy that is asked again while nothing comes refuses the leader: who follows leads in its place."""

    class Silence(Policy[None]):
        def patience(self, x: Exchange) -> float | None:
            return 0.05 if x.caller.key == "cron" and not x.first_byte else None

        async def screen(self, x: Exchange, chunk: Any) -> Any:
            if x.caller.key == "cron" and not chunk.raw:
                if x.awaited:
                    raise Denied("too quiet", code="too_slow", status=403)
                return None
            return chunk

    async def script(asked: Asked) -> None:
        await asked.wire.head()
        await asyncio.sleep(0.6)
        await say_on(asked)

    async def say_on(asked: Asked) -> None:
        for one in events(*LETTERS):
            await asked.wire.chunk(one)
        await asked.wire.chunk(b"")

    async with house(script) as (gateway, _):
        pipeline = gateway.app.pipeline
        silence = Silence()
        pipeline._screens.append(silence)
        pipeline._patient.append(silence)
        leader = asyncio.create_task(ask(gateway, key=CRON, stream=True))
        await under_way(gateway, 1)
        await asyncio.sleep(0.1)
        follower = await ask(gateway, stream=True)
        assert "too_slow" in (await leader).text
        assert text_of(follower) == LETTERS


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_the_leaders_lowered_cap_is_its_own(stream: bool) -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        cap = asked.json.get("max_completion_tokens") or asked.json.get("max_tokens") or 10**6
        if asked.json["model"] == "up":
            await go.wait()
            await asked.wire.whole(503, b'{"error":{"message":"down"}}')
        elif cap < 2000:
            await asked.wire.whole(400, b'{"error":{"message":"too few tokens","param":"max_tokens"}}')
        elif stream:
            await say(asked, events("fine"))
        else:
            await asked.wire.whole(200, answer("fine"))

    def change(told: Any) -> None:
        poor(told, 0.2, shrink=True)
        told["models"]["m"]["fallbacks"] = ["dear"]
        price = {"input": 100, "output": 200}
        told["models"]["dear"] = {"targets": [{"provider": "up", "model": "dear"}], "price": price}

    async with house(script, change) as (gateway, _):
        leader = asyncio.create_task(ask(gateway, key=CRON, stream=stream))
        await under_way(gateway, 1)
        follower = asyncio.create_task(ask(gateway, stream=stream))
        await under_way(gateway, 2)
        go.set()
        assert (await leader).status_code == 400
        assert text_of(await follower) == "fine"


async def test_callers_whom_a_refusal_does_not_concern_do_not_wait_for_one_another() -> None:
    together = most = 0

    async def script(asked: Asked) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.3)
        together -= 1
        await asked.wire.whole(400, b'{"error":{"message":"no"}}')

    async with house(script) as (gateway, up):
        calls = [asyncio.create_task(ask(gateway, user=f"user {each}")) for each in range(8)]
        assert {one.status_code for one in await asyncio.gather(*calls)} == {400}
        assert (len(up.asked), most) == (8, 7)


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_was_saved_where_nothing_was_answered() -> None:
    """A hit that another policy takes back."""

    class Blocks(Policy[None]):
        async def screen(self, x: Exchange, chunk: Any) -> Any:
            if x.caller.team == "guests":
                raise Denied("no", code="blocked", status=403)
            return chunk

    async with house(lambda asked: asked.wire.whole(200, answer("yes")), groups=[["checkout", "guests"]]) as (
        gateway,
        _,
    ):
        gateway.app.pipeline._screens.append(Blocks())
        await ask(gateway)
        assert (await ask(gateway, key=OTHER)).status_code == 403
        record = await gateway.record((await gateway.finished(2)).id)
        assert not record.saved_nano
        metrics = (await gateway.client.get("/metrics")).text
        assert 'tollkeeper_saved_usd_total{team="guests"' not in metrics


async def test_a_follower_keeps_the_answer_in_its_record_where_its_team_asks_for_content() -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        await go.wait()
        await say(asked, events(*LETTERS))

    def change(told: Any) -> None:
        told["teams"]["checkout"]["content"] = "full"

    async with house(script, change) as (gateway, _):
        calls = [asyncio.create_task(ask(gateway, stream=True)) for _ in range(2)]
        await under_way(gateway, 2)
        go.set()
        await asyncio.gather(*calls)
        await gateway.finished(2)
        assert {x.cache for x in gateway.seen} == {"miss", "coalesced"}
        assert ["".join(x.output) for x in gateway.seen] == [LETTERS] * 2
