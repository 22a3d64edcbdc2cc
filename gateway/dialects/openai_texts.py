"""The texts in calls and answers written as OpenAI writes them, and how to change one without touching the rest.

Every string counts, not only those in fields that are known: what a vendor adds tomorrow is read too, and so are the
shapes of the endpoints that are only relayed (Responses, Anthropic's messages), which are JSON of the same kind.  Left
out are short identifiers and enumerations, and log-probabilities, which repeat the text and are dropped where it is
changed.  Fields: OpenAI API reference (chat, completions, embeddings, responses), Anthropic API reference (messages).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.dialects import NAME, Part, Place

LONGEST_ID: Final = 64  # characters of an identifier; what is longer is text, whatever its field is called
_DEEPEST: Final = 200  # levels; parsers differ beyond

# Fields that identify or enumerate.
_NAMES: Final = frozenset(
    "id object model type role finish_reason stop_reason created system_fingerprint service_tier index status call_id "  # noqa: SIM905
    "item_id tool_call_id tool_use_id previous_response_id response_id encoding_format detail format media_type "
    "reasoning_effort verbosity safety_identifier prompt_cache_key tool_choice truncation event_id container_id".split()
)
_REPEATED: Final = frozenset({"logprobs", "obfuscation", "embedding", "usage", "encrypted_content", "signature"})
_MEDIA: Final = frozenset({"data", "b64_json", "file_data", "partial_image_b64", "result"})  # base64
_FETCHED: Final = frozenset({"image_url", "file_url", "file_id", "input_audio", "image_file", "source"})
_ARGUMENTS: Final = frozenset({"tool_calls", "function_call", "arguments", "partial_json"})
_RESULTS: Final = frozenset(
    {
        "function_call_output",
        "tool_result",
        "custom_tool_call_output",
        "computer_call_output",
        "local_shell_call_output",
    }
)
_CALLS: Final = frozenset({"function_call", "custom_tool_call", "tool_use", "server_tool_use", "mcp_call"})
_CALLED: Final = frozenset({"arguments", "input", "name"})  # of such a call
_SYSTEM: Final = frozenset({"system", "developer"})
_DEFINED: Final = frozenset({"tools", "functions", "response_format", "text_format"})
_ENDS: Final = ("done", "stop", "completed", "incomplete", "failed", "delta_end")
_GROUP: Final = ("output_index", "index", "item_id", "content_index", "summary_index")
# In a field `delta`, what is whole in itself; all else there goes on in the next event.
_WHOLE: Final = _NAMES | {"name", "server_label"}
_decode = msgspec.json.Decoder().decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def read_asked(body: bytes) -> list[Part]:
    """Every text in a call.  Raises ValueError where it is no JSON, or could be read in two ways."""
    try:
        call = _decode(body)
        if _encode(call) != body:
            json.loads(body, object_pairs_hook=_once)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("not JSON that can be read") from error
    found: list[Part] = []
    if not isinstance(call, dict):
        _walk(call, (), "input", found)
        return found
    for name, value in call.items():
        if name in _DEFINED:
            _walk(value, (name,), "tool_definitions", found)
        elif name in ("prompt", "input") and _holds_tokens(value):
            found.append(Part((name,), "", "media"))  # numbers of a vocabulary: text that nobody can read here
            _walk(value, (name,), "input", found)
        elif name in ("instructions", "system"):
            _walk(value, (name,), "instructions", found)
        else:
            _field(name, value, (), "input", found)
    return found


def read_said(data: bytes) -> tuple[list[Part], list[Place] | None]:
    """Every text in an answer, or in one event of it; and the groups that end with it (None: all of them)."""
    try:
        said = _decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("not JSON that can be read") from error
    found: list[Part] = []
    ended: list[Place] = []
    if not isinstance(said, dict):
        _walk(said, (), "output", found)
        return found, ended
    choices = said.get("choices")
    if isinstance(choices, list):
        for at, choice in enumerate(choices):
            if isinstance(choice, dict):
                index = choice.get("index", at)
                group: Place = ("choice", index if isinstance(index, int) else at)
                _choice(choice, at, group, found)
                if choice.get("finish_reason") is not None:
                    ended.append(group)
    event = said.get("type")
    marks = (said.get(name, 0) for name in _GROUP) if isinstance(event, str) else ()
    group = tuple(mark if isinstance(mark, int | str) else 0 for mark in marks)
    for name, value in said.items():
        if name == "choices" and isinstance(choices, list):
            continue
        before = len(found)
        _field(name, value, (), "output", found)
        if name == "delta" and isinstance(event, str):
            kind = "tool_arguments" if "arguments" in event or "_call" in event else ""
            found[before:] = [_growing(part, said, 0, (event, *group), group, kind) for part in found[before:]]
    if isinstance(event, str) and event.endswith(_ENDS):
        return found, None
    return found, ended


def write_texts(data: bytes, changes: Mapping[Place, str]) -> bytes:
    """The same call, answer or event with some texts changed; all the rest stays as it was written."""
    return bytes(_rewritten(msgspec.Raw(data), dict(changes)))


def _choice(choice: dict[str, Any], at: int, group: Place, found: list[Part]) -> None:
    for name, value in choice.items():
        before = len(found)
        _field(name, value, ("choices", at), "output", found)
        if name in ("delta", "text"):
            found[before:] = [_growing(part, choice, 2, group, group, "") for part in found[before:]]


def _growing(part: Part, root: Any, depth: int, lane: Place, group: Place, kind: str) -> Part:
    """Unless it is whole by its name, a part of a text that goes on in the next event.  depth: of root in its place."""
    last = part.place[-1]
    if part.kind == "media" or last == NAME or (last in _WHOLE and len(part.place) > 1):
        return part
    steps: list[str | int] = []
    for step in part.place[depth:]:
        inner = root[step]
        named = isinstance(step, int) and isinstance(inner, dict) and isinstance(inner.get("index"), int)
        steps.append(inner["index"] if named else step)  # a tool call is known by its index, not by its place
        root = inner
    return Part(part.place, part.text, kind or part.kind, (*lane, *steps), group)


def _field(name: str, value: Any, place: Place, kind: str, found: list[Part]) -> None:
    if isinstance(value, str):
        if name in _NAMES and len(value) <= LONGEST_ID:
            return
        if (name in _MEDIA and _is_base64(value)) or value.startswith("data:"):
            found.append(Part((*place, name), "", "media"))
            return
        if name in _FETCHED:
            found.append(Part((*place, name), "", "media"))
        if name in _REPEATED:
            return
        found.append(Part((*place, name), value, "tool_arguments" if name in _ARGUMENTS else kind))
    elif isinstance(value, dict | list):
        if name in _REPEATED:
            return
        if name in _FETCHED:
            found.append(Part((*place, name), "", "media"))
        _walk(value, (*place, name), "tool_arguments" if name in _ARGUMENTS else kind, found)


def _walk(value: Any, place: Place, kind: str, found: list[Part]) -> None:
    if isinstance(value, str):
        found.append(Part(place, value, kind) if not value.startswith("data:") else Part(place, "", "media"))
        return
    if len(place) > _DEEPEST:
        raise ValueError("nested too deeply to be read")
    if isinstance(value, list):
        for at, item in enumerate(value):
            if isinstance(item, dict | list | str):
                _walk(item, (*place, at), kind, found)
    elif isinstance(value, dict):
        role, type_ = (word if isinstance(word, str) else "" for word in (value.get("role"), value.get("type")))
        called = ""  # what its arguments are: of a call, not of a message that calls itself one
        if role in ("tool", "function") or type_ in _RESULTS:
            kind = "tool_results"
        elif role in _SYSTEM:
            kind = "instructions"
        elif type_ in _CALLS and not role and "content" not in value:
            called = "tool_arguments"
        for name, inner in value.items():
            if len(name) > 16:  # a shorter one holds no secret
                found.append(Part((*place, name, NAME), name, kind))
            _field(name, inner, place, called if called and name in _CALLED else kind, found)


def _holds_tokens(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(one, int) or (isinstance(one, list) and any(isinstance(token, int) for token in one))
        for one in value
    )


def _is_base64(text: str) -> bool:
    return len(text) > 256 and text.isascii() and " " not in text[:256]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers disagree on which of two fields of one name counts: what is judged might not be what is read."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _rewritten(raw: msgspec.Raw, changes: dict[Place, str]) -> msgspec.Raw:
    """Level by level, only along the places that change."""
    if () in changes:
        return msgspec.Raw(_encode(changes[()]))
    below: dict[str | int, dict[Place, str]] = {}
    for place, text in changes.items():
        below.setdefault(place[0], {})[place[1:]] = text
    if bytes(memoryview(raw)[:64]).lstrip()[:1] == b"[":
        items = _items(raw)
        for at, inner in below.items():
            assert isinstance(at, int)
            items[at] = _rewritten(items[at], inner)
        return msgspec.Raw(_encode(items))
    fields = _fields(raw)
    for name, inner in below.items():
        assert isinstance(name, str)
        fields[name] = _rewritten(fields[name], inner)
    if "logprobs" in fields and bytes(fields["logprobs"])[:1] in b"{[":
        fields["logprobs"] = msgspec.Raw(b"null")  # they repeat the text that was changed
    return msgspec.Raw(_encode(fields))
