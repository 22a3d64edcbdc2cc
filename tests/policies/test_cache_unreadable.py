"""Answers that cannot be read, or break what reads them: nobody waits for them, nothing of them is kept."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gateway.dialects import openai
from tests.policies.test_cache import ask, cached
from tests.running import Running
from tests.scripted import DONE, Asked, answer, event

ODD = event({"content": "ok"}).replace(b'"object"', b'"note": "\xff", "object"')
LONG = [event({"content": "x" * 1000}) for _ in range(150)]  # gathered in a thread


def telling(*pieces: bytes) -> Any:
    """A provider whose stream begins, waits for a while, and then holds these."""

    async def script(asked: Asked) -> None:
        if not asked.json.get("stream"):
            await asked.wire.whole(200, answer())
            return
        await asked.wire.head()
        await asked.wire.chunk(event({"role": "assistant", "content": ""}))
        await asyncio.sleep(0.3)
        for piece in (*pieces, event({}, "stop") + DONE, b""):
            await asked.wire.chunk(piece)

    return script


async def led_and_followed(gateway: Running) -> None:
    """Nobody waits for ever for the leader's answer, and its key is let go."""
    key = {"idempotency-key": "k"}
    leader = asyncio.create_task(ask(gateway, stream=True, headers=key))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        follower = await ask(gateway)
        assert (await leader).status_code == follower.status_code == 200
        assert (await ask(gateway, stream=True, headers=key)).status_code == 200


@pytest.mark.parametrize("more", [[], LONG], ids=["short", "long"])
async def test_a_stream_that_cannot_be_gathered_is_nobodys_end(more: list[bytes]) -> None:
    async with cached(telling(ODD, *more)) as (gateway, up):
        await led_and_followed(gateway)
        assert len(up.asked) == 2  # the follower asked by itself, and what it was answered is kept


@pytest.mark.parametrize("more", [[], LONG], ids=["short", "long"])
async def test_nor_is_a_defect_of_who_gathers(
    more: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stream: bytes) -> bytes | None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(openai, "gather", broken)
    with caplog.at_level(logging.ERROR):
        async with cached(telling(*more)) as (gateway, up):
            await led_and_followed(gateway)
            assert len(up.asked) == 2
    assert "a defect" in caplog.text
