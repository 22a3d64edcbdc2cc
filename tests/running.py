"""A whole gateway on a real socket, in the test's own loop."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from gateway import config as configs
from gateway.app import Gateway
from gateway.exchange import Exchange
from gateway.policy import Policy
from gateway.server import server
from gateway.store import Record

KEY = "tk-test-key-of-the-checkout-team"
ADMIN = "admin-key-for-tests"


@dataclass
class Running:
    url: str
    app: Gateway
    client: httpx2.AsyncClient
    seen: list[Exchange]  # finished, in order

    async def chat(self, text: str = "hi", headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
        call = {"model": "m", "messages": [{"role": "user", "content": text}], **body}
        return await self.client.post("/v1/chat/completions", json=call, headers=headers)

    async def admin(self, method: str, path: str, body: Any = None, token: str = ADMIN) -> httpx2.Response:
        """Asks the admin plane; path: below /admin/v1."""
        headers = {"authorization": f"Bearer {token}"}
        return await self.client.request(method, f"/admin/v1{path}", json=body, headers=headers)

    async def made(self, path: str, **body: Any) -> Any:
        """What the admin plane made of this."""
        answer = await self.admin("POST", path, body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def finished(self, count: int = 1) -> Exchange:
        """The last of `count` finished exchanges."""
        async with asyncio.timeout(5):
            while len(self.seen) < count:
                await asyncio.sleep(0.002)
        return self.seen[count - 1]

    async def record(self, id: str) -> Record:
        assert self.app.records is not None
        assert self.app.store is not None
        await self.app.records.flush()
        record = await self.app.store.get(id)
        assert record is not None
        return record


class Seen:
    """Observer: keeps the exchanges, for tests to look at."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def started(self, x: Exchange) -> None: ...

    def finished(self, x: Exchange) -> None:
        self.exchanges.append(x)

    async def aclose(self) -> None: ...


def config(url: str, **over: Any) -> dict[str, Any]:
    """One provider at `url`, one model `m`, one team `checkout`; over: sections that are merged in."""
    base: dict[str, Any] = {
        "server": {"admin_key": ADMIN, "grace_seconds": 1},
        "providers": {
            "up": {"base_url": url, "api_key": "sk-secret-of-the-provider", "forward_headers": ["x-sim-fault"]}
        },
        "models": {"m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 1, "output": 2}}},
        "teams": {"checkout": {"keys": [{"name": "web", "key": KEY}]}},
        "telemetry": {"logs": {"access": False}},
    }
    return _merged(base, over)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = dict(one)
    for key, value in other.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


@asynccontextmanager
async def running(said: dict[str, Any], policies: Sequence[Policy[Any]] | None = None) -> AsyncIterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(yaml.safe_dump({"store": f"sqlite:///{folder}/tollkeeper.db"} | said))
        settings = configs.load(file, {})
        app = Gateway(settings, policies)
        seen = Seen()
        app.pipeline.observers = [*app.pipeline.observers, seen]
        serving = server(app, "127.0.0.1", 0, settings.server.receive_seconds, settings.server.grace_seconds)
        task = asyncio.create_task(serving._serve())  # without its signal handlers
        while not serving.started:
            await asyncio.sleep(0.005)
            if task.done():
                task.result()
        url = f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
        headers = {"authorization": f"Bearer {KEY}"}
        try:
            async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
                yield Running(url, app, client, seen.exchanges)
        finally:
            serving.should_exit = True
            await task
