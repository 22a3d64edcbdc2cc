"""One answer of the simulated provider before it is written: steps, how they are framed, and what they cost.

An answer is composed once and may be written many times: where its identity and its time stand, it holds the
placeholders IDENT and STAMP, of the same length as what replaces them when it is written.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec

from gateway.demo.bill import Charge
from gateway.demo.pace import Pace

IDENT: Final = secrets.token_hex(12)  # 24 characters: the end of the answer's id and of x-request-id
STAMP: Final = 1_000_000_000 + secrets.randbelow(600_000_000)  # 10 digits: Unix seconds

_IDENT: Final = IDENT.encode()
_STAMP: Final = str(STAMP).encode()
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {529: "Site is overloaded"}

Identity = tuple[bytes, bytes]  # what replaces IDENT (24 characters) and STAMP (10 digits)

encode: Final = msgspec.json.encode


class Step(NamedTuple):
    """Bytes that are written together.  tokens: visible output tokens they carry.  delay: seconds to wait before them,
    on top of the pace.  end: after them the connection is closed ("eof") or reset ("reset").  alone: its own write."""

    data: bytes
    tokens: int = 0
    delay: float = 0.0
    end: str = ""
    alone: bool = False


@dataclass(slots=True)
class Reply:
    """steps: the body.  length: its bytes; None where it is sent in chunks.  unbilled: the fault that breaks it."""

    steps: Iterable[Step]
    status: int = 200
    content_type: str = "application/json"
    length: int | None = None
    charge: Charge | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    reusable: bool = False  # the same body may be answered with it again
    streamed: bool = False  # server-sent events, one a step
    unbilled: str = ""
    close: bool = False
    interim: bytes = b""
    garbage: bool = False  # a broken chunk size after the first chunk
    slice: int = 0  # bytes per write; 0: as they come
    pace: Pace | None = None  # its own


def of_bytes(data: bytes, content_type: str = "application/json", charge: Charge | None = None) -> Reply:
    """An answer in one piece."""
    step = Step(data, charge.output - charge.reasoning if charge else 0)
    return Reply([step], content_type=content_type, length=len(data), charge=charge)


def of_json(value: Any, charge: Charge | None = None, status: int = 200) -> Reply:
    reply = of_bytes(encode(value), charge=charge)
    reply.status = status
    return reply


def of_events(steps: list[Step], charge: Charge) -> Reply:
    """Server-sent events."""
    return Reply(steps, content_type="text/event-stream; charset=utf-8", charge=charge, streamed=True)


class Refusal(Exception):
    """What was asked is refused, in OpenAI's words."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind_of(status), "param": param, "code": code}

    def reply(self) -> Reply:
        return of_json({"error": self.error}, status=self.status)


def kind_of(status: int) -> str:
    """OpenAI's `error.type` for a status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def stamped(data: bytes, identity: Identity) -> bytes:
    """`data` with its placeholders filled in.  A STAMP counts only beside an IDENT: the digits may stand in a file."""
    if _IDENT not in data:
        return data
    return data.replace(_IDENT, identity[0]).replace(_STAMP, identity[1])


def framed(reply: Reply, http10: bool = False) -> Iterator[Step]:
    """The answer as it goes over the wire (RFC 9112), head included.  http10: for a caller that knows no chunks."""
    chunked = reply.length is None and not http10
    head = _head(reply, chunked, reply.close or (http10 and reply.length is None))
    for at, step in enumerate(reply.steps):
        if step.end == "reset" and not at:
            head = b""
        if reply.garbage and at:
            break
        data = b"%x\r\n%b\r\n" % (len(step.data), step.data) if chunked and step.data else step.data
        yield step._replace(data=head + data)
        head = b""
        if step.end:
            return
    if reply.garbage:
        yield Step(head + b"ZZZ\r\n", end="eof")
    elif chunked or head:
        yield Step(head + (b"0\r\n\r\n" if chunked else b""))


def sliced(steps: Iterable[Step], size: int) -> Iterator[Step]:
    """The same bytes, `size` of them per write."""
    for step in steps:
        if len(step.data) <= size:
            yield step._replace(alone=True)
            continue
        pieces = [step.data[at : at + size] for at in range(0, len(step.data), size)]
        yield Step(pieces[0], 0, step.delay, alone=True)
        for piece in pieces[1:-1]:
            yield Step(piece, alone=True)
        yield Step(pieces[-1], step.tokens, 0.0, step.end, True)


def _head(reply: Reply, chunked: bool, close: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}",
        f"content-type: {reply.content_type}",
        f"x-request-id: req_{IDENT}",
        "openai-version: 2020-10-01",
    ]
    if chunked:
        lines.append("transfer-encoding: chunked")
    elif reply.length is not None:
        lines.append(f"content-length: {reply.length}")
    if close:
        lines.append("connection: close")
    lines.extend(f"{name}: {value}" for name, value in reply.headers)
    return reply.interim + "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"
