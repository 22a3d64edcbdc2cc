"""Toxic language by a model that comes with its weights: alt-profanity-check (extra: toxicity).  English only.

A linear model over words, trained on public comments: it knows insults and slurs, not meaning.  Its weights are a
pickle in the package, so install it by hash.  It runs in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from importlib.util import find_spec
from typing import Any, ClassVar, Final, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict

_SENTENCE: Final = re.compile(r"[^.!?\n]{1,400}[.!?\n]*")
_MOST: Final = 2000  # sentences


class Toxicity(Assessor):
    """Score: of the worst sentence."""

    type: ClassVar[str] = "model"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output"})

    class Settings(settings.Settings):
        @model_validator(mode="after")
        def _installed(self) -> Self:
            if find_spec("profanity_check") is None:
                mend = "pip install 'tollkeeper[toxicity]'"
                raise PydanticCustomError("told", "extra", {"wrong": "needs alt-profanity-check", "mend": mend})
            return self

    def __init__(self) -> None:
        self._model: Any = importlib.import_module("profanity_check")

    async def assess(self, text: str, stage: str) -> Verdict:
        sentences = [found[0] for found in _SENTENCE.finditer(text) if found[0].strip()][:_MOST]
        if not sentences:
            return PASSED
        scores = await asyncio.to_thread(self._model.predict_prob, sentences)
        worst = min(1.0, max(0.0, float(max(scores))))
        return Verdict(worst, abs(2 * worst - 1), f"toxicity {worst:.2f}")
