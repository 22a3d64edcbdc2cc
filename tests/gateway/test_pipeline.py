"""The life of a request: decided, called, delivered, settled once, told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest

from gateway.dialects import Chunk
from gateway.errors import Denied
from gateway.exchange import Attempt, Exchange
from gateway.policy import Policy
from tests.running import KEY, config, running
from tests.scripted import Asked, answer, event, events, plain, say, scripted


class Ledger(Policy[str]):
    """Notes every receipt it gives and every one that comes back."""

    def __init__(self, name: str = "ledger", deny: str = "", breaks: str = "") -> None:
        self.name = name
        self.deny = deny
        self.breaks = breaks
        self.given: list[str] = []
        self.back: list[str] = []
        self.order: list[str] = []

    async def admit(self, x: Exchange) -> str:
        self._maybe("admit")
        return self._give(f"admit {self.name}")

    async def attempt(self, x: Exchange, attempt: Attempt) -> str:
        self._maybe("attempt")
        return self._give(f"attempt {len(x.attempts)} {self.name}")

    def settle(self, x: Exchange, receipt: str) -> None:
        self.back.append(receipt)
        self.order.append(receipt)
        self._maybe("settle")

    def _give(self, receipt: str) -> str:
        self.given.append(receipt)
        return receipt

    def _maybe(self, hook: str) -> None:
        if self.deny == hook:
            raise Denied("no", code="rate_limited", status=429, retry_after=7)
        if self.breaks == hook:
            raise RuntimeError("planted")


def balanced(*ledgers: Ledger) -> bool:
    return all(sorted(ledger.given) == sorted(ledger.back) for ledger in ledgers)


async def hang(asked: Asked) -> None:
    await asked.wire.gone()


async def half(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "half"}))
    await asked.wire.gone()


async def broken(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "half"}))
    asked.wire.reset()


async def test_an_answer_is_delivered_and_every_receipt_comes_back_once_in_reverse() -> None:
    order: list[str] = []
    first, second = Ledger("first"), Ledger("second")
    first.order = second.order = order
    async with scripted(plain) as up, running(config(up.url), [first, second]) as gateway:
        response = await gateway.chat()
        assert response.status_code == 200
        x = await gateway.finished()
    assert x.error is None
    assert order == ["attempt 1 second", "attempt 1 first", "admit second", "admit first"]


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_held_any_more_when_the_caller_sees_the_end(stream: bool) -> None:
    ledger = Ledger()
    async with (
        scripted(plain) as up,
        running(config(up.url), [ledger]) as gateway,
        gateway.client.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]},
        ) as response,
    ):
        async for piece in response.aiter_raw():
            if b"[DONE]" in piece or not stream:
                assert balanced(ledger)
                assert ledger.given


ENDINGS = {
    "refused by the provider": (lambda asked: asked.wire.whole(400, b'{"error":{"message":"bad"}}'), 400),
    "provider fails": (lambda asked: asked.wire.whole(500, b"<html>"), 502),
    "provider limits": (lambda asked: asked.wire.whole(429, b"{}", retry_after="9"), 429),
    "not json": (lambda asked: asked.wire.whole(200, b"<html>hello</html>"), 502),
    "cut short": (lambda asked: asked.wire.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nabc"), 502),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_failing_provider_leaves_nothing_held(ending: str) -> None:
    script, status = ENDINGS[ending]

    async def act(asked: Asked) -> None:
        await script(asked)
        if ending == "cut short":
            asked.wire.reset()

    ledger = Ledger()
    async with scripted(act) as up, running(config(up.url), [ledger]) as gateway:
        response = await gateway.chat()
        x = await gateway.finished()
    assert response.status_code == status
    assert x.error is not None
    assert ledger.given
    assert balanced(ledger)


@pytest.mark.parametrize("script", [hang, half])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_leaves_nothing_held_and_stops_the_provider(script: Any, stream: bool) -> None:
    ledger = Ledger()
    async with scripted(script) as up, running(config(up.url), [ledger]) as gateway:
        with pytest.raises(httpx2.ReadTimeout):
            await gateway.client.post(
                "/v1/chat/completions",
                json={"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]},
                timeout=0.2,
            )
        x = await gateway.finished()
        async with asyncio.timeout(1):
            while not up.asked[0].closed_at:
                await asyncio.sleep(0.01)
    assert x.error is not None
    assert x.error.code == "client_gone"
    assert ledger.given
    assert balanced(ledger)


async def test_a_provider_that_breaks_off_leaves_nothing_held_and_ends_in_one_error_frame() -> None:
    ledger = Ledger()
    async with scripted(broken) as up, running(config(up.url), [ledger]) as gateway:
        response = await gateway.chat(stream=True)
        x = await gateway.finished()
    assert response.text.count("data: ") == 2
    assert '"upstream_broke_off"' in response.text
    assert "[DONE]" not in response.text
    assert 'finish_reason": "stop' not in response.text
    assert x.error is not None
    assert balanced(ledger)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_task_that_is_cancelled_settles_however_often_it_is_cancelled(times: int) -> None:
    ledger = Ledger()
    async with scripted(hang) as up, running(config(up.url), [ledger]) as gateway:
        before = asyncio.all_tasks()
        asking = asyncio.create_task(gateway.chat())
        while not ledger.given or len(ledger.given) < 2:
            await asyncio.sleep(0.005)
        inner = [t for t in asyncio.all_tasks() - before if t is not asking and "run_asgi" in repr(t)]
        assert len(inner) == 1
        for _ in range(times):
            inner[0].cancel()
            await asyncio.sleep(0)
        response = await asking if times == 1 else None
        x = await gateway.finished()
        asking.cancel()
    if response is not None:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
    assert x.error is not None
    assert balanced(ledger)


async def test_a_settle_that_raises_keeps_no_other_from_settling(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Ledger("good"), Ledger("bad", breaks="settle")
    async with scripted(plain) as up, running(config(up.url), [good, bad]) as gateway:
        assert (await gateway.chat()).status_code == 200
        x = await gateway.finished()
    assert balanced(good, bad)
    assert ("bad", "settle", "failed") in [decision[:3] for decision in x.decisions]
    assert "broke in settle" in caplog.text


async def test_shutdown_tells_running_streams_and_settles_them() -> None:
    ledger = Ledger()
    call = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    headers = {"authorization": f"Bearer {KEY}"}
    async with scripted(half) as up, httpx2.AsyncClient(headers=headers, timeout=10) as client:
        async with running(config(up.url, server={"grace_seconds": 1}), [ledger]) as gateway:
            asking = asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=call))
            while len(ledger.given) < 2:
                await asyncio.sleep(0.005)
            stop = asyncio.get_running_loop().time()
        assert 0.9 < asyncio.get_running_loop().time() - stop < 3
        response = await asking
    assert '"shutting_down"' in response.text
    assert "[DONE]" not in response.text
    assert balanced(ledger)


async def test_a_policy_that_refuses_is_heard_and_nothing_is_sent() -> None:
    first, second = Ledger("first"), Ledger("second", deny="admit")
    async with scripted(plain) as up, running(config(up.url), [first, second]) as gateway:
        response = await gateway.chat()
        x = await gateway.finished()
        assert not up.asked
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert balanced(first, second)
    assert [decision[:3] for decision in x.decisions] == [
        ("first", "admit", "held"),
        ("second", "admit", "denied:rate_limited"),
    ]


async def test_a_policy_that_breaks_refuses_the_call_unless_it_may_fail_open() -> None:
    bad = Ledger("bad", breaks="admit")
    async with scripted(plain) as up, running(config(up.url), [bad]) as gateway:
        closed = await gateway.chat()
        bad.fail_open = True
        opened = await gateway.chat()
    assert closed.status_code == 503
    assert closed.json()["error"]["code"] == "policy_failed"
    assert opened.status_code == 200


class Canned(Policy[None]):
    """Answers in the provider's place."""

    async def admit(self, x: Exchange) -> None:
        x.answer = self._say()

    async def _say(self) -> AsyncGenerator[Chunk, None]:
        yield Chunk(raw=answer("canned"), last=True)


async def test_a_policy_can_answer_in_the_providers_place_for_nothing() -> None:
    later = Ledger("later")
    async with scripted(plain) as up, running(config(up.url), [Canned(), later]) as gateway:
        response = await gateway.chat()
        assert not up.asked
    assert response.json()["choices"][0]["message"]["content"] == "canned"
    assert response.headers["x-tollkeeper-cost-usd"] == "0.000000000"
    assert not later.given


class Shout(Policy[None]):
    """Changes what it reads, and stops at a word."""

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk | None:
        if chunk.text and "stop" in chunk.text:
            raise Denied("blocked", code="blocked_by_safety", status=400)
        return Chunk(raw=chunk.raw.upper() if chunk.text else chunk.raw, last=chunk.last)


async def test_screens_see_text_chunk_by_chunk_and_can_change_and_stop_it() -> None:
    async def script(asked: Asked) -> None:
        await say(asked, events("one", "two", "stop", "four"))

    async with scripted(script) as up, running(config(up.url), [Shout()]) as gateway:
        response = await gateway.chat(stream=True)
    assert "ONE" in response.text
    assert "TWO" in response.text
    assert "four" not in response.text.lower()
    assert '"blocked_by_safety"' in response.text
    assert "[DONE]" not in response.text


TWO = {
    "providers": {"second": {"base_url": "filled in", "api_key": "sk-second-provider-key"}},
    "models": {
        "m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 1, "output": 2}, "fallbacks": ["n"]},
        "n": {"targets": [{"provider": "second", "model": "other"}], "price": {"input": 10, "output": 20}},
    },
}


def two(first: str, second: str, **over: Any) -> dict[str, Any]:
    said = config(first, **TWO)
    said["providers"]["second"]["base_url"] = second
    said["models"]["m"] |= over
    return said


async def failing(asked: Asked) -> None:
    await asked.wire.whole(503, b"{}")


async def first_event_is_an_error(asked: Asked) -> None:
    await say(asked, [b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'])


@pytest.mark.parametrize("script", [failing, first_event_is_an_error])
async def test_before_the_first_byte_the_next_target_answers_and_each_attempt_holds_for_itself(script: Any) -> None:
    ledger = Ledger()
    async with scripted(script) as bad, scripted(plain) as good, running(two(bad.url, good.url), [ledger]) as gateway:
        response = await gateway.chat(stream=True)
        x = await gateway.finished()
        assert good.asked[0].json["model"] == "other"
        assert good.asked[0].headers["authorization"] == "Bearer sk-second-provider-key"
    assert "[DONE]" in response.text
    assert response.headers["x-tollkeeper-attempts"] == "2"
    assert response.headers["x-tollkeeper-model"] == "n"
    assert [attempt.complete for attempt in x.attempts] == [False, True]
    assert x.attempts[1].why.startswith("fallback: upstream_")
    assert x.attempts[1].cost == 5 * 10_000 + 2 * 20_000
    assert ledger.given == ["admit ledger", "attempt 1 ledger", "attempt 2 ledger"]
    assert balanced(ledger)


async def test_after_the_first_byte_there_is_no_fallback() -> None:
    async with scripted(broken) as bad, scripted(plain) as good, running(two(bad.url, good.url)) as gateway:
        response = await gateway.chat(stream=True)
        assert not good.asked
    assert '"upstream_broke_off"' in response.text


async def test_what_the_caller_got_wrong_is_not_tried_elsewhere() -> None:
    async def refusing(asked: Asked) -> None:
        await asked.wire.whole(400, b'{"error":{"message":"max 5","param":"top_p","code":"context_length_exceeded"}}')

    async with scripted(refusing) as bad, scripted(plain) as good, running(two(bad.url, good.url)) as gateway:
        response = await gateway.chat()
        assert not good.asked
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "top_p"


async def test_max_attempts_counts_over_targets_and_fallbacks() -> None:
    async with scripted(failing) as bad, scripted(plain) as good:
        async with running(two(bad.url, good.url, max_attempts=1)) as gateway:
            response = await gateway.chat()
            assert not good.asked
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_a_fallback_nobody_pays_for_reports_the_first_failure() -> None:
    class Poor(Policy[None]):
        async def attempt(self, x: Exchange, attempt: Attempt) -> None:
            if attempt.target.alias == "n":
                raise Denied("too dear", code="budget_exhausted", status=402)

    async with scripted(failing) as bad, scripted(plain) as good, running(two(bad.url, good.url), [Poor()]) as gateway:
        response = await gateway.chat()
        assert not good.asked
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "upstream_unavailable"


async def test_a_hung_up_callers_answer_is_read_to_its_end_where_the_provider_bills_it_anyway() -> None:
    async def slow(asked: Asked) -> None:
        await say(asked, events(*"abcdefgh"), pause=0.05)

    said = config("filled in")
    async with scripted(slow) as up:
        said["providers"]["up"] |= {"base_url": up.url, "on_hangup": "drain"}
        async with running(said) as gateway:
            async with gateway.client.stream(
                "POST",
                "/v1/chat/completions",
                json={"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]},
            ) as response:
                await response.aiter_raw().__anext__()
            x = await gateway.finished()
    assert x.error is not None
    assert x.error.code == "client_gone"
    assert x.attempts[0].complete
    assert x.attempts[0].usage is not None
    assert (x.attempts[0].usage.input, x.attempts[0].usage.output, x.attempts[0].usage.estimated) == (5, 2, False)


async def test_an_abandoned_stream_is_charged_for_what_was_relayed_and_marked_estimated() -> None:
    async with scripted(half) as up, running(config(up.url)) as gateway:
        async with gateway.client.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]},
        ) as response:
            await response.aiter_raw().__anext__()
        x = await gateway.finished()
    usage = x.attempts[0].usage
    assert usage is not None
    assert usage.estimated
    assert usage.output >= 1
    assert usage.input >= 1
    assert x.cost is not None
    assert x.cost > 0


async def test_both_credentials_and_hop_headers_stay_here() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.chat(headers={"cookie": "secret", "x-forwarded-for": "1.2.3.4", "openai-beta": "assistants=v2"})
        headers = up.asked[0].headers
    assert headers["authorization"] == "Bearer sk-secret-of-the-provider"
    assert headers["openai-beta"] == "assistants=v2"
    assert not {"cookie", "x-forwarded-for", "traceparent"} & set(headers)
    assert KEY not in str(headers)
