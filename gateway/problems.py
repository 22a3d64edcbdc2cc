"""What is wrong in a configuration, where it stands, and how to mend it: all at once, and never with a secret in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from pydantic_core import PydanticCustomError

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Where a word stands.  line and column count from 1; 0: the place is no line (an environment variable)."""

    file: str
    line: int = 0
    column: int = 0


class Problem(NamedTuple):
    """One thing to mend.  Prints as `config.yaml:12:5 models.gpt.targets[0].provider: what is wrong; the mend`."""

    file: str
    line: int
    column: int
    path: str
    message: str
    mend: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{place} {self.path}" if self.path else place
        return f"{where}: " + "; ".join(filter(None, (self.message, self.mend)))


class ConfigError(Exception):
    """The configuration cannot be used.  `problems` holds everything that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = sorted(problems, key=lambda problem: problem[:3])
        super().__init__("\n".join(map(str, self.problems)))


def wrong(what: str, mend: str) -> PydanticCustomError:
    """To be raised by a policy's own check of its settings; no value of theirs may stand in it."""
    return PydanticCustomError("told", "{wrong}; {mend}", {"wrong": what, "mend": mend})


def spell(path: Path) -> str:
    """A path as the documentation writes it: models.gpt-4o.targets[0].provider"""
    words = ""
    for step in path:
        word = "…" if re.match(r"[st]k[-_].{8}", str(step)) else step  # a key, written where a name belongs
        words += f"[{step}]" if isinstance(step, int) else f".{word}"
    return words.removeprefix(".")


def nearest(word: str, known: Sequence[str], what: str = "known here") -> str:
    """The mend for a misspelt word: the nearest that is known, or all of them where none is near."""
    if close := get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6):
        return f'did you mean "{next(name for name in known if name.lower() == close[0])}"?'
    if not known:
        return f"{what}: none"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"{what}: {', '.join(known[:20])}{more}"
