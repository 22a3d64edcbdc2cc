"""What may be answered from the cache, to whom, and what never is: over real sockets, with a provider that counts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.dialects import Chunk
from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.nearby import Semantic
from gateway.policy import Policy
from policies.cache import Cache
from tests.running import KEY, Running, config, running
from tests.scripted import DONE, Asked, Scripted, answer, event, events, plain, say, scripted

OTHER = "tk-test-key-of-another-team"
CRON = "tk-test-key-of-the-same-team"
ORDINARY = ["access", "rate_limit", "budget"]


def said(url: str, **cache: Any) -> dict[str, Any]:
    """Two teams; checkout has two keys."""
    uses = [{"use": use} for use in ORDINARY] + [{"use": "cache", **cache}]
    teams = {
        "checkout": {"keys": [{"name": "web", "key": KEY}, {"name": "cron", "key": CRON}]},
        "guests": {"keys": [{"name": "web", "key": OTHER}]},
    }
    return config(url, policies=uses, teams=teams)


@asynccontextmanager
async def cached(script: Any = plain, **cache: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    async with scripted(script) as up, running(said(up.url, **cache)) as gateway:
        yield gateway, up


async def ask(
    gateway: Running, text: str = "hi", key: str = KEY, headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    asked = {"authorization": f"Bearer {key}", **(headers or {})}
    return await gateway.chat(text, headers=asked, **({"temperature": 0} | body))


def word(response: httpx2.Response) -> str:
    return response.headers["x-tollkeeper-cache"]


async def test_what_was_answered_is_answered_again_without_the_provider_and_costs_nothing() -> None:
    async with cached() as (gateway, up):
        first, again = [await ask(gateway) for _ in range(2)]
        record = await gateway.record((await gateway.finished(2)).id)
    assert (word(first), word(again)) == ("miss", "hit")
    assert again.content == first.content
    assert len(up.asked) == 1
    assert again.headers["x-tollkeeper-cost-usd"] == "0.000000000"
    assert int(again.headers["age"]) < 5
    assert (record.cache, record.cost_nano, record.attempts) == ("hit", 0, [])
    assert record.tokens.input == record.tokens.output == 0


BYPASSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.2},
    "store": {"store": False},
    "modalities": {"modalities": ["text", "audio"]},
    "no-store": {"headers": {"cache-control": "max-age=5, No-Store"}},
}


@pytest.mark.parametrize("why", BYPASSED)
async def test_what_is_not_for_the_cache_passes_it_by_and_is_told_why(why: str) -> None:
    async with cached() as (gateway, up):
        for _ in range(2):
            response = await ask(gateway, **BYPASSED[why])
            assert (word(response), response.headers["x-tollkeeper-cache-reason"]) == ("bypass", why)
        assert len(up.asked) == 2


async def test_a_call_that_gives_no_temperature_is_drawn_at_the_providers_own_and_passes_by_unless_allowed() -> None:
    async with cached() as (gateway, _):
        assert word(await gateway.chat()) == "bypass"
    async with cached(temperature="any") as (gateway, _):
        assert [word(await gateway.chat()) for _ in range(2)] == ["miss", "hit"]
        assert [word(await gateway.chat(temperature=1.5)) for _ in range(2)] == ["miss", "hit"]


async def test_no_cache_asks_the_provider_and_what_it_says_is_answered_from_then_on() -> None:
    replies = iter(["old", "new"])

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer(next(replies)))

    async with cached(script) as (gateway, _):
        await ask(gateway)
        fresh = await ask(gateway, headers={"cache-control": "no-cache"})
        assert word(fresh) == "miss"
        assert (await ask(gateway)).content == fresh.content


async def test_max_age_takes_nothing_older() -> None:
    async with cached() as (gateway, _):
        await ask(gateway)
        assert word(await ask(gateway, headers={"cache-control": "max-age=60"})) == "hit"
        await asyncio.sleep(1.05)
        assert word(await ask(gateway, headers={"cache-control": "max-age=1"})) == "miss"
        assert word(await ask(gateway, headers={"cache-control": "max-age=60"})) == "hit"


async def test_an_answer_ends_with_its_ttl() -> None:
    async with cached(ttl=0.3) as (gateway, _):
        assert [word(await ask(gateway)) for _ in range(2)] == ["miss", "hit"]
        await asyncio.sleep(0.35)
        assert word(await ask(gateway)) == "miss"


# ── who shares ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_team_shares_among_its_keys_and_with_no_other_team() -> None:
    async with cached() as (gateway, _):
        words = [word(await ask(gateway, key=key)) for key in (KEY, CRON, OTHER, OTHER)]
    assert words == ["miss", "hit", "miss", "hit"]


async def test_teams_that_are_named_as_a_group_share() -> None:
    async with cached(groups=[["checkout", "guests"]]) as (gateway, _):
        assert [word(await ask(gateway, key=key)) for key in (KEY, CRON, OTHER)] == ["miss", "hit", "hit"]


async def test_a_key_alone_where_that_is_set() -> None:
    async with cached(share="key") as (gateway, _):
        assert [word(await ask(gateway, key=key)) for key in (KEY, CRON, KEY)] == ["miss", "miss", "hit"]


async def test_a_user_alone_where_that_is_set_and_who_names_none_passes_by() -> None:
    async with cached(share="user") as (gateway, _):
        ann, bob = {"x-user-id": "ann"}, {"x-user-id": "bob"}
        assert [word(await ask(gateway, headers=one)) for one in (ann, bob, ann)] == ["miss", "miss", "hit"]
        assert word(await ask(gateway)) == "bypass"


async def test_only_teams_that_are_listed_where_some_are() -> None:
    async with cached(teams=["guests"]) as (gateway, _):
        assert [word(await ask(gateway, key=key)) for key in (KEY, OTHER, OTHER)] == ["bypass", "miss", "hit"]


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def told(stream: bytes) -> tuple[str, str | None, Any]:
    """Text, finish reason and usage of a stream that must be whole."""
    assert stream.endswith(DONE)
    text, finish, usage = "", None, None
    for line in stream.decode().split("\n\n"):
        if line.startswith("data: {"):
            said = json.loads(line[6:])
            usage = said.get("usage") or usage
            for choice in said["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return text, finish, usage


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


async def test_a_streamed_answer_serves_whole_calls_and_streams() -> None:
    async with cached() as (gateway, up):
        miss = await ask(gateway, stream=True)
        whole = await ask(gateway)
        hit = await ask(gateway, stream=True, stream_options={"include_usage": True})
        assert len(up.asked) == 1
    assert [word(one) for one in (miss, whole, hit)] == ["miss", "hit", "hit"]
    assert told(miss.content) == ("Hello", "stop", None)  # its caller did not ask for usage
    assert told(hit.content) == ("Hello", "stop", USAGE)
    assert whole.json()["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert whole.json()["usage"] == USAGE
    assert whole.json()["object"] == "chat.completion"


async def test_a_whole_answer_serves_streams() -> None:
    async with cached() as (gateway, up):
        await ask(gateway)
        hit = await ask(gateway, stream=True)
        assert len(up.asked) == 1
    assert word(hit) == "hit"
    assert hit.headers["content-type"].startswith("text/event-stream")
    assert told(hit.content) == ("Hello", "stop", None)


async def test_a_replay_is_paced_where_that_is_set() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer("word " * 40))

    async with cached(script, replay_words_per_second=100) as (gateway, _):
        await ask(gateway)
        loop = asyncio.get_running_loop()
        began = loop.time()
        hit = await ask(gateway, stream=True)
        assert loop.time() - began > 0.3
    assert told(hit.content)[0] == "word " * 40


# ── what is never kept ──────────────────────────────────────────────────────────────────────────────────────────────


async def cut(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "half"}))
    asked.wire.reset()


async def fails(asked: Asked) -> None:
    await asked.wire.whole(400, b'{"error":{"message":"no"}}')


async def in_band(asked: Asked) -> None:
    await say(asked, [event({"content": "x"}), b'data: {"error":{"message":"no"}}\n\n'])


def finished_by(reason: str | None) -> Any:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            last = event({}, reason) if reason else b""
            await say(asked, [event({"role": "assistant", "content": "x"}), last, DONE])
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": reason}
            await asked.wire.whole(200, answer(choices=[choice]))

    return script


CALL = {"id": "c", "type": "function", "function": {"name": "pay", "arguments": "{}"}}


async def calls_a_tool(asked: Asked) -> None:
    if asked.json.get("stream"):
        said = event({"role": "assistant", "tool_calls": [{"index": 0, **CALL}]})
        await say(asked, [said, event({}, "tool_calls"), DONE])
    else:
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await asked.wire.whole(200, answer(choices=[choice]))


async def half_of_two(asked: Asked) -> None:
    """One choice ended by itself, the other was cut."""
    message = {"role": "assistant", "content": "x"}
    choices = [{"index": at, "message": message, "finish_reason": why} for at, why in enumerate(("stop", "length"))]
    await asked.wire.whole(200, answer(choices=choices))


NEVER: dict[str, tuple[Any, bool]] = {
    "a stream that breaks off": (cut, True),
    "a refusal": (fails, False),
    "an error in a stream": (in_band, True),
    "cut at a length": (finished_by("length"), False),
    "cut at a length, streamed": (finished_by("length"), True),
    "filtered": (finished_by("content_filter"), False),
    "no reason to end": (finished_by(None), False),
    "no reason to end, streamed": (finished_by(None), True),
    "a tool call": (calls_a_tool, False),
    "a tool call, streamed": (calls_a_tool, True),
    "one of two choices cut": (half_of_two, False),
}


@pytest.mark.parametrize("what", NEVER)
async def test_is_never_kept(what: str) -> None:
    script, stream = NEVER[what]
    async with cached(script) as (gateway, up):
        for _ in range(2):
            assert word(await ask(gateway, stream=stream)) == "miss"
        assert len(up.asked) == 2


async def test_a_stream_whose_lines_end_in_crlf_is_kept_also_for_its_idempotency_key() -> None:
    async def script(asked: Asked) -> None:
        await say(asked, [piece.replace(b"\n", b"\r\n") for piece in events("Hel", "lo")])

    async with cached(script) as (gateway, up):
        for headers in ({}, {"idempotency-key": "k"}):
            text = f"asked with {len(headers)}"
            assert word(await ask(gateway, text, headers=headers, stream=True)) == "miss"
            told = await ask(gateway, text, headers=headers, stream=True)
            assert (word(told), "lo" in told.text) == ("hit", True)
        whole = await ask(gateway, "asked with 0")
        assert whole.json()["choices"][0]["message"]["content"] == "Hello"
        assert len(up.asked) == 2


async def test_embeddings_beside_an_error_are_not_kept() -> None:
    async def script(asked: Asked) -> None:
        said = {"object": "list", "data": [], "model": "m", "error": {"message": "overloaded"}}
        await asked.wire.whole(200, json.dumps(said).encode())

    async with cached(script) as (gateway, up):
        for _ in range(2):
            told = await gateway.client.post("/v1/embeddings", json={"model": "m", "input": ["a", "b"]})
            assert word(told) == "miss"
        assert len(up.asked) == 2


async def test_an_answer_whose_caller_hung_up_is_not_kept() -> None:
    async def script(asked: Asked) -> None:
        await say(asked, events(*"abcdefgh"), pause=0.05)

    async with cached(script) as (gateway, up):
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stream": True}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_raw():
                break
        await gateway.finished()
        assert word(await ask(gateway, stream=True)) == "miss"
        assert len(up.asked) == 2


@pytest.mark.parametrize("tools", [["pay"], ["*"]])
@pytest.mark.parametrize("stream", [False, True])
async def test_calls_of_tools_that_are_listed_are_kept(tools: list[str], stream: bool) -> None:
    async with cached(calls_a_tool, tools=tools) as (gateway, up):
        await ask(gateway, stream=stream)
        hit = await ask(gateway)
        assert len(up.asked) == 1
    assert hit.json()["choices"][0]["message"]["tool_calls"] == [CALL]


async def test_an_answer_that_is_too_long_is_not_kept() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer("x" * 2000))

    async with cached(script, answer_kb=1) as (gateway, up):
        assert [word(await ask(gateway)) for _ in range(2)] == ["miss", "miss"]
        assert len(up.asked) == 2


async def test_what_a_fallback_answered_is_not_kept_for_the_model_that_was_asked() -> None:
    async def script(asked: Asked) -> None:
        first = asked.json["model"] == "up"
        await asked.wire.whole(500 if first else 200, b"" if first else answer())

    async with scripted(script) as up:
        settings = said(up.url)
        settings["models"]["m"]["fallbacks"] = ["n"]
        settings["models"]["n"] = {
            "targets": [{"provider": "up", "model": "other"}],
            "price": {"input": 1, "output": 1},
        }
        async with running(settings) as gateway:
            assert [word(await ask(gateway)) for _ in range(2)] == ["miss", "miss"]


class Guard(Policy[None]):
    """Looks at answers: refuses those that hold a word, or takes it out."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.seen = 0

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk:
        self.seen += 1
        if b"Hel" not in chunk.raw:
            return chunk
        if self.refuses:
            raise Denied("no", code="blocked_by_safety")
        return Chunk(chunk.raw.replace(b"Hel", b"***"), chunk.text, chunk.usage, chunk.last)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [False, True])
async def test_what_another_policy_blocks_is_never_kept_wherever_it_stands(before: bool, stream: bool) -> None:
    async with cached() as (gateway, up):
        gateway.app.pipeline._screens.insert(0 if before else 9, Guard(refuses=True))
        for _ in range(2):
            response = await ask(gateway, stream=stream)
            assert "blocked_by_safety" in response.text
            assert "Hel" not in response.text
        await gateway.finished(2)
        assert [x.cache for x in gateway.seen] == ["miss", "miss"]
        assert len(up.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [False, True])
async def test_what_another_policy_takes_out_of_an_answer_is_out_of_hits_too(before: bool, stream: bool) -> None:
    async with cached() as (gateway, up):
        guard = Guard(refuses=False)
        gateway.app.pipeline._screens.insert(0 if before else 9, guard)
        for _ in range(2):
            response = await ask(gateway, stream=stream)
            assert "***" in response.text
            assert "Hel" not in response.text
        seen, guard.seen = guard.seen, 0
        await ask(gateway, stream=not stream)
        assert guard.seen
        assert seen
        assert len(up.asked) == 1


# ── beside other policies ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hit_counts_for_request_limits() -> None:
    async with scripted(plain) as up:
        settings = said(up.url)
        settings["teams"]["checkout"]["limits"] = {"requests_per_minute": 2}
        async with running(settings) as gateway:
            statuses = [(await ask(gateway)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_hit_needs_no_budget() -> None:
    async with scripted(plain) as up:
        settings = said(up.url)
        settings["teams"]["checkout"]["budgets"] = [{"limit_usd": "0.01", "per": "total"}]
        async with running(settings) as gateway:
            assert (await ask(gateway, max_tokens=10)).status_code == 200
            assert (await ask(gateway, "more", max_tokens=10_000)).status_code == 429
            assert word(await ask(gateway, max_tokens=10)) == "hit"


@pytest.mark.parametrize("page", ["config.example.yaml", "docs/cache.md"])
def test_every_setting_is_documented(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    words = [*Cache.Settings.model_fields, *Semantic.model_fields]
    unsaid = {"semantic", "questions"} if page.startswith("docs") else set()
    assert [name for name in words if name not in unsaid and not re.search(rf"\b{name}\b", text)] == []


async def test_metrics_tell_each_result() -> None:
    async with cached() as (gateway, _):
        for _ in range(3):
            await ask(gateway)
        await ask(gateway, temperature=1)
        text = (await gateway.client.get("/metrics")).text
    for result, count in {"miss": 1, "hit": 2, "bypass": 1}.items():
        assert f'tollkeeper_cache_total{{result="{result}"}} {count}.0' in text
