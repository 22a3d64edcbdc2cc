"""Names, places and organisations by Microsoft Presidio and a spaCy model (extra: presidio; the model is yours).

What has a shape (e-mail, cards, numbers) `personal_data` finds a thousand times faster; this is for what has none.
Nothing is downloaded: where the spaCy model is not installed, the start stops and says so.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict
from gateway.patterns import Found


class Presidio(Assessor):
    """Labels: Presidio's entities, in lower case.  Score: the highest of them."""

    type: ClassVar[str] = "model"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output", "tool_arguments", "tool_results"})

    class Settings(settings.Settings):
        model: Annotated[str, Field(min_length=1)] = "en_core_web_sm"  # a package, or the folder that it was saved in
        language: str = "en"
        entities: Annotated[list[str], Field(min_length=1)] = Field(
            default_factory=lambda: ["PERSON", "LOCATION", "NRP", "ORGANIZATION"]
        )

        @model_validator(mode="after")
        def _installed(self) -> Self:
            for package, mend in (
                ("presidio_analyzer", "pip install 'tollkeeper[presidio]'"),
                (self.model, "install that spaCy model, or give the folder it is in"),
            ):
                if not Path(package).is_dir() and (not package.isidentifier() or find_spec(package) is None):
                    raise PydanticCustomError("told", "extra", {"wrong": f"needs {package}", "mend": mend})
            return self

    def __init__(self, said: Settings | None = None) -> None:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider

        self._said = said = said or self.Settings()
        models = [{"lang_code": said.language, "model_name": said.model}]
        engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
        self._analyzer: Any = AnalyzerEngine(nlp_engine=engine, supported_languages=[said.language])

    async def assess(self, text: str, stage: str) -> Verdict:
        said = self._said
        results = await asyncio.to_thread(
            self._analyzer.analyze, text=text, language=said.language, entities=said.entities
        )
        if not results:
            return PASSED
        spans = [Found(one.start, one.end, one.entity_type.lower()) for one in results]
        score = min(1.0, max(one.score for one in results))
        return Verdict(score, score, ", ".join(sorted({one.label for one in spans})), spans)
