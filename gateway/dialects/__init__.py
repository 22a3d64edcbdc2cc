"""How a conversation is written.  A dialect is a module of pure functions over bytes: no await, no socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from gateway.body import Fields
from gateway.errors import GatewayError, UpstreamError
from gateway.exchange import Answer, Usage


@dataclass(slots=True)
class Chunk:
    """A part of an answer.  An answer that is not streamed is a stream of one chunk."""

    raw: bytes = b""  # as the provider wrote it: forwarded untouched where both ends speak alike
    text: str | None = None  # decoded only where somebody looks
    usage: Usage | None = None
    last: bool = False


class Cap(NamedTuple):
    """The most an answer may have, told to a provider."""

    field: str  # in which this provider is sure to read it
    tokens: int  # per choice


class Looked(NamedTuple):
    """What decides whether an answer may be kept."""

    finish: list[str]  # the finish reason of each choice; empty where one is missing
    tools: list[str]  # names of the tools it calls
    vectors: int  # embeddings


Place = tuple[str | int, ...]  # the way to a value in JSON: names of fields, and places in lists from 0
NAME: Final = -1  # last in a Place: not the value is meant but the field's own name, which cannot be written anew
NUMBER: Final[Place] = ("number",)  # group of a Part that is a number in JSON: whole, and a string where it is changed
TOOL_TEXT: Final = "tool_text"  # kind: what a tool is called with, where that is not the source of JSON
LOGPROBS: Final = "logprobs"  # last in a Place: all tokens in it, as one text, which can only be dropped


class Ambiguous(ValueError):
    """A text that its readers may read in two ways, so that what is judged might not be what is read."""


class Part(NamedTuple):
    """A string in a call or in an answer, with what it is for the one who reads it."""

    place: Place
    text: str
    # instructions | input | tool_definitions | tool_arguments | TOOL_TEXT | tool_results | output; or media: not to be
    # read as text
    kind: str
    lane: Place | None = None  # parts of one lane make one text, event after event; None: this one is whole in itself
    group: Place = ()  # the choice that a lane belongs to
    run: Place | None = None  # parts of one run may be joined by a reader too, in the order in which they come


def stage_of(kind: str) -> str:
    """As which assessors are asked about it."""
    return "tool_arguments" if kind == TOOL_TEXT else kind


class Reader(Protocol):
    """Bytes in, chunks out, however the bytes were cut.  Used for one answer, then thrown away.

    Neither method raises: what was good before an error is handed out first, then `failure` says what broke.
    """

    answer: Answer
    failure: UpstreamError | None
    rejected: str  # the field of a usage that made no sense

    def feed(self, data: bytes) -> list[Chunk]: ...

    def close(self) -> list[Chunk]:
        """The provider's side ended."""


class Dialect(Protocol):
    """A way of writing, as callers read it and as providers speak it: a module of functions."""

    name: str

    def write_error(self, error: GatewayError, request_id: str) -> bytes: ...

    def write_error_event(self, error: GatewayError, request_id: str) -> bytes: ...

    def write_ping(self) -> bytes: ...

    def write_summary(self, facts: dict[str, str | int | bool | None]) -> bytes: ...

    def write_call(
        self, fields: Fields, body: bytes, model: str, asked: str, want_usage: bool, cap: Cap | None = None
    ) -> bytes: ...

    def reader(self, stream: bool, look: bool, wants_usage: bool) -> Reader: ...

    def read_error(self, status: int, body: bytes) -> UpstreamError: ...

    def look(self, whole: bytes) -> Looked | None:
        """Of an answer that is not streamed; None where it is not understood, so that `replay` would not tell it."""

    def gather(self, stream: bytes) -> bytes | None:
        """The whole answer that a stream amounts to, with its usage; None where it cannot be told."""

    def replay(self, whole: bytes, wants_usage: bool, pieces: bool) -> Iterator[Chunk] | None:
        """The stream that a whole answer would have been; the last chunk ends it.  pieces: word by word.

        None where none can be made of it; what was begun does not fail.
        """

    def without_usage(self, last: bytes) -> bytes:
        """A stream's last chunk, for a caller who did not ask for the usage."""

    def read_asked(self, body: bytes) -> list[Part]:
        """Every text in a call.  Raises ValueError where it is no JSON, or could be read in two ways."""

    def read_said(self, data: bytes) -> tuple[list[Part], list[Place]]:
        """Every text in an answer, or in one event of it; and the groups that end with it, or what these begin with.

        Raises ValueError where it is no JSON, Ambiguous where a field stands twice in it.
        """

    def write_texts(self, data: bytes, changes: Mapping[Place, str | None]) -> bytes:
        """The same call, answer or event with some texts changed, or emptied (None); the rest stays as it was."""
