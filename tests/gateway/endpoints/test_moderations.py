"""The gateway's own moderation calls; tests/policies/assessors/test_moderation.py sends them."""

from __future__ import annotations

import msgspec
import pytest

from gateway.endpoints.moderations import KIND, ModerationCall


def test_a_call_names_its_model_and_one_text() -> None:
    assert KIND.upstream_path == "/moderations"
    assert msgspec.json.decode(b'{"model":"m","input":"x"}', type=ModerationCall).input == "x"
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"model":"","input":"x"}', type=ModerationCall)
