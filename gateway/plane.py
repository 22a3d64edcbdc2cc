"""The admin plane: who may come in, how what is asked is read and checked, and how it is answered or refused.

Each thing that can be asked is one Operation.  Requests are checked against it, and the OpenAPI document is written
from it (gateway.openapi), so that neither can say what the other does not.

With no admin key configured the plane is closed: every request gets 403 admin_only and is told what to set.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.endpoints import printable, read_body
from gateway.errors import BadCall, ClientGone, Denied, GatewayError, Unavailable, Unidentified
from gateway.roster import KnownToken, Operator
from gateway.store import StoreError, read_time, write_time
from gateway.store.directory import Role

T = TypeVar("T")

LIMIT: Final = 1000  # lines on one page
LONGEST: Final = 512  # characters of a parameter
MOST_PARAMETERS: Final = 32
BODY_LIMIT: Final = 64 * 1024
UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
RANKS: Final[Mapping[Role, int]] = {"viewer": 0, "owner": 1, "admin": 2}
ROOT: Final = Operator("root", "admin")


class Parameter(NamedTuple):
    """What may be asked, in the words of the OpenAPI document."""

    name: str
    says: str
    example: str = ""


PAGED: Final = (
    Parameter("limit", f"lines on a page, 1 to {LIMIT}; 100 where nothing is said", "100"),
    Parameter("cursor", "next_cursor of the page before"),
)


class Body(BaseModel):
    """What a change says: unknown words are errors, nothing is guessed, and no value is echoed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Gone(msgspec.Struct, frozen=True):
    """What was deleted."""

    id: str
    deleted: bool = True


class Asked(NamedTuple):
    """A request whose asker is known and which is well formed."""

    operator: Operator
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None  # of the operation's type


@dataclass(slots=True, frozen=True)
class Operation:
    """One thing that can be asked.  role: the least that may.  everywhere: only those who see all teams."""

    method: str
    path: str
    id: str
    summary: str
    run: Callable[[Asked], Awaitable[object]]
    answer: Any  # its type; None: an object of no fixed shape
    body: type[Body] | None = None
    query: Sequence[Parameter] = ()
    role: Role = "viewer"
    everywhere: bool = False
    status: int = 200


_encode = msgspec.json.Encoder().encode


class Door:
    """Lets operators in.  key: the admin key; None: closed.  tokens: finds one that was created."""

    def __init__(self, key: str | None, tokens: Callable[[bytes], KnownToken | None] | None = None) -> None:
        if key == "":
            raise ValueError("server.admin_key is empty: leave it out to close the admin plane, or set a key")
        self._digest = hashlib.sha256(key.encode()).digest() if key is not None else None
        self._tokens = tokens

    def enter(self, headers: Sequence[tuple[bytes, bytes]]) -> Operator:
        """Who asks.  Raises Denied where the plane is closed, Unidentified where the key is missing or wrong."""
        if self._digest is None:
            raise Denied(
                "the admin plane is closed: set server.admin_key in config.yaml, or TOLLKEEPER_ADMIN_KEY",
                code="admin_only",
            )
        presented = [key for name, value in headers if (key := _presented(name, value)) is not None]
        if len(presented) > 1:
            raise Unidentified("send the admin key once", code="several_api_keys", status=400)
        digest = hashlib.sha256(presented[0]).digest() if presented else b""
        if hmac.compare_digest(digest, self._digest):  # of digests: neither content nor length shows in the time
            return ROOT
        known = self._tokens(presented[0]) if presented and self._tokens is not None else None
        if known is None:
            raise Unidentified(
                "this needs the admin key, as `Authorization: Bearer ...` or `x-api-key: ...`", code="admin_only"
            )
        if known.revoked or (known.until is not None and time.time_ns() >= known.until):
            why = "was revoked" if known.revoked else "has expired"
            raise Unidentified(f"this admin token {why}", code="admin_only")
        return known.operator

    def routes(self, operations: Sequence[Operation]) -> list[BaseRoute]:
        """One route for each path; those with more fixed words come first, for a name in a path may hold slashes."""
        paths: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            paths.setdefault(operation.path, {})[operation.method] = operation
        ordered = sorted(paths, key=lambda path: (path.endswith("}"), -len(path)))
        routes: list[BaseRoute] = [Route(path.replace("}", ":path}"), _Place(self, paths[path])) for path in ordered]
        if self._digest is None:  # whatever could be here if it were open
            routes.append(Route("/admin/v1/{path:path}", _Place(self, {})))
        return routes


class _Place:
    """One path as a plain ASGI app: the key first, then the method, the rights, what is asked, and the answer."""

    def __init__(self, door: Door, operations: Mapping[str, Operation]) -> None:
        self._door = door
        self._operations = operations
        self._allowed = sorted({*operations, *(["HEAD"] if "GET" in operations else [])})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        try:
            status, body = await self._answer(scope, receive)
        except ClientGone:
            return
        except (GatewayError, StoreError) as error:
            known = error if isinstance(error, GatewayError) else _unreadable(error)
            status, body = known.status, _error_body(known)
            headers += self._error_headers(known)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        operator = self._door.enter(scope["headers"])
        operation = self._operations.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if operation is None:
            said = f"only {' and '.join(self._allowed)} are answered here"
            raise BadCall(said, code="method_not_allowed", status=405)
        if RANKS[operator.role] < RANKS[operation.role]:
            raise _not_allowed(f"this takes the role '{operation.role}', and yours is '{operator.role}'")
        if operation.everywhere and operator.teams is not None:
            raise _not_allowed("this is for those who see all teams; yours are listed in your token")
        query = read_parameters(scope["query_string"], operation.query)
        body = None
        if operation.body is not None:
            headers: dict[bytes, bytes] = dict(scope["headers"])
            if b"json" not in headers.get(b"content-type", b"").lower():
                raise BadCall("send 'Content-Type: application/json'", code="unsupported_media_type", status=415)
            body = understand(await _read(scope, receive, headers), operation.body)
        return operation.status, _encode(await operation.run(Asked(operator, scope["path_params"], query, body)))

    def _error_headers(self, error: GatewayError) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = []
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.status == 405:
            headers.append((b"allow", ", ".join(self._allowed).encode()))
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        return headers


# ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _read(scope: Scope, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
    try:
        return await read_body(scope, receive, BODY_LIMIT, headers)
    except BadCall as error:
        if error.status == 413:
            raise BadCall(f"the body is over {BODY_LIMIT // 1024} KiB", code="body_too_large", status=413)
        raise


def understand(raw: bytes, model: type[Body]) -> Body:
    """What a body says.  Raises BadCall naming the first field that is wrong."""
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise BadCall("the body is not JSON", code="invalid_json")
    where = printable(".".join(str(step) for step in first["loc"] if not str(step).startswith("function-")))
    if first["type"] == "extra_forbidden":
        top = len(first["loc"]) == 1
        raise bad(where, f"unknown; there are {', '.join(model.model_fields)}" if top else "unknown")
    if first["type"] == "missing":
        raise bad(where, "is missing")
    wrong = first["msg"].removeprefix("Value error, ")
    if not where:
        raise BadCall(f"the body: {wrong}")
    raise bad(where, wrong)


def read_parameters(query_string: bytes, known: Sequence[Parameter]) -> dict[str, str]:
    try:
        text = query_string.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError as error:
        raise BadCall("the query string cannot be read: percent-encoded UTF-8 is wanted") from error
    names = [parameter.name for parameter in known]
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            raise bad(
                name[:64], f"unknown; there are {', '.join(names)}" if names else "unknown; nothing is asked here"
            )
        if name in given:
            raise bad(name, "given more than once")
        if not value:
            raise bad(name, "empty; leave it out to mean any")
        if len(value) > LONGEST:
            raise bad(name, f"at most {LONGEST} characters")
        given[name] = value
    return given


def read_list(name: str, text: str, known: Sequence[str]) -> list[str]:
    """Words with commas between them.  Raises BadCall naming the parameter where one is unknown or stands twice."""
    words = [word.strip() for word in text.split(",")]
    if not set(words) <= set(known):
        raise bad(name, f"there are {', '.join(known)}")
    if len(set(words)) != len(words):
        raise bad(name, "each word once")
    return words


def read_limit(given: Mapping[str, str]) -> int:
    limit = given.get("limit", "100")
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= LIMIT:
        raise bad("limit", f"a whole number from 1 to {LIMIT} is wanted")
    return int(limit)


def page(lines: Mapping[str, T], given: Mapping[str, str]) -> tuple[list[T], str | None]:
    """One page of a list in the order of its ids, and the cursor of the next."""
    after = given.get("cursor", "")
    limit = read_limit(given)
    ids = sorted(id for id in lines if id > after)
    return [lines[id] for id in ids[:limit]], ids[limit - 1] if len(ids) > limit else None


def read_expiry(text: str | None) -> str | None:
    """When a key ends, as it is kept: RFC 3339 in UTC.  Raises BadCall where that is no time, or past."""
    if text is None:
        return None
    try:
        ends = read_time(text)
    except ValueError:
        raise bad("expires", "RFC 3339 with its zone is wanted, e.g. 2027-01-31T12:00:00Z")
    if ends <= time.time_ns():
        raise bad("expires", "this time is past; revoke it instead")
    return write_time(ends)


def read_moment(name: str, text: str | None, now: int) -> int | None:
    """ns since the epoch.  Raises BadCall naming the parameter."""
    if text is None:
        return None
    if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
        return max(0, now - int(ago[1]) * UNITS[ago[2]] * 1_000_000_000)
    try:
        return read_time(text)
    except ValueError:
        wanted = "RFC 3339 with its zone (2026-01-31T12:00:00Z; a + is written %2B), or so long ago (15m, 2h, 7d)"
        raise bad(name, f"{wanted} is wanted")


def bad(field: str, says: str) -> BadCall:
    """The field is named in the message and in error.param."""
    return BadCall(f"{field}: {says}", param=field)


def conflict(field: str, says: str, code: str) -> BadCall:
    return BadCall(f"{field}: {says}", param=field, code=code, status=409)


def missing(field: str, what: str) -> BadCall:
    """The same words for what does not exist and for what is not this operator's to see."""
    return BadCall(f"{field}: there is no such {what}", param=field, code="not_found", status=404)


def forbidden(field: str, says: str) -> Denied:
    return _not_allowed(f"{field}: {says}", field)


def _not_allowed(says: str, field: str | None = None) -> Denied:
    return Denied(says, code="not_allowed", param=field)


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
