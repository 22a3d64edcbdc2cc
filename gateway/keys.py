"""Who is calling: a key, in any of three headers, to a Caller.

Keys that config.yaml declares and keys that were created live side by side.  Neither is kept: what is looked up is a
digest under a secret, so that no look-up compares a key byte by byte.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway import settings
from gateway.credentials import Pepper, mistyped
from gateway.errors import Unidentified
from gateway.exchange import Caller

_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Known(NamedTuple):
    """A key that was created: who it is, and whether it still is."""

    caller: Caller
    until: int | None = None  # ns since the epoch; None: no end
    why: str = ""  # why it is refused; empty: it is not

    def refused(self) -> str:
        """Why this key is not accepted now; empty: it is."""
        if self.until is not None and time.time_ns() >= self.until:
            return "has expired"
        return self.why


class Keys:
    """Both kinds.  created: by their digests under `pepper`; replaced as a whole when the directory changes."""

    def __init__(self, teams: Mapping[str, settings.Team], pepper: Pepper | None = None) -> None:
        self.created: Mapping[bytes, Known] = {}
        self._pepper = pepper
        self._secret = secrets.token_bytes(32)  # of this process
        self._declared: dict[bytes, Caller] = {}
        for name, team in teams.items():
            models = None if team.models is None else frozenset(team.models)
            for key in team.keys:
                caller = Caller(name, key.name, models, team.provider, team.content)
                self._declared[self._digest(key.key.get_secret_value().encode())] = caller

    def identify(self, headers: Mapping[bytes, bytes], all_headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """The caller behind a request's credentials.  Raises Unidentified: none, several, or unknown."""
        key = _credential(headers, all_headers)
        caller = self._declared.get(self._digest(key))
        return self._find(key) if caller is None else caller

    def _find(self, key: bytes) -> Caller:
        """Among the keys that were created."""
        known = self.created.get(self._pepper.key(key)) if self._pepper is not None else None
        if known is None:
            if mistyped(key):
                raise Unidentified("The API key is mistyped or cut off: its last characters do not fit the others.")
            raise Unidentified("The API key is not known here. Check the key your team was given.")
        if why := known.refused():
            raise Unidentified(f"This API key {why}. Ask for a new one.")
        return known.caller

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()


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
