"""The cache in the metrics, the records and the traces: what it keeps, what it saved, and no usage twice."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from gateway.answers import Answers
from gateway.answers.memory import MemoryStore
from gateway.telemetry.answers import Kept
from gateway.telemetry.traces import spans
from tests.policies.test_cache import ask, cached


def shown(answers: Answers) -> str:
    registry = CollectorRegistry()
    registry.register(Kept(answers))
    return generate_latest(registry).decode()


def test_what_all_stores_keep_and_lost_is_shown_together() -> None:
    answers = Answers(lambda url, limit: MemoryStore(limit))
    for defects in (2, 3):
        answers.open("memory://", 1000).defects = defects
    assert "tollkeeper_cache_defects_total 5.0" in shown(answers)
    assert "tollkeeper_cache_entries 0.0" in shown(answers)


async def test_what_a_hit_saved_is_counted_recorded_and_traced_and_its_tokens_are_not() -> None:
    async with cached() as (gateway, _):
        for _ in range(3):
            await ask(gateway)
        hit = await gateway.finished(3)
        record = await gateway.record(hit.id)
        text = (await gateway.client.get("/metrics")).text
    assert (record.cache, record.saved_nano) == ("hit", 9000)
    assert record.tokens.input == 0
    assert 'tollkeeper_saved_usd_total{model="m",team="checkout"} 1.8e-05' in text
    assert "tollkeeper_cache_entries 1.0" in text
    assert 'tollkeeper_tokens_total{model="m",team="checkout",type="input"} 5.0' in text  # the miss alone
    told: list[Any] = [span.attributes for span in spans(hit)]
    assert not [name for one in told for name in one if name.startswith("gen_ai.usage")]
    assert any(one.get("tollkeeper.saved_nano_usd") == 9000 for one in told)
    assert any(one.get("tollkeeper.cache.status") == "hit" for one in told)
