"""Makes keys, knows them again without keeping them, and keeps the pepper that this takes.

A key is a prefix, 43 random characters of 62 (256 bits) and 6 of a checksum: who mistypes one is told so, and who
scans code for secrets recognises one.  Kept of it is HMAC-SHA256 under a pepper that is not in the database: whoever
reads the database can use none, and whoever writes to it can add none.
"""

from __future__ import annotations

import hmac
import os
import secrets
import zlib
from pathlib import Path
from typing import Final

API_KEY: Final = "tk_"
ADMIN_TOKEN: Final = "tka_"  # noqa: S105 - the prefix of one
SHORTEST_PEPPER: Final = 32  # characters
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM: Final = 43
_CHECK: Final = 6


def make(prefix: str) -> str:
    """A new key."""
    body = prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return body + _checksum(body.encode())


def mistyped(key: bytes) -> bool:
    """Whether this was meant to be a key of ours and cannot be one."""
    if not key.startswith((API_KEY.encode(), ADMIN_TOKEN.encode())):
        return False
    return key[-_CHECK:] != _checksum(key[:-_CHECK]).encode()


def hint(key: str) -> str:
    """What may be shown of a key: enough to tell two apart."""
    return key[-4:]


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"


def _checksum(body: bytes) -> str:
    rest, text = zlib.crc32(body), ""
    for _ in range(_CHECK):
        rest, digit = divmod(rest, 62)
        text = _ALPHABET[digit] + text
    return text


class Pepper:
    """Each use has a key derived for it: a digest of one kind is never found among those of another."""

    def __init__(self, secret: bytes) -> None:
        self._keys = hmac.digest(secret, b"tollkeeper api keys", "sha256")
        self._tokens = hmac.digest(secret, b"tollkeeper admin tokens", "sha256")
        self.mark = hmac.digest(secret, b"tollkeeper pepper mark", "sha256").hex()[:16]  # tells one pepper from another

    def key(self, key: bytes) -> bytes:
        return hmac.digest(self._keys, key, "sha256")

    def token(self, token: bytes) -> bytes:
        return hmac.digest(self._tokens, token, "sha256")


def kept_pepper(path: Path) -> bytes:
    """The pepper in this file, which is made where there is none: its owner's only.  Raises OSError, ValueError.

    Gateways that start at the same time agree on one: the file appears with its content, and only once.
    """
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)
        except FileExistsError:
            pass  # another gateway was first
        finally:
            fresh.unlink()
    pepper = path.read_bytes().strip()
    if len(pepper) < SHORTEST_PEPPER:
        raise ValueError(f"{path} holds no pepper: it has fewer than {SHORTEST_PEPPER} characters")
    return pepper
