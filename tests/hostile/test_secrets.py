"""Prompts, answers and keys: where content is not asked for, they are found nowhere but on their way."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.settings import Logs
from gateway.telemetry import logs
from tests.processes import serving
from tests.running import ADMIN, KEY, Running, config, running
from tests.scripted import Asked, answer, event, events, say, scripted

PROMPT, REPLY, TOOL, WRONG = (
    "sentinel-prompt-7f3a",
    "sentinel-answer-9c1d",
    "sentinel-tool-55e0",
    "sentinel-wrong-key-1b2c",
)
KEYS = {"provider key": "sk-secret-of-the-provider", "team key": KEY, "admin key": ADMIN, "wrong key": WRONG}
CONTENT = {"prompt": PROMPT, "answer": REPLY, "tool": TOOL}
FAULTS = ("", "400", "401", "500", "junk", "in band", "late", "cut", "hang")


async def provider(asked: Asked) -> None:
    """Fails as the body's `fault` says, and tells all it knows while it does."""
    fault, wire = asked.json.get("fault", ""), asked.wire
    everything = f"Traceback: {PROMPT} {REPLY} {asked.headers['authorization']}"
    if fault == "400":
        await wire.whole(
            400, json.dumps({"error": {"message": "max_tokens is too large", "param": "max_tokens"}}).encode()
        )
    elif fault in ("401", "500"):
        await wire.whole(int(fault), json.dumps({"error": {"message": everything, "code": everything}}).encode())
    elif fault == "junk":
        await wire.whole(200, everything.encode())
    elif fault == "in band":
        await wire.whole(200, json.dumps({"error": {"message": everything, "type": everything}}).encode())
    elif fault == "late":
        await wire.gone()
    elif fault in ("cut", "hang"):
        await wire.head()
        await wire.chunk(event({"content": REPLY}))
        if fault == "cut":
            wire.reset()
        await wire.gone()
    elif asked.json.get("stream"):
        await say(asked, events(REPLY, "."))
    else:
        await wire.whole(200, answer(REPLY))


def body(stream: bool, fault: str) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "description": TOOL}}
    return {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "tools": [tool],
        "stream": stream,
        "fault": fault,
    }


async def all_of_it(gateway: Running) -> list[str]:
    """Success and every failure there is; gives the bodies of all refusals."""
    refusals: list[str] = []

    async def ask(call: dict[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str) -> None:
        content = call if isinstance(call, bytes) else json.dumps(call).encode()
        response = await gateway.client.post(
            path, content=content, headers={"content-type": "application/json", **headers}
        )
        if response.status_code >= 400:
            refusals.append(response.text + str(response.headers))

    for stream in (False, True):
        for fault in FAULTS:
            if fault == "hang":
                with pytest.raises(httpx2.TimeoutException):
                    await gateway.client.post("/v1/chat/completions", json=body(stream, fault), timeout=0.1)
            else:
                await ask(body(stream, fault))
    await ask(body(False, "") | {"model": 5})
    await ask(body(False, "") | {"model": "unknown"})
    await ask(json.dumps(body(False, "")).encode()[:-1])
    await ask(json.dumps(body(False, "")).encode().replace(b'"stream"', b'"messages"'))
    await ask(PROMPT.encode())
    await ask(body(False, ""), authorization=f"Bearer {WRONG}")
    await ask(body(False, ""), **{"x-api-key": WRONG})
    await ask(body(False, ""), "/v1/responses")
    await ask(body(False, "500"), "/v1/responses")
    await ask(body(False, "") | {"model": "none"}, "/v1/responses")
    for key in (WRONG, KEY, ADMIN):
        await gateway.client.get("/admin/v1/exchanges", headers={"authorization": f"Bearer {key}"})
    return refusals


class Collector:
    """Takes what traces are sent: the bytes, unread."""

    def __init__(self) -> None:
        self.got = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None
                body = await reader.readexactly(int(length[1]))
                self.got += gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    try:
        yield collector, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
def words() -> Any:
    """The process's own log at its most talkative, as `serve` writes it but with nothing masked."""
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:], root.level
    levels = {
        name: logging.getLogger(name).level for name in ("uvicorn", "uvicorn.error", "asyncio", "httpx2", "httpcore2")
    }
    logs.configure(Logs(level="debug"), stream)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers[:], root.level = before[0], before[1]
    root.setLevel(before[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def told(
    tmp_path: Path, words: io.StringIO, capfdbinary: pytest.CaptureFixture[bytes], content: str
) -> dict[str, bytes]:
    """Everything the gateway leaves behind, by where it was left."""
    async with scripted(provider) as up, collecting() as (collector, otlp):
        said = config(
            up.url,
            store=f"sqlite:///{tmp_path}/kept.db",
            providers={"up": {"timeouts": {"first_byte": 0.2}}},
            teams={"checkout": {"content": content}},
            telemetry={
                "logs": {"access": True},
                "traces": {"otlp_endpoint": otlp, "content": content, "per_second": 10_000},
            },
        )
        async with running(said) as gateway:
            logging.getLogger("gateway").debug("the log is open")
            refusals = await all_of_it(gateway)
            await gateway.finished(28)
            metrics = (await gateway.client.get("/metrics")).content
            listed = await gateway.client.get(
                "/admin/v1/exchanges?limit=1000", headers={"authorization": f"Bearer {ADMIN}"}
            )
            assert len(listed.json()["data"]) >= 28
            records = listed.content
            for one in listed.json()["data"]:
                path = f"/admin/v1/exchanges/{one['id']}"
                records += (await gateway.client.get(path, headers={"authorization": f"Bearer {ADMIN}"})).content
        traces = collector.got
    files = b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))
    out, err = capfdbinary.readouterr()
    return {
        "refusals": "".join(refusals).encode(), "metrics": metrics, "records": records, "store": files,
        "stdout": out, "stderr": err, "log": words.getvalue().encode(), "traces": traces,
    }  # fmt: skip


async def test_by_default_no_content_and_no_key_is_left_anywhere(
    tmp_path: Path, words: io.StringIO, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    left = await told(tmp_path, words, capfdbinary, "none")
    for place in ("refusals", "metrics", "records", "store", "stdout", "traces"):
        assert len(left[place]) > 1000, f"{place} holds too little to show anything"
    assert b"checkout" in left["traces"]
    assert b"the log is open" in left["log"]
    for place, data in left.items():
        for what, secret in (KEYS | CONTENT).items():
            assert secret.encode() not in data, f"{what} in {place}"


async def test_asked_for_content_is_kept_and_still_no_key(
    tmp_path: Path, words: io.StringIO, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    left = await told(tmp_path, words, capfdbinary, "full")
    assert PROMPT.encode() in left["records"]
    assert REPLY.encode() in left["records"]
    for place, data in left.items():
        for what, secret in KEYS.items():
            assert secret.encode() not in data, f"{what} in {place}"
    for place in ("refusals", "metrics", "stdout", "log"):
        for what, secret in CONTENT.items():
            assert secret.encode() not in left[place], f"{what} in {place}"


async def test_keys_that_were_created_are_found_nowhere_after_the_answer_that_showed_them(tmp_path: Path) -> None:
    pepper = "sentinel-pepper-of-the-gateway-4e5f6a"
    async with scripted(provider) as up:
        said = config(up.url, server={"key_pepper": pepper}, telemetry={"logs": {"access": True, "level": "debug"}})
        with serving(said, folder=tmp_path) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=20) as client:

                async def admin(method: str, path: str, body: Any = None) -> httpx2.Response:
                    headers = {"authorization": f"Bearer {ADMIN}"}
                    return await client.request(method, f"/admin/v1/{path}", json=body, headers=headers)

                made = (await admin("POST", "keys", {"team": "checkout", "name": "app"})).json()
                rotated = (await admin("POST", f"keys/{made['id']}/rotate", {})).json()
                token = (await admin("POST", "tokens", {"name": "t", "role": "viewer"})).json()["token"]
                secrets = [made["key"], rotated["key"], token, pepper]
                answers = []
                for secret in secrets:
                    for headers in ({"authorization": f"Bearer {secret}"}, {"x-api-key": secret[:-1]}):
                        call = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                        answers.append(await client.post("/v1/chat/completions", json=call, headers=headers))
                        answers.append(await client.get("/admin/v1/keys", headers=headers))
                    answers.append(await admin("POST", "keys", {"team": "checkout", "name": f"{secret} "}))
                    answers.append(await admin("GET", f"keys/{secret}"))
                for path in ("keys", f"keys/{made['id']}", "tokens", "audit", "teams", "exchanges", "openapi.json"):
                    answers.append(await admin("GET", path))
                answers.append(await client.get("/metrics"))
                await admin("DELETE", f"keys/{made['id']}")
            assert gateway.stop() == 0
        told = b"\n".join(answer.content + str(answer.headers).encode() for answer in answers)
        files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "config.yaml"}
    assert {"tollkeeper.db", "tollkeeper.directory.db", "stderr.log", "stdout.log"} <= set(files)
    assert len(files["stdout.log"] + files["stderr.log"]) > 1000
    for secret in secrets:
        for part in (secret, secret[4:40]):
            assert part.encode() not in told
            assert [name for name, data in files.items() if part.encode() in data] == []
