"""The worst sentence counts; where the model is not installed, the start says what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from pydantic import ValidationError

from policies.assessors.toxicity import Toxicity
from tests.assessed import verdict


async def test_the_worst_sentence_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("profanity_check")
    fake.predict_prob = lambda texts: [0.95 if "idiot" in text else 0.05 for text in texts]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "profanity_check", fake)
    model = Toxicity()
    assert (await verdict(model, "All is well. You idiot! Bye.")).score == 0.95
    assert (await verdict(model, "All is well.")).score == 0.05
    assert (await verdict(model, " ")).score == 0


def test_where_it_is_missing_the_start_says_what_to_install() -> None:
    with pytest.raises(ValidationError) as caught:
        Toxicity.Settings()
    assert caught.value.errors()[0]["ctx"]["mend"] == "pip install 'tollkeeper[toxicity]'"
