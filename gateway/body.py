"""Reads a JSON body once: checks it, gives the fields that are needed, and changes fields without rebuilding it."""

from __future__ import annotations

import asyncio
import re
from typing import Final, TypeVar

import msgspec

from gateway.errors import BadCall

Fields = dict[str, msgspec.Raw]
Struct = TypeVar("Struct", bound=msgspec.Struct)

NOTHING: Final = msgspec.Raw()  # a field that is not there

LARGE: Final = 1_000_000  # bytes above which work is cut up or leaves the event loop
MAX_FIELDS: Final = 1000  # at the top of a body; OpenAI's largest call has about forty

MAX_VALUES: Final = 500_000  # commas in a large body: parsing is one step that nothing else can interrupt

_fields = msgspec.json.Decoder(Fields)
_encode = msgspec.json.Encoder().encode
_name = msgspec.json.Decoder(str)
_NAME: Final = re.compile(rb'[ \t\r\n]*("(?:[^"\\]++|\\.)*+")[ \t\r\n]*:[ \t\r\n]*')
_END: Final = re.compile(rb"[ \t\r\n]*[,}]")
_PATH = re.compile(r" - at `\$\.?(.*)`$")


async def read(body: bytes, decoder: msgspec.json.Decoder[Struct]) -> tuple[Struct, Fields]:
    """The typed part of a body, and all of its top-level fields as they were written.

    Refused with 400 and the field's name: broken JSON, wrong types, invalid UTF-8, a field given twice (parsers
    disagree on which one counts: what is checked might not be what the provider reads), nesting that exhausts a parser.
    """
    large = len(body) > LARGE
    if large and body.count(b",") > MAX_VALUES:
        raise BadCall(f"The body holds over {MAX_VALUES} values. Split it.", code="body_too_large", status=413)
    try:
        if not body.isascii():
            await _check_utf8(body)
        fields = _fields.decode(body)
        if large:
            await asyncio.sleep(0)
        call = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_type(error) from None
    except msgspec.DecodeError as error:
        raise BadCall(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise BadCall(f"The body is not valid UTF-8 (byte {error.start}).", code="invalid_json") from None
    except RecursionError:
        raise BadCall("The body is nested too deeply.", code="invalid_json") from None
    if large:
        await asyncio.sleep(0)
    if large or not _plain(body, fields):
        _refuse_duplicates(body, fields)
    return call, fields


def patch(body: bytes, fields: Fields, changes: dict[str, object], drop: str | None = None) -> bytes:
    """The body with some top-level fields changed; every other value stays as it was written, byte for byte.

    drop: a field that is left out.
    """
    if not changes and (drop is None or drop not in fields):
        return body
    changed: dict[str, object] = dict(fields)
    changed.update(changes)
    if drop is not None:
        changed.pop(drop, None)
    return _encode(changed)


def _plain(body: bytes, fields: Fields) -> bool:
    """Is the body exactly its fields, written compactly or as Python's json.dumps does?  Then no field stood twice."""
    if _encode(fields) == body:
        return True
    spaced = b", ".join([_encode(name) + b": " + bytes(raw) for name, raw in fields.items()])
    return len(spaced) + 2 == len(body) and body[1:-1] == spaced


def _refuse_duplicates(body: bytes, fields: Fields) -> None:
    """Walks from name to name, over each value as it was decoded last: where another one stands, it is given twice."""
    if len(fields) > MAX_FIELDS:
        raise BadCall(f"The body has over {MAX_FIELDS} fields.", code="invalid_request")
    at = body.index(b"{") + 1
    seen: set[str] = set()
    for _ in range(len(fields) + 1):
        found = _NAME.match(body, at)
        if found is None:
            return  # the closing brace
        quoted = found.group(1)
        name: str = _name.decode(quoted) if b"\\" in quoted else quoted[1:-1].decode()
        value, at = bytes(fields[name]), found.end()
        end = _END.match(body, at + len(value))
        if name in seen or end is None or not body.startswith(value, at):
            said = name[:64]
            raise BadCall(f"The field {said!r} is given twice; send it once.", code="duplicate_field", param=said)
        seen.add(name)
        at = end.end()


async def _check_utf8(body: bytes) -> None:
    if len(body) <= LARGE:
        body.decode()
        return
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), LARGE):
        decoder.decode(body[start : start + LARGE])
        await asyncio.sleep(0)
    decoder.decode(b"", final=True)


def _wrong_type(error: msgspec.ValidationError) -> BadCall:
    text = str(error)
    found = _PATH.search(text)
    where = found.group(1) if found else ""
    what = text[: found.start()] if found else text
    what = what.replace("`", "'")
    missing = re.match(r"Object missing required field '(.*)'", what)
    if missing:
        field = f"{where}.{missing.group(1)}" if where else missing.group(1)
        return BadCall(f"The field '{field}' is required.", code="invalid_request", param=field)
    field = where or "body"
    return BadCall(f"Invalid '{field}': {what[:1].lower()}{what[1:]}.", code="invalid_type", param=where or None)
