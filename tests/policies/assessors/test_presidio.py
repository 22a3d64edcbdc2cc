"""Presidio's entities become places; nothing is downloaded where something is missing."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from policies.assessors.presidio import Presidio
from tests.assessed import verdict


async def test_entities_become_places(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, **said: Any) -> None: ...

        def create_engine(self) -> None: ...

        def analyze(self, text: str, language: str, entities: list[str]) -> list[Any]:
            at = text.find("Ada")
            return [] if at < 0 else [SimpleNamespace(start=at, end=at + 3, entity_type="PERSON", score=0.85)]

    for name, word in (("presidio_analyzer", "AnalyzerEngine"), ("presidio_analyzer.nlp_engine", "NlpEngineProvider")):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        setattr(sys.modules[name], word, Engine)
    presidio = Presidio(Presidio.Settings.model_construct(language="en", model="m", entities=["PERSON"]))
    found = await verdict(presidio, "I am Ada.")
    assert (found.score, [(one.start, one.end, one.label) for one in found.spans]) == (0.85, [(5, 8, "person")])
    assert (await verdict(presidio, "nobody")).score == 0


def test_where_it_is_missing_the_start_says_what_to_install() -> None:
    with pytest.raises(ValidationError) as caught:
        Presidio.Settings()
    assert "tollkeeper[presidio]" in caught.value.errors()[0]["ctx"]["mend"]
