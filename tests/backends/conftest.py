"""Real tracing backends, each in an environment of its own under .backends/, and a gateway that tells them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.demo.simulator import Spawned, spawn
from gateway.exchange import Exchange
from tests.processes import environment
from tests.running import config, running
from tests.shown import Shown, Told, expected, trace_id

PLACE = Path(__file__).parents[2] / ".backends"
START_SECONDS = 180.0  # they import for a long time, and set a database up
ARRIVE_SECONDS = 30.0  # until what was sent is shown
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 35,
    "total_tokens": 155,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


class Backends:
    """Installs and starts them.  say: tells who waits what for."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def installed(self, name: str, requirement: str) -> Path:
        """The folder of its commands.  Installed once, from the package index that pip is set up for."""
        place, mark = PLACE / name, PLACE / name / "installed"
        if not mark.exists() or mark.read_text() != requirement:
            self._say(f"Installing {requirement} into .backends/{name}: a few minutes, and most of a gigabyte.")
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            self._install(place / "bin" / "python", requirement)
            mark.write_text(requirement)
            self._say(f"Installed after {time.monotonic() - began:.0f} s.")
        return place / "bin"

    def _install(self, python: Path, requirement: str) -> None:
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", requirement]
        out: list[str] = []
        packages = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
            assert pip.stdout is not None
            for line in pip.stdout:
                out.append(line)
                packages += line.startswith("Collecting ")
                if line.startswith("Collecting ") and packages % 25 == 0:
                    self._say(f"  {packages} packages ...")
                elif line.startswith("Installing "):
                    self._say(f"  {packages} packages: unpacking ...")
        assert pip.returncode == 0, f"pip cannot install {requirement}:\n{''.join(out[-30:])}"

    @contextmanager
    def serving(
        self, command: Sequence[str | Path], home: Path, port: int, health: str, **env: str
    ) -> Iterator[httpx2.Client]:
        """The server, until it answers on `health`; in `home`, with all its processes gone afterwards."""
        log = home / "server.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=home, stdout=out, stderr=out, env=environment(**env), start_new_session=True
            )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                until = time.monotonic() + START_SECONDS
                while not _answers(client, health):
                    assert process.poll() is None, f"it ended: {log.read_text()[-4000:]}"
                    assert time.monotonic() < until, f"it does not answer: {log.read_text()[-4000:]}"
                    time.sleep(0.2)
                yield client
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session is its own: what it started goes with it
            process.wait()


def _answers(client: httpx2.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session")
def backends(request: pytest.FixtureRequest) -> Backends:
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def say(line: str) -> None:
        if terminal is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                terminal.ensure_newline()
                terminal.write_line(line)

    return Backends(say)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def choose() -> int:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port: int = held.getsockname()[1]
            return port

    return choose


@pytest.fixture(scope="session")
def simulator() -> Iterator[Spawned]:
    with spawn() as spawned:
        broken = {"rate": 1, "fault": "status=503", "model": "sim-large"}
        assert httpx2.post(f"{spawned.url}/sim/faults", json=broken).status_code == 200
        yield spawned


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(simulator: Spawned, destination: Mapping[str, Any]) -> AsyncIterator[Told]:
    """Four requests.  destination: the module's `telemetry.traces`.  The gateway ends when the module is through."""

    def model(target: str, **more: Any) -> dict[str, Any]:
        return {"targets": [{"provider": "up", "model": target}], "price": {"input": 1, "output": 2}, **more}

    said = config(
        f"{simulator.url}/v1",
        models={
            "reason": model("sim-reason"),
            "small": model("sim-small"),
            "fragile": model("sim-large", fallbacks=["small"]),
            "broken": model("sim-large", max_attempts=1),
        },
        teams={"checkout": {"content": "full"}},
        telemetry={"traces": {"content": "full", **destination}},
    )
    async with running(said) as run:
        who = {"x-session-id": "session-7", "x-user-id": "user-7"}
        for name, status, more, headers in (
            ("reason", 200, {"temperature": 0.5}, {"x-sim-fault": f"usage={json.dumps(USAGE)}"}),
            ("small", 200, {"stream": True}, {}),
            ("fragile", 200, {}, {}),
            ("broken", 503, {}, {}),
        ):
            answer = await run.chat("say: a few words of an answer", who | headers, model=name, **more)
            assert answer.status_code == status, answer.text
        await run.finished(4)
        yield Told(*run.seen)
        assert run.app.traces is not None
        assert run.app.traces.dropped == 0


@pytest.fixture(scope="module")
def shown(told: Told, fetch: Callable[[str], list[Shown]]) -> Callable[[Exchange], list[Shown]]:
    """The spans of a request's trace, parents first, as soon as all are there.  fetch: the module's, by trace id."""
    until = time.monotonic() + ARRIVE_SECONDS
    while any(len(fetch(trace_id(x))) < len(expected(x)) for x in told):
        assert time.monotonic() < until, {trace_id(x): fetch(trace_id(x)) for x in told}
        time.sleep(0.2)
    return lambda x: fetch(trace_id(x))
