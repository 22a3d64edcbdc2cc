"""OpenAI's answers in their other form: a stream gathered into the answer it would have been whole, and the reverse.

Fields that are not known pass both ways: texts of deltas are joined, lists appended, of anything else the last counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from gateway.dialects import Chunk, Looked, sse

_DONE: Final = b"data: [DONE]\n\n"
_PIECE: Final = re.compile(r"\s*\S+|\s+$")  # a word with the blanks before it
_ONCE: Final = frozenset({"id", "type", "role", "name"})  # said once; some providers say them in every delta
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
Json = dict[str, Any]


class _Message(msgspec.Struct):
    tool_calls: list[Json] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Any = None


class _Whole(msgspec.Struct):
    """What a stream is made of.  What has this shape can be told as one."""

    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None
    error: Any = None


_shape = msgspec.json.Decoder(_Whole).decode


def _read(whole: bytes) -> tuple[Json, _Whole] | None:
    """All of it, for what is passed over is not looked at: it may be no Unicode."""
    try:
        answer = _decode(whole)
        return answer, msgspec.convert(answer, _Whole)
    except (ValueError, RecursionError):
        return None


def look(whole: bytes) -> Looked | None:
    """What decides whether an answer may be kept; None where it has not the shape of one, or tells an error too."""
    try:
        said = _shape(whole)
        if not whole.isascii():
            whole.decode()  # what is passed over was not looked at
    except (ValueError, RecursionError):
        return None
    if said.error is not None:
        return None
    finish: list[str] = []
    tools: list[str] = []
    for choice in said.choices or ():
        if choice.error is not None:
            return None
        finish.append(choice.finish_reason or "")
        if choice.message is not None:
            calls = [_function(call) for call in choice.message.tool_calls or ()]
            if choice.message.function_call is not None:
                calls.append(choice.message.function_call)
            tools += [str(call.get("name", "")) if isinstance(call, dict) else "" for call in calls]
    return Looked(finish, tools, len(said.data or ()))


def _function(call: Json) -> Any:
    return call.get("function", call.get("custom"))


def without_usage(last: bytes) -> bytes:
    """The end of a stream for a caller who did not ask for its usage."""
    return _DONE if last.endswith(_DONE) else last


# ── from a stream to a whole ────────────────────────────────────────────────────────────────────────────────────────


def gather(stream: bytes) -> bytes | None:
    """The whole answer that a whole stream of events amounts to; None where it cannot be told."""
    try:
        return _gather(stream)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _gather(stream: bytes) -> bytes | None:
    if not stream.endswith(_DONE):
        return None
    top: Json = {}
    choices: dict[int, Json] = {}
    events = stream.split(b"\n\n") if b"\r" not in stream else sse.Splitter(len(stream)).feed(stream)
    for raw in events:
        data = sse.data(raw + b"\n\n")
        if data is None or data == b"[DONE]":
            continue
        event: Json = _decode(data)
        for said in event.pop("choices", None) or ():
            choice = choices.setdefault(said.get("index", 0), {"index": said.get("index", 0)})
            _add_choice(choice, said)
        for name, value in event.items():
            if value is not None or name not in top:
                top[name] = value if name not in ("id", "created", "model") or not top.get(name) else top[name]
    top["object"] = str(top.get("object", "")).removesuffix(".chunk")
    top["choices"] = [choices[index] for index in sorted(choices)]
    for choice in top["choices"]:
        _close(choice)
    usage = top.pop("usage", None)
    if usage is not None:
        top["usage"] = usage
    return _encode(top)


def _add_choice(choice: Json, said: Json) -> None:
    for name, value in said.items():
        if name == "delta":
            _add(choice.setdefault("message", {}), value or {})
        elif name == "text":
            choice["text"] = choice.get("text", "") + (value or "")
        elif name == "logprobs" and isinstance(value, dict) and isinstance(choice.get(name), dict):
            _add(choice[name], value)
        elif value is not None or name not in choice:
            choice[name] = value


def _add(whole: Json, delta: Json) -> None:
    """One delta to what there is."""
    for name, value in delta.items():
        have = whole.get(name)
        if name == "audio":
            raise TypeError("sound in pieces cannot be joined")
        if name == "tool_calls":
            calls = whole.setdefault(name, {})
            for at, call in enumerate(value or ()):
                begun = calls.setdefault(call.get("index", at), {})
                if begun.get("id") and call.get("id", begun["id"]) not in ("", None, begun["id"]):
                    raise TypeError("two calls in one place cannot be told apart")
                _add(begun, {k: v for k, v in call.items() if k != "index"})
        elif have is None or value is None:
            whole[name] = value if have is None else have
        elif isinstance(value, str) and isinstance(have, str):
            whole[name] = (have or value) if name in _ONCE else have + value
        elif isinstance(value, list) and isinstance(have, list):
            whole[name] = have + value
        elif isinstance(value, dict) and isinstance(have, dict):
            _add(have, value)
        elif isinstance(value, str | list | dict) or isinstance(have, str | list | dict):
            if have and value:
                raise TypeError("texts in two shapes cannot be joined")
            whole[name] = have or value
        else:
            whole[name] = value


def _close(choice: Json) -> None:
    message = choice.get("message")
    if message is None:
        return
    message.setdefault("role", "assistant")
    if "tool_calls" in message:
        calls = message.pop("tool_calls")
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
            message["content"] = message.get("content") or None
    message.setdefault("content", None)


# ── from a whole to a stream ────────────────────────────────────────────────────────────────────────────────────────


def replay(whole: bytes, wants_usage: bool, pieces: bool) -> Iterator[Chunk] | None:
    """The chunks of the stream that a whole answer would have been; None where none can be made of it.

    pieces: word by word; else as few as can be.
    """
    read = _read(whole)
    return None if read is None else _replay(read[0], wants_usage, pieces)


def _replay(answer: Json, wants_usage: bool, pieces: bool) -> Iterator[Chunk]:
    choices, usage = answer.pop("choices", None) or [], answer.pop("usage", None)
    if str(answer.get("object", "")).startswith("chat.completion"):
        answer["object"] = "chat.completion.chunk"
    for choice in choices:
        index, finish = choice.pop("index", 0), choice.pop("finish_reason", None)
        rest: Json = {"delta": {}} if "message" in choice else {"text": ""}
        for delta, text in _deltas(choice, pieces):
            yield _event(answer, {"index": index, **delta, "finish_reason": None}, text)
        yield _event(answer, {"index": index, **rest, **choice, "finish_reason": finish}, "")
    end = _DONE
    if wants_usage and usage is not None:
        end = b"data: " + _encode(answer | {"choices": [], "usage": usage}) + b"\n\n" + end
    yield Chunk(raw=end, last=True)


def _event(answer: Json, choice: Json, text: str) -> Chunk:
    return Chunk(raw=b"data: " + _encode(answer | {"choices": [choice]}) + b"\n\n", text=text)


def _deltas(choice: Json, pieces: bool) -> Iterator[tuple[Json, str]]:
    """What stands before the finish reason, each with its text; takes it out of the choice."""
    logprobs = choice.pop("logprobs", None)
    whole = not pieces or logprobs is not None  # its tokens would have to be told with each piece
    if "message" not in choice:
        for part in _parts(choice.pop("text", None) or "", whole):
            yield {"text": part, "logprobs": logprobs}, part
        return
    message: Json = choice.pop("message") or {}
    texts = {name: message.pop(name) for name in _TEXTS if isinstance(message.get(name), str)}
    calls = message.pop("tool_calls", None) or []
    head = {"role": message.pop("role", "assistant")} | dict.fromkeys(texts, "") | message
    yield {"delta": head}, ""
    spoken = next((name for name in _TOLD if texts.get(name)), "")  # the text that log-probabilities are of
    for name, text in texts.items():
        for part in _parts(text, whole):
            if name == spoken and logprobs is not None:
                yield {"delta": {name: part}, "logprobs": logprobs}, part
                logprobs = None
            else:
                yield {"delta": {name: part}}, part
    if logprobs is not None:
        yield {"delta": {}, "logprobs": logprobs}, ""
    for at, call in enumerate(calls):
        yield from _call(at, call, whole)


_TEXTS: Final = ("reasoning_content", "reasoning", "content", "refusal")
_TOLD: Final = ("content", "refusal")


def _call(at: int, call: Json, whole: bool) -> Iterator[tuple[Json, str]]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        yield {"delta": {"tool_calls": [{"index": at, **call}]}}, ""
        return
    named = {**call, "function": {**function, "arguments": ""}}
    yield {"delta": {"tool_calls": [{"index": at, **named}]}}, str(function.get("name", ""))
    for part in _parts(function["arguments"], whole):
        yield {"delta": {"tool_calls": [{"index": at, "function": {"arguments": part}}]}}, part


def _parts(text: str, whole: bool) -> list[str]:
    if not text:
        return []
    return [text] if whole else _PIECE.findall(text)
