"""Verdicts as events: one for each assessor, also of those that one look answered for."""

from __future__ import annotations

from gateway.evaluation import events
from gateway.exchange import Assessment
from tests.safety_streams import exchange


def test_an_event_for_each_assessor_and_kind_of_text() -> None:
    x = exchange()
    x.assessments = [
        Assessment("secrets,urls", "input", took=3000),
        Assessment("judge", "output", "blocked", 0.9, 0.8, "unsafe", "llm", 0, 5_000_000),
        Assessment("hook", "input", "failed", type="service", error="timeout"),
    ]
    said = events(x)
    assert [one["gen_ai.evaluation.name"] for one in said] == ["secrets", "urls", "judge", "hook"]
    assert said[2]["gen_ai.evaluation.score.value"] == 0.9
    assert said[2]["gen_ai.evaluation.score.label"] == "blocked"
    assert said[2]["gen_ai.evaluation.explanation"] == "unsafe"
    assert said[3]["error.type"] == "timeout"
    assert "gen_ai.evaluation.explanation" not in said[0]
