"""Every other /v1/* path: passed on untouched to the provider of the model it names, or to the team's own."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from gateway import body as bodies
from gateway.charsets import event_stream
from gateway.dialects import Reader, opaque
from gateway.endpoints import (
    House,
    Kind,
    identify,
    name_model,
    open_exchange,
    read_body,
    refuse_encoding,
    require_method,
)
from gateway.errors import BadCall, ClientGone
from gateway.exchange import Exchange
from gateway.presence import Hangup
from gateway.reply import Reply

KIND: Final = Kind("relay", "relay", "/v1/{path}", "")
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")

# What the router matched is what the provider gets: no escapes, no empty or dotted segments, nothing to disagree on.
_PATH: Final = re.compile(rb"/v1(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:@!$&'()*+,=-]+)+")
_QUERY: Final = re.compile(rb"[\x21-\x7e]{0,8192}")
_PEEK: Final = 64 * 1024  # bytes of a form in which its model is looked for
_PART_HEAD: Final = 4096  # bytes of a part's head that are looked at
_BOUNDARY: Final = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PART_MODEL: Final = re.compile(
    rb'\r?\n(?:[^\r\n]{1,1000}\r?\n){0,8}?[^\r\n]{0,1000}?[ ;]name="?model"?[;\r\n]', re.IGNORECASE
)
_FORM_MODEL: Final = re.compile(rb'name="model"(?:\r\n[^\r\n]{1,256}){0,4}\r\n\r\n([^\r\n]{1,256})\r\n')


class Call(msgspec.Struct):
    model: str | None = None


class RelayEndpoint:
    """An ASGI application."""

    def __init__(self, house: House, upload_limit: int, providers: tuple[str, ...]) -> None:
        self._house = house
        self._upload_limit = upload_limit
        self._only = providers[0] if len(providers) == 1 else None
        self._decoder = msgspec.json.Decoder(Call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        x = open_exchange(scope, self._house, KIND)
        hangup: Hangup = scope["hangup"]

        async def read(x: Exchange) -> None:
            identify(x, scope, self._house)
            require_method(x, *METHODS)
            path, query = scope["raw_path"], scope["query_string"]
            if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
                raise BadCall("This path does not exist.", code="not_found", status=404)
            x.upstream_path = path.decode()[len("/v1") :] + (f"?{query.decode()}" if query else "")
            x.reader = lambda headers: _reader(x, headers)
            await self._read_body(x, scope, receive)
            if not x.alias:
                self._choose_provider(x)

        await self._house.pipeline.run(x, read, Reply(x, send, hangup, self._house.ping_seconds), hangup)

    async def _read_body(self, x: Exchange, scope: Scope, receive: Receive) -> None:
        headers = x.headers
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return
        kind = headers.get(b"content-type", b"").lower()
        if b"json" in kind:
            x.body = await read_body(scope, receive, self._house.body_limit, headers)
            call, x.fields = await bodies.read(x.body, self._decoder)
            if call.model is not None:
                name_model(x, self._house, call.model)
            return
        refuse_encoding(headers)
        upload = Upload(receive, headers, self._upload_limit)
        if kind.startswith(b"multipart/form-data") and (model := await upload.peek(headers[b"content-type"])):
            name_model(x, self._house, model)
        x.upload = upload

    def _choose_provider(self, x: Exchange) -> None:
        name = x.caller.provider or self._only
        if name is None:
            raise BadCall(
                f"The call names no model, and the team '{x.caller.team}' has no default provider. Name a model, or "
                f"ask your platform team to set teams.{x.caller.team}.provider.",
                code="provider_required",
            )
        x.provider = name


class Upload:
    """A form or a file on its way through: held only as far as its model must be found."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._start = b""
        self._more = True
        self._model: re.Match[bytes] | None = None
        self._parts: Parts | None = None
        length = headers.get(b"content-length")
        self._length = int(length) if length is not None else None
        if self._length is not None and self._length > limit:
            raise self._too_large()

    async def peek(self, kind: bytes) -> str | None:
        """The form's `model`, which must stand near the start, as SDKs write it."""
        self._parts = Parts(kind)
        while self._more and len(self._start) < _PEEK:
            self._start += await self._next()
            self._model = _FORM_MODEL.search(self._start)
            if self._model is not None:
                break
        self._check_models()
        return None if self._model is None else self._model.group(1).decode("utf-8", "replace")

    def _check_models(self) -> None:
        """What is checked here and what the provider reads must be the same part."""
        if self._parts is not None and self._parts.models > (self._model is not None):
            raise BadCall(
                "The form's field 'model' stands twice, or behind a large part. Send it once, before the files.",
                code="duplicate_field",
                param="model",
            )

    def length(self, model: str) -> int | None:
        if self._length is None or self._model is None or not model:
            return self._length
        return self._length + len(model.encode()) - len(self._model.group(1))

    async def pieces(self, model: str) -> AsyncGenerator[bytes, None]:
        start = self._start
        if self._model is not None and model:
            at, end = self._model.span(1)
            start = start[:at] + model.encode() + start[end:]
        if start:
            yield start
        while self._more:
            piece = await self._next()
            self._check_models()
            yield piece

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The caller hung up before the request was whole.")
        self._more = message.get("more_body", False)
        piece: bytes = message["body"]
        self._size += len(piece)
        if self._size > self._limit:
            raise self._too_large()
        if self._parts is not None:
            self._parts.feed(piece)
        return piece

    def _too_large(self) -> BadCall:
        return BadCall(
            f"The body is over the limit of {self._limit // 1_048_576} MiB.", code="body_too_large", status=413
        )


class Parts:
    """Counts the parts of a form that are named `model`, as its bytes go by.  RFC 7578."""

    def __init__(self, kind: bytes) -> None:
        found = _BOUNDARY.search(kind)
        self._mark = b"--" + (found.group(1) or found.group(2)) if found else b""
        self._tail = b""
        self.models = 0

    def feed(self, piece: bytes) -> None:
        if not self._mark:
            return
        data = self._tail + piece
        seen = len(self._tail)  # what ended before it was counted then
        at = data.find(self._mark)
        while at >= 0:
            head = _PART_MODEL.match(data, at + len(self._mark))
            if head is not None and head.end() > seen:
                self.models += 1
            at = data.find(self._mark, at + 1)
        self._tail = data[-(len(self._mark) + _PART_HEAD) :]


def _reader(x: Exchange, headers: Mapping[bytes, bytes]) -> Reader:
    x.stream = event_stream(headers.get(b"content-type", b""))
    return opaque.reader(headers)
