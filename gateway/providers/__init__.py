"""Where a call is sent: an address, a lock and a dialect.  Data, not a class hierarchy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import httpx2

from gateway import settings
from gateway.dialects import Dialect

_URLS: Final = 64  # kept per provider; a relayed path may hold any id, so not all of them


@dataclass(slots=True, frozen=True, eq=False)
class Provider:
    """One configured provider, ready to be called."""

    name: str
    base_url: str  # without a trailing slash
    host: str
    port: int
    dialect: Dialect
    headers: tuple[tuple[bytes, bytes], ...]  # the lock, and what the operator adds to each call
    forward: frozenset[bytes]  # request headers passed on besides the ordinary ones
    timeouts: settings.Timeouts
    on_hangup: str
    drain_seconds: float
    propagate: str
    catalogue: str | None
    transport: httpx2.AsyncBaseTransport
    _urls: dict[str, httpx2.URL] = field(default_factory=dict)

    def url(self, path: str) -> httpx2.URL:
        """Parsing a URL costs more than sending a request: the ordinary ones are kept."""
        url = self._urls.get(path)
        if url is None:
            url = httpx2.URL(self.base_url + path)
            if len(self._urls) < _URLS:
                self._urls[path] = url
        return url


def build(name: str, said: settings.Provider, dialect: Dialect, transport: httpx2.AsyncBaseTransport) -> Provider:
    """A provider from its lines in config.yaml."""
    url = httpx2.URL(said.base_url)
    headers = [(b"host", url.netloc)]
    if said.api_key is not None:
        headers.append((b"authorization", b"Bearer " + said.api_key.get_secret_value().encode()))
    headers += [(key.lower().encode(), value.get_secret_value().encode()) for key, value in said.headers.items()]
    return Provider(
        name=name,
        base_url=said.base_url.rstrip("/"),
        host=url.host,
        port=url.port or (443 if url.scheme == "https" else 80),
        dialect=dialect,
        headers=tuple(headers),
        forward=frozenset(header.lower().encode() for header in said.forward_headers),
        timeouts=said.timeouts,
        on_hangup=said.on_hangup,
        drain_seconds=said.drain_seconds,
        propagate=said.propagate,
        catalogue=said.catalogue,
        transport=transport,
    )
