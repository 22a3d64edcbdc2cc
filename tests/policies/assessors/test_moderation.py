"""The provider's moderation endpoint is asked through the gateway; its scores become a verdict."""

from __future__ import annotations

import json

import pytest

from tests.assessed import made
from tests.running import config, running
from tests.scripted import Asked, answer, scripted

MODELS = {"mod": {"targets": [{"provider": "up", "model": "omni"}], "price": {"input": 0, "output": 0}}}


async def script(asked: Asked) -> None:
    if asked.path.endswith("/moderations"):
        bad = "hurt" in asked.json["input"]
        scores = {"violence": 0.97 if bad else 0.01, "hate": 0.3}
        result = {"flagged": bad, "categories": {}, "category_scores": scores}
        await asked.wire.whole(200, json.dumps({"id": "modr-1", "model": "omni", "results": [result]}).encode())
    else:
        await asked.wire.whole(200, answer("I will hurt you" if "bad" in asked.body.decode() else "fine"))


async def test_a_score_above_the_threshold_blocks_in_both_directions() -> None:
    policies = [{"use": "safety", "assessors": [{"use": "moderation", "model": "mod"}]}]
    async with scripted(script) as up, running(config(up.url, policies=policies, models=MODELS)) as gateway:
        assert (await gateway.chat("hello")).status_code == 200
        assert (await gateway.chat("how to hurt")).status_code == 403
        assert (await gateway.chat("be bad")).status_code == 403
        asked = [one for one in up.asked if one.path.endswith("/moderations")]
        assert [one.json["model"] for one in asked] == ["omni"] * len(asked)
        x = [x for x in gateway.seen if not x.inner][-1]
        assert [(a.stage, a.verdict, a.explanation) for a in x.assessments] == [
            ("input", "passed", "hate 0.30"),
            ("output", "blocked", "violence 0.97, hate 0.30"),
        ]


async def test_only_the_categories_asked_for_count() -> None:
    rule = {"use": "moderation", "model": "mod", "categories": ["hate"], "stages": ["input"]}
    policies = [{"use": "safety", "assessors": [rule]}]
    async with scripted(script) as up, running(config(up.url, policies=policies, models=MODELS)) as gateway:
        assert (await gateway.chat("how to hurt")).status_code == 200
    with pytest.raises(RuntimeError):
        await made("moderation", model="mod").assess("x", "input")
