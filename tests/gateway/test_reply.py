"""What the caller receives: an honest status before the first byte, an honest end after it."""

from __future__ import annotations

import asyncio
import json
import re

import httpx2
import pytest

from gateway.reply import usd
from tests.running import config, running
from tests.scripted import Asked, answer, event, events, plain, say, scripted

STREAM = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


async def test_a_whole_answer_says_who_gave_it_and_what_it_cost() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.chat()
        x = await gateway.finished()
    head = response.headers
    assert response.content == answer()
    assert head["content-type"] == "application/json"
    assert head["content-length"] == str(len(answer()))
    assert head["x-request-id"] == x.id
    assert re.fullmatch(r"req_[0-9a-f]{32}", x.id)
    assert (head["x-tollkeeper-provider"], head["x-tollkeeper-model"], head["x-tollkeeper-attempts"]) == (
        "up",
        "m",
        "1",
    )
    assert head["x-tollkeeper-cost-usd"] == usd(5 * 1000 + 2 * 2000)
    assert 0 < float(head["x-tollkeeper-overhead-ms"]) < 1000
    assert x.sent_bytes == len(answer())


async def test_a_stream_says_at_its_end_what_it_cost_in_a_comment() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.chat(stream=True)
        x = await gateway.finished()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert "x-tollkeeper-cost-usd" not in response.headers
    *_, comment, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert comment.startswith(": tollkeeper ")
    facts = json.loads(comment.removeprefix(": tollkeeper "))
    assert facts == {
        "request_id": x.id, "cost_usd": "0.000009000", "input_tokens": 5, "output_tokens": 2, "estimated": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "told", "code"), [(429, 429, "upstream_rate_limited"), (503, 503, "upstream_unavailable")]
)
async def test_a_refusal_before_the_first_byte_is_a_status_and_says_when_to_come_back(
    status: int, told: int, code: str
) -> None:
    async def refusing(asked: Asked) -> None:
        await asked.wire.whole(status, b"{}")

    async with scripted(refusing) as up, running(config(up.url)) as gateway:
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert response.status_code == told
            assert response.headers["retry-after"] == "1"
            assert response.headers["content-type"] == "application/json"
            error = response.json()["error"]
            assert error["code"] == code
            assert error["request_id"] == response.headers["x-request-id"]
            assert None not in (error["message"], error["type"])


async def test_after_the_first_byte_a_stream_ends_in_one_error_frame_and_a_whole_answer_is_cut() -> None:
    async def breaking(asked: Asked) -> None:
        await asked.wire.head(kind="application/json" if "responses" in asked.path else "text/event-stream")
        await asked.wire.chunk(event({"content": "half"}))
        asked.wire.reset()

    async with scripted(breaking) as up, running(config(up.url)) as gateway:
        response = await gateway.client.post("/v1/chat/completions", json=STREAM)
        assert response.status_code == 200
        frames = [frame for frame in response.text.split("\n\n") if frame]
        assert json.loads(frames[-1].removeprefix("data: "))["error"]["code"] == "upstream_broke_off"
        assert "[DONE]" not in response.text
        with pytest.raises(httpx2.RemoteProtocolError):
            await gateway.client.post("/v1/responses", json={"model": "m", "input": "hi"})


async def test_a_relayed_answer_keeps_its_status_and_only_what_of_its_head_may_pass() -> None:
    async def telling(asked: Asked) -> None:
        await asked.wire.whole(
            203,
            b"x",
            "audio/mpeg",
            set_cookie="a=b",
            server="inner",
            etag='"1"',
            x_ratelimit_remaining="3",
            openai_version="1",
        )

    async with scripted(telling) as up, running(config(up.url)) as gateway:
        response = await gateway.client.get("/v1/files/1/content")
    assert (response.status_code, response.content) == (203, b"x")
    passed = {"content-type": "audio/mpeg", "etag": '"1"', "x-ratelimit-remaining": "3", "openai-version": "1"}
    assert passed.items() <= dict(response.headers).items()
    assert not {"set-cookie", "server"} & set(response.headers)


async def test_a_silent_stream_is_kept_awake_by_comments_and_by_nothing_after_its_end() -> None:
    async def slow(asked: Asked) -> None:
        await say(asked, events("a", "b"), pause=0.15)

    async with scripted(slow) as up:
        async with running(config(up.url, server={"ping_seconds": 0.05})) as gateway:
            response = await gateway.chat(stream=True)
            await asyncio.sleep(0.1)
        pings = response.text.count(": ping\n\n")
        assert pings >= 4
        assert response.text.endswith("data: [DONE]\n\n")
        async with running(config(up.url)) as gateway:
            silent = await gateway.chat(stream=True)
    assert ": ping" not in silent.text
    said = [frame for frame in response.text.split("\n\n") if frame.startswith("data")]
    assert said == [frame for frame in silent.text.split("\n\n") if frame.startswith("data")]


def test_money_is_written_exactly() -> None:
    assert [usd(nano) for nano in (0, 1, 999_999_999, 10**9, 12_345_678_901)] == [
        "0.000000000", "0.000000001", "0.999999999", "1.000000000", "12.345678901",
    ]  # fmt: skip
