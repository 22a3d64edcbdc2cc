"""Reads config.yaml and remembers the place of every word, so that a mistake can be shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import yaml

from gateway.problems import ConfigError, Path, Place, Problem, nearest, spell

LARGEST: Final = 200_000  # values in one file; YAML aliases could name the same list a billion times
OVERRIDE: Final = "TOLLKEEPER_"
ABSENT: Final = "missing-variable"  # stands in for what is already reported, so that nothing is reported twice

# YAML reads braces as a mapping where `{admin_key: ${NAME}}` stands on one line.  While it reads, they are
# exchanged for two noncharacters, which no text contains: one for one, so that columns stay true.
BRACED = re.compile(r"\$\{([^{}\n]*)\}")
HIDE, SHOW = r"$" + "\ufdd0" + r"\1" + "\ufdd1", str.maketrans("\ufdd0\ufdd1", "{}")

REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|(?P<bad>\{))")
BARE = re.compile(r"\$[A-Z_][A-Z0-9_]*")  # $NAME, which other tools expand
PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
PLAIN_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?\Z|[-+]?[0-9]+\.\Z")

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where PyYAML was built with it: ten times faster


class Source:
    """Plain values (`tree`), where they stand, and what was wrong with reading them (`problems`).

    file: the name problems are shown under.  environ: what `${NAME}` takes its value from.
    """

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.environ = environ
        self.tree: Any = {}
        self.problems: list[Problem] = []
        self.spread: set[Path] = set()  # values that hold, in part, what a variable held
        self._values: dict[Path, Place] = {}
        self._words: dict[Path, Place] = {}
        self._count = 0

    def place(self, path: Path, word: bool = False) -> Place:
        """Where the value at `path` stands (word: the word that names it); where it is missing, what should hold it."""
        while path:
            if (found := (self._words.get(path) if word else None) or self._values.get(path)) is not None:
                return found
            path, word = path[:-1], True
        return self._values.get((), Place(self.file))

    def report(self, path: Path, message: str, mend: str = "", word: bool = False) -> None:
        self.problems.append(Problem(*self.place(path, word), spell(path), message, mend))

    def read(self, text: str) -> None:
        """Raises ConfigError where the text is no YAML at all; everything milder is kept in `problems`."""
        try:
            node = yaml.compose(BRACED.sub(HIDE, text), Loader=Loader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - text.rfind("\n", 0, error.position)
            unreadable = Problem(self.file, line, column, "", "a character that YAML does not allow", "delete it")
            raise ConfigError([unreadable]) from None
        except yaml.MarkedYAMLError as error:
            raise ConfigError([self._syntax(error)]) from None  # PyYAML's own words may quote a secret
        if not isinstance(node, yaml.MappingNode):
            wrong = "nothing is configured" if node is None else "expected a mapping of settings (name: value)"
            raise ConfigError([Problem(self.file, 1, 1, "", wrong, "start with `providers:`; see config.example.yaml")])
        self.tree = self._value(node, (), ())

    def _syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        words = error.problem or "cannot be read"
        if error.context_mark and error.context_mark.line + 1 < line:
            words += f", in what begins on line {error.context_mark.line + 1}"
        if "alias" in words:
            words = 'a value that begins with "*" or "&" must stand in quotes'
        elif "escape" in words or "tag" in words:
            words = "an escape or a tag that YAML does not know"
        return Problem(self.file, line, column, "", f"not YAML: {words}", "check indentation, brackets and quotes here")

    def _value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        mark = node.start_mark
        self._values.setdefault(path, Place(self.file, mark.line + 1, mark.column + 1))
        self._count += 1
        if id(node) in above or self._count > LARGEST:
            wrong = "an alias that contains itself" if id(node) in above else f"more than {LARGEST} values"
            raise ConfigError([Problem(*self.place(path), spell(path), wrong, "write it without YAML aliases")])
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return {word: self._value(value, (*path, word), above) for word, value in self._pairs(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self._value(value, (*path, index), above) for index, value in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            place = Place(self.file, key.start_mark.line + 1, key.start_mark.column + 1)
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                wrong = "a name must be a single word" if key.tag[-1] != "e" else 'merging with "<<" is not supported'
                self.problems.append(Problem(*place, spell(path), wrong, "write the names out"))
                continue
            word = key.value.translate(SHOW)  # as it is written: `no`, `on` and 1 are names like any other
            if word in seen:
                mend = f"the first is on line {seen[word]}: delete one"
                self.problems.append(Problem(*place, spell(path), f'"{shown(word)}" stands here twice', mend))
                continue
            seen[word] = place.line
            self._words[(*path, word)] = place
            yield word, value

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text, kind = node.value.translate(SHOW), node.tag.rpartition(":")[2]
        if kind == "int" and PLAIN_INTEGER.match(text):
            return int(text)
        if kind == "float" and PLAIN_NUMBER.match(text):
            return Decimal(text)  # exactly as written: prices are money
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in yaml.constructor.SafeConstructor.bool_values:
            return yaml.constructor.SafeConstructor.bool_values[text.lower()]
        # 0x1f, 1_000, 12:30 and days stay text: YAML 1.1 would make something else of them than a reader does
        if kind not in ("str", "int", "float", "bool", "timestamp"):
            self.report(path, "a YAML tag", 'a value that begins with "!" must stand in quotes')
        return self._interpolated(text, path)

    def _interpolated(self, text: str, path: Path) -> str:
        mend = "write ${NAME} or ${NAME:-default}; $$ for a plain $"

        def value(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            if match["bad"]:
                self.report(path, "a reference that cannot be read", mend)
                return ABSENT
            self.spread.add(path)
            if found := self.environ.get(match["name"]):
                return found
            if match["default"] is not None:
                return match["default"]
            wrong = "is empty" if found == "" else "is not set"
            optional = f"set it, or write ${{{match['name']}:-default}}"
            self.report(path, f"the environment variable {match['name']} {wrong}", optional)
            return ABSENT

        if BARE.fullmatch(text):
            self.report(path, "$NAME is not expanded", mend)
            return ABSENT
        return REFERENCE.sub(value, text)

    def override(self) -> None:
        """TOLLKEEPER_SERVER__PORT=8080 stands over `server: {port: …}`.  An empty variable counts as not set."""
        for variable, value in sorted(self.environ.items()):
            words = variable.removeprefix(OVERRIDE).split("__")
            if not variable.startswith(OVERRIDE) or not value:
                continue
            if len(words) == 1 and words[0] not in ("STORE", "COUNTERS"):
                continue  # TOLLKEEPER_ADMIN_KEY, or what Kubernetes sets for a service called tollkeeper
            path, problem = self._find([word.lower() for word in words])
            if problem:
                mend = "correct its name or unset it"
                self.problems.append(Problem(f"${variable}", 0, 0, spell(path), problem, mend))
                continue
            self.put(path, value, variable)

    def put(self, path: Path, value: Any, variable: str) -> None:
        """Sets what an environment variable says, which is shown as the place of it."""
        holder = self.tree
        for step in path[:-1]:
            holder = holder[step] if isinstance(step, int) else holder.setdefault(step, {})
        holder[path[-1]] = value
        self._words[path] = self._values[path] = Place(f"${variable}")
        self.spread.add(path)

    def _find(self, words: list[str]) -> tuple[Path, str]:
        """The path an override means: names of the file first (gpt-4o as GPT_4O), then words that may be new there."""
        path: Path = ()
        holder: Any = self.tree
        for word in words:
            if isinstance(holder, list):
                if not word.isdigit() or int(word) >= len(holder):
                    return path, f"there is no entry {word} of {spell(path)}: it has {len(holder)}, counted from 0"
                path, holder = (*path, int(word)), holder[int(word)]
            elif isinstance(holder, dict):
                fits = [name for name in holder if re.sub(r"\W", "_", name).lower() == word]
                if len(fits) > 1:
                    return path, f"it could mean {' or '.join(fits)}"
                if not fits and path in (("providers",), ("models",), ("teams",)):
                    return path, f'no "{word}" in the file; {nearest(word, list(holder))}'
                path = (*path, fits[0] if fits else word)
                holder = holder[fits[0]] if fits else {}
            else:
                return path, f"{spell(path)} is a single value"
        return path, ""


def shown(word: str) -> str:
    """A word of the file as it may be printed: a key that was written in the place of a name is not."""
    return word if re.fullmatch(r"(?![st]k[-_])[A-Za-z][A-Za-z_.-]{0,31}|(?![st]k[-_])[\w.:/@-]{1,15}", word) else "…"
