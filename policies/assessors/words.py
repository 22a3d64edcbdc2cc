"""Banned words and topics, as an operator lists them: words and phrases, or regular expressions run in linear time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import Scanner
from gateway.patterns import HELD, Expressions, Found, Hint, Rule, Rules, literal

Word = Annotated[str, StringConstraints(min_length=1, max_length=HELD, strip_whitespace=True)]


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
                    Expressions([(name, pattern)])
                except ValueError as error:
                    wrong = f"the pattern {name} cannot be used: {error}"
                    mend = "RE2 knows no back-references and no look-around"
                    raise PydanticCustomError("told", "pattern", {"wrong": wrong, "mend": mend}) from None
            return self

    def __init__(self, said: Settings) -> None:
        listed = [("word", word) for word in said.words]
        listed += [(topic, word) for topic, words in said.topics.items() for word in words]
        rules = [Rule(label, *literal(word), _apart, bounded=False, caseless=True) for label, word in listed]
        self._rules = Rules(rules) if rules else None
        self._expressions = Expressions([*said.patterns.items()]) if said.patterns else None
        self.reach = HELD if said.patterns else min(HELD, max([len(word) + 8 for _, word in listed]))
        self._single = not said.patterns and not any(len(word.split()) > 1 for _, word in listed)

    def hints(self) -> Sequence[Hint]:
        return self._rules.hints if self._rules is not None and self._expressions is None else ()

    def find(self, text: str, data: bytes) -> list[Found]:
        found = self._rules.find(text, data) if self._rules is not None else []
        return found + self._expressions.find(text) if self._expressions is not None else found

    def hold(self, text: str) -> int:
        if not self._single:
            return min(len(text), self.reach)
        at, least = len(text), max(0, len(text) - self.reach)
        while at > least and not text[at - 1].isspace():
            at -= 1
        return len(text) - at


def _apart(match: re.Match[str]) -> tuple[int, int] | None:
    """No letter or digit of the same alphabet goes on from it: in scripts without blanks every place counts."""
    text, (start, end) = match.string, match.span()
    before, after = text[start - 1 : start], text[end : end + 1]
    goes_on = after.isalnum() and text[end - 1].isalnum() and after < "\u2e80" and text[end - 1] < "\u2e80"
    joins = before.isalnum() and text[start].isalnum() and before < "\u2e80" and text[start] < "\u2e80"
    escaped = text[start - 2 : start - 1] == "\\"
    return None if goes_on or (joins and not escaped) else (start, end)
