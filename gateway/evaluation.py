"""Verdicts as OpenTelemetry tells them: one event `gen_ai.evaluation.result` for each assessor and kind of text.

Names: OpenTelemetry semantic conventions for generative AI, events.  None of them holds a word of what was judged.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.exchange import Exchange

EVENT: Final = "gen_ai.evaluation.result"


def events(x: Exchange) -> list[dict[str, Any]]:
    """The attributes of each event."""
    made = []
    response = x.final.answer.id if x.final is not None else ""
    for name, one in [(name, said) for said in x.assessments for name in said.assessor.split(",")]:
        attributes: dict[str, Any] = {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.score.value": one.score,
            "gen_ai.evaluation.score.label": one.verdict,
            "tollkeeper.evaluation.stage": one.stage,
            "tollkeeper.evaluation.type": one.type,
            "tollkeeper.evaluation.confidence": one.confidence,
            "tollkeeper.evaluation.took_us": one.took // 1000,
        }
        optional = {
            "gen_ai.evaluation.explanation": one.explanation,
            "gen_ai.response.id": response if one.stage in ("output", "tool_arguments") else "",
            "error.type": one.error,
        }
        made.append(attributes | {key: value for key, value in optional.items() if value})
    return made
