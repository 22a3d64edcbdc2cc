"""Looks at a body once for all pattern assessors, as it was written, before anything of it is decoded.

Where no hint of any of them occurs in the bytes, none of them can find anything in any text that the bytes hold, and
there is nothing to decode, to join or to ask.  That holds only where texts stand in the JSON as they are; so a body
with other escapes than the commonest, with letters beyond ASCII that an assessor reads as others, with texts in
several parts or with media is always decoded.
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
    r'"type"\s*:\s*"(?:input_|output_|summary_)?text"',
    r'"(?:image_url|input_audio|input_image|image_file|file_id|file_url|file_data|b64_json|audio|data|source)"',
    r'"data:',
    r'"(?:prompt|input)"\s*:\s*\[\s*[\[0-9]',
    r'"partial_image_b64"|"result"\s*:\s*"',
)
# What is read by nobody, and full of digits (gateway/dialects: identifiers and enumerations).
_SKIPPED: Final = re.compile(
    rb'"(?:id|model|created|system_fingerprint)": ?(?:"[\w.:/-]{0,64}"|[0-9]{1,12})'
    rb'|"usage": ?\{[^{}"]{0,64}(?:"[a-z_]{1,40}": ?(?:[0-9.]{1,16}|null|\{[^{}]{0,400}\})[, \n]{0,3}){0,30}\}'
)
LONGEST: Final = 65_536  # bytes that are looked at in one step


class Prefilter:
    """Of some rules.  `usable`: all of them can be asked in this way.  `names`: theirs, with commas."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        scanners = [rule.assessor for rule in rules if isinstance(rule.assessor, Scanner)]
        hints = [hint for scanner in scanners for hint in scanner.hints()]
        self.names = ",".join([rule.name for rule in rules])
        self._others = [rule.assessor for rule in rules if not isinstance(rule.assessor, Scanner)]
        quick = all(one.quick for one in self._others)
        self.usable = bool(scanners) and quick and all(scanner.hints() for scanner in scanners)
        self._folds = any(scanner.folds for scanner in scanners)
        self._scan = hinting([*hints, *map(Hint, _DECODED)]) if self.usable else None

    def clear(self, body: bytes) -> bool:
        """Is there certainly nothing in it?"""
        if self._scan is None or len(body) > LONGEST or (self._folds and not body.isascii()):
            return False
        for one in self._others:
            if not one.spares(body):
                return False
        if b"\\" in body:
            if b"\\u" in body or b"\\\\" in body:
                return False
            body = body.replace(b"\\n", b"\n").replace(b"\\t", b"\t").replace(b'\\"', b'"').replace(b"\\/", b"/")
            if b"\\" in body:
                return False
        hits: list[int] = []
        self._scan(_SKIPPED.sub(b"", body), hits)
        return not hits
