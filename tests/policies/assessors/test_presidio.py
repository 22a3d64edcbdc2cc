"""Presidio's entities become places; nothing is downloaded where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from policies.assessors import presidio
from policies.assessors.presidio import Presidio
from tests.assessed import verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spaCy pipeline of rules: models with weights come from a hub, which tests do not ask."""
    spacy = pytest.importorskip("spacy", reason="no wheels for this Python")
    pipeline = spacy.blank("en")
    rules = [{"label": "PERSON", "pattern": "Ada Lovelace"}, {"label": "GPE", "pattern": "London"}]
    pipeline.add_pipe("entity_ruler").add_patterns(rules)
    at = tmp_path_factory.mktemp("spacy") / "names"
    pipeline.to_disk(at)
    return at


async def test_entities_become_places(folder: Path) -> None:
    assessor = Presidio(Presidio.Settings(model=str(folder)))
    found = await verdict(assessor, "I am Ada Lovelace of London.")
    assert [(one.start, one.end, one.label) for one in found.spans] == [(5, 17, "person"), (21, 27, "location")]
    assert found.score == 0.85
    assert found.explanation == "location, person"
    assert (await verdict(assessor, "nobody of nowhere")).score == 0


async def test_only_the_entities_asked_for_count(folder: Path) -> None:
    assessor = Presidio(Presidio.Settings(model=str(folder), entities=["LOCATION"]))
    assert [one.label for one in (await verdict(assessor, "I am Ada Lovelace of London.")).spans] == ["location"]


@pytest.mark.parametrize("model", ["a_model_that_is_not_there", "./not/there", "de.core-news"])
def test_a_model_that_is_not_there_stops_the_start(model: str) -> None:
    pytest.importorskip("spacy", reason="no wheels for this Python")
    with pytest.raises(ValidationError) as caught:
        Presidio.Settings(model=model)
    assert caught.value.errors()[0]["ctx"] == {
        "wrong": f"needs {model}",
        "mend": "install that spaCy model, or give the folder it is in",
    }


def test_where_it_is_missing_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find_spec", lambda name: None)
    with pytest.raises(ValidationError) as caught:
        Presidio.Settings()
    assert "tollkeeper[presidio]" in caught.value.errors()[0]["ctx"]["mend"]
