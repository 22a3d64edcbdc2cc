"""An assessor behind HTTP: sent the text, believed in its shape only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.running import config, running
from tests.scripted import Asked, answer, scripted


def hook(status: int, said: Any) -> Any:
    async def script(asked: Asked) -> None:
        if asked.path.endswith("/hook"):
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            await asked.wire.whole(status, body, location="http://127.0.0.1:1/")
        else:
            await asked.wire.whole(200, answer("fine"))

    return script


def rule(url: str, **more: Any) -> list[dict[str, Any]]:
    headers = {"authorization": "Bearer of-the-hook"}
    one = {"use": "webhook", "url": f"{url}/hook", "headers": headers, "stages": ["input"], **more}
    return [{"use": "safety", "assessors": [one]}]


async def test_it_is_sent_the_text_and_who_asks_and_its_places_are_redacted() -> None:
    said = {"score": 0.9, "label": "name", "spans": [{"start": 5, "end": 8, "label": "name"}]}
    async with (
        scripted(hook(200, said)) as up,
        running(config(up.url, policies=rule(up.url, action="redact"))) as gateway,
    ):
        assert (await gateway.chat("I am Ada.")).status_code == 200
        asked, sent = up.asked
        x = await gateway.finished()
        assert asked.json == {"text": "I am Ada.", "stage": "input", "team": "checkout", "request_id": x.id}
        assert asked.headers["authorization"] == "Bearer of-the-hook"
        assert sent.json["messages"][0]["content"] == "I am [name]."


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (500, {"score": 0}, "error"),
        (302, {"score": 0}, "error"),
        (200, b"no json", "junk"),
        (200, {"score": 2}, "junk"),
        (200, {"score": 0.9, "label": "the text again: " + "x" * 100}, "junk"),
        (200, b"x" * 1_100_000, "junk"),
    ],
)
async def test_whatever_else_it_answers_is_a_failure(status: int, said: Any, error: str) -> None:
    async with scripted(hook(status, said)) as up, running(config(up.url, policies=rule(up.url))) as gateway:
        assert (await gateway.chat()).json()["error"]["code"] == "policy_failed"
        x = await gateway.finished()
        assert [a.error for a in x.assessments] == [error]
        assert len(up.asked) == 1  # a redirect is not followed


async def test_one_that_is_not_there_is_a_failure() -> None:
    async with scripted(hook(200, {})) as up, running(config(up.url, policies=rule("http://127.0.0.1:1"))) as gateway:
        assert (await gateway.chat()).status_code == 503
