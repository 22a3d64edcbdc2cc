"""The benchmark itself: that it measures what it says, and refuses to report what it cannot trust."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from bench import figures, load, peers, subjects, upstream
from bench.__main__ import chosen

ROOT = Path(__file__).parents[2]
Change = Callable[[bytes], list[bytes]]
UNARY, STREAM = load.work("a-key", 4), load.work("a-key", stream=True)


class Wire:
    """A socket that changes what is written; several pieces come 5 ms apart, and an empty one cuts it."""

    def __init__(self, socket: asyncio.Transport, change: Change) -> None:
        self.socket = socket
        self.change = change
        self.is_closing = socket.is_closing

    def write(self, data: bytes) -> None:
        for number, piece in enumerate(self.change(data)):
            act = functools.partial(self.socket.write, piece) if piece else self.socket.abort
            asyncio.get_running_loop().call_later(number * 0.005, act)


class Changed(upstream.Connection):
    """The benchmark's own provider on such a wire."""

    change: Change = staticmethod(lambda data: [data])

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's kind
        super().connection_made(Wire(transport, self.change))  # type: ignore[arg-type]  # what it uses of one


@asynccontextmanager
async def provider(change: Change = lambda data: [data]) -> AsyncIterator[int]:
    def connect() -> Changed:
        connection = Changed(Counter())
        connection.change = change
        return connection

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.02)  # connections hear of their end


async def test_every_answer_is_counted_and_timed() -> None:
    async with provider() as port:
        result = await load.run(port, UNARY, 60, warm=0, limit=50)
    assert 50 <= result.answers < 54
    assert 0 < len(result.latencies) <= result.answers  # those of the warm-up are left out
    assert all(0 < took < 5e9 for took in result.latencies)


async def test_chunks_are_counted_once_however_the_stream_is_cut() -> None:
    def cut_in_its_word(data: bytes) -> list[bytes]:
        at = data.find(b"word")
        return [data] if at < 0 else [data[:at], data[at : at + 2], data[at + 2 :]]

    async with provider(cut_in_its_word) as port:
        result = await load.run(port, STREAM, 60, warm=0, limit=1)
    assert (result.answers, result.chunks) == (1, upstream.CHUNKS)


def once(change: Callable[[bytes], bytes]) -> Change:
    """Good answers first: only the tenth piece that comes by is changed."""
    number = itertools.count(1)
    return lambda data: [change(data) if next(number) == 10 else data]


@pytest.mark.parametrize(
    ("job", "change"),
    [
        pytest.param(UNARY, lambda data: data.replace(b"200 OK", b"500 No"), id="a refusal"),
        pytest.param(UNARY, lambda data: data.replace(b"last words", b"first lie!"), id="another answer"),
        pytest.param(UNARY, lambda data: data + data, id="one answer too many"),
        pytest.param(UNARY, lambda data: b"", id="a connection that is cut"),
        pytest.param(STREAM, lambda data: data.replace(b'"word "', b'"lost "'), id="a stream without one of its words"),
    ],
)
async def test_one_wrong_answer_fails_the_measurement(job: load.Work, change: Callable[[bytes], bytes]) -> None:
    async with provider(once(change)) as port:
        with pytest.raises(load.Failed):
            await load.run(port, job, 3, warm=0)


async def test_the_provider_gives_usage_on_a_stream_only_where_it_is_asked_for() -> None:
    async with provider() as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        plain, asked = await asyncio.gather(
            client.post(load.PATH, json={"stream": True}),
            client.post(load.PATH, json={"stream": True, "stream_options": {"include_usage": True}}),
        )
    assert (b'"usage"' in plain.content, b'"usage"' in asked.content) == (False, True)
    assert plain.text.endswith("data: [DONE]\n\n")


def test_a_subject_runs_on_one_core_and_all_its_threads_are_charged_to_it(tmp_path: Path) -> None:
    burn = "import threading,time\ndef burn():\n while time.thread_time() < 0.15: pass\n"
    burn += "threads = [threading.Thread(target=burn) for _ in range(2)]\n[t.start() for t in threads]\n"
    burn += "[t.join() for t in threads]\nprint('burnt', flush=True)\ntime.sleep(30)"
    core = max(os.sched_getaffinity(0))
    with subjects.start("burner", [sys.executable, "-c", burn], tmp_path, core, 1) as subject:
        until = time.monotonic() + 10
        while "burnt" not in subject.said() and time.monotonic() < until:
            time.sleep(0.01)
        assert 0.3e9 <= subject.cpu_ns() < 2e9
        assert subject.rss() > 1_000_000
        assert os.sched_getaffinity(subject.process.pid) == {core}
        assert os.sched_getaffinity(0) != {core}
    assert subject.process.poll() is not None


def test_a_server_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the disk is on fire')"]
    subject = subjects.start("gateway", command, tmp_path, 0, subjects.free_port())
    with subject, pytest.raises(load.Failed, match="gateway does not answer; it said: the disk is on fire"):
        subject.ready(UNARY)


@pytest.mark.parametrize(
    ("value", "more_is_better", "verdict"),
    [
        (0.2, False, "aim met"),
        (0.4, False, "must met"),
        (0.9, False, "FAIL"),
        (0.2, True, "FAIL"),
        (0.9, True, "aim met"),
    ],
)
def test_a_figure_is_judged_by_its_must_and_its_aim(value: float, more_is_better: bool, verdict: str) -> None:
    must, aim = (0.3, 0.6) if more_is_better else (0.6, 0.3)
    figure = figures.Figure("ratio", value, "", must=must, aim=aim, more_is_better=more_is_better)
    assert figure.verdict == verdict
    assert verdict in figures.table([figure])


def test_a_figure_is_the_middle_of_its_rounds() -> None:
    figure = figures.middle("latency", "ms", [3.0, 1.0, 100.0])
    assert (figure.value, figure.low, figure.high) == (3.0, 1.0, 100.0)
    assert figures.percentile(range(1, 101), 0.99) == 99


def test_a_peer_that_is_not_installed_is_left_out_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "PLACE", tmp_path)
    assert "litellm" not in chosen((), quick=False, with_peers=False)
    with pytest.raises(load.Failed, match="make bench-peers"):
        chosen(("litellm",), quick=False, with_peers=False)


@pytest.mark.serial
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the benchmark pins its subjects to two cores")
def test_a_short_run_puts_the_gateway_beside_the_bare_relay_with_everything_on(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "bench",
        "--quick",
        "--only",
        "throughput",
        "--seconds",
        "0.1",
        "--json",
        str(file),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, 1), ended.stderr
    found = {figure["name"]: figure for figure in json.loads(file.read_bytes())["figures"]}
    assert found["throughput, gateway / relay by httpx2's interface"]["value"] > 0.25  # a tripwire; `make bench` judges
    assert found["requests missing from the records"]["value"] == 0
    assert found["requests missing from the access log"]["value"] == 0
    relay, gateway = (found[f"CPU per request: {name}, with what follows it"]["value"] for name in ("relay", "gateway"))
    assert 5 < relay < gateway < 2000  # us
    assert (ended.returncode == 1) == any(figure["verdict"] == "FAIL" for figure in found.values())
    assert "throughput 3/3" in ended.stderr
    assert "throughput, gateway / bare relay" in ended.stdout
