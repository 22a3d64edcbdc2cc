"""What the README tells a newcomer to type is typed here, in its order, against a gateway that runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import httpx2
import pytest
import yaml

from gateway.config import load
from gateway.telemetry.catalogue import METRICS
from gateway.vendors import VENDORS
from tests.processes import environment, serving
from tests.running import KEY
from tests.scripted import plain, scripted

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HERE = "http://127.0.0.1:4000"  # where the README's gateway listens
ADMIN = "an-admin-key-for-the-readme"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


async def shell(*command: str, status: int = 0, **env: str) -> str:
    """Runs a command as the README's reader would, with `tollkeeper` from this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(PATH=path, **env), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    assert process.returncode == status, f"{shlex.join(command)}: {said}"
    return said


def test_every_command_of_the_readme_is_one_that_these_tests_know() -> None:
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS
    known = [r"make \w+", r"export \w+=\S+", r"tollkeeper (serve|check|explain|ledger)\b.*"]
    assert [line for line in COMMANDS if not any(re.fullmatch(pattern, line) for pattern in known)] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))))
async def test_a_target_that_the_readme_names_exists(target: str) -> None:
    assert await shell("make", "--dry-run", "--silent", "-C", str(ROOT), target)


def test_an_exported_variable_is_one_that_serve_reads() -> None:
    exported = {line.split()[1].split("=")[0] for line in COMMANDS if line.startswith("export ")}
    assert exported
    assert exported <= {vendor.variable for vendor in VENDORS}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert "gateway/pipeline.py" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_metric_that_is_asked_for_exists() -> None:
    names = {name for query in blocks("promql") for name in re.findall(r"\b(?:tollkeeper|gen_ai)_\w+", query)}
    assert names
    assert names <= {metric.name for metric in METRICS}


async def test_the_configuration_of_the_readme_passes_its_check(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(blocks("yaml")[0])
    keys = {"TOLLKEEPER_ADMIN_KEY": ADMIN, "OPENAI_API_KEY": "sk-1", "CHECKOUT_KEY": "tk-checkout"}
    (check,) = [line for line in COMMANDS if line.startswith("tollkeeper check")]
    said = await shell(*shlex.split(check.replace("config.yaml", str(tmp_path / "config.yaml"))), **keys)
    assert "gpt-4o-mini" in said
    assert load(tmp_path / "config.yaml", keys).teams["checkout"].models == ["gpt-4o-mini"]


async def test_serve_without_a_file_answers_the_readme_s_program_and_explains_it(tmp_path: Path) -> None:
    (program,) = blocks("python")
    (explain,) = [line for line in COMMANDS if line.startswith("tollkeeper explain")]
    async with scripted(plain) as provider:
        keys = {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": provider.url, "TOLLKEEPER_ADMIN_KEY": ADMIN}
        with serving(None, folder=tmp_path, **keys) as gateway:
            (first,) = re.findall(r"^\s+(tk-\S+)$", gateway.log.read_text(), re.MULTILINE)
            assert HERE in program
            call = (
                program.replace(HERE, gateway.url).replace("tk-…", first).replace("client.chat", "print(client.chat", 1)
            )
            answer = await shell(sys.executable, "-c", call.rstrip() + ")")
            assert "Hello" in answer
            shown = await shell("curl", "-s", f"{gateway.url}/metrics")
            assert re.search(r'^tollkeeper_requests_total\{.*model="gpt-4o-mini".*\} 1\.0$', shown, re.MULTILINE)
            (id,) = re.findall(r'"request_id":\s*"([^"]+)"', gateway.out.read_text())
            waterfall = shlex.split(explain.replace(HERE, gateway.url).replace("REQUEST_ID", id))
            story = await shell(*waterfall, TOLLKEEPER_ADMIN_KEY=ADMIN)
            assert id in story
            assert "gpt-4o-mini" in story


async def test_the_readme_s_questions_to_the_ledger_are_answered(tmp_path: Path) -> None:
    async with scripted(plain) as provider:
        keys = {"OPENAI_API_KEY": "sk-1", "CHECKOUT_KEY": KEY, "TOLLKEEPER_ADMIN_KEY": ADMIN}
        said = yaml.safe_load(blocks("yaml")[0])
        said["providers"]["openai"]["base_url"] = provider.url
        with serving(said, folder=tmp_path, **keys) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as client:
                call = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
                assert (await client.post("/v1/chat/completions", json=call)).status_code == 200
            await asyncio.sleep(0.3)
            today = time.time_ns() // 10**9 // 86_400 * 86_400
            cost = {"amount": {"value": 0.00000195, "currency": "usd"}, "line_item": "gpt-4o-mini-2024-07-18, input"}
            bucket = {"start_time": today, "end_time": today + 86_400, "results": [cost]}
            export = tmp_path / "openai-costs.json"
            export.write_text(json.dumps({"object": "page", "data": [bucket], "has_more": False}))
            asked = [
                line.replace(export.name, str(export)) for line in COMMANDS if line.startswith("tollkeeper ledger")
            ]
            told = [await shell(*shlex.split(line), TOLLKEEPER_URL=gateway.url, **keys) for line in asked]
            assert re.search(r"^checkout +20\d\d-\d\d-\d\d +0\.00000", told[0], re.MULTILINE)
            assert "team checkout month" in told[1]
            assert told[2].split()[:4] == ["TEAM", "KEY", "USER", "CODE"]
            assert "0 of 1 lines differ" in told[3]
