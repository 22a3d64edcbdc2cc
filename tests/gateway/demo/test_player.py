"""Answers as they are written, and what becomes of them when the caller leaves."""

import asyncio
import time
from typing import Any

import uvloop

from gateway.demo.simulator import Simulator, running

CHAT = "/v1/chat/completions"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def _ended(sim: Simulator) -> dict[str, Any]:
    """The last answer that ended, within a second."""
    until = time.perf_counter() + 1
    while time.perf_counter() < until:
        requests = [r for r in sim.control.connections(0)["requests"] if r["closed"] is not None]
        if requests:
            return requests[-1]
        await asyncio.sleep(0.01)
    raise AssertionError("the end of the answer was not noticed within 1 s")


async def test_an_abandoned_stream_is_noticed_and_billed_by_the_tokens_written(connect: Any, ask: Any) -> None:
    async with running(pace="50") as sim, connect(sim) as wire:
        wire.send("POST", CHAT, ask("say: " + "word " * 500, stream=True), x_tollkeeper_attempt="a-1")
        seen = b""
        while seen.count(b'"content":" word') < 3:
            seen += await wire.reader.read(65536)
        left = time.time_ns() / 1e9
        wire.abort()
        ended = await _ended(sim)
        assert not ended["finished"]
        assert ended["attempt"] == "a-1"
        assert ended["closed"] - left < 0.5
        row = sim.bill.rows[-1]
        assert (row.complete, row.billed, row.why, row.attempt) == (False, True, "abandoned", "a-1")
        spoken = seen.count(b'"content":') - 1
        assert spoken <= row.charge.output <= spoken + 1
        assert row.nano_usd == row.charge.input * 150 + row.charge.output * 600
        assert sim.connections == set()


async def test_an_answer_in_one_piece_that_was_abandoned_is_billed_in_full(connect: Any, ask: Any) -> None:
    async with running(pace="20") as sim, connect(sim) as wire:
        wire.send("POST", CHAT, ask("say: " + "word " * 100))
        await asyncio.sleep(0.1)
        wire.abort()
        assert not (await _ended(sim))["finished"]
        row = sim.bill.rows[-1]
        assert (row.complete, row.billed, row.charge.output) == (False, True, 101)


async def test_a_caller_that_left_before_the_first_token_pays_for_its_input(
    sim: Simulator, connect: Any, ask: Any
) -> None:
    async with connect(sim) as wire:
        wire.send("POST", CHAT, ask("hi", stream=True), x_sim_fault="stall=0:30")
        await wire.head()
        wire.abort()
    await _ended(sim)
    assert sim.bill.rows[-1].charge.output == 0
    assert sim.bill.rows[-1].nano_usd == sim.bill.rows[-1].charge.input * 150


async def test_an_answer_keeps_its_pace(connect: Any, ask: Any) -> None:
    async with running(pace="100") as sim, connect(sim) as wire:
        for _ in range(2):  # the second time it is ready
            began = time.perf_counter()
            wire.send("POST", CHAT, ask("say: " + "word " * 29, stream=True))
            await wire.reader.readuntil(b"[DONE]")
            await wire.reader.readuntil(b"0\r\n\r\n")
            assert 0.29 < time.perf_counter() - began < 0.4
        assert [row.charge.output for row in sim.bill.rows] == [30, 30]


async def test_a_caller_that_does_not_read_holds_the_answer_back(sim: Simulator, connect: Any, ask: Any) -> None:
    async with connect(sim) as wire:
        wire.writer.transport.pause_reading()
        wire.send("POST", CHAT, ask("hi", stream=True), x_sim_fault="huge=100000000")
        await asyncio.sleep(0.2)
        (connection,) = sim.connections
        assert connection.blocked
        assert connection.transport.get_write_buffer_size() < 1_000_000
        wire.writer.transport.resume_reading()
        wire.reader._limit = 2**24
        count = 0
        while data := await asyncio.wait_for(wire.reader.read(2**20), 5):
            count += len(data)
            if data.endswith(b"0\r\n\r\n"):
                break
        assert count > 100_000_000
    assert (await _ended(sim))["finished"]
