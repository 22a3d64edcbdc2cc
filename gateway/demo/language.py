"""How the simulated provider counts and makes up text: a tokenizer, seeded words, and JSON that fits a schema.

The tokenizer is the simulator's own, deterministic, and unlike any real one on purpose, so that no test can pass by
counting with the gateway's tokenizer.  A token is up to 8 letters, up to 3 digits or one other sign, together with the
white space before it; white space at the end is one token.  The tokens of a text joined together are the text.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any, Final

_TOKEN: Final = re.compile(r"\s*(?:[^\W\d_]{1,8}|\d{1,3}|[^\s])|\s+")

_WORDS: Final = tuple(
    " " + word
    for word in (  # noqa: SIM905  a list of them would take a line each
        "about above account across act add after again against age agree air all allow alone along already"
        " also always among amount and animal answer any appear area arm around arrive art ask assume at away"
        " back ball bank bar base be bear beat because become before begin behind believe benefit best better"
        " between big bird black blood blue board body book both box boy break bring build building burn"
        " business but buy by call can capital car card care carry case catch cause cell center central"
        " certain chair chance change child choice choose city claim class clear close coach cold color come"
        " common company compare concern consider contain control cost could country couple course court cover"
        " create current cut dark data day deal debate decade decide deep degree depend describe design detail"
        " develop die direct discuss door down draw dream drive drop during each early east easy eat edge"
        " effect effort eight either end energy enjoy enough enter entire event ever every exactly example"
        " expect explain eye face fact factor fail fall family far fast father feel few field fight figure"
        " fill final find fine finger finish fire firm first fish five floor fly focus follow food foot for"
        " force foreign forget form former forward four free friend from front full fund future game garden"
        " general get girl give glass go goal good great green ground group grow growth guess"
    ).split()
)


def tokenize(text: str) -> list[str]:
    """The tokens of a text; joined together they are the text."""
    return _TOKEN.findall(text)


def seed_of(*parts: str) -> int:
    """A number that depends on every part, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "big")


def compose(seed: int, limit: int | None = None) -> tuple[list[str], bool]:
    """Tokens of a made-up answer (median 120, 16 to 600), and whether `limit` cut it."""
    chance = random.Random(seed)
    length = min(600, max(16, round(chance.lognormvariate(4.79, 0.6))))
    tokens = chance.choices(_WORDS, k=length)
    for stop in range(11, length - 1, 12):
        tokens[stop] = "."
        tokens[stop + 1] = " " + tokens[stop + 1][1:].capitalize()
    tokens[0] = tokens[0][1:].capitalize()
    tokens[-1] = "."
    if limit is not None and limit < length:
        return tokens[:limit], True
    return tokens, False


def fit(schema: Any, seed: int) -> Any:
    """A value that validates against a JSON schema (the subset that providers accept for structured output)."""
    root = schema if isinstance(schema, dict) else {}
    return _Fitter(root, seed).value(root, 0)


class _Fitter:
    def __init__(self, root: dict[str, Any], seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return None
        if "$ref" in schema:
            return self.value(self.target(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self.chance.choice(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self.value(self.branch(schema[word], depth), depth)
        if schema.get("allOf"):
            return self.value(_merged(schema["allOf"]), depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = "null" if depth > 6 and "null" in kind else next((k for k in kind if k != "null"), "null")
        make = getattr(self, f"_{kind}", None)
        return make(schema, depth) if make else None

    def branch(self, branches: list[Any], depth: int) -> Any:
        """The first branch; deep down, the one that ends a recursion."""
        if depth > 6:
            for branch in branches:
                if isinstance(branch, dict) and branch.get("type") in (
                    "null",
                    "string",
                    "integer",
                    "number",
                    "boolean",
                ):
                    return branch
        return branches[0]

    def target(self, ref: str) -> Any:
        node: Any = self.root
        for part in ref.removeprefix("#").split("/"):
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if part and isinstance(node, dict) else node
        return node

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = schema.get("properties", {})
        return {n: self.value(s, depth + 1) for n, s in properties.items() if n in required or depth < 4}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        count = int(schema.get("minItems", 0))
        if depth < 5:
            count = max(count, min(2, int(schema.get("maxItems", 2))))
        return [self.value(schema.get("items", {"type": "string"}), depth + 1) for _ in range(count)]

    def _string(self, schema: dict[str, Any], _depth: int) -> str:
        formats = {
            "date-time": "2026-01-02T03:04:05Z",
            "date": "2026-01-02",
            "time": "03:04:05Z",
            "email": "ada@example.com",
            "uuid": "00000000-0000-4000-8000-000000000001",
            "uri": "https://example.com/",
            "hostname": "example.com",
            "ipv4": "192.0.2.1",
        }
        if schema.get("format") in formats:
            return formats[schema["format"]]
        text = "".join(self.chance.choices(_WORDS, k=3)).strip()
        text = text.ljust(int(schema.get("minLength", 0)), "x")
        return text[: int(schema.get("maxLength", len(text)))]

    def _bounds(self, schema: dict[str, Any], step: float) -> tuple[float, float]:
        low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else None)
        high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
        if low is None:
            low = 0 if high is None or high >= 0 else high - 100
        return low, low + 100 if high is None else high

    def _integer(self, schema: dict[str, Any], _depth: int) -> int:
        low, high = self._bounds(schema, 1)
        step = int(schema.get("multipleOf", 1))
        first = -(-int(low) // step)
        return step * self.chance.randint(first, max(first, int(high) // step))

    def _number(self, schema: dict[str, Any], _depth: int) -> float:
        low, high = self._bounds(schema, 0.001)
        return round(low + (high - low) / 2, 3)

    def _boolean(self, _schema: dict[str, Any], _depth: int) -> bool:
        return self.chance.random() < 0.5

    def _null(self, _schema: dict[str, Any], _depth: int) -> None:
        return None


def _merged(parts: list[Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name == "properties":
                whole[name] = {**whole.get(name, {}), **value}
            elif name == "required":
                whole[name] = [*whole.get(name, []), *value]
            else:
                whole[name] = value
    return whole
