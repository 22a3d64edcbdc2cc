"""Reads a JSON body once: checks it, gives the fields that are needed, and changes fields without rebuilding the rest."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Final, TypeVar

import msgspec

from gateway.errors import BadCall

Fields = dict[str, msgspec.Raw]
Struct = TypeVar("Struct", bound=msgspec.Struct)

LARGE: Final = 1_000_000  # bytes above which work is cut up or leaves the event loop

_fields = msgspec.json.Decoder(Fields)
_encode = msgspec.json.Encoder().encode
_PATH = re.compile(r" - at `\$\.?(.*)`$")


async def read(body: bytes, decoder: msgspec.json.Decoder[Struct]) -> tuple[Struct, Fields]:
    """The typed part of a body, and all of its top-level fields as they were written.

    Refused with 400 and the field's name: broken JSON, wrong types, invalid UTF-8, a field given twice (parsers disagree on
    which one counts, so what is checked here might not be what the provider reads), nesting that exhausts a parser.
    """
    large = len(body) > LARGE
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
    if not _plain(body, fields):
        await (asyncio.to_thread(_refuse_duplicates, body) if large else _now(body))
    return call, fields


def patch(body: bytes, fields: Fields, changes: dict[str, object]) -> bytes:
    """The body with some top-level fields changed; every other value stays as it was written, byte for byte."""
    if not changes:
        return body
    changed: dict[str, object] = dict(fields)
    changed.update(changes)
    return _encode(changed)


def _plain(body: bytes, fields: Fields) -> bool:
    """Is the body exactly its fields, written compactly or as Python's json.dumps does?  Then no field stood twice."""
    if _encode(fields) == body:
        return True
    spaced = b", ".join([_encode(name) + b": " + bytes(raw) for name, raw in fields.items()])
    return len(spaced) + 2 == len(body) and body[1:-1] == spaced


async def _now(body: bytes) -> None:
    _refuse_duplicates(body)


def _refuse_duplicates(body: bytes) -> None:
    """Every object's names, on the slow and exact way; only for bodies laid out unusually."""
    depth_first: list[list[str]] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        depth_first.append([name for name, _ in pairs])

    json.loads(body, object_pairs_hook=collect, parse_int=str, parse_float=str)
    seen: set[str] = set()
    for name in depth_first[-1]:  # the outermost object is finished last
        if name in seen:
            raise BadCall(f"The field {name[:64]!r} is given twice; send it once.", code="duplicate_field", param=name[:64])
        seen.add(name)


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
