"""The worst sentence counts; where the model is not installed, the start says what to install."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from policies.assessors import toxicity
from policies.assessors.toxicity import Toxicity
from tests.assessed import verdict

pytest.importorskip("profanity_check", reason="no wheels for this Python")

INSULT = "You are a stupid idiot."


async def test_the_worst_sentence_counts() -> None:
    model = Toxicity()
    alone = (await verdict(model, INSULT)).score
    assert alone > 0.9
    among = await verdict(model, f"All is well. The train leaves at nine. {INSULT} See you tomorrow.")
    assert among.score == alone
    assert among.confidence == pytest.approx(2 * alone - 1)
    assert (await verdict(model, "All is well. The train leaves at nine.")).score < 0.2
    assert (await verdict(model, " ")).score == 0


def test_where_it_is_missing_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity, "find_spec", lambda name: None)
    with pytest.raises(ValidationError) as caught:
        Toxicity.Settings()
    assert caught.value.errors()[0]["ctx"]["mend"] == "pip install 'tollkeeper[toxicity]'"
