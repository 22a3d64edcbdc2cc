"""The commands, typed against a gateway that runs in a process of its own."""

from __future__ import annotations

import asyncio

import httpx2
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.processes import Process
from tests.running import ADMIN


class Shell:
    def __init__(self, gateway: Process, key: str = ADMIN) -> None:
        self.gateway = gateway
        self.env = {"TOLLKEEPER_URL": gateway.url, "TOLLKEEPER_ADMIN_KEY": key}

    async def say(self, *words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, list(words), env=self.env)

    async def done(self, *words: str) -> Result:
        result = await self.say(*words)
        assert result.exit_code == 0, result.output
        return result

    async def listed(self, *words: str) -> list[list[str]]:
        """The cells of a list, as its CSV has them, without the head."""
        return [line.split(",") for line in (await self.done(*words, "list", "--csv")).stdout.splitlines()[1:]]

    async def call(self, key: str, model: str = "m", **more: object) -> int:
        call = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        async with httpx2.AsyncClient(timeout=10) as client:
            headers = {"authorization": f"Bearer {key}"}
            answer = await client.post(f"{self.gateway.url}/v1/chat/completions", json=call, headers=headers)
        return answer.status_code
