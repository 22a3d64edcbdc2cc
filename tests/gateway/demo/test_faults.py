"""Faults on request, as a caller sees them on the wire."""

import asyncio
import gzip
import json
import time
from typing import Any

import httpx2
import pytest
import uvloop
from openai import APIStatusError, AsyncOpenAI

from gateway.demo.faults import NAMES, STATUSES, read
from gateway.demo.reply import Refusal
from gateway.demo.simulator import Simulator

CHAT = "/v1/chat/completions"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def _post(http: httpx2.AsyncClient, body: Any, fault: str) -> httpx2.Response:
    return await http.post(CHAT, json=body, headers={"x-sim-fault": fault})


def _events(text: str) -> list[Any]:
    """The JSON of each event, by the rules of the event-stream format."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[6:] for line in block.split("\n") if line.startswith("data: "))
        if data and data != "[DONE]":
            found.append(json.loads(data))
    return found


def test_a_list_is_cut_at_its_commas_and_not_inside_json() -> None:
    assert read('ttft=1, usage={"a":1,"b":[2,3]},no-done,headers={"x":"a,}b"}') == {
        "ttft": "1", "usage": '{"a":1,"b":[2,3]}', "no-done": "", "headers": '{"x":"a,}b"}',
    }  # fmt: skip


async def test_a_fault_or_an_argument_that_cannot_be_read_is_refused(http: httpx2.AsyncClient, ask: Any) -> None:
    with pytest.raises(Refusal, match="sparkle"):
        read("sparkle")
    for fault in ("sparkle", "status=200", "status=x", "ttft=x", "usage={", "slice=x", "pace=x"):
        answer = await _post(http, ask("hi"), fault)
        assert answer.status_code == 400, fault
        assert answer.json()["error"]["param"] == "x-sim-fault"


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status_is_answered_in_openais_shape_and_not_billed(
    sim: Simulator, openai: AsyncOpenAI, ask: Any, status: int
) -> None:
    with pytest.raises(APIStatusError) as refused:
        await openai.chat.completions.create(**ask("hi"), extra_headers={"x-sim-fault": f"status={status}"})
    assert refused.value.status_code == status
    assert refused.value.body["message"] == f"Simulated {status}."
    assert [(r.billed, r.why, r.charge.model) for r in sim.bill.rows] == [(False, f"status {status}", "sim-small")]


async def test_a_status_can_say_when_to_come_back_and_can_be_html_or_empty(http: httpx2.AsyncClient, ask: Any) -> None:
    assert (await _post(http, ask("hi"), "status=429;retry-after=7")).headers["retry-after"] == "7"
    page = await _post(http, ask("hi"), "status=502;html")
    assert page.headers["content-type"] == "text/html"
    assert page.text.startswith("<html>")
    assert (await _post(http, ask("hi"), "status=503;empty")).content == b""


@pytest.mark.parametrize(("fault", "why"), [("reset=0", "reset"), ("reset=3", "reset"), ("eof=3", "eof")])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_breaks_where_it_was_told_to_and_nothing_is_billed(
    sim: Simulator, connect: Any, ask: Any, fault: str, why: str, stream: bool
) -> None:
    async with connect(sim) as wire:
        wire.send("POST", CHAT, ask("hi", stream=stream), x_sim_fault=fault)
        seen = b""
        try:
            while data := await wire.reader.read(65536):
                seen += data
            assert why == "eof"
        except ConnectionResetError:
            assert why == "reset"
    assert (seen == b"") == (fault == "reset=0")
    if stream:
        assert seen.count(b"data: ") == int(fault[-1])
        assert not seen.endswith(b"0\r\n\r\n")
    elif seen:
        head, _, body = seen.partition(b"\r\n\r\n")
        assert 0 < len(body) < int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert [(r.billed, r.nano_usd, r.why) for r in sim.bill.rows] == [(False, 0, why)]


async def test_silence_before_the_head_and_inside_the_stream(sim: Simulator, connect: Any, ask: Any) -> None:
    async with connect(sim) as wire:
        began = time.perf_counter()
        wire.send("POST", CHAT, ask("hi", stream=True), x_sim_fault="ttft=0.2,stall=3:0.3")
        await wire.head()
        assert 0.19 < time.perf_counter() - began < 0.29
        seen = b""
        while seen.count(b"data: ") < 3:
            seen += await wire.reader.read(65536)
        assert seen.count(b"data: ") == 3
        await wire.reader.read(65536)
        assert 0.49 < time.perf_counter() - began < 0.6
    async with connect(sim) as wire:
        wire.send("POST", CHAT, ask("hi", stream=True), x_sim_fault="stall=0:5")
        await asyncio.wait_for(wire.head(), 0.5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.reader.read(1), 0.1)


async def test_an_error_or_broken_json_inside_a_stream_is_not_billed(
    sim: Simulator, http: httpx2.AsyncClient, ask: Any
) -> None:
    answer = await _post(http, ask("hi", stream=True), "error-event=2")
    events = _events(answer.text)
    assert len(events) == 3
    assert events[2]["error"]["code"] == "server_error"
    assert "[DONE]" not in answer.text
    assert "error" in _events((await _post(http, ask("hi", stream=True), "error-event=0")).text)[0]
    with pytest.raises(json.JSONDecodeError):
        _events((await _post(http, ask("hi", stream=True), "malformed=2")).text)
    with pytest.raises(json.JSONDecodeError):
        (await _post(http, ask("hi"), "malformed=1")).json()
    assert [r.why for r in sim.bill.rows] == ["error-event"] * 2 + ["malformed"] * 2
    assert sim.bill.plain()["nano_usd"] == 0


async def test_usage_on_the_wire_can_be_missing_wrong_or_cumulative_and_the_bill_is_true(
    sim: Simulator, http: httpx2.AsyncClient, ask: Any
) -> None:
    body = ask("hi", stream=True, stream_options={"include_usage": True})
    missing = _events((await _post(http, body, "no-usage")).text)
    assert all("usage" not in event and event["choices"] for event in missing)
    assert "usage" not in (await _post(http, ask("hi"), "no-usage")).json()
    wrong = _events((await _post(http, body, 'usage={"prompt_tokens":1,"completion_tokens":2}')).text)
    assert wrong[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    growing = [e["usage"]["completion_tokens"] for e in _events((await _post(http, body, "cumulative-usage")).text)]
    output = sim.bill.rows[0].charge.output
    assert growing == sorted(growing)
    assert growing[0] == 0
    assert growing[-1] == output
    assert len({row.nano_usd for row in sim.bill.rows}) == 1
    assert all(row.billed and row.complete for row in sim.bill.rows)


@pytest.mark.parametrize(
    "fault", ["crlf", "multi-line", "pings", "gzip", "slice=1", "slice=7,crlf", "interim", "close"]
)
@pytest.mark.parametrize("stream", [True, False])
async def test_another_legal_way_to_write_an_answer_says_the_same(
    http: httpx2.AsyncClient, ask: Any, fault: str, stream: bool
) -> None:
    body = ask("hi", stream=stream, max_tokens=20)
    plain, other = await _post(http, body, "pace=1000"), await _post(http, body, fault)

    def said(answer: httpx2.Response) -> list[Any]:
        events = _events(answer.text) if stream else [answer.json()]
        return [{name: value for name, value in e.items() if name not in ("id", "created")} for e in events]

    assert said(plain) == said(other)
    ids = {e["id"] for e in _events(other.text)} if stream else {other.json()["id"]}
    assert {id.removeprefix("chatcmpl-") for id in ids} == {other.headers["x-request-id"].removeprefix("req_")}


async def test_the_ways_of_writing_are_seen_on_the_wire(sim: Simulator, connect: Any, ask: Any) -> None:
    async def bytes_of(fault: str, stream: bool = True) -> bytes:
        async with connect(sim) as wire:
            return await wire.send("POST", CHAT, ask("hi", stream=stream), x_sim_fault=f"{fault},close").rest()

    assert (await bytes_of("interim")).startswith(b"HTTP/1.1 103 Early Hints\r\n")
    assert b": ping\n\ndata: " in await bytes_of("pings")
    assert b"data: [DONE]\r\n\r\n\r\n0\r\n" in await bytes_of("crlf")
    assert b",\ndata: " in await bytes_of("multi-line")
    assert b"[DONE]" not in await bytes_of("no-done")
    assert b"ZZZ\r\n" in await bytes_of("chunk-garbage")
    packed = await bytes_of("gzip", stream=False)
    assert json.loads(gzip.decompress(packed.partition(b"\r\n\r\n")[2]))["object"] == "chat.completion"
    head, _, body = (await bytes_of("wrong-length", stream=False)).partition(b"\r\n\r\n")
    assert int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]) == len(body) + 10
    assert {row.why for row in sim.bill.rows if not row.billed} == {"chunk-garbage", "wrong-length"}


async def test_headers_redirects_and_padding(http: httpx2.AsyncClient, ask: Any) -> None:
    answer = await _post(http, ask("hi"), 'headers={"set-cookie":["a=1","b=2"],"x-more":"yes"},huge=300000')
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["x-more"] == "yes"
    assert len(answer.json()["padding"]) == 300_000
    streamed = _events((await _post(http, ask("hi", stream=True), "huge=100000")).text)
    assert len(streamed[1]["padding"]) == 100_000
    sent = await _post(http, ask("hi"), "redirect=http://elsewhere.test/")
    assert (sent.status_code, sent.headers["location"]) == (307, "http://elsewhere.test/")


async def test_a_body_can_be_slow(http: httpx2.AsyncClient, ask: Any) -> None:
    began = time.perf_counter()
    answer = await _post(http, ask("hi"), "slow-body=0.3")
    assert 0.29 < time.perf_counter() - began < 0.6
    assert answer.json()["object"] == "chat.completion"


async def test_a_refusal_can_come_before_the_body(sim: Simulator, connect: Any) -> None:
    async with connect(sim) as wire:
        wire.writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\nx-sim-fault: early=413\r\n\r\n".encode()
        )
        head, body = await asyncio.wait_for(wire.answer(), 1)
        assert head.startswith("HTTP/1.1 413")
        assert json.loads(body)["error"]["message"] == "Simulated 413."
        wire.writer.write(b"x" * 9_000_000)
        assert await asyncio.wait_for(wire.rest(), 1) == b""


def test_every_fault_is_told_in_the_files_docstring() -> None:
    from gateway.demo import faults

    assert [name for name in NAMES if name not in (faults.__doc__ or "")] == []
