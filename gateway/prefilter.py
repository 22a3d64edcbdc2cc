"""Looks at a body once for all pattern assessors, as it was written, before anything of it is decoded.

Where no hint of an assessor occurs in the bytes, it cannot find anything in any text that the bytes hold, and need not
be asked, nor where it sees by a closer look that its hints meant nothing; where that is so of all, there is nothing to
decode or to join.  That holds only where texts stand in the JSON as they are; so a body with other escapes than the
commonest, with texts in several parts or with media is always decoded, and all are asked; of letters beyond ASCII,
those who read them as others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gateway.assessor import Assessor, Scanner
from gateway.judging import Rule
from gateway.patterns import Hint, hinting

# What must be decoded to be judged: parts of one message, media, and prompts that are written as tokens.
_DECODED: Final = (
    r'"text"\s*:',
    r'"(?:image_url|input_audio|input_image|image_file|file_id|file_url|file_data|b64_json|audio|data|source)"',
    r'"(?:document_url|video_url|audio_url|images?|video|file_uri|fileUri|file_ids|inline_data|inlineData|fileData|'
    r'input_image_mask)"',
    r'"[dD][aA][tT][aA]:',
    r'"(?:prompt|input)"\s*:\s*\[',
    r'"partial_image_b64"|"result"\s*:\s*"',
    r'"message"\s*:\s*\{[^\x00]*"\s*:\s*\[\s*[^\]\s]',  # unless all such lists are of calls; must be the last
)
# So must a number that is written as no other: with an exponent, or a fraction that may round.
_NUMBER: Final = Hint(r"[:,\[]\s*-?(?:[0-9][0-9.]*[eE]\+?[0-9]|[0-9]{8}[0-9]*(?:\.[0-9]|[eE]))", digits=True)
_LIST: Final = re.compile(rb'"((?:[^"\\]|\\.)*+)"\s*+:\s*+\[\s*+(?!\])')
_UNJOINED: Final = frozenset({b"choices", b"tool_calls"})
# What nobody reads, and is full of digits (gateway/dialects: identifiers and enumerations): in the JSON's own fields …
_SKIPPED: Final = re.compile(
    rb'"(?<!\\")(?:id|model|created|system_fingerprint)": ?(?:"[\w.:/-]{0,64}"|[0-9]{1,12})'  # from a letter on: fast
)
# … and numbers too short to be anybody's.
_COUNT: Final = rb'"[a-z_]{1,40}": ?[0-9]{1,7}[, \n]{0,3}'
_COUNTED: Final = re.compile(
    rb'"(?<!\\")usage": ?\{[ \n]{0,64}(?:%b|"[a-z_]{1,40}": ?(?:null|\{(?:%b){0,20}\})[, \n]{0,3}){0,30}\}'
    % (_COUNT, _COUNT)
)
LONGEST: Final = 65_536  # bytes that are looked at in one step


class Look:
    """The hints of all assessors, compiled once: that takes longer than a call may wait."""

    def __init__(self, assessors: Sequence[Assessor]) -> None:
        self.places: dict[Assessor, range] = {}  # the numbers of each one's hints
        hints: list[Hint] = []
        for scanner in assessors:
            if isinstance(scanner, Scanner) and (own := scanner.hints()):
                self.places[scanner] = range(len(hints), len(hints) + len(own))
                hints += own
        self.least = len(hints)  # from this number on they are those that call for decoding
        self.scan = hinting([*hints, _NUMBER, *map(Hint, _DECODED)]) if hints else None


class Prefilter:
    """Of some rules.  `usable`: all of them can be asked in this way."""

    def __init__(self, rules: Sequence[Rule], look: Look | None = None) -> None:
        look = look or Look([rule.assessor for rule in rules])
        self._scanners = {at: rule.assessor for at, rule in enumerate(rules) if isinstance(rule.assessor, Scanner)}
        self._others = [at for at in range(len(rules)) if at not in self._scanners]
        quick = all(rules[at].assessor.quick for at in self._others)
        self.usable = bool(self._scanners) and quick and all(one in look.places for one in self._scanners.values())
        self._rules = rules
        self._folding = [at for at, scanner in self._scanners.items() if scanner.folds]
        usable = self._scanners.items() if self.usable else ()
        self._owners = {hint: (at, place) for at, one in usable for place, hint in enumerate(look.places[one])}
        self._scan, self._least = look.scan if self.usable else None, look.least
        self._list = look.least + len(_DECODED)
        self._rest: dict[tuple[int, ...], tuple[list[Rule], str]] = {}

    def suspects(self, body: bytes) -> tuple[list[Rule], str] | None:
        """The rules that may find something in it, and the names of the others, with commas.

        None: it must be decoded to be looked at, by all of them.
        """
        if self._scan is None or len(body) > LONGEST or b"\0" in body:  # of another encoding
            return None
        if (at := body.find(b'"choices"')) >= 0 and _lists_before(body, at):
            return None
        asked = set([] if body.isascii() else self._folding)
        asked.update([at for at in self._others if not self._rules[at].assessor.spares(body)])
        plain, near = self._near(body)
        if near or plain is None:  # perhaps in what nobody reads
            plain, near = self._near(_without_labels(body))
        if plain is None:
            return None
        asked.update([at for at in near.keys() - asked if self._scanners[at].doubts(plain, near[at])])
        return self._split(tuple(sorted(asked)))

    def _near(self, body: bytes) -> tuple[bytes | None, dict[int, list[int]]]:
        """The body as its texts are, or None where it must be decoded; and the hints in it, of each rule."""
        raw = body
        if b"\\" in body:
            if b"\\u" in body or b"\\\\" in body:
                return None, {}
            body = body.replace(b"\\n", b"\n").replace(b"\\t", b"\t").replace(b'\\"', b'"').replace(b"\\/", b"/")
            if b"\\" in body:
                return None, {}
        hits: list[int] = []
        assert self._scan is not None
        self._scan(body, hits)
        near: dict[int, list[int]] = {}
        for hit in hits:
            if hit >= self._least:
                if hit == self._list and _UNJOINED.issuperset(_LIST.findall(raw)):
                    continue
                return None, {}
            if (owner := self._owners.get(hit)) is not None:
                near.setdefault(owner[0], []).append(owner[1])
        return body, near

    def _split(self, asked: tuple[int, ...]) -> tuple[list[Rule], str]:
        found = self._rest.get(asked)
        if found is None:
            rest = ",".join([rule.name for at, rule in enumerate(self._rules) if at not in asked])
            found = self._rest[asked] = [self._rules[at] for at in asked], rest
        return found


def _lists_before(body: bytes, choices: int) -> bool:
    """Does an answer list anything before its one message, which a reader may join?  Where it has several: perhaps."""
    first, message = body.find(b"["), body.find(b'"message"', choices)
    if first < choices or message < 0:
        return True
    return body.find(b"[", first + 1, message) >= 0 or body.find(b'"message"', message + 1) >= 0


def _without_labels(body: bytes) -> bytes:
    """What stands before the first bracket inside, and behind the last, are fields of the JSON itself: no other's.

    They are known before quotes are undone that stand in texts.
    """
    firsts = [at for bracket in (b"{", b"[") if (at := body.find(bracket, 1)) > 0]
    begin = min(firsts, default=len(body))
    end = body.rfind(b"}")
    last = max(begin, body.rfind(b"}", begin, end) + 1, body.rfind(b"]", begin, end) + 1)
    return _SKIPPED.sub(b"", body[:begin]) + _COUNTED.sub(b"", body[begin:last]) + _SKIPPED.sub(b"", body[last:])
