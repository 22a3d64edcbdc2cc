"""An answer that is passed on untouched, whatever it is; read only for its usage and its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway import charsets
from gateway.dialects import Chunk, sse
from gateway.errors import UpstreamError
from gateway.exchange import Answer
from gateway.usage import BadUsage, WireUsage, usage_from

LOOKED_AT: Final = 1_000_000  # bytes of a JSON answer that are kept to read its usage


class _Facts(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Event(_Facts):
    response: _Facts | None = None  # OpenAI Responses: response.completed


_facts = msgspec.json.Decoder(_Facts)
_event = msgspec.json.Decoder(_Event)


def reader(headers: Mapping[bytes, bytes]) -> OpaqueReader:
    """Given the head of the answer."""
    kind = headers.get(b"content-type", b"")
    encoded = headers.get(b"content-encoding", b"").lower() not in (b"", b"identity")
    charset = charsets.UNKNOWN if encoded else charsets.declared(kind)
    kind = b"" if encoded else kind.lower()
    return OpaqueReader(charsets.event_stream(kind), b"json" in kind, charset)


class OpaqueReader:
    """Every piece as it came; the last chunk is empty."""

    __slots__ = ("_events", "_held", "_json", "_usage", "answer", "failure", "rejected")

    def __init__(self, events: bool, json: bool, charset: str = "") -> None:
        self.answer = Answer(charset=charset)
        self.failure: UpstreamError | None = None
        self.rejected = ""
        self._events = sse.Splitter() if events else None
        self._json = json
        self._held = bytearray()
        self._usage: WireUsage | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        if self._events is not None:
            try:
                for event in self._events.feed(data):
                    self._look(event)
            except UpstreamError:
                self._events = None  # too large to be looked at, not too large to be passed on
        elif self._json:
            self._held += data
            if len(self._held) > LOOKED_AT:
                self._json = False
                self._held.clear()
        return [Chunk(raw=data)]

    def close(self) -> list[Chunk]:
        if self._json and self._held:
            try:
                self._note(_facts.decode(self._held))
            except (msgspec.DecodeError, RecursionError):
                self.rejected = ""  # whatever it is, it tells no usage
        usage = None
        if self._usage is not None:
            try:
                usage = usage_from(self._usage)
            except BadUsage as error:
                self.rejected = error.field
        return [Chunk(usage=usage, last=True)]

    def _look(self, event: bytes) -> None:
        data = sse.data(event)
        if data is None or b'"usage"' not in data:
            return
        try:
            said = _event.decode(data)
        except (msgspec.DecodeError, RecursionError):
            return
        self._note(said.response if said.response is not None else said)

    def _note(self, facts: _Facts) -> None:
        answer = self.answer
        answer.id, answer.model = facts.id or answer.id, facts.model or answer.model
        answer.tier = facts.service_tier or answer.tier
        self._usage = facts.usage or self._usage
