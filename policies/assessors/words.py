"""Banned words and topics, as an operator lists them: words and phrases, or regular expressions run in linear time."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import Scanner
from gateway.patterns import HELD, Found
from gateway.patterns import Words as Patterns

Word = Annotated[str, StringConstraints(min_length=1, max_length=HELD, strip_whitespace=True)]
_BLANK: Final = re.compile(r"\s+")


class Words(Scanner):
    """Whole words, in any case; blanks in a phrase stand for any blanks.  The score is 1."""

    stages: ClassVar[frozenset[str]] = frozenset({"input", "output", "tool_arguments", "tool_results"})

    class Settings(settings.Settings):
        words: list[Word] = Field(default_factory=list)
        # The topic's name is what records show; its words do not appear there.
        topics: dict[settings.Name, list[Word]] = Field(default_factory=dict)
        # Regular expressions, without back-references or look-around.
        patterns: dict[settings.Name, Word] = Field(default_factory=dict)

        @model_validator(mode="after")
        def _compiles(self) -> Self:
            if not (self.words or self.topics or self.patterns):
                raise PydanticCustomError(
                    "told", "words", {"wrong": "names nothing", "mend": "give it words, topics or patterns"}
                )
            for name, pattern in self.patterns.items():
                try:
                    Patterns([(name, pattern)])
                except ValueError as error:
                    mend = "no back-references, no look-around; it must match something"
                    raise PydanticCustomError("told", "pattern_wrong", {"wrong": str(error), "mend": mend}) from None
            return self

    def __init__(self, said: Settings) -> None:
        listed = [("word", word) for word in said.words]
        listed += [(topic, word) for topic, words in said.topics.items() for word in words]
        patterns = [(label, r"\s{1,4}".join(map(re.escape, _BLANK.split(word)))) for label, word in listed]
        self._whole = len(patterns)
        patterns += said.patterns.items()
        self._patterns = Patterns(patterns)
        self._literal = {label for label, _ in patterns[: self._whole]}
        self.reach = HELD if said.patterns else min(HELD, max([len(word) + 8 for _, word in listed]))
        self._single = not said.patterns and not any(_BLANK.search(word) for _, word in listed)

    def find(self, text: str, data: bytes) -> list[Found]:
        return [one for one in self._patterns.find(text, data) if one.label not in self._literal or _apart(text, one)]

    def hold(self, text: str) -> int:
        if not self._single:
            return min(len(text), self.reach)
        at, least = len(text), max(0, len(text) - self.reach)
        while at > least and not text[at - 1].isspace():
            at -= 1
        return len(text) - at


def _apart(text: str, found: Found) -> bool:
    """No letter or digit of the same alphabet goes on from it: in scripts without blanks every place counts."""
    first, last = text[found.start], text[found.end - 1]
    before, after = text[found.start - 1 : found.start], text[found.end : found.end + 1]
    joins = before.isalnum() and first.isalnum() and before < "\u2e80" and first < "\u2e80"
    goes_on = after.isalnum() and last.isalnum() and after < "\u2e80" and last < "\u2e80"
    escaped = text[found.start - 2 : found.start - 1] == "\\"
    return not (goes_on or (joins and not escaped))
