"""What went wrong with caches elsewhere: slow starts, hostile words, secrets that are told, failures that are kept."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from redis import Redis

from gateway.assessor import Assessor, Verdict
from gateway.check import report
from gateway.patterns import Found
from tests.gateway.test_nearby import remote
from tests.policies.test_cache import OTHER, ask, cached, said
from tests.policies.test_cache_shared import settings, written
from tests.running import KEY, running
from tests.scripted import Asked, plain, scripted
from tests.valkeys import Valkey, empty_server, up_valkey  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be


# ── what a start takes ──────────────────────────────────────────────────────────────────────────────────────────────

EXTRAS = ("numpy", "wordllama", "redis", "safetensors", "tokenizers")


def test_a_start_with_the_cache_loads_nothing_that_it_is_not_told_to_use(tmp_path: Path) -> None:
    script = f"""
import sys, yaml
from pathlib import Path
from gateway import config as configs
from gateway.app import Gateway
said = {said("http://127.0.0.1:1/v1")!r}
file = Path({str(tmp_path)!r}, "config.yaml")
file.write_text(yaml.safe_dump({{"store": "sqlite:///{tmp_path}/t.db"}} | said))
Gateway(configs.load(file, {{}}))
print([name for name in {EXTRAS!r} if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert told.stdout.strip() == "[]", told.stderr


# ── words of callers ────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = [
    "' OR 1=1; DROP TABLE answers; --",
    '"}]}{"$ne":1}',
    "*",
    "{tollkeeper}:generation all",
    "../../../etc/passwd",
    "${jndi:ldap://h/a}",
    "{{7*7}}",
    "a" * 255,
    "one two\tthree",
]


async def test_words_of_callers_are_no_part_of_what_a_server_is_told(server: Valkey) -> None:
    async with scripted(plain) as up, running(settings(up.url, server)) as gateway:
        for number, hostile in enumerate(HOSTILE, 1):
            headers = {"idempotency-key": hostile, "x-user-id": hostile}
            assert (await ask(gateway, hostile, headers=headers)).status_code == 200
            assert len(up.asked) == number
            assert (await ask(gateway, hostile, headers=headers)).headers["idempotent-replayed"] == "true"
        await written(gateway)
        with Redis(port=server.port) as wire:
            keys: Any = wire.keys("*")
        keys.remove(b"{tollkeeper}:generations")
        assert len(keys) == 2 * len(HOSTILE)  # of each the answer and the saved answer
        assert all(re.fullmatch(rb"\{tollkeeper\}:answer .{32}", key, re.DOTALL) for key in keys)


async def test_a_header_that_names_another_house_changes_nothing_of_whom_an_answer_is_for() -> None:
    async with cached() as (gateway, up):
        await ask(gateway)
        for host, status in {"checkout": 200, "127.0.0.1": 200, "a/health?": 400, "a#": 400}.items():
            headers = {"host": host, "x-forwarded-host": "checkout", "x-original-url": "/v1/models"}
            answer = await ask(gateway, host, key=OTHER, headers=headers)
            assert (answer.status_code, answer.headers.get("x-tollkeeper-cache", "miss")) == (status, "miss")
            refused = await gateway.chat(headers={"authorization": "Bearer nobody", **headers}, temperature=0)
            assert refused.status_code == (401 if status == 200 else 400)
            assert "x-tollkeeper-cache" not in refused.headers
        assert len(up.asked) == 3


async def test_only_the_last_message_is_embedded_and_no_name_of_anybody() -> None:
    heard: list[Any] = []

    async def script(asked: Asked) -> None:
        if asked.path.endswith("/embeddings"):
            heard.append(asked.json)
            vector: Any = {"object": "list", "data": [{"embedding": [3, 4], "index": 0}], "model": "e"}
            await asked.wire.whole(200, json.dumps(vector).encode())
        await plain(asked)

    async with scripted(script) as up, running(remote(up.url)) as gateway:
        await ask(gateway, "How do I reset it?", headers={"x-user-id": "ann"})
    assert heard == [{"model": "e", "input": "How do I reset it?", "encoding_format": "float"}]


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = {"password": "hunter2-of-the-server", "secret": "sealing-secret-of-thirty-two-bytes-and-more"}


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_neither_a_servers_password_nor_the_secret_nor_an_idempotency_key_is_told_anywhere(
    caplog: pytest.LogCaptureFixture, level: str, tmp_path: Path
) -> None:
    """Of a server that refuses, so that there is something to complain about."""
    caplog.set_level(logging.DEBUG)
    place = f"redis://user:{SECRETS['password']}@127.0.0.1:1/0"
    async with scripted(plain) as up:
        told = said(up.url, store=place, secret=SECRETS["secret"])
        told["telemetry"] = {"logs": {"access": True, "level": level}}
        async with running(told) as gateway:
            words = {"idempotency-key": "a-word-of-the-caller"}
            answers = [await ask(gateway, headers=words) for _ in range(2)]
            answers.append(await gateway.client.get("/metrics"))
            answers.append(await gateway.admin("POST", "/cache/forget", {"all": True}))
            record = await gateway.record((await gateway.finished(2)).id)
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps(told))
        checked = report(file, environ={})[1]
    everything = [caplog.text, checked, repr(record), *(one.text + str(one.headers) for one in answers)]
    assert "is away" in caplog.text
    for secret in (*SECRETS.values(), "a-word-of-the-caller", KEY):
        assert [text for text in everything if secret in text] == [], secret


def test_a_start_that_is_refused_tells_no_password(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    place = f"redis://user:{SECRETS['password']}@127.0.0.1:1/0"
    for wrong in ({"store": place}, {"store": place + " x", "secret": SECRETS["secret"]}, {"secret": "short-secret"}):
        file.write_text(json.dumps(said("http://127.0.0.1:1/v1", **wrong)))
        status, told = report(file, environ={})
        assert status != 0
        assert "policies[3]" in told
        assert not [word for word in (*SECRETS.values(), "short-secret") if word in told], told


# ── assessors that fail ─────────────────────────────────────────────────────────────────────────────────────────────


class Recovering(Assessor):
    """Fails at first, and then blocks what it should have blocked."""

    stages: ClassVar[frozenset[str]] = frozenset({"output"})
    well: ClassVar[bool] = False

    async def assess(self, text: str, stage: str) -> Verdict:
        if not Recovering.well:
            raise RuntimeError("not today")
        return Verdict(1.0, 1.0, "a word", [Found(0, len(text), "word")]) if "Hel" in text else Verdict(0.0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("on_error", ["allow", "block"])
async def test_what_passed_while_an_assessor_failed_is_judged_when_it_is_answered_again(
    monkeypatch: pytest.MonkeyPatch, stream: bool, on_error: str
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(Recovering, "well", False)
    async with scripted(plain) as up:
        told = said(up.url)
        rule = {"use": f"{__name__}:Recovering", "action": "block", "on_error": on_error}
        told["policies"].append({"use": "safety", "assessors": [rule]})
        async with running(told) as gateway:
            first = await ask(gateway)
            if on_error == "allow":
                assert (first.status_code, first.headers["x-tollkeeper-safety"]) == (200, "failed_open")
            else:
                assert (first.status_code, first.json()["error"]["code"]) == (503, "policy_failed")
            Recovering.well = True
            again = await ask(gateway, stream=stream)
            assert "blocked_by_safety" in again.text
            assert "Hel" not in again.text
            assert len(up.asked) == (1 if on_error == "allow" else 2)
