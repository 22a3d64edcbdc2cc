"""A team, a key, a user and a model get what they may have, are told what is left, and lose nothing to failed calls."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from pydantic import SecretStr

from gateway.counters import Charge, Counters, Taken
from gateway.counters.memory import MemoryCounters
from gateway.counters.valkey import ValkeyCounters
from gateway.errors import Denied
from gateway.exchange import Attempt, Exchange
from gateway.policy import Policy
from gateway.settings import Key, Limits, Model, Target, Team
from policies.rate_limit import RateLimit
from tests.running import KEY, Running, config, running
from tests.scripted import DONE, Asked, Scripted, answer, event, plain, say, scripted
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

OTHER = "tk-test-key-of-the-other-application"
KEYS = {"keys": [{"name": "web", "key": KEY}, {"name": "batch", "key": OTHER}]}


def limiter(
    team: Limits | None = None,
    *,
    web: Limits | None = None,
    users: Limits | None = None,
    model: Limits | None = None,
    counters: Counters | None = None,
    output_tokens: int = 50,
) -> RateLimit:
    none = Limits()
    keys = [
        Key(name="web", key=SecretStr(KEY), limits=web or none),
        Key(name="batch", key=SecretStr(OTHER)),
    ]
    policy = RateLimit(
        RateLimit.Settings(output_tokens=output_tokens),
        counters=counters or MemoryCounters(),
        teams={"checkout": Team(keys=keys, limits=team or none, users=users or none)},
        models={"m": Model(targets=[Target(provider="up", model="up")], limits=model or none)},
    )
    policy.name = "rate_limit"
    return policy


@asynccontextmanager
async def limited(
    policy: RateLimit, script: Any = plain, *more: Policy[Any], **over: Any
) -> AsyncIterator[tuple[Running, Scripted]]:
    models = {
        "m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 1, "output": 2}},
        "other": {"targets": [{"provider": "up", "model": "up2"}], "price": {"input": 1, "output": 2}},
    }
    async with scripted(script) as up:
        said = config(up.url, models=models, teams={"checkout": KEYS}, **over)
        async with running(said, [policy, *more]) as gateway:
            yield gateway, up


def told(reply: httpx2.Response, kind: str) -> tuple[str, ...]:
    return tuple(reply.headers.get(f"x-ratelimit-{word}-{kind}", "") for word in ("limit", "remaining", "reset"))


async def test_a_call_over_the_limit_is_refused_before_a_provider_hears_of_it_and_told_when_to_retry() -> None:
    async with limited(limiter(Limits(requests_per_minute=2))) as (gateway, up):
        assert [(await gateway.chat()).status_code for _ in range(2)] == [200, 200]
        refused = await gateway.chat()
        assert len(up.asked) == 2
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limited", "rate_limit_error")
    wait = int(refused.headers["retry-after"])
    assert 55 <= wait <= 61
    assert error["message"] == f"The team 'checkout' is at its limit of 2 requests per minute. Retry in {wait} s."
    assert told(refused, "requests")[:2] == ("2", "0")


async def test_every_answer_says_what_is_left_as_openai_writes_it() -> None:
    limits = Limits(requests_per_minute=10, tokens_per_day=500)
    async with limited(limiter(limits)) as (gateway, _):
        first = await gateway.chat()
        streamed = await gateway.chat(stream=True)
    limit, remaining, reset = told(first, "requests")
    assert (limit, remaining) == ("10", "9")
    assert re.fullmatch(r"1m0(\.\d+)?s|1m1s", reset), reset
    limit, remaining, reset = told(first, "tokens")
    assert (limit, remaining) == ("500", str(500 - 50 - 2))  # "user" and "hi", a quarter of their bytes each
    assert re.fullmatch(r"24h(\d|1\d|2[0-4])m[\d.]+s", reset), reset
    assert told(streamed, "requests")[1] == "8"
    assert told(streamed, "tokens")[1] == str(500 - 7 - 52)  # the first took 7, as its provider said


async def test_of_several_limits_the_one_with_the_least_left_is_told() -> None:
    policy = limiter(Limits(requests_per_minute=10, requests_per_day=5), web=Limits(requests_per_minute=7))
    async with limited(policy) as (gateway, _):
        assert told(await gateway.chat(), "requests")[:2] == ("5", "4")


async def test_without_limits_nothing_is_counted_and_nothing_told() -> None:
    counters = MemoryCounters()
    async with limited(limiter(counters=counters)) as (gateway, _):
        reply = await gateway.chat()
    assert reply.status_code == 200
    assert not [name for name in reply.headers if "ratelimit" in name]
    assert len(counters) == 0


@pytest.mark.parametrize(
    ("policy", "free", "says"),
    [
        (limiter(Limits(requests_per_minute=1)), {}, "team 'checkout'"),
        (limiter(web=Limits(requests_per_minute=1)), {"headers": {"authorization": f"Bearer {OTHER}"}}, "key 'web'"),
        (limiter(users=Limits(requests_per_day=1)), {"headers": {"x-user-id": "u-2"}}, "user"),
        (limiter(model=Limits(requests_per_minute=1)), {"model": "other"}, "model 'm'"),
    ],
    ids=["team", "key", "user", "model"],
)
async def test_a_limit_holds_whom_it_names_and_nobody_else(policy: RateLimit, free: dict[str, Any], says: str) -> None:
    async with limited(policy) as (gateway, _):
        mine = {"x-user-id": "u-1"}
        assert (await gateway.chat(headers=mine)).status_code == 200
        refused = await gateway.chat(headers=mine)
        if free:
            assert (await gateway.chat(**{"headers": mine} | free)).status_code == 200
    assert refused.status_code == 429
    assert f"The {says} is at its limit of 1 " in refused.json()["error"]["message"]


async def test_calls_that_name_no_user_count_as_one_user() -> None:
    async with limited(limiter(users=Limits(requests_per_minute=1))) as (gateway, _):
        assert (await gateway.chat()).status_code == 200
        assert (await gateway.chat()).status_code == 429
        assert (await gateway.chat(user="u-7")).status_code == 200
        assert (await gateway.chat(user="u-7")).status_code == 429
        assert (await gateway.chat(headers={"x-litellm-end-user-id": "u-7"})).status_code == 429


async def test_a_call_that_one_limit_refuses_takes_nothing_of_the_others() -> None:
    policy = limiter(Limits(requests_per_minute=5, tokens_per_day=9_000), users=Limits(requests_per_minute=1))
    async with limited(policy) as (gateway, _):
        first = await gateway.chat(headers={"x-user-id": "a"})
        refused = [await gateway.chat(headers={"x-user-id": "a"}) for _ in range(20)]
        other = await gateway.chat(headers={"x-user-id": "b"})
    assert {reply.status_code for reply in refused} == {429}
    assert told(first, "tokens")[1] == "8948"
    assert told(other, "tokens")[1] == str(9_000 - 7 - 52)
    assert told(other, "requests")[1] == "0"  # of the user's one; the team has 3 left:
    found = await policy._counters.take([Charge("team checkout requests_per_minute", 3, 5, 60.0)])
    assert found.remaining == [0]


class Later(Policy[None]):
    """Refuses what is asked of it by header, as a budget would."""

    async def admit(self, x: Exchange) -> None:
        if b"x-refuse" in x.headers:
            raise Denied("No money.", code="budget_exhausted", status=402)

    async def attempt(self, x: Exchange, attempt: Attempt) -> None:
        if b"x-refuse-late" in x.headers:
            raise Denied("No money.", code="budget_exhausted", status=402)


@pytest.mark.parametrize("header", ["x-refuse", "x-refuse-late"])
async def test_a_call_that_a_later_policy_refuses_gives_all_of_it_back(header: str) -> None:
    limits = Limits(requests_per_minute=2, tokens_per_minute=100, concurrent=1)
    async with limited(limiter(limits), plain, Later()) as (gateway, up):
        for _ in range(10):
            assert (await gateway.chat(headers={header: "1"})).status_code == 402
        reply = await gateway.chat()
        assert len(up.asked) == 1
    assert told(reply, "requests")[1] == "1"
    assert told(reply, "tokens")[1] == "48"


async def fail(asked: Asked) -> None:
    """Answers as the prompt says."""
    text = asked.json["messages"][-1]["content"]
    if text == "refused":
        await asked.wire.whole(400, b'{"error": {"message": "no"}}')
    elif text == "cut":
        await asked.wire.head()
        await asked.wire.chunk(event({"role": "assistant", "content": "so"}))
        asked.wire.reset()
    elif text == "hang":
        await asked.wire.gone()
    elif text == "drip":
        await say(asked, [event({"content": "word "}) for _ in range(200)] + [event({}, "stop"), DONE], 0.01)
    else:
        await plain(asked)


async def test_a_failed_call_keeps_its_request_and_pays_the_tokens_it_took() -> None:
    limits = Limits(requests_per_minute=10, tokens_per_minute=1_000, concurrent=1)
    async with limited(limiter(limits), fail) as (gateway, _):
        assert (await gateway.chat("refused")).status_code == 400
        reply = await gateway.chat()
    assert told(reply, "requests")[1] == "8"
    assert told(reply, "tokens")[1] == str(1_000 - 52), "a call that the provider refused is not billed"


async def test_tokens_used_beyond_what_was_reserved_are_charged_afterwards() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}

    async def generous(asked: Asked) -> None:
        await asked.wire.whole(200, answer(usage=usage))

    async with limited(limiter(Limits(tokens_per_minute=150), output_tokens=1), generous) as (gateway, _):
        assert told(await gateway.chat(), "tokens")[1] == "147"
        assert told(await gateway.chat(), "tokens")[1] == "47"
        refused = await gateway.chat()
    assert refused.status_code == 429
    assert told(refused, "tokens")[1] == "0"
    assert "150 tokens per minute" in refused.json()["error"]["message"]


async def test_a_refusal_tells_of_the_limit_that_refuses_longest_even_where_another_has_less_left() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}

    async def generous(asked: Asked) -> None:
        await asked.wire.whole(200, answer(usage=usage))

    async with limited(limiter(Limits(tokens_per_minute=110, tokens_per_day=130)), generous) as (gateway, _):
        await gateway.chat()
        refused = await gateway.chat()
    assert told(refused, "tokens")[:2] == ("130", "30")
    assert "130 tokens per day" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 86_000


async def test_a_call_whose_usage_nobody_knows_keeps_what_was_reserved() -> None:
    async def silent(asked: Asked) -> None:
        await asked.wire.whole(200, b'{"object": "response", "output": []}')

    async with limited(limiter(Limits(tokens_per_minute=1_000)), silent) as (gateway, _):
        call = {"model": "m", "input": "x" * 40, "max_output_tokens": 30}
        first = await gateway.client.post("/v1/responses", json=call)
        second = await gateway.client.post("/v1/responses", json=call)
    reserved = 1_000 - int(told(first, "tokens")[1])
    assert reserved == 30 + -(-len(first.request.content) // 4)
    assert told(second, "tokens")[1] == str(1_000 - 2 * reserved)


@pytest.mark.parametrize(
    ("body", "reserved"),
    [
        ({}, 52),
        ({"max_tokens": 5}, 7),
        ({"max_completion_tokens": 9, "max_tokens": 5}, 11),
        ({"max_completion_tokens": 9, "n": 3}, 29),
        ({"text": "x" * 400, "max_tokens": 1}, 102),
        ({"text": "é" * 400, "max_tokens": 1}, 202),
    ],
)
async def test_what_is_reserved_is_the_prompt_s_bytes_by_4_and_the_most_it_may_answer(
    body: dict[str, Any], reserved: int
) -> None:
    async with limited(limiter(Limits(tokens_per_minute=1_000))) as (gateway, _):
        assert told(await gateway.chat(**body), "tokens")[1] == str(1_000 - reserved)


async def test_what_no_model_answers_takes_requests_and_no_tokens() -> None:
    async def files(asked: Asked) -> None:
        await asked.wire.whole(200, b'{"object": "list", "data": []}')

    async with limited(limiter(Limits(requests_per_minute=9, tokens_per_minute=10)), files) as (gateway, _):
        reply = await gateway.client.get("/v1/files")
        form = await gateway.client.post("/v1/files", files={"file": b"x" * 10_000}, data={"purpose": "batch"})
        embedded = await gateway.client.post("/v1/embeddings", json={"model": "m", "input": "x" * 20})
        responses = await gateway.client.post(
            "/v1/responses", json={"model": "m", "input": "x", "max_output_tokens": 30}
        )
    assert (told(reply, "requests")[1], told(reply, "tokens")[1]) == ("8", "10")
    assert (told(form, "requests")[1], told(form, "tokens")[1]) == ("7", "10")
    assert told(embedded, "tokens")[1] == "5"
    assert responses.status_code == 429


async def test_a_call_too_large_for_its_limit_is_refused_for_good_and_openai_s_client_does_not_retry() -> None:
    async with limited(limiter(Limits(tokens_per_minute=100))) as (gateway, up):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=3) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=500
                )
        assert len(gateway.seen) == 1
        assert up.asked == []
    assert "502 tokens" in caught.value.message
    assert "max_completion_tokens" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_only_so_many_calls_run_at_once_and_each_place_is_free_when_its_caller_sees_the_end() -> None:
    async with limited(limiter(Limits(concurrent=2)), fail) as (gateway, up):
        hanging = [asyncio.create_task(gateway.chat("drip", stream=True)) for _ in range(2)]
        async with asyncio.timeout(5):
            while len(up.asked) < 2:
                await asyncio.sleep(0.01)
        refused = await gateway.chat()
        for call in hanging:
            call.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await gateway.finished(3)
        for _ in range(100):
            replies = await asyncio.gather(gateway.chat(), gateway.chat())
            assert [reply.status_code for reply in replies] == [200, 200]
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] == (
        "The team 'checkout' is at its limit of 2 calls at once. Retry when one has ended."
    )
    assert refused.headers["retry-after"] == "1"


async def test_three_gateways_that_share_a_server_hold_one_limit(server: Valkey) -> None:
    limits = Limits(requests_per_minute=31, concurrent=200)
    async with AsyncExitStack() as stack:
        gateways = []
        for _ in range(3):
            shared = ValkeyCounters(server.url, MemoryCounters(), 3, patience=5.0)
            gateway, up = await stack.enter_async_context(limited(limiter(limits, counters=shared)))
            stack.push_async_callback(shared.aclose)
            gateways.append((gateway, up))
        replies = await asyncio.gather(*(gateway.chat() for gateway, _ in gateways for _ in range(25)))
        statuses = Counter(reply.status_code for reply in replies)
        assert statuses == {200: 31, 429: 44}
        assert sum(len(up.asked) for _, up in gateways) == 31


async def mixed(gateway: Running, calls: int) -> Counter[str]:
    """Success, error, time-out, broken stream and a caller that hangs up, on streams and not, by 40 at a time."""
    chance, seen = random.Random(11), Counter[str]()
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            text = chance.choice(["ok", "ok", "ok", "refused", "cut", "hang", "drip", "drip"])
            stream = text in ("cut", "drip") or chance.random() < 0.5
            try:
                async with asyncio.timeout(chance.choice([0.01, 0.03, 0.06]) if text == "drip" else 30):
                    reply = await gateway.chat(text, stream=stream)
                    seen[f"{text} {reply.status_code}"] += 1
            except TimeoutError:
                seen[f"{text} hung up"] += 1
            except httpx2.RemoteProtocolError:
                seen[f"{text} broken"] += 1

    await asyncio.gather(*(caller() for _ in range(40)))
    return seen


@pytest.mark.parametrize("calls", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["memory", "valkey"])
@pytest.mark.timeout(600)
async def test_after_calls_of_every_ending_nothing_runs_any_more(kind: str, calls: int, server: Valkey) -> None:
    counters: Counters = MemoryCounters()
    if kind == "valkey":
        server.say("FLUSHALL")
        counters = ValkeyCounters(server.url, MemoryCounters(), patience=5.0)
    limits = Limits(concurrent=34, tokens_per_minute=10**9, requests_per_minute=10**6)
    providers = {"up": {"timeouts": {"first_byte": 0.05}, "max_connections": 512}}
    policy = limiter(limits, users=Limits(concurrent=34), counters=counters)
    async with limited(policy, fail, providers=providers) as (gateway, _):
        seen = await mixed(gateway, calls)
        print(dict(seen))
        assert {"ok 200", "ok 429", "refused 400", "hang 504", "drip hung up", "cut 200"} <= seen.keys()
        async with asyncio.timeout(5):
            await asyncio.sleep(0.1)
            while gateway.app.pipeline.running:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        for key in ("team checkout concurrent", "user checkout concurrent "):
            found = await counters.take([Charge(key, 1, 1, 0)])
            assert isinstance(found, Taken), f"something still runs by the count of {key!r}"
            counters.give_back(found, [0])
    assert not counters.degraded
    await counters.aclose()
