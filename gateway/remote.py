"""Asks the admin API of a running gateway, for the commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec


class Refused(Exception):
    """What was asked cannot be had; the message says why and what to do."""


class Remote:
    """One gateway.  Blocks up to 10 seconds for each answer; the admin key is sent nowhere else."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def ask(self, method: str, *path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        """path: below /admin/v1, in pieces, so that a name cannot reach another path.  Raises Refused."""
        where = "/".join([f"{self._url}/admin/v1", *(quote(piece, safe="") for piece in path)])
        given = {word: value for word, value in (query or {}).items() if value is not None}
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            # Not followed: a redirect would carry the admin key elsewhere.
            answer = httpx2.request(
                method, where, headers=headers, json=body, params=given, timeout=10.0, follow_redirects=False
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            said = f"{self._url} cannot be asked ({type(error).__name__}): is the gateway running there?"
            raise Refused(said) from error
        try:
            told = msgspec.json.decode(answer.content)
            if answer.is_success:
                return told
            message = told["error"]["message"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            said = f"{self._url} answered {answer.status_code} and nothing to read: is it a Tollkeeper?"
            raise Refused(said) from error
        raise Refused(f"{self._url} refused ({answer.status_code}): {message}")

    def lines(self, *path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """A whole list, page by page."""
        cursor = None
        while True:
            page = self.ask("GET", *path, query={**(query or {}), "limit": 1000, "cursor": cursor})
            yield from page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
