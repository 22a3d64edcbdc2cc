"""A simulator in a process of its own."""

import os
import time

import httpx2
import pytest

from gateway.demo.simulator import spawn


def test_it_listens_and_ends_with_its_block() -> None:
    with spawn() as sim:
        assert httpx2.get(f"{sim.url}/v1/models", trust_env=False).status_code == 200
        os.kill(sim.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(sim.pid, 0)
    sim.stop()


async def test_it_ends_with_an_async_block() -> None:
    async with spawn(keys=("k1",)) as sim, httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{sim.url}/v1/models")).status_code == 401
        assert (await http.get(f"{sim.url}/v1/models", headers={"authorization": "Bearer k1"})).status_code == 200
        assert (await http.get(f"{sim.url}/sim/bill")).json()["count"] == 0


def test_it_ends_when_its_starter_is_gone() -> None:
    sim = spawn()
    process = sim._process
    process.stdin.close()
    until = time.perf_counter() + 3
    while process.poll() is None and time.perf_counter() < until:
        time.sleep(0.01)
    assert process.poll() == 0
    process.stdout.close()


def test_a_pace_that_is_none_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        spawn(pace="fast")
    assert "could not convert string to float: 'fast'" in capfd.readouterr().err
