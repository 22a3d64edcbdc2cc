"""While a provider is silent, a stream that holds something back is asked again only when that may change something."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.assessor import PASSED, Assessor, Verdict
from gateway.holding import Holding
from tests.policies.test_safety import safety
from tests.policies.test_safety_lanes import HI, native, typed
from tests.running import config, running
from tests.scripted import DONE, Asked, event, scripted


class Patient(Assessor):
    whole = True

    async def assess(self, text: str, stage: str) -> Verdict:
        return PASSED


CHAT, OTHER = "/v1/chat/completions", "/v1/anything"
CONSTANT = {"source_model": "x", "mood": "cheerful-1"}


def choice(index: int, text: str, finish: str | None = None, **more: Any) -> bytes:
    return event(None, choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish} | more])


def item(kind: str, index: int, text: str) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": kind, "output_index": index, "delta": text}


STREAMS: dict[str, tuple[str, list[bytes]]] = {
    "a text": (CHAT, [event({"content": "foo"})]),
    "a text on both sides of another": (CHAT, [event({"content": "foo"}), event({"reasoning_content": "bar"}), event({"content": "baz"})]),
    "two texts, and one of them again": (OTHER, typed(item("output_text", 0, "foo"), item("reasoning_text", 1, "bar"), item("output_text", 0, "baz"))),
    "a field that stays": (OTHER, native({"text": "abc"} | CONSTANT, {"text": "def"} | CONSTANT)),
    "a choice that has ended behind one that has not": (CHAT, [choice(0, "Hello"), choice(1, "Hi"), choice(1, "", "stop")]),
    "log-probabilities": (CHAT, [choice(0, "foo", logprobs={"content": [{"token": "foo", "logprob": 0}]}), event({"content": "bar"})]),
    "an end that is none": (CHAT, [event({"content": "foo"}), event({}, "stop")]),
}  # fmt: skip
PATTERNS = [{"use": "secrets", "action": "redact"}]
WHOLE = {"use": "tests.policies.test_safety_silence:Patient", "action": "block"}
WINDOWS = {"use": "tests.policies.test_safety_failures:Odd", "action": "block"}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("rules", [PATTERNS, [*PATTERNS, WHOLE], [*PATTERNS, WINDOWS]], ids=["patterns", "whole", "windows"])  # fmt: skip
async def test_silence_costs_nothing(name: str, rules: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, pieces = STREAMS[name]
    asked_again, due = 0, Holding._due

    async def counted(self: Holding) -> bytes:
        nonlocal asked_again
        asked_again += 1
        return await due(self)

    async def script(asked: Asked) -> None:
        await asked.wire.head()
        for piece in pieces:
            await asked.wire.chunk(piece)
        await asyncio.sleep(0.5)
        await asked.wire.chunk(event({}, "stop") + DONE)
        await asked.wire.chunk(b"")

    monkeypatch.setattr(Holding, "_due", counted)
    policies = safety(*rules, hold_seconds=0.1)
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        response = await gateway.client.post(path, json={"model": "m", "stream": True, "messages": HI})
    assert response.status_code == 200
    assert asked_again <= 2 * len(pieces)
