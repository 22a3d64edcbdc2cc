"""POST /v1/embeddings."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.endpoints import House, JsonEndpoint, Kind, named
from gateway.exchange import Exchange

KIND = Kind("embeddings", "embeddings", "/v1/embeddings", "/embeddings")


class EmbeddingCall(msgspec.Struct):
    """The fields that the gateway reads.  Reference: OpenAI API, embeddings."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[str | int | list[int]], Meta(max_length=100_000)]
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    encoding_format: str | None = None
    user: str | None = None


def endpoint(house: House) -> JsonEndpoint[EmbeddingCall]:
    return JsonEndpoint(house, KIND, EmbeddingCall, understand)


def understand(x: Exchange, call: EmbeddingCall) -> None:
    x.user = x.user or named(call.user or "")
    x.texts = partial(_texts, call)


def _texts(call: EmbeddingCall) -> list[str]:
    return [call.input] if isinstance(call.input, str) else [part for part in call.input if isinstance(part, str)]
