"""Looks at a body once for all pattern assessors, as it was written, before anything of it is decoded.

Where no hint of an assessor occurs in the bytes, it cannot find anything in any text that the bytes hold, and need not
be asked, nor where it sees by a closer look that its hints meant nothing; where that is so of all, there is nothing to
decode or to join.  That holds only where texts stand in the JSON
as they are; so a body with other escapes than the commonest, with letters beyond ASCII that an assessor reads as
others, with texts in several parts or with media is always decoded, and all are asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gateway.assessor import Scanner
from gateway.judging import Rule
from gateway.patterns import Hint, hinting

# What must be decoded to be judged: parts of one message, media, and prompts that are written as tokens.
_DECODED: Final = (
    r'"text"\s*:',
    r'"(?:image_url|input_audio|input_image|image_file|file_id|file_url|file_data|b64_json|audio|data|source)"',
    r'"data:',
    r'"(?:prompt|input)"\s*:\s*\[',
    r'"partial_image_b64"|"result"\s*:\s*"',
)
# What is read by nobody, and full of digits (gateway/dialects: identifiers and enumerations).
_SKIPPED: Final = re.compile(
    rb'"(?<!\\")(?:id|model|created|system_fingerprint)": ?(?:"[\w.:/-]{0,64}"|[0-9]{1,12})'  # from a letter on: fast
    rb'|"(?<!\\")usage": ?\{[^{}"]{0,64}(?:"[a-z_]{1,40}": ?(?:[0-9.]{1,16}|null|\{[^{}]{0,400}\})[, \n]{0,3}){0,30}\}'
)
LONGEST: Final = 65_536  # bytes that are looked at in one step


class Prefilter:
    """Of some rules.  `usable`: all of them can be asked in this way."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        hinted = [(number, rule.assessor) for number, rule in enumerate(rules) if isinstance(rule.assessor, Scanner)]
        hints = [(number, at, hint) for number, scanner in hinted for at, hint in enumerate(scanner.hints())]
        others = [number for number, rule in enumerate(rules) if not isinstance(rule.assessor, Scanner)]
        quick = all(rules[number].assessor.quick for number in others)
        self.usable = bool(hinted) and quick and all(scanner.hints() for _, scanner in hinted)
        self._rules = rules
        self._scanners = dict(hinted)
        self._others = others
        self._folds = any(scanner.folds for _, scanner in hinted)
        self._owners = [(number, at) for number, at, _ in hints]  # of each hint; those that call for decoding have none
        self._scan = hinting([*[hint for *_, hint in hints], *map(Hint, _DECODED)]) if self.usable else None
        self._rest: dict[tuple[int, ...], tuple[list[Rule], str]] = {}

    def suspects(self, body: bytes) -> tuple[list[Rule], str] | None:
        """The rules that may find something in it, and the names of the others, with commas.

        None: it must be decoded to be looked at, by all of them.
        """
        if self._scan is None or len(body) > LONGEST or (self._folds and not body.isascii()):
            return None
        asked = [number for number in self._others if not self._rules[number].assessor.spares(body)]
        body = _SKIPPED.sub(b"", body)  # before a quote inside a text looks like one of the JSON
        if b"\\" in body:
            if b"\\u" in body or b"\\\\" in body:
                return None
            body = body.replace(b"\\n", b"\n").replace(b"\\t", b"\t").replace(b'\\"', b'"').replace(b"\\/", b"/")
            if b"\\" in body:
                return None
        hits: list[int] = []
        self._scan(body, hits)
        if hits and max(hits) >= len(self._owners):
            return None
        near: dict[int, list[int]] = {}
        for number, at in [self._owners[hit] for hit in hits]:
            near.setdefault(number, []).append(at)
        asked += [number for number, places in near.items() if self._scanners[number].doubts(body, places)]
        return self._split(tuple(sorted(asked)))

    def _split(self, asked: tuple[int, ...]) -> tuple[list[Rule], str]:
        found = self._rest.get(asked)
        if found is None:
            rest = ",".join([rule.name for number, rule in enumerate(self._rules) if number not in asked])
            found = self._rest[asked] = [self._rules[number] for number in asked], rest
        return found
