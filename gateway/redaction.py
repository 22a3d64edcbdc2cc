"""Takes what is obviously an e-mail address, a telephone or card number, or a secret out of a text that is stored.

Minimal on purpose: it knows shapes, not meaning (no names, no postal addresses), and rather takes too much: one in ten
numbers of 13 to 19 digits looks like a card's.  Time is linear in the text.
"""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(r"\\(?:u00([2-7][0-9a-fA-F])|.)", re.DOTALL)
_BEGIN: Final = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
_END: Final = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----")
# `++` never gives back what it took, and what follows it cannot fail: no text is gone over twice.
# A letter after a backslash belongs to a JSON escape (\nuser@host), not to the word.
_WORD: Final = re.compile(r"\\.|([\w.+%@/=~-]++)", re.DOTALL)
_DIGITS: Final = re.compile(r"(?:\+\d|\(\d|(?:(?<!\w)|(?<=\\[bfnrt]))\d)[\d ().-]*+")
_GROUPS: Final = re.compile(r"\d+")
_DATE: Final = re.compile(r"(?:19|20)\d\d-[01]\d-[0-3]\d\b")
_EMAIL: Final = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_LONGEST_EMAIL: Final = 320
_SECRET: Final = re.compile(
    r"(?<![\w-])(?:"  # only where a word begins: "eyJeyJeyJ..." is tried once
    r"(?:sk|rk|pk)[-_][\w-]{16,}+"  # OpenAI, Anthropic, Stripe and those who write keys like them
    r"|(?:ghp|gho|ghs|ghu|ghr|github_pat)_\w{20,}+"
    r"|tka?_[0-9A-Za-z]{20,}+"  # Tollkeeper's own
    r"|glpat-[\w-]{16,}+"
    r"|hf_\w{20,}+"
    r"|xox[abeoprs]-[\w-]{10,}+"
    r"|A[KS]IA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}+"
    r"|eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+"  # a JSON Web Token
    r")"
)


class Redactor:
    """Replaces a value by the same placeholder wherever it occurs in the texts given to this one Redactor.

    Placeholders are numbered, not hashed: the hash of a telephone number is soon undone.
    """

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def redact(self, text: str) -> str:
        """The text with placeholders such as [email_1], [phone_1], [card_1] and [secret_1]."""
        text = self._blocks(_ESCAPE.sub(_plain, text))
        text = _WORD.sub(lambda m: self._word(m[1]) if m[1] else m[0], text)
        return _DIGITS.sub(lambda m: self._digits(m[0]), text)

    def _blocks(self, text: str) -> str:
        """Private keys as PEM writes them; one that is cut off reaches to the end."""
        parts: list[str] = []
        done = 0
        while begin := _BEGIN.search(text, done):
            closing = _END.search(text, begin.end())
            end = closing.end() if closing else len(text)
            parts += (text[done : begin.start()], self._placeholder("secret", text[begin.start() : end]))
            done = end
        return "".join([*parts, text[done:]])

    def _word(self, word: str) -> str:
        if "@" in word:
            if len(word) > _LONGEST_EMAIL:
                return self._placeholder("email", word)
            return _EMAIL.sub(lambda m: self._placeholder("email", m.group()), word)
        if len(word) < 14:
            return word
        return _SECRET.sub(lambda m: self._placeholder("secret", m.group()), word)

    def _digits(self, run: str) -> str:
        """A run may hold several numbers: cards are looked for first, and what is left may be a telephone's."""
        groups = list(_GROUPS.finditer(run))
        parts: list[str] = []
        done = at = 0
        while at < len(groups):
            last = _card_end(groups, at)
            if last is None:
                at += 1
                continue
            start, end = groups[at].start(), groups[last].end()
            digits = "".join(group.group() for group in groups[at : last + 1])
            parts += (self._phone(run[done:start]), self._placeholder("card", digits))
            done, at = end, last + 1
        return "".join([*parts, self._phone(run[done:])])

    def _phone(self, run: str) -> str:
        number = run.rstrip(" (.-")
        digits = re.sub(r"\D", "", number)
        if _DATE.match(number):
            return run
        separated = len(_GROUPS.findall(number)) >= 3 and 10 <= len(digits) <= 11
        if not (separated or (number.startswith("+") and 8 <= len(digits) <= 15)):
            return run
        return self._placeholder("phone", digits) + run[len(number) :]

    def _placeholder(self, kind: str, value: str) -> str:
        known = self._seen.get(value)
        if known is None:
            number = self._counts[kind] = self._counts.get(kind, 0) + 1
            known = self._seen[value] = f"[{kind}_{number}]"
        return known


def redact(text: str) -> str:
    """One text by itself."""
    return Redactor().redact(text)


def _plain(escape: re.Match[str]) -> str:
    """JSON may write any character as an escape; printable ASCII is written plainly: nothing hides behind it."""
    character = chr(int(escape[1], 16)) if escape[1] else "\\"
    return escape[0] if character in '\\"\x7f' else character


def _card_end(groups: list[re.Match[str]], first: int) -> int | None:
    """The last group of a card number of 13 to 19 digits that begins here: in one piece, or in pieces of 3 to 7."""
    digits = ""
    for at in range(first, min(first + 6, len(groups))):
        group = groups[at].group()
        whole = at == first and 13 <= len(group) <= 19
        if not whole and not 3 <= len(group) <= 7:
            return None
        digits += group
        if len(digits) > 19:
            return None
        if len(digits) >= 13 and _luhn(digits):
            return at
    return None


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)] for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0
