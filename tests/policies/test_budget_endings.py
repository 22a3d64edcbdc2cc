"""What a stop, a midnight and an idle hour do to money: nothing is lost, nothing is late, nothing is spent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import apsw
import asyncpg
import httpx2
import pytest

from gateway.books import Books, Hold
from gateway.demo.simulator import spawn
from gateway.leases import Claim, Shortage
from gateway.ledger import Budget
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from tests.policies.test_budget import MONTH, simulated
from tests.processes import serving
from tests.running import KEY, config, running
from tests.scripted import plain, scripted
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

CALLS = 100
TOKYO = ZoneInfo("Asia/Tokyo")


async def streamed(client: httpx2.AsyncClient, url: str, ends: list[asyncio.Event], number: int) -> None:
    body = {"model": "m", "stream": True, "max_tokens": 50, "messages": [{"role": "user", "content": f"say {number}"}]}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        async for _ in reply.aiter_raw():
            pass
    ends[number].set()


async def test_a_stop_right_after_the_last_byte_of_100_answers_leaves_100_entries_and_no_duplicate(
    tmp_path: Path,
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    limits = httpx2.Limits(max_connections=CALLS)
    with spawn() as simulator, serving(simulated(simulator.url, {"budgets": [MONTH]}), folder=tmp_path) as gateway:
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=30) as client:
            ends = [asyncio.Event() for _ in range(CALLS)]
            calls = [asyncio.create_task(streamed(client, gateway.url, ends, number)) for number in range(CALLS)]
            await asyncio.gather(*(end.wait() for end in ends))
            gateway.popen.terminate()
            await asyncio.gather(*calls)
            assert await asyncio.to_thread(gateway.popen.wait, 30) == 0
            rows = (await client.get(f"{simulator.url}/sim/bill")).json()["rows"]
    file = apsw.Connection(str(tmp_path / "tollkeeper.ledger.db"))
    entries = dict(file.execute("SELECT hold, amount FROM entry"))
    assert list(file.execute("SELECT count(*), sum(reserved) FROM entry, budget_window")) == [(CALLS, 0)]
    assert entries == {row["attempt"]: row["nano_usd"] for row in rows}
    file.close()
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("probes", [False, True], ids=["left alone", "probed"])
async def test_an_idle_gateway_asks_no_provider_for_anything(probes: bool) -> None:
    async with scripted(plain) as up, running(config(up.url, teams={"checkout": {"budgets": [MONTH]}})) as gateway:
        for _ in range(20):
            await asyncio.sleep(0.05)
            if probes:
                assert (await gateway.client.get("/healthz")).status_code == 200
                assert (await gateway.client.get("/readyz")).status_code == 200
                assert (await gateway.client.get("/v1/models")).status_code == 200
        assert up.asked == []


def before_midnight(seconds: float) -> Any:
    """A clock that runs, and reaches the last midnight of March in Tokyo in so many seconds."""
    midnight = int(datetime(2026, 4, 1, tzinfo=TOKYO).astimezone(UTC).timestamp()) * 10**9
    began = time.monotonic_ns()
    return lambda: midnight - int(seconds * 1e9) + time.monotonic_ns() - began


@pytest.mark.serial
@pytest.mark.parametrize("scope", ["organisation", "team checkout", "key checkout web", "user checkout u"])
async def test_a_budget_begins_anew_at_its_zones_midnight_and_not_a_tenth_of_a_second_earlier(
    scope: str, tmp_path: Path
) -> None:
    """With a hold of the old month that is still open."""
    now = before_midnight(1.0)
    books = Books(SqliteLedger(tmp_path / "ledger.db", now=now), tmp_path / "ledger", wait=0.0)
    await books.open()
    claims = [Claim(Budget(f"{scope} month", "month", "Asia/Tokyo", 1000, True))]
    try:
        last = await books.hold("req_1.1", claims, 600, "web", {})
        assert isinstance(last, Hold)
        outcomes = Counter[str]()
        midnight = time.monotonic() + 1.0
        while time.monotonic() < midnight - 0.1:
            found = await books.hold("req_2.1", claims, 600, "web", {})
            assert isinstance(found, Shortage), "admitted before midnight"
            outcomes[found.reason] += 1
            await asyncio.sleep(0.02)
        assert outcomes["contended"] > 10
        await asyncio.sleep(max(0.0, midnight + 0.1 - time.monotonic()))
        first = await books.hold("req_3.1", claims, 600, "web", {})
        assert isinstance(first, Hold), "refused after midnight"
        books.report(last, 500)  # it straddled midnight: it is paid from the month that admitted it
        books.report(first, 400)
    finally:
        await books.aclose()
    ledger = SqliteLedger(tmp_path / "ledger.db", watch=True)
    march, april = await ledger.windows(current=False)
    assert (march.spent, march.reserved, april.spent, april.reserved) == (500, 0, 400, 0)
    assert march.end == april.start == int(datetime(2026, 4, 1, tzinfo=TOKYO).timestamp()) * 10**9
    await ledger.aclose()


CLOCK = """
CREATE OR REPLACE FUNCTION tollkeeper.gw_now() RETURNS timestamptz LANGUAGE sql AS
$$ SELECT clock_timestamp() + interval '{0} microseconds' $$
"""


@pytest.mark.serial
async def test_three_gateways_begin_a_budget_anew_at_the_same_midnight_and_no_one_before(
    tmp_path: Path, server: Postgres
) -> None:
    """By the database's clock; nobody asked for anything at midnight itself."""
    async with server.database() as url:
        first = PostgresLedger(url)
        await first.start()
        midnight = datetime(2026, 4, 1, tzinfo=TOKYO)
        shift = (midnight - datetime.now(UTC)).total_seconds() - 1.5
        shell = await asyncpg.connect(url)
        await shell.execute(CLOCK.format(int(shift * 1e6)))
        await shell.close()
        begins = time.monotonic() + 1.5
        claims = [Claim(Budget("team checkout month", "month", "Asia/Tokyo", 1000, True))]
        ledgers = [first, PostgresLedger(url), PostgresLedger(url)]
        replicas = [Books(ledger, tmp_path / f"g{n}", wait=0.0) for n, ledger in enumerate(ledgers)]
        try:
            for books in replicas:
                await books.open()
            spent = await replicas[0].hold("req_1.1", claims, 1000, "web", {})
            assert isinstance(spent, Hold)
            replicas[0].report(spent, 1000)
            await asyncio.sleep(0.3)
            asked = [await books.hold(f"req_2.{n}", claims, 300, "web", {}) for n, books in enumerate(replicas)]
            assert [one.reason for one in asked if isinstance(one, Shortage)] == ["exhausted"] * 3
            assert time.monotonic() < begins
            await asyncio.sleep(begins + 0.1 - time.monotonic())
            holds = [await books.hold(f"req_3.{n}", claims, 300, "web", {}) for n, books in enumerate(replicas)]
            assert all(isinstance(hold, Hold) for hold in holds)
            for books, hold in zip(replicas, holds, strict=True):
                assert isinstance(hold, Hold)
                books.report(hold, 300)
        finally:
            for books in reversed(replicas):
                await books.aclose()
