"""Prompt injection by a model that comes with its weights: stackone-defender (extra: injection).

A small MiniLM on onnxruntime.  It finds paraphrases that patterns miss, and also flags harmless talk about
instructions: try it with `action: flag` first.  It runs in a thread; a text of 2 kB takes some 40 ms.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any, ClassVar, Final, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict

_PIECE: Final = 8000  # characters judged in one call …
_SHARED: Final = 200  # … of which so many are judged again in the next


class InjectionModel(Assessor):
    """Score: the model's own."""

    type: ClassVar[str] = "model"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "tool_results"})

    class Settings(settings.Settings):
        @model_validator(mode="after")
        def _installed(self) -> Self:
            if find_spec("stackone_defender") is None or find_spec("onnxruntime") is None:
                mend = "pip install 'tollkeeper[injection]'"
                raise PydanticCustomError("told", "extra", {"wrong": "needs stackone-defender[onnx]", "mend": mend})
            return self

    def __init__(self) -> None:
        from stackone_defender.classifiers.tier2_classifier import Tier2Classifier

        self._model: Any = Tier2Classifier()

    async def assess(self, text: str, stage: str) -> Verdict:
        score = await asyncio.to_thread(self._score, text)
        if not score:
            return PASSED
        return Verdict(score, abs(2 * score - 1), f"injection {score:.2f}")

    def _score(self, text: str) -> float:
        """Of the worst piece: the model reads no more than so much at once."""
        worst = 0.0
        for start in range(0, len(text), _PIECE - _SHARED):
            said = self._model.classify_by_chunks(text[start : start + _PIECE])
            if not said.get("skipped"):
                worst = max(worst, min(1.0, float(said["score"])))
            elif "error" in str(said.get("skip_reason", "")).lower():
                raise RuntimeError("the model failed")
        return worst
