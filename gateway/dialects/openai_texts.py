"""The texts in calls and answers written as OpenAI writes them, and how to change one without touching the rest.

Every string counts, not only those in fields that are known: what a vendor adds tomorrow is read too, and so are the
shapes of the endpoints that are only relayed (Responses, Anthropic's messages), which are JSON of the same kind.  Left
out are short identifiers and enumerations where the API has them, and never in an object whose fields somebody chooses.
Log-probabilities repeat the text: they are read as one, and dropped where it is changed.  Fields: OpenAI API reference
(chat, completions, embeddings, responses), Anthropic API reference (messages).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.dialects import LOGPROBS, NAME, NUMBER, TOOL_TEXT, Ambiguous, Part, Place
from gateway.dialects.openai_lanes import (
    NAMES,
    SPOKEN,
    called,
    continued,
    growing,
    index,
    item,
    message,
    opening,
    placed,
    tokens,
)

_DEEPEST: Final = 200  # levels; parsers differ beyond

_REPEATED: Final = frozenset({"obfuscation", "embedding", "encrypted_content", "signature"})  # base64
_MEDIA: Final = frozenset({"data", "b64_json", "file_data", "partial_image_b64", "result"})  # base64
_FETCHED: Final = frozenset({"image_url", "file_url", "file_id", "input_audio", "image_file", "source"})
# Below these it is no picture and no file that a field names, by any of those names; or only where it quotes one.
_NOTED: Final = frozenset({"properties", "$defs", "definitions", "patternProperties", "metadata"})
_QUOTED: Final = frozenset({"annotations", "citations", "results"})
_DATA_URL: Final = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+[;,]|[^,]*;\s*base64\s*,)", re.ASCII | re.IGNORECASE)
# What calls of other vendors name a picture or a file by, and other words for what this one does.
_GIVEN: Final = frozenset(
    "document_url video_url audio_url images image video file_uri fileUri file_ids inline_data inlineData "  # noqa: SIM905
    "file_data fileData input_image_mask".split()
)
_NAMING: Final = _FETCHED | _GIVEN
_INLINE: Final = {"text": {"type", "media_type", "data"}, "content": {"type", "content"}}  # sources that are read here
_SOURCES: Final = frozenset({"arguments", "partial_json"})  # JSON in JSON, where they are strings
_ARGUMENTS: Final = _SOURCES | {"tool_calls", "function_call"}
_RESULTS: Final = frozenset(
    {
        "function_call_output",
        "tool_result",
        "custom_tool_call_output",
        "computer_call_output",
        "local_shell_call_output",
    }
)
_CALLS: Final = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "code_interpreter_call",
        "tool_use",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_call",
    }
)
_CALLED: Final = frozenset({"arguments", "input", "name", "code"})  # of such a call
_SYSTEM: Final = frozenset({"system", "developer"})
_DEFINED: Final = frozenset({"tools", "functions", "response_format", "text_format"})
_TYPED: Final = ("response.", "message_", "content_block_")  # events that say what goes on in them, and what is whole
_ENDS: Final = ("done", "stop", "completed", "incomplete", "failed", "delta_end")
# Fields whose objects have the API's own fields; in any other, and below it, somebody chose them.
_OURS: Final = frozenset(
    "messages message delta choices content tool_calls function function_call custom tools functions tool_choice "  # noqa: SIM905
    "data input output item items part parts content_block response summary annotations citations candidates "
    "usage error prompt instructions system response_format text_format text json_schema format reasoning "
    "thinking incomplete_details prompt_tokens_details completion_tokens_details input_tokens_details "
    "output_tokens_details source image_url input_audio file".split()
)
_OBJECTS: Final = frozenset({"arguments", "input"})  # of a call of a tool: chosen, whatever the field is elsewhere
_ID: Final = re.compile(r"[\w.:/@+=-]{0,64}", re.ASCII)  # a longer one is text, whatever its field is called
_BASE64: Final = re.compile(r"[\w+/=-]*", re.ASCII)
# Names of the API's own fields, and the words of JSON Schema: what somebody chose is none of them.
_WORDS: Final = (
    NAMES
    | _OURS
    | _REPEATED
    | _MEDIA
    | _FETCHED
    | _ARGUMENTS
    | frozenset(
        "name stream stream_options temperature top_p top_k n stop seed user store metadata max_tokens logit_bias "  # noqa: SIM905
        "modalities max_completion_tokens presence_penalty frequency_penalty parallel_tool_calls logprobs "
        "top_logprobs prediction web_search_options prompt_cache_retention background max_output_tokens "
        "max_tool_calls include conversation stop_sequences thinking budget_tokens cache_control ttl suffix echo "
        "best_of dimensions voice speed quality size style language refusal reasoning_content reasoning_details audio "
        "url filename parameters annotations delta logprob token bytes prompt_tokens completion_tokens total_tokens "
        "input_tokens output_tokens cached_tokens reasoning_tokens audio_tokens accepted_prediction_tokens "
        "rejected_prediction_tokens cache_creation_input_tokens incomplete_details cache_read_input_tokens "
        "sequence_number output_index content_index summary_index code param citation type properties description "
        "required items enum title default format anyOf oneOf allOf additionalProperties const minimum maximum "
        "pattern $ref $defs $schema schema strict nullable minItems maxItems minLength maxLength examples "
        "content_filter_results prompt_filter_results".split()
    )
)
_NAMED: Final = re.compile(rb'(?<!\\)"\s*:')
_COLON: Final = re.compile(rb"\\u00(?:3[aA]|20)")  # a text that begins with one would count as a name
_SHORTEST: Final = 10_000_000  # no number of less than eight digits is looked for
_TYPES: Final = frozenset({"object", "string", "number", "integer", "boolean", "array", "null"})
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
    except Ambiguous:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ValueError("not JSON that can be read") from error
    found: list[Part] = []
    if not isinstance(call, dict):
        _walk(call, (), "input", found, False)
        return found
    for name, value in call.items():
        if name not in _WORDS:
            found.append(Part((name, NAME), name, "input"))
        if name in _DEFINED:
            _walk(value, (name,), "tool_definitions", found, False)
        elif name in ("prompt", "input") and _holds_tokens(value):
            found.append(Part((name,), "", "media"))  # numbers of a vocabulary: text that nobody can read here
            _walk(value, (name,), "input", found, False)
        elif name in ("instructions", "system"):
            _walk(value, (name,), "instructions", found, False)
        else:
            _field(name, value, (), "input", found, False)
    return found


def read_said(data: bytes) -> tuple[list[Part], list[Place]]:
    """Every text in an answer, or in one event of it; and the groups that end with it, or what these begin with.

    Raises ValueError where it is no JSON, Ambiguous where a field stands twice in it.
    """
    said = _read(data)
    found: list[Part] = []
    ended: list[Place] = []
    if not isinstance(said, dict):
        _walk(said, (), "output", found, False)
        return [item(part, said) if isinstance(said, list) else placed(part, said) for part in found], ended
    choices = said.get("choices")
    if isinstance(choices, list):
        for at, choice in enumerate(choices):
            if isinstance(choice, dict):
                group: Place = ("choice", index(choice.get("index"), at))
                _choice(choice, at, group, found, said)
                if choice.get("finish_reason") is not None:
                    ended.append(group)
            else:
                _walk(choice, ("choices", at), "output", found, False)
    event = said.get("type")
    shaped = isinstance(choices, list) or (isinstance(event, str) and event.startswith(_TYPED))
    for name, value in said.items():
        if name == "choices" and isinstance(choices, list):
            continue
        before = len(found)
        if name not in _WORDS:
            found.append(Part((name, NAME), name, "output"))
        again = name in _CALLED and isinstance(event, str) and "_call" in event
        _field(name, value, (), TOOL_TEXT if again else "output", found, False)
        if name in ("delta", LOGPROBS) and isinstance(event, str):
            parts = found[before:]
            if kind := called(event):
                parts = [part._replace(kind=kind) if part.kind == "output" else part for part in parts]
            found[before:] = [continued(part, said, event) for part in parts]
        elif shaped and isinstance(event, str):
            found[before:] = [opening(part, said, event) for part in found[before:]]
        elif not shaped or (isinstance(value, list) and name in SPOKEN and isinstance(choices, list)):
            found[before:] = [placed(part, said) for part in found[before:]]
    if isinstance(event, str) and event.endswith(_ENDS):
        ended.append(())
    return found, ended


def write_texts(data: bytes, changes: Mapping[Place, str | None]) -> bytes:
    """The same call, answer or event with some texts changed, or emptied (None); the rest stays as it was written."""
    try:
        return bytes(_rewritten(msgspec.Raw(data), dict(changes)))
    except (msgspec.DecodeError, UnicodeEncodeError):  # halves of characters, or another encoding than UTF-8
        value: Any = {"": json.loads(data)}
        for place, text in changes.items():
            place, inner = ("", *place), value
            for step in place[:-1]:
                inner = inner[step]
                if isinstance(inner, dict) and isinstance(inner.get(LOGPROBS), dict | list):
                    inner[LOGPROBS] = None
            inner[place[-1]] = text
        return json.dumps(value[""]).encode()


def _read(data: bytes) -> Any:
    """As clients read it.  Raises ValueError where it is no JSON, or could be read in two ways."""
    try:
        said = _decode(_without_numbers(data) if b'"embedding"' in data else data)
        again = _encode(said)
        # The same number of names stand in both, as a quote and a colon tell them; not so behind a backslash.
        if again != data and (
            b"\\\\" in data or _COLON.search(data) or len(_NAMED.findall(again)) != len(_NAMED.findall(data))
        ):
            json.loads(data, object_pairs_hook=_once)
        return said
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        try:  # clients take halves of characters, byte order marks and UTF-16
            return json.loads(data, object_pairs_hook=_once)
        except Ambiguous:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError("not JSON that can be read") from error


def _without_numbers(data: bytes) -> bytes:
    """An answer without its embeddings, where these are nothing but numbers: they are most of it."""
    fields = _fields(data)
    if "data" not in fields or bytes(memoryview(fields["data"])[:1]) != b"[":
        return data
    rows: list[Any] = _items(fields["data"])
    for at, raw in enumerate(rows):
        if bytes(memoryview(raw)[:1]) != b"{":
            continue
        row = _fields(raw)
        vector = bytes(row.get("embedding", b""))
        if vector[:1] == b"[" and b'"' not in vector:  # no string is in it
            rows[at] = row | {"embedding": None}
    return _encode(fields | {"data": rows})


def _choice(choice: dict[str, Any], at: int, group: Place, found: list[Part], said: dict[str, Any]) -> None:
    for name, value in choice.items():
        before = len(found)
        if name not in _WORDS:
            found.append(Part(("choices", at, name, NAME), name, "output"))
        _field(name, value, ("choices", at), "output", found, False)
        if name in ("delta", "text", LOGPROBS):
            found[before:] = [growing(part, choice, 2, group) for part in found[before:]]
        elif name == "message":
            found[before:] = [message(part, choice, group) for part in found[before:]]
        elif isinstance(value, list) and name in SPOKEN:
            found[before:] = [placed(part, said) for part in found[before:]]


def _field(name: str, value: Any, place: Place, kind: str, found: list[Part], free: bool) -> None:
    if isinstance(value, str):
        if name in NAMES and (value in _TYPES if free else _ID.fullmatch(value)):
            return
        if (name in _MEDIA and _is_base64(value)) or _is_data(value):
            found.append(Part((*place, name), "", "media"))
            return
        if name in _NAMING and value and _fetches(name, value, place, kind):
            found.append(Part((*place, name), "", "media"))
        if name in _REPEATED and not free and _BASE64.fullmatch(value):
            return
        if name in _ARGUMENTS:
            kind = "tool_arguments" if name in _SOURCES else TOOL_TEXT
        found.append(Part((*place, name), value, kind))
    elif isinstance(value, dict | list):
        if name == LOGPROBS and not free:
            if text := tokens(value):
                found.append(Part((*place, name), text, kind))
            return
        if name in _NAMING and value and _fetches(name, value, place, kind):
            found.append(Part((*place, name), "", "media"))
        free = free or name not in _OURS or (kind == TOOL_TEXT and name in _OBJECTS)
        _walk(value, (*place, name), TOOL_TEXT if name in _ARGUMENTS else kind, found, free)
    elif free and name not in NAMES:
        _number(value, (*place, name), TOOL_TEXT if name in _ARGUMENTS else kind, found)


def _fetches(name: str, value: Any, place: Place, kind: str) -> bool:
    """Does a field that may name a picture or a file name one for the model to look at, or for the caller?

    Not in a schema or in what somebody noted, nor where a tool is called: these are words like any.  Nor where an
    answer says which file it quotes.
    """
    if kind == TOOL_TEXT or not _NOTED.isdisjoint(place) or (name in _GIVEN and kind == "output"):
        return False
    if name == "source":
        told = value.get("type") if isinstance(value, dict) else None
        inline = isinstance(told, str) and value.keys() <= _INLINE.get(told, frozenset())
        return not (isinstance(value, str) or inline)
    return name != "file_id" or not (kind == "output" or not _QUOTED.isdisjoint(place))


def _is_data(text: str) -> bool:
    return text[:1] in ("d", "D") and _DATA_URL.match(text) is not None


def _number(value: Any, place: Place, kind: str, found: list[Part]) -> None:
    """One that could be somebody's, where no schema says what it is."""
    if not isinstance(value, int | float) or abs(value) < _SHORTEST or kind == "tool_definitions":
        return
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    found.append(Part(place, str(whole), kind, group=NUMBER))


def _walk(value: Any, place: Place, kind: str, found: list[Part], free: bool) -> None:
    """free: the fields here are not the API's."""
    if isinstance(value, str):
        found.append(Part(place, "", "media") if _is_data(value) else Part(place, value, kind))
        return
    if len(place) > _DEEPEST:
        raise ValueError("nested too deeply to be read")
    if isinstance(value, list):
        for at, item in enumerate(value):
            if isinstance(item, dict | list | str):
                _walk(item, (*place, at), kind, found, free)
            elif free:
                _number(item, (*place, at), kind, found)
    elif isinstance(value, dict):
        role, type_ = (word if isinstance(word, str) else "" for word in (value.get("role"), value.get("type")))
        calls = False  # is it a call, and not a message that calls itself one?
        if role in ("tool", "function") or type_ in _RESULTS:
            kind = "tool_results"
        elif role in _SYSTEM:
            kind = "instructions"
        elif type_ in _CALLS and not role and "content" not in value:
            calls = True
        for name, inner in value.items():
            if name not in _WORDS:
                found.append(Part((*place, name, NAME), name, kind))
            _field(name, inner, place, TOOL_TEXT if calls and name in _CALLED else kind, found, free)


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
        raise Ambiguous("a field is given twice")
    return fields


def _rewritten(raw: msgspec.Raw, changes: dict[Place, str | None]) -> msgspec.Raw:
    """Level by level, only along the places that change."""
    if () in changes:
        empty = changes[()] is None and bytes(memoryview(raw)[:1]) == b"["
        return msgspec.Raw(b"[]" if empty else _encode(changes[()]))
    below: dict[str | int, dict[Place, str | None]] = {}
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
    if LOGPROBS in fields and bytes(fields[LOGPROBS])[:1] in b"{[":
        fields[LOGPROBS] = msgspec.Raw(b"null")  # they repeat the text that was changed
    return msgspec.Raw(_encode(fields))
