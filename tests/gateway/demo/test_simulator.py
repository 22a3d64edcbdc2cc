"""The simulated provider as a whole."""

import time
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import AsyncOpenAI

from gateway.demo.simulator import PRICES, Simulator, running, spawn

CHAT = "/v1/chat/completions"


async def test_a_key_is_asked_for_where_keys_are_given_also_for_answers_that_are_ready(ask: Any) -> None:
    async with running(keys=("good",)) as sim:
        for key, allowed in (("bad", False), ("good", True), ("good", True), ("bad", False)):
            async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key=key, max_retries=0) as client:
                if allowed:
                    await client.chat.completions.create(**ask("hi"))
                    continue
                with pytest.raises(sdk.AuthenticationError) as refused:
                    await client.chat.completions.create(**ask("hi"))
                assert refused.value.code == "invalid_api_key"
                assert "bad" not in refused.value.message


async def test_models_are_listed_with_what_the_price_table_names(openai: AsyncOpenAI) -> None:
    assert {model.id async for model in openai.models.list()} == set(PRICES)
    assert (await openai.models.retrieve("sim-large")).id == "sim-large"
    with pytest.raises(sdk.NotFoundError):
        await openai.models.retrieve("gpt-9")


async def test_what_is_not_there_is_told_in_openais_shape(http: httpx2.AsyncClient) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/sim/x", 404)):
        answer = await http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for content in (b"{", b"[]"):
        assert (await http.post(CHAT, content=content)).status_code == 400


async def test_an_answer_that_is_ready_is_a_new_answer_with_its_own_row(
    sim: Simulator, openai: AsyncOpenAI, ask: Any
) -> None:
    answers = [
        await openai.chat.completions.create(**ask("hi"), extra_headers={"x-tollkeeper-attempt": f"a{at}"})
        for at in range(3)
    ]
    assert len({a.id for a in answers}) == 3
    assert len({a.choices[0].message.content for a in answers}) == 1
    assert abs(answers[2].created - time.time_ns() / 1e9) < 5
    assert [f"chatcmpl-{row.id}" for row in sim.bill.rows] == [a.id for a in answers]
    assert [row.attempt for row in sim.bill.rows] == ["a0", "a1", "a2"]


async def test_the_bill_is_the_sum_of_the_usage_that_callers_were_told(
    sim: Simulator, http: httpx2.AsyncClient, openai: AsyncOpenAI, ask: Any
) -> None:
    expected = 0
    for model in ("sim-small", "sim-large", "sim-reason", "sim-free"):
        for words in ("one", "two", "one", "x " * 2000, "x " * 2000):
            usage = (await openai.chat.completions.create(**ask(words, model=model))).usage
            price, cached = PRICES[model], usage.prompt_tokens_details.cached_tokens
            pico = (usage.prompt_tokens - cached) * price.input + cached * price.cached
            expected += -(-(pico + usage.completion_tokens * price.output) // 1000)
    told = (await http.get("/sim/bill?after=18")).json()
    assert told["nano_usd"] == expected > 0
    assert told["count"] == 20
    assert len(told["rows"]) == 2
    assert (await http.get("/sim/bill?after=x")).status_code == 400


async def test_a_reset_begins_anew(sim: Simulator, http: httpx2.AsyncClient, openai: AsyncOpenAI, ask: Any) -> None:
    for _ in range(2):
        await openai.chat.completions.create(**ask("x " * 2000))
    await openai.files.create(file=("a", b"x"), purpose="batch")
    await http.post("/sim/faults", json={"rate": 1, "fault": "status=503"})
    await http.post("/sim/reset")
    assert (await http.get("/sim/bill")).json() == {"rows": [], "count": 0, "models": {}, "nano_usd": 0}
    usage = (await openai.chat.completions.create(**ask("x " * 2000))).usage
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert [f async for f in openai.files.list()] == []


@pytest.mark.serial
async def test_a_call_costs_little_enough_to_measure_others_by(ask: Any) -> None:
    """The simulator's own CPU per unary call, from its resource usage; the load comes from this process."""
    import asyncio
    import json

    body = json.dumps(ask("hello " * 50)).encode()
    request = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    async with spawn() as sim, httpx2.AsyncClient(base_url=sim.url, trust_env=False) as http:
        host, _, port = sim.url.removeprefix("http://").partition(":")

        async def caller(count: int) -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            for _ in range(count):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            writer.close()
            await writer.wait_closed()

        before = (await http.get("/sim/stats")).json()["cpu_seconds"]
        await asyncio.gather(*[caller(500) for _ in range(16)])
        used = (await http.get("/sim/stats")).json()["cpu_seconds"] - before
        assert (await http.get("/sim/bill?rows=none")).json()["count"] == 8000
    assert used / 8000 < 25e-6
