"""`tollkeeper demo` as a newcomer runs it: traffic, a bill that agrees, and commands that work when copied."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.processes import environment

ROOT = str(Path(__file__).parents[3])


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that has sent its traffic, and what it printed."""
    command = [sys.executable, "-m", "gateway", "demo", "--port", "0", "--requests", "40"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts a job in the background
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment(PYTHONUNBUFFERED="1")
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C ends it" in line:
            break
    yield process, said
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_bill_and_the_records_agree_to_the_nano_dollar(demo: tuple[subprocess.Popen[str], str]) -> None:
    found = re.search(r"provider billed (\S+) USD; the gateway recorded (\S+) USD over (\d+) requests", demo[1])
    assert found is not None, demo[1]
    assert found.group(1) == found.group(2)
    assert float(found.group(1)) > 0
    assert int(found.group(3)) == 40


def test_progress_is_shown(demo: tuple[subprocess.Popen[str], str]) -> None:
    assert re.search(r"40/40: \d+ answered, \d+ refused, \d+ broke off, \d+ hung up", demo[1])


@pytest.mark.parametrize("what", ["metrics", "records", "your turn"])
def test_the_printed_curl_works(demo: tuple[subprocess.Popen[str], str], what: str) -> None:
    line = next(line for line in demo[1].splitlines() if line.strip().startswith(what))
    done = subprocess.run(
        ["bash", "-c", line.strip().removeprefix(what)], capture_output=True, text=True, timeout=30, check=True
    )
    wanted = {"metrics": "tollkeeper_cost_usd_total{", "records": '"data":[', "your turn": '"choices"'}[what]
    assert wanted in done.stdout.replace(" ", "") or wanted in done.stdout


def test_the_printed_explain_tells_the_fallback(demo: tuple[subprocess.Popen[str], str]) -> None:
    line = next(line for line in demo[1].splitlines() if line.strip().startswith("one story"))
    variable, _, *words = shlex.split(line.strip().removeprefix("one story"))
    key = variable.partition("=")[2]
    command = [sys.executable, "-m", "gateway", *words, "--admin-key", key]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=environment(), check=True)
    assert "upstream_unavailable" in done.stdout
    assert "backup" in done.stdout
    missing = subprocess.run(
        [*command[:-3], "req_0", *command[-2:]], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_every_kind_of_trouble_was_in_the_traffic(demo: tuple[subprocess.Popen[str], str]) -> None:
    url = re.search(r"Gateway on (\S+),", demo[1])
    assert url is not None
    metrics = httpx2.get(f"{url.group(1)}/metrics").text
    for sign in ('code="401"', 'code="403"', 'code="404"', 'code="400"', 'code="502"', "upstream_rate_limited"):
        assert sign in metrics, sign
    assert re.search(r"^tollkeeper_client_disconnects_total [1-9]", metrics, re.MULTILINE)


def test_the_cache_a_budget_and_safety_have_kept_calls_from_the_provider(
    demo: tuple[subprocess.Popen[str], str],
) -> None:
    said = re.search(
        r"(\d+) answers came from the cache; .* for (\d+) calls over a budget and (\d+) that safety", demo[1]
    )
    assert said is not None, demo[1]
    assert min(map(int, said.groups())) > 0
    hit, masked = re.findall(r"req_[0-9a-f]+", next(line for line in demo[1].splitlines() if "from the cache:" in line))
    key, url = re.search(r"TOLLKEEPER_ADMIN_KEY=(\S+)", demo[1]), re.search(r"Gateway on (\S+),", demo[1])
    assert key is not None
    assert url is not None
    for id, sign in ((hit, "cache"), (masked, "masked")):
        command = [sys.executable, "-m", "gateway", "explain", "--url", url[1], id, "--admin-key", key[1]]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=environment(), check=True
        )
        assert sign in done.stdout
        assert "ada@example.com" not in done.stdout


def test_a_taken_port_ends_the_demo_with_the_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "gateway", "demo", "--port", port, "--exit"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=environment(), check=False
        )
    assert done.returncode == 1
    assert "--port 0" in done.stderr
