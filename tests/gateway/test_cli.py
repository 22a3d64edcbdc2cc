"""The command's words: what each needs, what each says, and with which exit status."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from gateway import __version__
from gateway.cli import main
from tests.processes import environment
from tests.running import ADMIN, config, running
from tests.scripted import plain, scripted


def run(*words: str, **env: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(words), env=env)
    return done.exit_code, done.output


def test_it_says_its_version() -> None:
    assert run("--version") == (0, f"tollkeeper, version {__version__}\n")


def test_check_prints_what_it_understood_with_prices_and_their_source(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    said = config("https://api.example.com/v1")
    said["models"]["n"] = {"targets": [{"provider": "up", "model": "nobody-knows"}]}
    file.write_text(yaml.safe_dump(said))
    status, text = run("check", "--config", str(file))
    assert status == 0
    assert "config:m@" in text
    assert "unpriced" in text or "no price" in text
    assert "sk-secret-of-the-provider" not in text
    status, text = run("check", "--config", str(file), "--effective")
    assert status == 0
    assert "grace_seconds: 1" in text
    assert "sk-secret-of-the-provider" not in text


def test_check_names_file_line_and_mend_of_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("providers:\n  up: {base_url: 'https://a.test/v1'}\nmodles: {}\nserver: {port: 99999999}\n")
    status, text = run("check", "--config", str(file))
    assert status == 2
    assert "config.yaml:3:" in text
    assert '"models"' in text or "models" in text
    assert "config.yaml:4:" in text


def test_a_store_that_cannot_be_opened_is_said_without_a_stack(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("providers: {a: {base_url: https://a.io}}\nstore: sqlite:///nowhere/at/all.db\n")
    serve = [sys.executable, "-m", "gateway", "serve", "--config", "c.yaml", "--port", "0"]
    root = str(Path(__file__).parents[2])  # in a process of its own: it sets up logging
    done = subprocess.run(
        serve, cwd=tmp_path, env=environment(PYTHONPATH=root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tollkeeper: the record store nowhere/at/all.db cannot be opened: ")
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    status, text = run("check", "--config", str(tmp_path / "none.yaml"))
    assert status == 2
    assert "none.yaml" in text


@pytest.mark.parametrize("words", [["explain", "req_1"], ["explain", "req_1", "--url", "http://127.0.0.1:1"]])
def test_explain_without_a_key_or_a_gateway_says_what_to_do(words: list[str]) -> None:
    status, text = run(*words)
    assert (status, "TOLLKEEPER_ADMIN_KEY" in text) == (2, True)
    status, text = run(*words, TOLLKEEPER_ADMIN_KEY="admin-key", TOLLKEEPER_URL="http://127.0.0.1:1")
    assert status == 2
    assert "Traceback" not in text


async def test_explain_prints_the_story_for_people_and_for_programs() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        id = (await gateway.chat()).headers["x-request-id"]
        env = {"TOLLKEEPER_ADMIN_KEY": ADMIN, "TOLLKEEPER_URL": gateway.url}
        status, text = await asyncio.to_thread(lambda: run("explain", id, **env))
        assert status == 0
        assert id in text
        assert "checkout" in text
        status, text = await asyncio.to_thread(lambda: run("explain", id, "--json", **env))
    assert status == 0
    assert yaml.safe_load(text)["id"] == id
