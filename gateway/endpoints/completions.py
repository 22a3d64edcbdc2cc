"""POST /v1/completions."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.endpoints import House, JsonEndpoint, Kind, named, read_stream
from gateway.exchange import Exchange

KIND = Kind("completions", "text_completion", "/v1/completions", "/completions")

Number = Annotated[float, Meta(ge=-1_000_000, le=1_000_000)]


class CompletionCall(msgspec.Struct):
    """The fields that the gateway reads.  Reference: OpenAI API, completions."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: str | Annotated[list[str | int | list[int]], Meta(max_length=100_000)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    user: str | None = None


def endpoint(house: House) -> JsonEndpoint[CompletionCall]:
    return JsonEndpoint(house, KIND, CompletionCall, understand)


def understand(x: Exchange, call: CompletionCall) -> None:
    read_stream(x, call.stream, call.stream_options)
    x.user = x.user or named(call.user or "")
    x.texts = partial(_texts, call)


def _texts(call: CompletionCall) -> list[str]:
    prompt = call.prompt
    if isinstance(prompt, str):
        return [prompt]
    return [part for part in prompt or () if isinstance(part, str)]
