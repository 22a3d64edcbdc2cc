"""Where a call is sent: an address, a lock and a dialect.  Data, not a class hierarchy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import httpx2

from gateway import settings
from gateway.dialects import Dialect

_URLS: Final = 64  # kept per provider; a relayed path may hold any id, so not all of them
_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+: [\x20-\x7e\x80-\xff]*")

# They know `max_completion_tokens`, and want it of some models.
_NEWER: Final = re.compile(
    r"(^|\.)(openai\.com|openai\.azure\.com|cognitiveservices\.azure\.com|groq\.com|cerebras\.ai|x\.ai|openrouter\.ai)$"
)

# A caller's headers that reach a provider; everything else stays here.
_PASSED: Final = (
    b"accept", b"anthropic-beta", b"anthropic-version", b"content-type", b"idempotency-key", b"openai-beta",
    b"user-agent",
)  # fmt: skip


class Answer(Protocol):
    """A provider's answer on its way: its head is here, its body is iterated."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Before its end: the connection is cut."""

    async def finish(self, seconds: float) -> None:
        """Whoever reads has all it needs: what is left may come within so long, without anybody waiting for it."""


class Sender(Protocol):
    """How calls leave: gateway.transport, or anything behind httpx2's transport interface."""

    async def send(
        self, method: str, url: httpx2.URL, head: bytes, body: bytes | AsyncIterable[bytes], length: int | None
    ) -> Answer:
        """head: whole header lines.  length: of a body that is streamed, where it is known.  Raises httpx2's errors."""

    async def aclose(self) -> None: ...


@dataclass(slots=True, frozen=True, eq=False)
class Provider:
    """One configured provider, ready to be called."""

    name: str
    base_url: str  # without a trailing slash
    host: str
    port: int
    dialect: Dialect
    head: bytes  # header lines of every call: the lock, and what the operator adds
    passed: tuple[bytes, ...]  # a caller's headers that are passed on
    timeouts: settings.Timeouts
    on_hangup: str
    drain_seconds: float
    propagate: str
    catalogue: str | None
    sender: Sender
    failures_billed: bool = True  # may an answer of 500 or above have cost something?
    cap_field: str = "max_tokens"  # in which this provider is sure to read a cap on a chat answer
    _urls: dict[str, httpx2.URL] = field(default_factory=dict)

    def url(self, path: str) -> httpx2.URL:
        """Parsing a URL costs more than sending a request: the ordinary ones are kept."""
        url = self._urls.get(path)
        if url is None:
            url = httpx2.URL(self.base_url + path)
            if len(self._urls) < _URLS:
                self._urls[path] = url
        return url


def build(name: str, said: settings.Provider, dialect: Dialect, sender: Sender) -> Provider:
    """A provider from its lines in config.yaml.  Raises ValueError for a header that cannot be sent."""
    url = httpx2.URL(said.base_url)
    lines = [b"host: " + url.netloc, b"accept-encoding: identity"]
    if said.api_key is not None:
        lines.append(b"authorization: Bearer " + said.api_key.get_secret_value().encode())
    lines += [f"{header.lower()}: {value.get_secret_value()}".encode() for header, value in said.headers.items()]
    for line in lines:
        if not _LINE.fullmatch(line):
            raise ValueError(f"providers.{name}: the header {line.partition(b':')[0]!r} cannot be sent as it is")
    own = {line.partition(b":")[0] for line in lines}
    forwarded = [header.lower().encode() for header in said.forward_headers]
    return Provider(
        name=name,
        base_url=said.base_url.rstrip("/"),
        host=url.host,
        port=url.port or (443 if url.scheme == "https" else 80),
        dialect=dialect,
        head=b"\r\n".join(lines),
        passed=tuple(header for header in dict.fromkeys([*_PASSED, *forwarded]) if header not in own),
        timeouts=said.timeouts,
        on_hangup=said.on_hangup,
        drain_seconds=said.drain_seconds,
        propagate=said.propagate,
        catalogue=said.catalogue,
        sender=sender,
        failures_billed=said.failures_billed,
        cap_field=said.cap_field if said.cap_field != "auto" else _cap_field(url.host),
    )


def _cap_field(host: str) -> str:
    """Where nothing is known, the older field: a server that wants the newer one refuses it, which is seen and free;
    one that does not know the newer one would answer without any cap."""
    return "max_completion_tokens" if _NEWER.search(host) else "max_tokens"
