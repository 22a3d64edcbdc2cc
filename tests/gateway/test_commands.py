"""The commands against a running gateway: what is printed, what is asked, and what is said when it cannot be had."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Process, serving
from tests.running import config
from tests.scripted import plain, scripted
from tests.shells import Shell

MORE = {"n": {"targets": [{"provider": "up", "model": "n"}], "price": {"input": 1, "output": 2}}}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Process]:
    async with scripted(plain) as up:
        with serving(config(up.url, models=MORE), folder=tmp_path) as running:
            yield running


async def test_a_keys_life_from_the_shell(gateway: Process) -> None:
    shell = Shell(gateway)
    words = ("--team", "checkout", "--name", "app", "--expires-in", "30d", "--limit", "requests_per_minute=9")
    made = await shell.done("keys", "create", *words)
    key = made.stdout.strip()  # and nothing else: KEY=$(tollkeeper keys create …)
    assert key.startswith("tk_")
    id = made.stderr.split(":")[0]
    assert await shell.call(key) == 200
    await shell.done("keys", "change", id, "--limit", "concurrent=3", "--limit", "requests_per_minute=none")
    assert ["checkout", "app", "active", f"…{key[-4:]}", id, "concurrent=3"] in await shell.listed("keys")
    await shell.done("keys", "change", id, "--model", "n", "--no-expiry")
    assert [await shell.call(key, model) for model in ("m", "n")] == [403, 200]
    await shell.done("keys", "change", id, "--all-models")
    assert await shell.call(key) == 200
    rotated = (await shell.done("keys", "rotate", id, "--overlap", "0s")).stdout.strip()
    assert [await shell.call(one) for one in (key, rotated)] == [401, 200]
    assert f"…{rotated[-4:]}" in (await shell.done("keys", "list", "--team", "checkout")).output
    await shell.done("keys", "revoke", id)
    assert await shell.call(rotated) == 401
    log = (await shell.done("audit", "list")).output
    assert [line.split()[3] for line in log.splitlines()[1:]] == [
        *("revoke", "rotate", "change", "change", "change", "create")
    ]
    assert rotated not in log


async def test_a_token_opens_as_far_as_its_role_goes(gateway: Process) -> None:
    made = await Shell(gateway).done("tokens", "create", "anna", "--role", "owner", "--team", "checkout")
    owner = Shell(gateway, made.stdout.strip())
    await owner.done("keys", "create", "--team", "checkout", "--name", "app")
    refused = await owner.say("teams", "create", "mine")
    assert (refused.exit_code, "the role 'admin'" in refused.output) == (2, True)
    id = made.stderr.split(":")[0]
    assert id in (await Shell(gateway).done("tokens", "list")).output
    await Shell(gateway).done("tokens", "revoke", id)
    assert "revoked" in (await owner.say("keys", "list")).output


async def test_a_log_that_was_tampered_with_is_found(gateway: Process, tmp_path: Path) -> None:
    shell = Shell(gateway)
    for name in ("a", "b", "c"):
        await shell.done("teams", "create", name)
    noted = (await shell.done("audit", "verify")).output.splitlines()[-1]
    assert noted.startswith("3:")
    await shell.done("teams", "create", "d")
    await shell.done("audit", "verify", "--noted", noted)
    wrong = await shell.say("audit", "verify", "--noted", "3:" + "0" * 64)
    assert (wrong.exit_code, "written anew" in wrong.output) == (1, True)
    with sqlite3.connect(tmp_path / "tollkeeper.directory.db") as raw:
        raw.execute("DROP TRIGGER audit_is_not_altered")
        raw.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    raw.close()
    found = await shell.say("audit", "verify")
    assert (found.exit_code, "row 2 " in found.output) == (1, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("keys", "create", "--team", "nobody", "--name", "a"), "team: there is no such team"),
        (("keys", "create", "--team", "checkout", "--name", "a", "--limit", "concurrent"), "concurrent=60"),
        (("keys", "create", "--team", "checkout", "--name", "a", "--limit", "x=1"), "limits.x: unknown"),
        (("keys", "create", "--team", "checkout", "--name", "a", "--expires-in", "soon"), "so long is wanted"),
        (("keys", "change", "key_none"), "say what changes"),
        (("keys", "change", "key_none", "--no-expiry"), "id: there is no such key"),
        (("keys", "revoke", "../teams/checkout"), "id: there is no such key"),
        (("keys", "revoke", "config:checkout:web"), "config.yaml declares this key"),
        (("audit", "verify", "--noted", "x"), "ROW:HASH is wanted"),
    ],
)
async def test_what_is_wrong_is_said(gateway: Process, words: tuple[str, ...], says: str) -> None:
    result = await Shell(gateway).say(*words)
    assert result.exit_code == 2
    assert says.replace("concurrent=60", "requests_per_minute=60") in result.output


async def test_without_a_key_or_with_a_wrong_one_nothing_is_done(gateway: Process) -> None:
    shell = Shell(gateway, "")
    assert "the admin key is needed" in (await shell.say("keys", "list")).output
    wrong: Any = await Shell(gateway, "wrong-key").say("keys", "list")
    assert (wrong.exit_code, "(401)" in wrong.output, "wrong-key" in wrong.output) == (2, True, False)
