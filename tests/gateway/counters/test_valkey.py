"""Limits in a real Valkey, when it freezes, dies, is emptied, or answers too late.  tests/contract holds the rest."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.counters import Charge, Counters, Refusal, Taken
from gateway.counters import valkey as module
from gateway.counters.memory import MemoryCounters
from gateway.counters.valkey import ValkeyCounters
from gateway.valkey import ANSWER
from tests.valkeys import Valkey, valkey

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

ONE = Charge("a", 1, 30, 60.0)
RUNNING = Charge("r", 1, 6, 0)
LATE = 5.0  # seconds, where lateness is not what is told


@pytest.fixture
def server() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@asynccontextmanager
async def replicas(url: str, count: int = 3, patience: float = ANSWER) -> AsyncIterator[list[ValkeyCounters]]:
    made = [ValkeyCounters(url, MemoryCounters(), count, patience=patience) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.aclose()


async def granted(counters: Counters, charge: Charge, tries: int) -> int:
    return sum([isinstance(await counters.take([charge]), Taken) for _ in range(tries)])


async def until(condition: str, counters: ValkeyCounters, seconds: float = 5.0) -> float:
    """Seconds until it is `degraded`, or `well` again."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while counters.degraded != (condition == "degraded"):
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def eventually_free(counters: Counters, charge: Charge) -> None:
    """Nothing of the limit is used, within a second."""
    async with asyncio.timeout(1):
        while True:
            found = await counters.take([charge._replace(limit=1)])
            if isinstance(found, Taken):
                counters.give_back(found, [0])
                return
            await asyncio.sleep(0.01)


async def test_three_replicas_hold_one_limit_together(server: Valkey) -> None:
    async with replicas(server.url, patience=LATE) as three:
        found = await asyncio.gather(*(granted(one, ONE, 30) for one in three))
        running = await asyncio.gather(*(granted(one, RUNNING, 4) for one in three))
    assert (sum(found), sum(running)) == (30, 6)
    assert min(found) > 0


async def test_a_server_is_given_the_time_that_was_said(server: Valkey) -> None:
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        server.freeze()
        asyncio.get_running_loop().call_later(0.6, server.thaw)
        found = await counters.take([ONE])
        assert isinstance(found, Taken)
        assert not counters.degraded


async def test_a_server_absent_at_start_leaves_each_replica_its_share_until_it_comes(server: Valkey) -> None:
    server.kill()
    async with replicas(server.url) as three:
        assert [await granted(one, ONE, 30) for one in three] == [10, 10, 10]
        assert [await granted(one, Charge("b", 1, 2, 60.0), 3) for one in three] == [1, 1, 1]
        assert all(one.degraded for one in three)
        server.start()
        for one in three:
            await until("well", one)
        assert sum([await granted(one, Charge("c", 1, 30, 60.0), 30) for one in three]) == 30


async def test_a_frozen_server_delays_one_request_by_half_a_second_at_most_and_the_next_by_nothing(
    server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with replicas(server.url) as (counters, *_):
        await granted(counters, ONE, 5)
        server.freeze()
        waits = []
        for _ in range(200):
            began = time.perf_counter()
            await counters.take([Charge("b", 1, 10**6, 60.0)])
            waits.append(time.perf_counter() - began)
        first, *later = waits
        print(f"first {first * 1e3:.0f} ms, then p50 {statistics.median(later) * 1e6:.0f} us")
        assert 0.05 < first < 0.5
        assert statistics.median(later) < 0.001
        assert counters.degraded
        assert await granted(counters, ONE, 30) == 10
        server.thaw()
        await until("well", counters)
        left = await counters.take([ONE, Charge("b", 0, 10**6, 60.0)])
        assert isinstance(left, Taken)
        assert left.remaining == [24, 10**6], "what the frozen server was asked for is undone"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


async def test_fifty_requests_at_the_moment_of_freezing_all_go_on_within_half_a_second(server: Valkey) -> None:
    async with replicas(server.url, 1) as (counters,):
        await granted(counters, ONE, 1)
        server.freeze()
        began = time.perf_counter()
        both = [Charge("b", 1, 10**6, 60.0), RUNNING._replace(limit=99)]
        found = await asyncio.gather(*(counters.take(both) for _ in range(50)))
        assert time.perf_counter() - began < 0.5
        assert all(isinstance(one, Taken) for one in found)
        for one in found:
            assert isinstance(one, Taken)
            counters.give_back(one, [1, 0])
        server.thaw()
        await until("well", counters)
        await eventually_free(counters, RUNNING)


async def test_a_killed_server_costs_no_request_and_what_it_forgot_starts_anew(server: Valkey) -> None:
    async with replicas(server.url, patience=LATE) as (counters, *_):
        assert await granted(counters, ONE, 40) == 30
        server.kill()
        began = time.perf_counter()
        assert await granted(counters, ONE, 40) == 10
        assert time.perf_counter() - began < 0.5
        server.start()
        assert await until("well", counters) < 5
        assert await granted(counters, ONE, 40) == 30


async def test_a_call_too_large_for_a_share_may_come_again_when_the_server_does(server: Valkey) -> None:
    server.kill()
    async with replicas(server.url) as (counters, *_):
        found = await counters.take([ONE._replace(amount=20)])
        assert isinstance(found, Refusal)
        assert found.retry_after == 5.0
        found = await counters.take([ONE._replace(amount=31)])
        assert isinstance(found, Refusal)
        assert found.retry_after == float("inf")


async def test_emptying_the_server_restarts_the_limits_and_breaks_nothing(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP", 0.2)
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        held = await counters.take([ONE._replace(amount=30), RUNNING._replace(limit=1)])
        assert isinstance(held, Taken)
        assert server.say("FLUSHALL") == server.say("SCRIPT", "FLUSH") == "+OK"
        assert await granted(counters, ONE, 30) == 30
        await asyncio.sleep(0.5)
        assert isinstance(await counters.take([RUNNING._replace(limit=1)]), Refusal), "what still runs is told again"
        counters.give_back(held, [0, 0])
        await eventually_free(counters, RUNNING)
        assert isinstance(await counters.take([ONE]), Refusal), "what the server forgot is not given back twice"
        assert not counters.degraded


async def test_a_server_that_can_only_be_read_is_not_taken_back_until_it_can_be_written(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGET", 0.2)
    async with replicas(server.url, 1) as (counters,):
        await granted(counters, ONE, 1)
        server.say("REPLICAOF", "127.0.0.1", "1")
        assert isinstance(await counters.take([ONE]), Taken)
        for _ in range(30):
            assert counters.degraded
            await asyncio.sleep(0.04)
        server.say("REPLICAOF", "NO", "ONE")
        await until("well", counters)


async def test_a_call_whose_request_was_cancelled_takes_nothing(server: Valkey) -> None:
    """Cancelled at random points, and once while the server does not answer."""
    chance = random.Random(3)
    async with replicas(server.url, 1) as (counters,):
        await granted(counters, Charge("warm", 1, 9, 60.0), 1)
        kept = 0
        for _ in range(300):
            asking = asyncio.create_task(counters.take([ONE._replace(limit=10**6), RUNNING._replace(limit=10**6)]))
            await asyncio.sleep(chance.choice([0, 0, 0.0001, 0.0003]))
            asking.cancel()
            found = (await asyncio.gather(asking, return_exceptions=True))[0]
            if isinstance(found, Taken):
                kept += 1
                counters.give_back(found, [0, 0])
        server.freeze()
        asking = asyncio.create_task(counters.take([ONE, RUNNING]))
        await asyncio.sleep(0.02)
        asking.cancel()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
        server.thaw()
        await asyncio.sleep(0.2)
        await until("well", counters)
        await eventually_free(counters, RUNNING)
        await eventually_free(counters, ONE)
        assert kept < 300, "none was cancelled in time"


@dataclass
class Between:
    """A wire between a replica and its server that can lose an answer, or bring each of them late."""

    port: int
    lose: int = 0  # answers that are lost, with their connection
    delay: float = 0.0
    url: str = ""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, back]
        await asyncio.gather(self._carry(reader, back, False), self._carry(there, writer, True), return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bool) -> None:
        while data := await reader.read(65536):
            if answer and self.lose and data.startswith(b"*"):
                self.lose -= 1
                break
            await asyncio.sleep(self.delay if answer else 0)
            writer.write(data)
        writer.close()


@asynccontextmanager
async def between(server: Valkey) -> AsyncIterator[Between]:
    wire = Between(server.port)
    listening = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    try:
        yield wire
    finally:
        listening.close()
        for writer in wire.writers:
            writer.close()
        await asyncio.sleep(0.05)


async def test_a_call_whose_answer_was_lost_is_asked_again_and_counted_once(server: Valkey) -> None:
    async with between(server) as wire, replicas(wire.url, 1) as (counters,):
        await granted(counters, ONE, 1)
        for _ in range(5):
            wire.lose = 1
            found = await counters.take([ONE, RUNNING])
            assert isinstance(found, Taken)
            assert wire.lose == 0
            counters.give_back(found, [1, 0])
        assert not counters.degraded
        found = await counters.take([ONE])
        assert isinstance(found, Taken)
        assert found.remaining == [30 - 7]
        await eventually_free(counters, RUNNING)


async def test_what_was_given_back_and_lost_on_the_way_is_told_again_and_once(server: Valkey) -> None:
    async with between(server) as wire, replicas(wire.url, 1) as (counters,):
        first = await counters.take([ONE._replace(amount=20)])
        await counters.take([ONE._replace(amount=10)])
        assert isinstance(first, Taken)
        wire.lose = 2  # the call and its repeat: the server is taken for dead
        counters.give_back(first, [15])
        await until("degraded", counters)
        await until("well", counters)
        found = await counters.take([ONE._replace(amount=0)])
        assert isinstance(found, Taken)
        assert found.remaining == [5]


async def test_a_slow_server_is_left_alone_like_a_frozen_one(server: Valkey) -> None:
    async with between(server) as wire, replicas(wire.url, 1) as (counters,):
        await granted(counters, ONE, 1)
        wire.delay = 0.5
        began = time.perf_counter()
        await counters.take([ONE])
        first = time.perf_counter() - began
        await counters.take([ONE])
        assert first < 0.5
        assert time.perf_counter() - began - first < 0.05
        assert counters.degraded
        wire.delay = 0
        await until("well", counters)


async def test_leases_are_kept_while_a_call_runs_and_end_within_a_minute_when_nobody_keeps_them(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP", 0.1)
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        assert isinstance(await counters.take([RUNNING._replace(limit=1)]), Taken)
        life = int(server.say("PTTL", "{tollkeeper}:r").removeprefix(":"))
        assert 40_000 < life <= 45_000
        assert server.say("PEXPIRE", "{tollkeeper}:r", "300") == ":1"
        await asyncio.sleep(0.6)
        assert isinstance(await counters.take([RUNNING._replace(limit=1)]), Refusal)
        assert server.say("ZADD", "{tollkeeper}:r", "1", "a lease of 1970") == ":1"
        assert isinstance(await counters.take([RUNNING._replace(limit=2)]), Taken), "an ended lease counts for nothing"


HOLDER = """
import asyncio, sys
from gateway.counters import Charge
from gateway.counters.memory import MemoryCounters
from gateway.counters.valkey import ValkeyCounters
from gateway.valkey import ANSWER
async def hold():
    counters = ValkeyCounters(sys.argv[1], MemoryCounters())
    print(type(await counters.take([Charge("r", 1, 1, 0)])).__name__, flush=True)
    await asyncio.sleep(999)
asyncio.run(hold())
"""


@pytest.mark.long
async def test_the_places_of_a_replica_that_was_killed_are_free_within_60_seconds(server: Valkey) -> None:
    root = str(Path(__file__).parents[3])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, server.url], cwd=root, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        try:
            assert holder.stdout.readline() == b"Taken\n"
            await asyncio.sleep(50)  # longer than a lease: it is kept
            assert isinstance(await counters.take([RUNNING._replace(limit=1)]), Refusal)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            holder.stdout.close()
        died = time.monotonic()
        while isinstance(await counters.take([RUNNING._replace(limit=1)]), Refusal):
            await asyncio.sleep(0.5)
            assert time.monotonic() - died < 60
        print(f"free after {time.monotonic() - died:.0f} s")


async def test_closing_tells_the_server_what_was_given_back(server: Valkey) -> None:
    async with replicas(server.url, 2, patience=LATE) as (one, other):
        held = await one.take([ONE._replace(amount=30), RUNNING])
        assert isinstance(held, Taken)
        one.give_back(held, [3, 0])
        await one.aclose()
        found = await other.take([ONE._replace(amount=0), RUNNING._replace(limit=1)])
        assert isinstance(found, Taken)
        assert found.remaining[0] == 27


async def test_closing_ends_at_once_whatever_is_being_told_to_the_server(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP", 0.001)
    chance = random.Random(9)
    async with asyncio.timeout(15):
        for _ in range(60):
            async with replicas(server.url, 1) as (counters,):
                assert isinstance(await counters.take([RUNNING._replace(limit=10**6)]), Taken)
                await asyncio.sleep(chance.random() * 0.006)
    async with replicas(server.url, 1) as (counters,):
        await eventually_free(counters, RUNNING)


async def test_every_key_has_one_hash_tag_and_ends_by_itself(server: Valkey) -> None:
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        await counters.take([ONE, Charge("d", 5, 9, 86_400.0), RUNNING])
        assert server.say("DBSIZE") == ":4"  # three, and the record of the call
        for key, life in {"a": 62_000, "d": 89_280_000, "r": 45_000}.items():
            assert 0 < int(server.say("PTTL", f"{{tollkeeper}}:{key}").removeprefix(":")) <= life


@pytest.mark.serial
async def test_three_charges_are_taken_in_a_millisecond(server: Valkey) -> None:
    charges = [Charge("t", 1, 10**9, 60.0), Charge("k", 900, 10**12, 60.0), Charge("r", 1, 10**6, 0)]
    async with replicas(server.url, 1, patience=LATE) as (counters,):
        took = []
        for _ in range(1_000):
            began = time.perf_counter()
            found = await counters.take(charges)
            took.append(time.perf_counter() - began)
            assert isinstance(found, Taken)
            counters.give_back(found, [1, 700, 0])
    print(f"p50 {statistics.median(took) * 1e6:.0f} us")
    assert statistics.median(took) < 0.001
