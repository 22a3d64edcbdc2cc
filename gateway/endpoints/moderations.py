"""POST /v1/moderations, as the gateway itself asks it; callers' own calls are relayed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.dialects import opaque
from gateway.endpoints import Kind
from gateway.exchange import Exchange

KIND = Kind("moderations", "moderation", "/v1/moderations", "/moderations")


class ModerationCall(msgspec.Struct):
    """Reference: OpenAI API, moderations."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str


def understand(x: Exchange, call: ModerationCall) -> None:
    x.reader = opaque.reader  # the answer has no choices
    x.texts = lambda: [call.input]
