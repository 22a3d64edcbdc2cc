"""HTTP/1.1 at its edges."""

import asyncio
import json
from typing import Any

import pytest
import uvloop

from gateway.demo import wire as wires
from gateway.demo.simulator import Simulator

CHAT = "/v1/chat/completions"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def test_pipelined_requests_are_answered_in_their_order(sim: Simulator, connect: Any, ask: Any) -> None:
    async with connect(sim) as wire:
        for at in range(200):
            slow = {"x_sim_fault": "ttft=0.001"} if at % 50 == 0 else {}
            wire.send("POST", CHAT, ask(f"say: answer {at}"), **slow)
        for at in range(200):
            _, body = await asyncio.wait_for(wire.answer(), 5)
            assert json.loads(body)["choices"][0]["message"]["content"] == f"answer {at}"


async def test_a_request_is_read_byte_by_byte_and_in_chunks(sim: Simulator, connect: Any, ask: Any) -> None:
    body = json.dumps(ask("say: hello")).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9))
    request = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    async with connect(sim) as wire:
        for at in range(len(request)):
            wire.writer.write(request[at : at + 1])
            await asyncio.sleep(0)
        _, answer = await wire.answer()
    assert json.loads(answer)["choices"][0]["message"]["content"] == "hello"


async def test_a_caller_that_asks_first_is_told_to_go_on(sim: Simulator, connect: Any, ask: Any) -> None:
    body = json.dumps(ask("hi")).encode()
    async with connect(sim) as wire:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
        wire.writer.write(head.encode())
        assert await asyncio.wait_for(wire.head(), 1) == "HTTP/1.1 100 Continue\r\n\r\n"
        wire.writer.write(body)
        assert (await wire.answer())[0].startswith("HTTP/1.1 200")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("last", ["HTTP/1.0\r\n", "HTTP/1.1\r\nconnection: close\r\n"])
async def test_a_caller_that_wants_no_more_is_let_go(
    sim: Simulator, connect: Any, ask: Any, stream: bool, last: str
) -> None:
    body = json.dumps(ask("hi", stream=stream)).encode()
    for _ in range(2):  # the second time it is ready
        async with connect(sim) as wire:
            wire.writer.write(f"POST {CHAT} {last}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await asyncio.wait_for(wire.rest(), 1)
        assert (b"transfer-encoding: chunked" in answer) == (stream and "1.1" in last)
        assert b"usage" in answer or b"[DONE]" in answer


async def test_what_is_no_http_is_refused_and_the_connection_closed(sim: Simulator, connect: Any) -> None:
    async with connect(sim) as wire:
        wire.writer.write(b"\x16\x03\x01 garbage\r\n\r\n")
        assert (await asyncio.wait_for(wire.rest(), 1)).startswith(b"HTTP/1.1 400")


async def test_a_body_too_large_for_memory_is_refused_before_it_is_read(
    sim: Simulator, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "LARGEST_BODY", 1000)
    for framing, body in (("content-length: 1001", b""), ("transfer-encoding: chunked", b"3e9\r\n" + b"x" * 1001)):
        async with connect(sim) as wire:
            wire.writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode() + body)
            assert (await asyncio.wait_for(wire.head(), 1)).startswith("HTTP/1.1 413")


async def test_the_head_of_an_answer_alone(sim: Simulator, connect: Any) -> None:
    async with connect(sim) as wire:
        wire.send("HEAD", "/v1/models").send("GET", "/v1/models")
        assert (await wire.head()).startswith("HTTP/1.1 405")
        assert (await wire.answer())[0].startswith("HTTP/1.1 200")
