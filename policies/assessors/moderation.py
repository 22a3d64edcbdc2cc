"""A provider's moderation endpoint, asked through the gateway.  Reference: OpenAI API, POST /v1/moderations."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from pydantic import Field

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict
from gateway.exchange import Exchange
from gateway.inner import Inner


class _Result(msgspec.Struct):
    flagged: bool
    category_scores: dict[str, float]


class _Results(msgspec.Struct):
    results: Annotated[list[_Result], msgspec.Meta(min_length=1)]


_results = msgspec.json.Decoder(_Results)


class Moderation(Assessor):
    """Score: the highest of the categories asked for; the explanation names those above the threshold of one."""

    type: ClassVar[str] = "service"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output"})

    class Settings(settings.Settings):
        model: settings.Name  # of config.yaml, with its price: OpenAI's is free
        categories: Annotated[list[str], Field(min_length=1)] | None = None  # none: all
        seconds: settings.Seconds = 5.0

    def __init__(self, said: Settings, inner: Inner | None = None) -> None:
        self._said = said
        self._inner = inner

    async def assess(self, text: str, stage: str) -> Verdict:
        return await self.asked(None, text, stage)

    async def asked(self, x: Exchange | None, text: str, stage: str) -> Verdict:
        if self._inner is None or x is None:
            raise RuntimeError("the moderation endpoint is asked through a running gateway only")
        call = {"model": self._said.model, "input": text}
        raw = await self._inner.ask(x, "moderations", call, why="assess", seconds=self._said.seconds)
        wanted = self._said.categories
        scores: dict[str, float] = {}
        for result in _results.decode(raw).results:
            for name, score in result.category_scores.items():
                if wanted is None or name in wanted:
                    scores[name] = max(score, scores.get(name, 0.0))
        if not scores:
            return PASSED
        named = sorted(scores, key=lambda name: -scores[name])
        told = ", ".join(f"{name} {scores[name]:.2f}" for name in named if scores[name] >= 0.2)
        return Verdict(scores[named[0]], 1.0, told)
