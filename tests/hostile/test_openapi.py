"""The admin API fuzzed by its own OpenAPI document: no answer that it does not describe, nothing broken behind it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.processes import environment, serving
from tests.running import ADMIN, KEY, config
from tests.scripted import plain, scripted

# positive_data_acceptance: a well-formed name of a team that does not exist is refused, which no schema can say.
# unsupported_method: sends two credentials, which are refused before the method; the endpoints' own tests look at it.
LEFT_OUT = "positive_data_acceptance,unsupported_method"
SECONDS = "12"
# A key or token that was revoked (DELETE) stays to be seen; everything else that is deleted must be gone.
# All checks are on where none is named; `--checks all` would switch this one on again.
REVOKED = """
[[operations]]
include-path-regex = "^/admin/v1/(keys|tokens)/"
checks.use_after_free.enabled = false
"""


async def test_the_admin_api_answers_as_its_document_says(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        (tmp_path / "schemathesis.toml").write_text(REVOKED)
        with serving(config(up.url), folder=tmp_path) as gateway:
            fuzz = [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{gateway.url}/admin/v1/openapi.json"),
                *("--header", f"Authorization: Bearer {ADMIN}", "--exclude-checks", LEFT_OUT),
                *("--max-time", SECONDS, "--workers", "1", "--seed", "7"),  # two of them trip over Hypothesis's caches
                *("--no-shrink", "--warnings", "off"),
            ]
            ran = await asyncio.to_thread(
                subprocess.run, fuzz, cwd=tmp_path, env=environment(), capture_output=True, text=True
            )
            assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=20) as client:
                client.headers["authorization"] = f"Bearer {ADMIN}"
                checked = (await client.get("/admin/v1/audit/verify")).json()
                assert checked["problem"] == ""
                assert checked["rows"] > 0  # what was sent reached what is behind the checks
                body = {"team": "checkout", "name": "after-it-all"}
                made = (await client.post("/admin/v1/keys", json=body)).json()
                for key in (KEY, made["key"]):
                    call = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                    client.headers["authorization"] = f"Bearer {key}"
                    assert (await client.post("/v1/chat/completions", json=call)).status_code == 200
            assert gateway.stop() == 0
            assert "Traceback" not in gateway.log.read_text()
