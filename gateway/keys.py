"""Who is calling: a key, in any of three headers, to a Caller."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

from gateway import settings
from gateway.errors import Unidentified
from gateway.exchange import Caller

_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Keys:
    """Keys are kept as digests under a secret of this process: looking one up compares no secret byte by byte."""

    def __init__(self, teams: Mapping[str, settings.Team]) -> None:
        self._pepper = secrets.token_bytes(32)
        self._callers: dict[bytes, Caller] = {}
        for name, team in teams.items():
            models = None if team.models is None else frozenset(team.models)
            for key in team.keys:
                caller = Caller(name, key.name, models, team.provider, team.content)
                self._callers[self._digest(key.key.get_secret_value().encode())] = caller

    def identify(self, headers: Mapping[bytes, bytes], all_headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """The caller behind a request's credentials.  Raises Unidentified: none, several, or unknown."""
        key = _credential(headers, all_headers)
        caller = self._callers.get(self._digest(key))
        if caller is None:
            raise Unidentified("The API key is not known here. Check the key your team was given.")
        return caller

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._pepper, digest_size=32).digest()


def _credential(headers: Mapping[bytes, bytes], all_headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    found = [headers[name] for name in _HEADERS if name in headers]
    if len(headers) != len(all_headers):  # some header stands twice
        found = [value for name, value in all_headers if name in _HEADERS]
    if not found:
        raise Unidentified(
            "No API key was sent. Send it as 'Authorization: Bearer <key>', 'x-api-key' or 'api-key'.",
            code="missing_api_key",
        )
    if len(found) > 1:
        raise Unidentified("Several API keys were sent; send one.", code="several_api_keys", status=400)
    value = found[0]
    if b"authorization" in headers:
        scheme, _, value = value.partition(b" ")
        value = value.strip()
        if scheme.lower() != b"bearer" or not value:
            raise Unidentified("The Authorization header must read 'Bearer <key>'.", code="missing_api_key")
    return value
