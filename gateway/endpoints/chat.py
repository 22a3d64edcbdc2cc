"""POST /v1/chat/completions."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.body import NOTHING
from gateway.endpoints import House, JsonEndpoint, Kind, named, read_stream
from gateway.errors import BadCall
from gateway.exchange import Exchange

KIND = Kind("chat", "chat", "/v1/chat/completions", "/chat/completions")

Tokens = Annotated[int, Meta(ge=1, le=10_000_000)]
_CONTENT = b'"[n'  # how a message's content may begin: text, parts, null
Number = Annotated[float, Meta(ge=-1_000_000, le=1_000_000)]


class Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = NOTHING
    tool_calls: msgspec.Raw = NOTHING
    audio: msgspec.Raw = NOTHING  # of an earlier answer, by its id


class ChatCall(msgspec.Struct):
    """The fields that the gateway reads; all others pass as they came.  Reference: OpenAI API, chat completions."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=20_000)]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    tools: Annotated[list[msgspec.Raw], Meta(max_length=1024)] | None = None
    response_format: msgspec.Raw = NOTHING
    reasoning_effort: str | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


def endpoint(house: House) -> JsonEndpoint[ChatCall]:
    return JsonEndpoint(house, KIND, ChatCall, understand)


def understand(x: Exchange, call: ChatCall) -> None:
    read_stream(x, call.stream, call.stream_options)
    x.user = x.user or named(call.safety_identifier or call.user or "")
    x.texts = partial(texts, call)
    for at, message in enumerate(call.messages):
        if message.content != NOTHING and memoryview(message.content)[0] not in _CONTENT:
            where = f"messages[{at}].content"
            raise BadCall(f"Invalid '{where}': expected 'str | array | null'.", code="invalid_type", param=where)


def texts(call: ChatCall) -> list[str]:
    """Everything written in the conversation and its tools, for counting tokens.  Images and audio are not counted."""
    found: list[str] = []
    for message in call.messages:
        found.append(message.role)
        for raw in (message.content, message.tool_calls):
            if raw != NOTHING:
                _collect(_value(raw), found)
    for tool in call.tools or ():
        found.append(bytes(tool).decode())
    return found


def _value(raw: msgspec.Raw) -> Any:
    """What cannot be read (a number beyond all floats, say) is counted as it was written."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return bytes(raw).decode()


def _collect(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict):
                found += [text for key in ("text", "refusal", "id") if isinstance(text := part.get(key), str)]
                if isinstance(function := part.get("function"), dict):
                    found += [text for text in function.values() if isinstance(text, str)]
