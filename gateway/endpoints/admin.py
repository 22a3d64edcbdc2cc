"""Answers the operator's questions about past requests, behind the admin key.

With no admin key configured the admin plane is closed: every request gets 403 admin_only and is told what to set.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import BadCall, Denied, GatewayError, Unavailable, Unidentified
from gateway.store import Page, Query, Record, RecordStore, StoreError, read_time

NS: Final = 1_000_000_000
LIMIT: Final = 1000  # records on one page
LONGEST: Final = 512  # characters of a parameter
MOST_PARAMETERS: Final = 32
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Parameter(NamedTuple):
    """What may be asked, in the words of the OpenAPI document."""

    name: str
    says: str
    example: str


PARAMETERS: Final = (
    Parameter("team", "only this team's requests", "checkout"),
    Parameter("model", "only requests for this model, as the caller named it", "gpt-4o-mini"),
    Parameter(
        "status", "an HTTP status (200), a class (4xx, 5xx), or error: 400 and above, or broken off later", "5xx"
    ),
    Parameter("since", "begun at or after this time: RFC 3339, or so long ago (15m, 2h, 7d)", "2h"),
    Parameter("until", "begun before this time: RFC 3339, or so long ago", "2026-01-31T12:00:00Z"),
    Parameter("code", "only requests that ended with this error code", "budget_exhausted"),
    Parameter("session", "only this session, as x-session-id named it", "s-1"),
    Parameter("user", "only this user, as x-user-id named it", "u-1"),
    Parameter("limit", f"records on a page, 1 to {LIMIT}; 100 where nothing is said", "100"),
    Parameter("cursor", "next_cursor of the page before", ""),
)

_encode = msgspec.json.Encoder().encode
_Handler = Callable[[Scope], Awaitable[bytes]]


class Admin:
    """The admin plane's routes.  key: the admin key; None: closed.

    flush: awaited before each read, so that a request that has just finished is found.
    """

    def __init__(self, store: RecordStore, key: str | None, flush: Callable[[], Awaitable[None]] | None = None) -> None:
        if key == "":
            raise ValueError("server.admin_key is empty: leave it out to close the admin plane, or set a key")
        self._store = store
        self._digest = hashlib.sha256(key.encode()).digest() if key is not None else None
        self._flush = flush
        self._described = _encode(describe())

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/openapi.json", _Door(self, self._openapi)),
            Route("/admin/v1/exchanges", _Door(self, self._list)),
            Route("/admin/v1/exchanges/{id}", _Door(self, self._show)),
        ]

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises Denied where the plane is closed, Unidentified where the admin key is missing or wrong."""
        if self._digest is None:
            raise Denied(
                "the admin plane is closed: set server.admin_key in config.yaml, or TOLLKEEPER_ADMIN_KEY",
                code="admin_only",
            )
        presented = [key for name, value in headers if (key := _presented(name, value)) is not None]
        if len(presented) > 1:
            raise Unidentified("send the admin key once", code="several_api_keys", status=400)
        digest = hashlib.sha256(presented[0]).digest() if presented else b""
        if not hmac.compare_digest(digest, self._digest):  # of digests: neither content nor length shows in the time
            raise Unidentified(
                "this needs the admin key, as `Authorization: Bearer ...` or `x-api-key: ...`", code="admin_only"
            )

    async def _openapi(self, scope: Scope) -> bytes:
        return self._described

    async def _show(self, scope: Scope) -> bytes:
        id = scope["path_params"]["id"]
        await self._flushed()
        record = await self._store.get(id)
        if record is None:
            raise BadCall(
                "no record has this id: it may be older than telemetry.records.days, or another gateway's",
                code="not_found",
                status=404,
                param="id",
            )
        return _encode(record)

    async def _list(self, scope: Scope) -> bytes:
        query = read_query(scope["query_string"], time.time_ns())
        await self._flushed()
        try:
            return _encode(await self._store.find(query))
        except ValueError as error:
            raise _bad("cursor", f"{error}: take next_cursor of the page before, as it is") from error

    async def _flushed(self) -> None:
        if self._flush is not None:
            await self._flush()


class _Door:
    """One endpoint as a plain ASGI app: the key first, then the method, then the answer."""

    def __init__(self, admin: Admin, handler: _Handler) -> None:
        self._admin = admin
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers = 200, [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        try:
            self._admin.check(scope["headers"])
            if scope["method"] not in ("GET", "HEAD"):
                raise BadCall("only GET is answered here", code="method_not_allowed", status=405)
            body = await self._handler(scope)
        except (GatewayError, StoreError) as error:
            known = error if isinstance(error, GatewayError) else _unreadable(error)
            status, body = known.status, _error_body(known)
            headers += _error_headers(known)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def read_query(query_string: bytes, now: int) -> Query:
    """What a list was asked for.  now: ns since the epoch.  Raises BadCall naming the parameter."""
    given = _parameters(query_string)
    status = given.get("status")
    span, failed = (None, False) if status is None else _status(status)
    limit = given.get("limit", "100")
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= LIMIT:
        raise _bad("limit", f"a whole number from 1 to {LIMIT} is wanted")
    return Query(
        team=given.get("team"),
        model=given.get("model"),
        code=given.get("code"),
        session=given.get("session"),
        user=given.get("user"),
        status=span,
        failed=failed,
        since=_time("since", given.get("since"), now),
        until=_time("until", given.get("until"), now),
        limit=int(limit),
        cursor=given.get("cursor"),
    )


def _parameters(query_string: bytes) -> dict[str, str]:
    try:
        text = query_string.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError as error:
        raise BadCall("the query string cannot be read: percent-encoded UTF-8 is wanted") from error
    known = [parameter.name for parameter in PARAMETERS]
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise _bad(name[:64], f"unknown; there are {', '.join(known)}")
        if name in given:
            raise _bad(name, "given more than once")
        if not value:
            raise _bad(name, "empty; leave it out to mean any")
        if len(value) > LONGEST:
            raise _bad(name, f"at most {LONGEST} characters")
        given[name] = value
    return given


def _status(text: str) -> tuple[tuple[int, int] | None, bool]:
    """The range of statuses that is wanted, and whether only failures are."""
    if text == "error":
        return None, True
    if re.fullmatch(r"[1-5]xx", text):
        lowest = int(text[0]) * 100
        return (lowest, lowest + 99), False
    if re.fullmatch(r"[1-5][0-9][0-9]", text):
        return (int(text), int(text)), False
    raise _bad("status", "an HTTP status (200), a class (4xx) or `error` is wanted")


def _time(name: str, text: str | None, now: int) -> int | None:
    if text is None:
        return None
    if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
        return max(0, now - int(ago[1]) * UNITS[ago[2]] * NS)
    try:
        return read_time(text)
    except ValueError as error:
        wanted = "RFC 3339 with its zone (2026-01-31T12:00:00Z; a + is written %2B), or so long ago (15m, 2h, 7d)"
        raise _bad(name, f"{wanted} is wanted") from error


def _bad(name: str, says: str) -> BadCall:
    return BadCall(f"{name}: {says}", param=name)


def _presented(name: bytes, value: bytes) -> bytes | None:
    """The key that this header presents, if it is one that may."""
    if name == b"x-api-key":
        return value.strip()
    if name == b"authorization":
        scheme, _, key = value.strip().partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else b""
    return None


def _unreadable(error: StoreError) -> Unavailable:
    return Unavailable(f"{error}; requests are served meanwhile", retry_after=1)


def _error_body(error: GatewayError) -> bytes:
    return _encode({"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}})


def _error_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    return headers


def describe() -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes; the answers' schemas are made from the types that are sent."""
    (page, record), schemas = msgspec.json.schema_components([Page, Record], ref_template="#/components/schemas/{name}")
    text = {"type": "string"}
    error = dict.fromkeys(("message", "type", "code"), text) | {"param": {"type": ["string", "null"]}}
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": list(error), "properties": error}},
    }
    query = [_query_parameter(parameter) for parameter in PARAMETERS]
    id = {"name": "id", "in": "path", "required": True, "description": "x-request-id of the answer", "schema": text}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollkeeper admin API", "version": "1"},
        "security": [{"bearer": []}, {"key": []}],
        "paths": {
            "/admin/v1/exchanges": {"get": _operation("listExchanges", "Requests, newest first", query, page)},
            "/admin/v1/exchanges/{id}": {"get": _operation("getExchange", "All about one request", [id], record)},
            "/admin/v1/openapi.json": {"get": _operation("getOpenApi", "This document", [], {"type": "object"})},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": LONGEST}
    if parameter.name == "limit":
        schema = {"type": "integer", "minimum": 1, "maximum": LIMIT, "default": 100}
    told: dict[str, Any] = {"name": parameter.name, "in": "query", "description": parameter.says, "schema": schema}
    if parameter.example:
        told["example"] = int(parameter.example) if parameter.name == "limit" else parameter.example
    return told


def _operation(id: str, summary: str, parameters: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, Any]:
    failure = {"$ref": "#/components/schemas/Error"}
    said = {"200": ("The answer", answer)} | {
        status: (why, failure)
        for status, why in (
            ("400", "A parameter cannot be understood; error.param names it"),
            ("401", "The admin key is missing or wrong"),
            ("403", "No admin key is configured: the admin plane is closed"),
            ("404", "There is no such record"),
            ("405", "Only GET is answered"),
            ("503", "The records cannot be read now"),
        )
        if status != "404" or id == "getExchange"
    }
    return {
        "operationId": id,
        "summary": summary,
        "parameters": parameters,
        "responses": {
            status: {"description": why, "content": {"application/json": {"schema": schema}}}
            for status, (why, schema) in said.items()
        },
    }
