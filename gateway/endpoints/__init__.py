"""What callers may ask.  Here: from bytes to an Exchange, the part that every endpoint shares."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from random import getrandbits
from typing import Final, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from gateway import body as bodies
from gateway.dialects import Dialect
from gateway.errors import BadCall, ClientGone
from gateway.exchange import Caller, Exchange, Trace
from gateway.keys import Keys
from gateway.pipeline import Pipeline
from gateway.presence import Hangup
from gateway.reply import Reply

CallType = TypeVar("CallType", bound=msgspec.Struct)

NOBODY: Final = Caller("", "")
NO_TRACE: Final = Trace(0, 0, 0, False)  # until the caller is known, whose trace it may be

# Where callers put their labels; ours first, then what other gateways' users already send.
_SESSION: Final = (b"x-session-id", b"x-litellm-session-id", b"helicone-session-id", b"x-portkey-trace-id")
_USER: Final = (b"x-user-id", b"x-litellm-end-user-id", b"helicone-user-id")
_TAGS: Final = (b"x-tags", b"x-litellm-tags")
_PROPERTY: Final = b"helicone-property-"
_LABELS: Final = frozenset({*_SESSION, *_USER, *_TAGS, b"x-feature", b"x-portkey-metadata"})


@dataclass(slots=True, frozen=True)
class House:
    """What endpoints need of the running gateway."""

    keys: Keys
    pipeline: Pipeline
    dialect: Dialect  # in which callers are answered
    trace: Callable[[bytes | None, bytes | None, bool], Trace]
    body_limit: int  # bytes
    ping_seconds: float | None  # silence on a stream, until a comment line


@dataclass(slots=True, frozen=True)
class Kind:
    """One family of calls, in the words of metrics, spans and routes."""

    endpoint: str  # chat | completions | embeddings | …
    operation: str  # OTel gen_ai.operation.name
    route: str
    upstream_path: str  # below a provider's base_url


def _joined(lines: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers of which some have several lines: they are one list (RFC 9110, 5.3)."""
    headers: dict[bytes, bytes] = {}
    for name, value in lines:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def open_exchange(scope: Scope, house: House, kind: Kind) -> Exchange:
    """The request as it arrived: not identified, not read."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if len(headers) != len(scope["headers"]):
        headers = _joined(scope["headers"])
    now = time.time_ns()
    client = scope["client"]
    x = Exchange(
        id=f"req_{(now // 1_000_000) << 80 | getrandbits(80):032x}",  # sorts by time
        endpoint=kind.endpoint,
        operation=kind.operation,
        method=scope["method"],
        path=scope["path"],
        route=kind.route,
        started=time.perf_counter_ns(),
        started_at=now,
        trace=NO_TRACE if b"traceparent" in headers else house.trace(None, None, False),
        caller=NOBODY,
        dialect=house.dialect,
        upstream_path=kind.upstream_path,
        headers=headers,
        client=client[0] if client else "",
    )
    _label(x, headers)
    return x


def identify(x: Exchange, scope: Scope, house: House) -> None:
    """Comes first, before the body is read.  Only a known caller's trace is continued."""
    try:
        x.caller = house.keys.identify(x.headers, scope["headers"])
    finally:
        if (parent := x.headers.get(b"traceparent")) is not None:
            x.trace = house.trace(parent, x.headers.get(b"tracestate"), x.caller is not NOBODY)


async def read_body(scope: Scope, receive: Receive, limit: int, headers: Mapping[bytes, bytes]) -> bytes:
    """The whole body.  Raises BadCall when it is over the limit (without reading on), or compressed."""
    refuse_encoding(headers)
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message["body"]
        if len(body) > limit:
            raise _too_large(limit)
        return body
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone("The caller hung up before the request was whole.")
        pieces.append(message["body"])
        size += len(message["body"])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(pieces)
        message = await receive()


def refuse_encoding(headers: Mapping[bytes, bytes]) -> None:
    if headers.get(b"content-encoding", b"identity") not in (b"identity", b"identity, identity"):
        raise BadCall("Send the body without Content-Encoding.", code="unsupported_encoding", status=415)


def name_model(x: Exchange, house: House, model: str) -> None:
    """The model asked for, and the configured one behind it.  Raises BadCall where there is none."""
    x.model = model[:256]
    found = house.pipeline.targets.find(model)
    if found is None:
        raise BadCall(
            f"The model '{printable(model)}' does not exist here. GET /v1/models lists those your team may use.",
            code="model_not_found", status=404, param="model",
        )  # fmt: skip
    x.alias = found.name
    x.max_attempts = found.max_attempts


def read_stream(x: Exchange, stream: bool | None, options: Mapping[str, object] | None) -> None:
    """Whether the answer is to be streamed, and whether its caller asked for the usage at the end."""
    x.stream = x.asks_usage = stream is True
    asked = options.get("include_usage") if options else None
    if asked is not None and not isinstance(asked, bool):
        where = "stream_options.include_usage"
        raise BadCall(f"Invalid '{where}': expected 'bool | null'.", code="invalid_type", param=where)
    x.wants_usage = not x.stream or asked is True


class JsonEndpoint(Generic[CallType]):
    """POST with a JSON body that names a model: an ASGI application."""

    def __init__(
        self, house: House, kind: Kind, call: type[CallType], understand: Callable[[Exchange, CallType], None]
    ) -> None:
        self._house = house
        self._kind = kind
        self._decoder = msgspec.json.Decoder(call)
        self._understand = understand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        house = self._house
        x = open_exchange(scope, house, self._kind)
        hangup: Hangup = scope["hangup"]

        async def read(x: Exchange) -> None:
            identify(x, scope, house)
            require_method(x, "POST")
            kind = x.headers.get(b"content-type", b"")
            if kind and b"json" not in kind.lower():
                raise BadCall("Send 'Content-Type: application/json'.", code="unsupported_media_type", status=415)
            x.body = await read_body(scope, receive, house.body_limit, x.headers)
            call, x.fields = await bodies.read(x.body, self._decoder)
            x.call = call
            name_model(x, house, call.model)  # type: ignore[attr-defined]  # every call names its model
            self._understand(x, call)

        await house.pipeline.run(x, read, Reply(x, send, hangup, house.ping_seconds), hangup)


Read = Callable[[Exchange], Awaitable[None]]


def require_method(x: Exchange, *allowed: str) -> None:
    if x.method not in allowed:
        raise BadCall(f"{x.path} takes {' or '.join(allowed)}.", code="method_not_allowed", status=405)


def printable(text: str) -> str:
    """A caller's word as it may stand in a message: one line, no control characters, not long."""
    text = text[:128]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def named(text: str) -> str:
    """The same of a word that tells somebody apart from others: what is not shown of it is told by a digest."""
    shown = printable(text)
    if shown == text:
        return text
    return f"{shown[:111]}~{sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _too_large(limit: int) -> BadCall:
    return BadCall(f"The body is over the limit of {limit // 1_048_576} MiB.", code="body_too_large", status=413)


def _label(x: Exchange, headers: Mapping[bytes, bytes]) -> None:
    """Session, user, feature and tags: they describe a request, and decide nothing."""
    if _LABELS.isdisjoint(headers) and _PROPERTY not in b" ".join(headers):
        return  # most requests carry none
    for name in _SESSION:
        if name in headers:
            x.session = _named(headers[name])
            break
    for name in _USER:
        if name in headers:
            x.user = _named(headers[name])
            break
    if b"x-feature" in headers:
        x.feature = _named(headers[b"x-feature"])
    tags: list[str] = []
    for name in _TAGS:
        if name in headers:
            tags += [tag.strip() for tag in printable(headers[name].decode(errors="replace")).split(",")]
    if b"x-portkey-metadata" in headers:
        _read_metadata(x, headers[b"x-portkey-metadata"], tags)
    for name in headers:
        if name.startswith(_PROPERTY):
            tags.append(f"{name[len(_PROPERTY) :].decode()}={printable(headers[name].decode(errors='replace'))}")
    if tags:
        x.tags = tuple(tag for tag in tags if tag)[:32]


def _read_metadata(x: Exchange, raw: bytes, tags: list[str]) -> None:
    try:
        said = msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # a label that cannot be read labels nothing
    x.user = x.user or named(said.pop("_user", ""))
    tags += [printable(f"{name}={value}") for name, value in said.items()]


def _named(value: bytes) -> str:
    return named(value.decode("utf-8", "surrogateescape"))
