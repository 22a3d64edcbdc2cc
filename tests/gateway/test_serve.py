"""`tollkeeper serve` as an operator runs it: starts, says where, loses nothing when it stops."""

from __future__ import annotations

import asyncio
import re
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from gateway.serve import secrets
from gateway.settings import Config
from tests.processes import environment, serving
from tests.running import ADMIN, KEY, config
from tests.scripted import Asked, event, plain, scripted

CALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HEADERS = {"authorization": f"Bearer {KEY}"}


async def test_sigterm_right_after_the_last_byte_loses_no_record(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        with serving(config(up.url, telemetry={"logs": {"access": True}}), folder=tmp_path) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
                answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=CALL) for _ in range(100)))
            assert await asyncio.to_thread(gateway.stop) == 0
            lines = gateway.out.read_text().splitlines()
            log = gateway.log.read_text()
    assert {answer.status_code for answer in answers} == {200}
    ids = {answer.headers["x-request-id"] for answer in answers}
    with sqlite3.connect(tmp_path / "tollkeeper.db") as store:
        assert {row[0] for row in store.execute("select id from exchange")} == ids
    assert len(lines) == 100
    assert all(any(id in line for line in lines) for id in ids)
    assert "Traceback" not in log


async def test_a_database_that_is_not_there_is_no_reason_not_to_start_and_its_password_never_told(
    tmp_path: Path,
) -> None:
    said = config("", store="${DATABASE}", server={"grace_seconds": 1, "admin_key": None})
    database = "postgresql://toll:hunter2-secret@127.0.0.1:1/toll?application_name=hunter2-secret"
    async with scripted(plain) as up:
        said["providers"]["up"]["base_url"] = up.url
        with serving(said, folder=tmp_path, DATABASE=database) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
                answers = [await client.post("/v1/chat/completions", json=CALL) for _ in range(20)]
                ready = await client.get("/readyz")
                metrics = (await client.get("/metrics")).text
            assert await asyncio.to_thread(gateway.stop) == 0
            log = gateway.log.read_text()
    assert {answer.status_code for answer in answers} == {200}
    assert ready.status_code == 200
    assert 'tollkeeper_telemetry_dropped_total{sink="records"} 0.0' in metrics
    assert log.count("records wait in memory") == 1
    assert "20 records are lost" in log
    assert "hunter2" not in log
    assert "Traceback" not in log


def test_every_password_of_the_configuration_is_kept_from_log_lines() -> None:
    said = Config(providers={}, store="postgresql://u:p%40ssword@h/db", counters="valkey://:counted@h:6379/0", teams={})
    assert list(secrets(said)) == [said.store, "p%40ssword", "p@ssword", said.counters, "counted"]
    assert list(secrets(Config(providers={}, store="postgresql://u:short@h/db"))) == ["postgresql://u:short@h/db"]


async def test_sigterm_lets_running_answers_end_and_tells_those_it_cannot_wait_for() -> None:
    async def slow(asked: Asked) -> None:
        await asked.wire.head()
        await asked.wire.chunk(event({"content": "a"}))
        if asked.json["messages"][0]["content"] == "short":
            await asyncio.sleep(0.5)
            await asked.wire.chunk(event({}, "stop") + b"data: [DONE]\n\n")
            await asked.wire.chunk(b"")
        else:
            await asked.wire.gone()

    async with scripted(slow) as up:
        with serving(config(up.url, server={"grace_seconds": 1})) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=20) as client:
                calls = [
                    asyncio.create_task(
                        client.post(
                            "/v1/chat/completions",
                            json=CALL | {"stream": True, "messages": [{"role": "user", "content": word}]},
                        )
                    )
                    for word in ("short", "long")
                ]
                while len(up.asked) < 2:
                    await asyncio.sleep(0.01)
                began = time.monotonic()
                status = await asyncio.to_thread(gateway.stop)
                took = time.monotonic() - began
                short, long = [await call for call in calls]
            log = gateway.log.read_text()
    assert status == 0
    assert took < 3
    assert short.text.endswith("data: [DONE]\n\n")
    assert '"shutting_down"' in long.text
    assert "[DONE]" not in long.text
    assert "Traceback" not in log


def test_without_a_file_it_serves_what_the_environment_names_and_prints_a_key_once(tmp_path: Path) -> None:
    with serving(
        None, folder=tmp_path, OPENAI_API_KEY="sk-of-the-environment", OPENAI_BASE_URL="http://127.0.0.1:1/v1"
    ) as gateway:
        said = gateway.log.read_text()
        keys = re.findall(r"tk-[\w-]{20,}", said)
        assert len(keys) == 1
        response = httpx2.get(f"{gateway.url}/v1/models", headers={"x-api-key": keys[0]})
        assert response.status_code == 200
        assert response.json()["data"]
        assert "sk-of-the-environment" not in said
        assert httpx2.get(f"{gateway.url}/readyz").text == "ready\n"


def test_with_nothing_to_serve_it_says_what_to_set(tmp_path: Path) -> None:
    done = run("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr


def test_several_workers_are_refused_with_the_reason(tmp_path: Path) -> None:
    done = run("serve", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "replica" in done.stderr


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(
            "serve",
            "--port",
            str(taken.getsockname()[1]),
            cwd=tmp_path,
            OPENAI_API_KEY="sk-12345678",
            OPENAI_BASE_URL="http://127.0.0.1:1/v1",
        )
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def run(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(PYTHONPATH=root, **env),
        check=False,
    )


def test_a_provider_that_is_dead_at_the_start_keeps_nobody_from_starting() -> None:
    with serving(config("http://127.0.0.1:1/v1")) as gateway, ThreadPoolExecutor() as pool:
        healthy = pool.submit(httpx2.get, f"{gateway.url}/healthz").result()
        assert healthy.status_code == 200


async def test_the_admin_plane_can_have_a_port_of_its_own() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with scripted(plain) as up:
        with serving(config(up.url, server={"admin_port": port})) as gateway:
            async with httpx2.AsyncClient(headers=HEADERS) as client:
                id = (await client.post(f"{gateway.url}/v1/chat/completions", json=CALL)).headers["x-request-id"]
                admin = {"authorization": f"Bearer {ADMIN}"}
                here = await client.get(f"{gateway.url}/admin/v1/exchanges/{id}", headers=admin)
                there = await client.get(f"http://127.0.0.1:{port}/admin/v1/exchanges/{id}", headers=admin)
                data = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CALL)
                health = await client.get(f"http://127.0.0.1:{port}/healthz")
            assert await asyncio.to_thread(gateway.stop) == 0
            assert "Traceback" not in gateway.log.read_text()
    assert (here.status_code, there.status_code, data.status_code, health.status_code) == (404, 200, 404, 200)
    assert there.json()["id"] == id


@pytest.mark.parametrize(
    "words", [["--help"], ["serve", "--help"], ["check", "--help"], ["explain", "--help"], ["demo", "--help"]]
)
def test_help_names_every_option_with_its_meaning(words: list[str], tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0
    for line in re.findall(r"^  (-\S.*)$", done.stdout, re.MULTILINE):
        assert re.search(r"\S  +\S", line) or len(line) > 25, f"no meaning beside {line!r}"
