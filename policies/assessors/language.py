"""The language of a text, by its script and its commonest words; for twelve languages and the scripts of others.

A guess by counting: sound from about ten words on, and silent (score 0) below.  It does not tell languages apart that
share most of their small words.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict

Name = Literal[
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "ru", "uk", "zh", "ja", "ko", "ar", "he", "el", "hi", "th",
]  # fmt: skip

_COMMON: Final = {
    "en": "the of and to in is that it for was on are with as this be at have from or by not you which but",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec",
    "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este",
    "it": "di e il la che in un a per è una sono con non del da si le dei come al nel della anche più ma gli",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das",
    "nl": "de van een het en in is dat op te zijn met voor niet aan er om ook als bij door maar uit wordt dan",
    "pl": "i w na z do się nie to że o jest jak od po a za przez ale oraz dla są tym który jego być",
    "sv": "och i att det som en på är av för med till den har de inte om ett men var sig så från vi kan",
    "tr": "ve bir bu da de için ile olarak çok daha olan gibi en ne var kadar sonra ama o her mi ya",
    "ru": "и в не на я что с он а как это по но из у за то все так же от о бы для мы вы",
    "uk": "і в не на що з у та до це як за але від про є для він й я ми ви або його її",
}  # fmt: skip
_VOICES: Final = {word: [lang for lang in _COMMON if word in _COMMON[lang].split()] for words in _COMMON.values() for word in words.split()}  # fmt: skip
_SCRIPTS: Final = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
)
_SCRIPTED: Final = re.compile(
    "[\u0370-\u03ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u1100-\u11ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
)
_BLANK: Final = bytes(one if chr(one).isalpha() else 32 for one in range(128)).ljust(256)  # what is no letter
_LONG: Final = 30  # letters of a word; what goes on from there is another
_WORD: Final = re.compile(rf"[^\W\d_]{{1,{_LONG}}}")
_LONGEST: Final = 800  # characters that are looked at: more would change little
_SURE: Final = 12  # words from which a guess is a guess


class Language(Assessor):
    """Score: how much speaks against every allowed language."""

    type: ClassVar[str] = "pattern"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output"})
    quick: ClassVar[bool] = True

    class Settings(settings.Settings):
        allow: Annotated[list[Name], Field(min_length=1)]

    def __init__(self, said: Settings) -> None:
        self._allow = frozenset[str](said.allow)

    async def assess(self, text: str, stage: str) -> Verdict:
        found, sure = guess(text[:_LONGEST])
        if not found or found in self._allow:
            return PASSED
        return Verdict(sure, sure, f"language {found}")


def guess(text: str) -> tuple[str, float]:
    """(language, confidence 0 … 1); ("", 0) where too little speaks for any."""
    ascii = text.isascii()
    plain = text.encode().translate(_BLANK).lower() if ascii else b""
    letters = len(plain) - plain.count(b" ") if ascii else sum(map(str.isalpha, text))
    if letters < 8:
        return "", 0.0
    for name, script in _SCRIPTS if not ascii and _SCRIPTED.search(text) else ():
        share = len(script.findall(text)) / letters
        if share > (0.1 if name == "ja" else 0.3):
            return name, min(1.0, 0.5 + share)
    words = plain.decode().split() if ascii else _WORD.findall(text.lower())
    counts = Counter(words)
    if ascii and len(max(counts, key=len)) > _LONG:
        counts = Counter(words := _WORD.findall(text.lower()))
    votes: dict[str, int] = {}
    for word, count in counts.items():
        voices = _VOICES.get(word, ())
        for one in voices:
            votes[one] = votes.get(one, 0) + 6 // len(voices) * count
    if not votes or len(words) < _SURE:
        return "", 0.0
    most, second = sorted([*votes.values(), 0], reverse=True)[:2]
    if most < 12 or most / len(words) < 0.6:
        return "", 0.0
    return max(votes, key=votes.__getitem__), round((most - second) / most, 3)
