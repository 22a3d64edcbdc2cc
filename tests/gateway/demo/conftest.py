"""A simulator inside the test's loop, and a caller that sees every byte."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx2
import pytest
from openai import AsyncOpenAI

from gateway.demo.simulator import Simulator, running


class Wire:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Self:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: sim", f"content-length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return self

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def answer(self) -> tuple[str, bytes]:
        """A head, and a body with a content-length."""
        head = await self.head()
        length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
        return head, await self.reader.readexactly(int(length))

    async def rest(self) -> bytes:
        return await self.reader.read()

    def abort(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def sim() -> AsyncGenerator[Simulator, None]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def http(sim: Simulator) -> AsyncGenerator[httpx2.AsyncClient, None]:
    async with httpx2.AsyncClient(base_url=sim.url, trust_env=False) as client:
        yield client


@pytest.fixture
async def openai(sim: Simulator) -> AsyncGenerator[AsyncOpenAI, None]:
    async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def connect() -> Any:
    """`async with connect(sim) as wire`."""

    @asynccontextmanager
    async def opened(sim: Simulator) -> AsyncGenerator[Wire, None]:
        host, _, port = sim.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    return opened


@pytest.fixture
def ask() -> Any:
    """`ask("words", stream=True)`: the body of a chat call."""

    def body(text: str, model: str = "sim-small", **fields: Any) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": text}], **fields}

    return body
