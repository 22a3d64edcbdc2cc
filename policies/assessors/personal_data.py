"""Personal data by shape and check digit: e-mail, telephone, card, IBAN, national numbers, IP addresses.

It knows no names and no postal addresses: `presidio` does, where it is installed.  A number that any other could be
(nine or eleven digits with a weak check) counts only behind a word that says what it is.

Check digits: ISO/IEC 7812-1 B (cards), ISO 13616 (IBAN), ISO 7064 MOD 11,10 (Steuer-ID), and the issuers' own rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from gateway import settings
from gateway.assessor import STAGES, Scanner
from gateway.patterns import HELD, Found, Hint, Rule, Rules, count_digits, exactly

Kind = Literal[
    "email", "phone", "card", "iban", "ip", "us_ssn", "uk_nino", "de_tax_id", "fr_nir", "es_dni", "nl_bsn", "it_cf",
    "pl_pesel", "br_cpf",
]  # fmt: skip

_LAST_OF_WORDS: Final = "\u2e80"  # from here on scripts write no blanks between words
_LOCAL: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+%-'")
_GROUPS: Final = re.compile(r"\d+")
_RUN: Final = re.compile(r"\d[\d ().\-/]{7,}+")  # no number is shorter
_DATE: Final = re.compile(r"(?:19|20)\d\d[-/.][01]\d[-/.][0-3]\d\b|[0-3]?\d[-/.][01]?\d[-/.](?:19|20)\d\d\b")
_CONTEXT: Final = {
    "us_ssn": re.compile(r"\b(?:ssn|social security)", re.IGNORECASE),
    "nl_bsn": re.compile(r"\b(?:bsn|burgerservice|sofi)", re.IGNORECASE),
    "de_tax_id": re.compile(r"steuer|\btax|\btin\b|\bidnr|identifikationsnummer", re.IGNORECASE),
    "pl_pesel": re.compile(r"pesel", re.IGNORECASE),
}
_LOOKED, _FEW = 16_384, 400  # bytes and digits that are looked at in one step
_NEAR: Final = 48  # characters before a number in which its word must stand

# ISO 13616: characters of an IBAN by country.
_IBAN: Final = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


def _email(match: re.Match[str]) -> tuple[int, int] | None:
    """The match begins at the @; what stands before it is walked over backwards, once."""
    text, at = match.string, match.start()
    start = at
    while start and at - start < 64 and _of_local(text[start - 1]):
        start -= 1
    start += len(text[start:at]) - len(text[start:at].lstrip("."))
    return (start, match.end()) if start < at else None


def _of_local(letter: str) -> bool:
    return letter in _LOCAL or ("\x7f" < letter < _LAST_OF_WORDS and letter.isalnum())


def _iban(match: re.Match[str]) -> tuple[int, int] | None:
    """As many characters as its country has, if their check digits are right."""
    text, start = match[0] + match[1], match.start()
    wanted, seen, end = _IBAN.get(text[:2].upper()), 0, 0
    if wanted is None:
        return None
    while end < len(text) and seen < wanted:
        seen += text[end].isalnum()
        end += 1
    value = "".join(letter for letter in text[:end] if letter.isalnum()).upper()
    after = match.string[start + end : start + end + 1]
    if seen != wanted or not value.isascii() or (after.isalnum() and after.isascii()):  # in any case: K is a kelvin
        return None
    number = "".join(str(int(letter, 36)) for letter in value[4:] + value[:4])
    return (start, start + end) if int(number) % 97 == 1 else None


def _ip(match: re.Match[str]) -> tuple[int, int] | None:
    """One that could be somebody's: not this machine's, a private network's or documentation's."""
    text = match[0].rstrip(":.")
    before = match.string[max(0, match.start() - 8) : match.start()].lower()
    if before.rstrip(" .:").endswith(("v", "version", "ver")) or before[-1:] == ".":
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    known = address.is_global and sum(map(str.isdigit, text)) >= 4
    return (match.start(), match.start() + len(text)) if known else None


def _nino(match: re.Match[str]) -> tuple[int, int] | None:
    """HMRC's manual, NIM39110: letters that are not used, and prefixes that are not given."""
    prefix = match[0][:2].upper()
    return None if prefix in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") else match.span()


def _dni(match: re.Match[str]) -> tuple[int, int] | None:
    digits = match[1].upper().translate({ord("X"): "0", ord("Y"): "1", ord("Z"): "2"})
    right = "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == match[2].upper()
    return match.span() if right and not _goes_on(match) else None


_ODD: Final = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
    23), strict=True))  # fmt: skip


def _codice_fiscale(match: re.Match[str]) -> tuple[int, int] | None:
    """Decreto ministeriale 23 December 1976."""
    code = match[0].upper()
    even = sum(int(letter) if letter.isdigit() else ord(letter) - 65 for letter in code[1:15:2])
    right = chr((sum(_ODD[letter] for letter in code[:15:2]) + even) % 26 + 65) == code[15]
    return match.span() if right and not _goes_on(match) else None


def _goes_on(match: re.Match[str]) -> bool:
    return match.string[match.end() : match.end() + 1].isalnum()


_S: Final = r"[ ().\-/]"
# A number has 11 digits, 8 behind a +, or 9 by themselves or in groups.  No hint begins with letters: they cost most.
_MANY: Final = (
    rf"[0-9](?:{_S}{{0,3}}[0-9]){{10}}|\+[^0-9]{{0,8}}[0-9](?:{_S}{{0,3}}[0-9]){{7}}|(?:^|[^0-9])(?:[0-9]{{9}}(?:$|[^0-9])|"
    + "|".join([rf"[0-9]{{{n}}}{_S}{{1,3}}[0-9]" + rf"(?:{_S}{{0,3}}[0-9])" * (8 - n) for n in range(1, 9)]) + ")"
)  # fmt: skip
_IP6: Final = r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{3,36}"

_RULES: Final = (
    Rule("email", r"@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", r"[^\s@]@[^\s@]+\.", _email, bounded=False),
    Rule("iban", r"[A-Z]{2}\d\d(?=((?: ?[A-Z0-9]){11,30}))", r"[A-Z][0-9]{2}(?: ?[A-Z0-9]){11}", _iban, caseless=True, digits=True),
    Rule("ip", r"(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)", r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", _ip, digits=True),
    Rule("ip", _IP6, r"[0-9a-f]::|[0-9a-f]:[0-9a-f]{1,4}:[0-9a-f]{0,4}:", _ip, caseless=True, digits=True, exact=exactly(_IP6)),
    Rule("uk_nino", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:\d\d ?){3}[A-D](?![A-Za-z0-9])",
         r"[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", _nino, digits=True),
    Rule("es_dni", r"([XYZ]?\d{7,8})-?([A-Z])", r"[0-9]{7}-?[A-Z]", _dni, caseless=True, digits=True),
    Rule("it_cf", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", r"[0-9]{2}[A-T][0-9]{2}[A-Z][0-9]{3}[A-Z]", _codice_fiscale, caseless=True, digits=True),
    Rule("digits", "", _MANY, bounded=False, digits=True),
)  # fmt: skip


class PersonalData(Scanner):
    """Finds it by shape; the score is 1 where a check digit agrees, and less for what only looks like it."""

    stages: ClassVar[frozenset[str]] = frozenset(STAGES)
    scores: ClassVar[dict[str, float]] = {"phone": 0.8, "ip": 0.9, "uk_nino": 0.9, "us_ssn": 0.9}

    class Settings(settings.Settings):
        kinds: Annotated[list[Kind], Field(min_length=1)] | None = None  # none: all

    def __init__(self, said: Settings | None = None) -> None:
        kinds = (said or self.Settings()).kinds
        self._kinds = None if kinds is None else frozenset[str](kinds)
        self._rules = Rules([rule for rule in _RULES if self._wants(rule.label) or rule.label == "digits"])

    def _wants(self, label: str) -> bool:
        return self._kinds is None or label in self._kinds

    def hints(self) -> Sequence[Hint]:
        return self._rules.hints

    def doubts(self, body: bytes, hits: list[int]) -> bool:
        """Nothing that it finds holds a quotation mark, or is less for what stands before one: JSON is a text like any.

        But the word for a number may stand in the message before.
        """
        if len(body) > _LOOKED or count_digits(body) > _FEW:
            return True
        try:
            return bool(self._looked(body.decode(), self._rules.closer(body, hits), behind_words=False))
        except UnicodeDecodeError:
            return True

    def find(self, text: str, data: bytes) -> list[Found]:
        hits = self._rules.hits(data)
        return self._looked(text, hits) if hits else []

    def _looked(self, text: str, hits: list[int], behind_words: bool = True) -> list[Found]:
        found = self._rules.look(text, hits)
        if self._rules.last in hits:
            found += [one for one in _numbers(text, behind_words) if self._wants(one.label)]
        return found

    def hold(self, text: str) -> int:
        """The last word, and what stands before it while that has a digit or could begin an IBAN."""
        tail = text[-HELD:]
        at = len(tail)
        while at and not tail[at - 1].isspace() and tail[at - 1] < _LAST_OF_WORDS and tail[at - 1] != "\x00":
            at -= 1
        while at and tail[at - 1] == " ":
            end = at - 1
            begin = max(tail.rfind(" ", 0, end), tail.rfind("\n", 0, end), tail.rfind("\t", 0, end)) + 1
            word = tail[begin:end]
            if word and not (_WITH_DIGIT.search(word) or (len(word) <= 4 and word.isupper()) or word in "+("):
                if (letters := _BEGINS.search(word)) is not None:
                    at = begin + letters.start(1)
                break
            at = begin
        return len(tail) - at

    def resume(self, label: str, text: str) -> tuple[int, bool]:
        """An address that is longer than any; nothing else here goes on."""
        at = 0
        while label == "email" and at < len(text) and _of_local(text[at]):
            at += 1
        return at, label == "email" and at == len(text)


_WITH_DIGIT: Final = re.compile(r"\d")
_BEGINS: Final = re.compile(r"[^A-Za-z0-9]([A-Z]{1,4})\Z")  # behind a bracket or a quote a number may begin


def _opens(text: str, at: int) -> int:
    """Where the run begins that has its first digit there: up to two signs before it, but for one that ends another."""
    before = text[max(0, at - 2) : at]
    ends_another = before == "(+" and text[max(0, at - 66) : at - 2].rstrip(" ().-/")[-1:].isdecimal()
    return at - 1 if ends_another else at - len(before) + len(before.rstrip("+("))


class _Run:
    """Groups of digits that blanks and signs join.  Offsets are into the digits alone.  behind_words: see `told`."""

    __slots__ = ("behind_words", "digits", "ends", "offsets", "starts", "text")

    def __init__(self, text: str, start: int, end: int, behind_words: bool) -> None:
        self.text = text
        self.behind_words = behind_words
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.offsets = [0]
        groups = []
        for group in _GROUPS.finditer(text, start, end):
            self.starts.append(group.start())
            self.ends.append(group.end())
            self.offsets.append(self.offsets[-1] + group.end() - group.start())
            groups.append(group[0])
        self.digits = "".join(groups)

    def told(self, start: int, label: str) -> bool:
        """Does the word for it stand before a number that could be any?"""
        return not self.behind_words or _CONTEXT[label].search(self.text, max(0, start - _NEAR), start) is not None

    def joined(self, first: int) -> int:
        """The group behind the last that is near enough to belong to one number with this one; eight at most."""
        last, most = first + 1, min(first + 8, len(self.starts))
        while last < most and self.starts[last] - self.ends[last - 1] <= 3:
            last += 1
        return last


def _numbers(text: str, behind_words: bool = True) -> Iterator[Found]:
    """Every run of digits may hold several numbers; the one with the strongest check is taken first."""
    for match in _RUN.finditer(text):
        start = _opens(text, match.start())
        run = _Run(text, match.start(), match.end(), behind_words)
        of_word = start > 0 and text[start - 1].isalnum() and text[start - 2 : start - 1] != "\\"
        at, count = int(of_word), len(run.starts)  # the first group may end a word
        while at < count:
            until = run.joined(at)
            if run.offsets[until] - run.offsets[at] < 8:  # no number here is shorter
                at += 1
                continue
            label, last = _checked(run, at, until)
            if not label and not of_word:  # which, as IBANs do, may go on in groups
                label, last = _phone(run, at, until)
            if label:
                begin, end = run.starts[at], run.ends[last]
                if label == "phone":
                    while begin > start and text[begin - 1] in "+(":
                        begin -= 1
                yield Found(begin, end, label, end == len(text))
                at = last
            at += 1


def _checked(run: _Run, first: int, until: int) -> tuple[str, int]:
    """(label, its last group) of the shortest number that begins here and whose check is right; ("", 0)."""
    text, offsets = run.text, run.offsets
    for last in range(first, until):
        size = offsets[last + 1] - offsets[first]
        if size > 19:
            break
        if size not in _SIZES:
            continue
        end = run.ends[last]
        if text[end : end + 1].isalpha():
            break
        lengths = [offsets[at + 1] - offsets[at] for at in range(first, last + 1)]
        label = _label(run, first, lengths, run.digits[offsets[first] : offsets[last + 1]])
        if label:
            return label, last
    return "", 0


_SIZES: Final = frozenset({9, 11, *range(13, 20)})


def _label(run: _Run, first: int, lengths: list[int], digits: str) -> str:
    size, text, start = len(digits), run.text, run.starts[first]
    if size >= 13:
        shaped = len(lengths) == 1 or (min(lengths) >= 3 and max(lengths) <= 7)
        if shaped and digits[0] in "23456" and luhn(digits):
            return "card"
        if size == 15 and digits[0] in "12" and 97 - int(digits[:13]) % 97 == int(digits[13:]) and digits[3:5] != "00":
            return "fr_nir"
        return ""
    if size == 11:
        if (lengths == [3, 3, 3, 2] or len(lengths) == 1) and _cpf(digits):
            return "br_cpf"
        if _steuer_id(digits) and run.told(start, "de_tax_id"):
            return "de_tax_id"
        return "pl_pesel" if _pesel(digits) and run.told(start, "pl_pesel") else ""
    if lengths == [3, 2, 4]:
        sign = text[run.ends[first]]
        alike = sign == text[run.ends[first + 1]] and sign in "- " and text[start - 1 : start] not in tuple(".,-/")
        if alike and _ssn(digits):
            return "us_ssn"
    if _ssn(digits) and run.told(start, "us_ssn"):
        return "us_ssn"
    return "nl_bsn" if _bsn(digits) and run.told(start, "nl_bsn") else ""


def _phone(run: _Run, first: int, until: int) -> tuple[str, int]:
    """With + and 8 to 15 digits; without, 10 or 11 in three groups or more, or with a 0 first in two."""
    text, offsets, start = run.text, run.offsets, run.starts[first]
    before = text[max(0, start - 2) : start]
    plus = "+" in before
    if not plus and before[-1:] in ("-", "/", "."):
        return "", 0
    size = 0
    for last in range(first, until):
        size = offsets[last + 1] - offsets[first]
        if size > 15:
            return "", 0
        ends_here = last + 1 == until or offsets[last + 2] - offsets[first] > 15
        if not ends_here or size < 8:
            continue
        count = last - first + 1
        long_enough = (
            plus or (3 <= count <= 5 and 10 <= size <= 11) or (count == 2 and 9 <= size <= 12 and text[start] == "0")
        )
        # Behind nine groups or more stands a table, not a telephone.
        cut = last + 1 == until and until < len(run.starts) and run.starts[until] - run.ends[last] <= 3
        dated = any(_DATE.match(text, run.starts[at]) for at in range(first, last + 1))
        return ("phone", last) if long_enough and (plus or not cut) and not dated else ("", 0)
    return "", 0


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)] for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _ssn(digits: str) -> bool:
    """Social Security Administration: areas 000, 666 and 900-999, group 00 and serial 0000 are not given."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def _bsn(digits: str) -> bool:
    """The eleven test: weights 9 … 2, and -1."""
    total = sum(int(digit) * weight for digit, weight in zip(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True))
    return total % 11 == 0 and total > 0


def _steuer_id(digits: str) -> bool:
    """Of the first ten digits exactly one stands twice or three times; ISO 7064 MOD 11,10."""
    counts = sorted((digits[:10].count(digit) for digit in set(digits[:10])), reverse=True)
    if digits[0] == "0" or counts[0] not in (2, 3) or (len(counts) > 1 and counts[1] > 1):
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def _pesel(digits: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True))
    return total % 10 == 0 and 1 <= int(digits[2:4]) % 20 <= 12 and 1 <= int(digits[4:6]) <= 31


def _cpf(digits: str) -> bool:
    """Receita Federal: two check digits, modulo 11."""
    if len(set(digits)) == 1:
        return False
    for size in (9, 10):
        total = sum(int(digit) * weight for digit, weight in zip(digits, range(size + 1, 1, -1), strict=False))
        if total * 10 % 11 % 10 != int(digits[size]):
            return False
    return True
