"""`make assess`: precision, recall and speed of each built-in assessor on the texts made for it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from bench import texts
from gateway import assess, assessor

_SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
SETS: Final[dict[str, tuple[Callable[[], list[assess.Sample]], dict[str, Any]]]] = {
    "secrets": (texts.secrets, {}),
    "personal_data": (texts.personal_data, {}),
    "injection": (texts.injection, {}),
    "words": (texts.words, {"topics": {"a": ["project kestrel", "kestrel-9", "Ölpreisabsprache", "内部机密"]}}),
    "urls": (texts.urls, {"deny": ["tracker.example"], "allow": ["example.com"]}),
    "language": (texts.language, {"allow": ["en"]}),
    "length": (texts.length, {"characters": 2000}),
    "json_schema": (texts.json_schema, {"schema": _SCHEMA}),
    "injection_model": (texts.injection, {}),
    "toxicity": (texts.toxicity, {}),
    "presidio": (texts.names, {"entities": ["PERSON"]}),
}
PROSE: Final = (
    "It was late in the year, and the ships lay still in the harbour while the men sat and talked of home. " * 40
)


def made(name: str, said: dict[str, Any]) -> assessor.Assessor | None:
    """None: what it needs is not installed."""
    kind = assessor.find(name)
    try:
        built = assessor.build(kind, kind.Settings.model_validate(said), {})
    except ValueError:
        return None
    built.name = name
    return built


async def measured(name: str) -> str:
    samples, said = SETS[name]
    one = made(name, said)
    if one is None:
        return f"{name:<16} not installed"
    judged = await assess.judge(one, samples(), "output")
    found = assess.rates(judged, 0.5)
    times = []
    for size in (200, 2000):
        text, took = PROSE[:size], []
        for _ in range(30 if one.quick else 3):
            began = time.perf_counter_ns()
            await one.assess(text, "output")
            took.append(time.perf_counter_ns() - began)
        times.append(statistics.median(took) / 1000)
    rates = "  ".join(f"{rate:9.3f}" if rate is not None else "        –" for rate in found)
    return f"{name:<16} {len(judged):>5}  {rates}  {times[0]:>9,.1f}  {times[1]:>9,.1f}"


async def table() -> None:
    print(f"{'assessor':<16} {'texts':>5}  precision     recall  false al.  us/200 ch.  us/2k ch.")
    for name in SETS:
        print(await measured(name))


if __name__ == "__main__":
    asyncio.run(table())
