"""Addresses in a text: those that are denied, those that are not allowed, and those that are made to mislead.

A link in an answer can carry data away: whoever renders it asks its host.  `allow` is the remedy for that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from gateway import settings
from gateway.assessor import Scanner
from gateway.patterns import HELD, Found, Hint, Rule, Rules

Host = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9\u0080-\U0010ffff](?:[A-Za-z0-9\u0080-\U0010ffff.-]{0,252})$")
]

_LETTERS: Final = r"[^\s\"'`<>\\^{|}\x00]"
_RULES: Final = (
    Rule("url", rf"(?:https?|wss?|ftp)://{_LETTERS}{{1,4096}}+", r"(?:https?|wss?|ftp)://", bounded=False, caseless=True),
    Rule("url", rf"www\.{_LETTERS}{{1,4096}}+", r"www\.", caseless=True),
    Rule("script", r"(?:javascript|vbscript):\S{1,256}+|data:text/html\S{0,256}+",
         r"(?:javascript|vbscript):|data:text/html", caseless=True),
)  # fmt: skip
_AFTER: Final = ".,;:!?)]*_~"  # ends a sentence, not an address


class Urls(Scanner):
    """Labels: denied, not_allowed, misleading (user info, an address in place of a name, punycode), script."""

    stages: ClassVar[frozenset[str]] = frozenset({"output", "tool_arguments"})
    scores: ClassVar[dict[str, float]] = {"misleading": 0.7}

    class Settings(settings.Settings):
        deny: list[Host] = Field(default_factory=list)  # hosts, with all below them
        allow: list[Host] | None = None  # none: every host that is not denied
        misleading: bool = True

    def __init__(self, said: Settings | None = None) -> None:
        self._said = said = said or self.Settings()
        self._deny = frozenset(_plain(host) for host in said.deny)
        self._allow = None if said.allow is None else frozenset(_plain(host) for host in said.allow)
        bare = [
            Rule("denied", re.escape(host) + r"(?![\w-]|\.\w)", re.escape(host), bounded=False, caseless=True)
            for host in self._deny
        ]
        self._rules = Rules([*_RULES, *bare])

    def hints(self) -> Sequence[Hint]:
        return self._rules.hints

    def find(self, text: str, data: bytes) -> list[Found]:
        found = []
        for one in self._rules.find(text, data):
            address = text[one.start : one.end]
            if one.label == "url":
                label = self._label(address)
                if label:
                    size = len(address.rstrip(_AFTER)) if not one.open else len(address)
                    found.append(one._replace(label=label, end=one.start + size))
            elif one.label == "script" or not (
                one.start and (text[one.start - 1].isalnum() or text[one.start - 1] == "-")
            ):
                found.append(one)
        return found

    def _label(self, address: str) -> str:
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            host = _plain(parts.hostname or "")
        except ValueError:
            return "misleading" if self._said.misleading else ""
        if _within(host, self._deny):
            return "denied"
        if self._allow is not None and not _within(host, self._allow):
            return "not_allowed"
        if self._said.misleading and ("@" in parts.netloc or "xn--" in host or _is_address(host)):
            return "misleading"
        return ""

    def hold(self, text: str) -> int:
        """The last word: an address has no blanks."""
        at, least = len(text), max(0, len(text) - HELD)
        while at > least and not text[at - 1].isspace():
            at -= 1
        return len(text) - at

    def resume(self, label: str, text: str) -> tuple[int, bool]:
        run = _RUN.match(text)
        size = run.end() if run else 0
        return size, size == len(text)


_RUN: Final = re.compile(rf"{_LETTERS}*+")


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def _within(host: str, hosts: frozenset[str]) -> bool:
    while host:
        if host in hosts:
            return True
        _, _, host = host.partition(".")
    return False


def _is_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.isdigit() or host.startswith("0x")
    return address.is_global
