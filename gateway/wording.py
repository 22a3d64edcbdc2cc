"""Words what pydantic finds wrong: what was expected, what is there, and the nearest known word; never a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.problems import Path, Problem, nearest, spell
from gateway.source import ABSENT, Source, shown

# What a value must look like, by the name of its setting: a regular expression tells an operator nothing.
FORMS: Final = {
    "base_url": "expected http:// or https://, a host and a path, without user, query or fragment",
    "otlp_endpoint": "expected http:// or https:// and a host, without user, query or fragment",
    "store": "expected sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE with : / ? # @ in a word as %XX",
    "counters": "expected memory://, or valkey://HOST:PORT/DB (redis:// is the same)",
    "use": "expected a policy's name such as access, or module:Class",
}
NAME: Final = "a name has letters, digits and . _ : / @ -, begins with a letter or digit, and is at most 128 long"
EXPECTED: Final = {  # pydantic's error types, by how they begin
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "string": "text",
    "bool": "true or false",
    "date": "a day such as 2026-01-31",
    "list": "a list",
    "dict": "a mapping (name: value)",
    "model": "a mapping (name: value)",
    "union_tag": "a mapping (name: value), or a list of them",
}
BOUNDS: Final = {"ge": "at least", "le": "at most", "gt": "more than", "lt": "less than"}


def translate(source: Source, error: ValidationError, prefix: Path, model: type[BaseModel]) -> None:
    """Reports to `source` each thing that validating the values below `prefix` as `model` has found."""
    for detail in error.errors(include_url=False, include_context=True, include_input=True):
        path, of_word = _locate(source.tree, (*prefix, *detail["loc"]))
        if detail["type"] == "extra_forbidden":
            unknown(source, path, _words_at(model, path[len(prefix) : -1]))
        elif detail["type"] == "missing":
            source.report(path, "is missing", "add it", word=True)
        elif detail["input"] != ABSENT:
            source.report(path, *_worded(detail, path, of_word), word=of_word)


def _locate(tree: Any, loc: Sequence[str | int]) -> tuple[Path, bool]:
    """pydantic's location as a path of the file (it also names union members); and: is a name meant, not its value?"""
    path: Path = ()
    node = tree
    for index, step in enumerate(loc):
        if step == "[key]":
            return path, True
        if isinstance(node, dict) and (step in node or index == len(loc) - 1):
            path, node = (*path, step), node.get(step)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            path, node = (*path, step), node[step]
    return path, False


def _worded(detail: ErrorDetails, path: Path, of_word: bool) -> tuple[str, str]:
    """What is wrong and the mend, in words that never hold the value: it may be a secret."""
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    last = str(path[-1]) if path else ""
    if kind == "told":  # said by a policy's or an assessor's own check, which holds no value
        return str(context.get("wrong", "")), str(context.get("mend", ""))
    if kind == "string_pattern_mismatch":
        return ("not a valid name", NAME) if of_word or last not in FORMS else (FORMS[last], "")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        told = isinstance(value, str) and shown(value) == value and value.islower()
        return (f"expected {_either(choices)}", nearest(value, choices, "choices") if told and len(choices) > 1 else "")
    for limit, bound in BOUNDS.items():
        if limit in context:
            return f"must be {bound} {context[limit]}", ""
    if kind in ("too_short", "string_too_short"):
        return f"must have at least {context['min_length']} {'entry' if kind == 'too_short' else 'character'}", ""
    if kind in ("too_long", "string_too_long"):
        return f"must have at most {context['max_length']} {'entries' if kind == 'too_long' else 'characters'}", ""
    if kind in ("decimal_max_digits", "decimal_max_places", "decimal_whole_digits"):
        return "must have at most 9 digits after the point and 9 before it", "prices are USD per million tokens"
    if kind == "int_from_float":
        return "expected a whole number", ""
    expected = next((words for start, words in EXPECTED.items() if kind.startswith(start)), None)
    if expected is None:
        return f"is not valid ({kind.replace('_', ' ')})", ""
    return f"expected {expected}, got {_kind(value)}", _retyped(expected, value)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "text", dict: "a mapping", list: "a list", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _retyped(expected: str, value: Any) -> str:
    if value is None:
        return "give it a value, or delete the line"
    if expected == "text" and not isinstance(value, dict | list):
        return "put it in quotes"
    return {"a list": "write [a, b], or one `- ` per line"}.get(expected, "")


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def unknown(source: Source, path: Path, known: Sequence[str]) -> None:
    word = str(path[-1])
    secret = shown(word) != word
    message = "an unknown word" if secret else f'unknown word "{word}"'
    mend = f"known here: {', '.join(known)}" if secret else nearest(word, known)
    place = source.place(path, word=True)
    source.problems.append(Problem(*place, spell(path[:-1] if secret else path), message, mend))


def words_of(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _words_at(model: type[BaseModel], path: Path) -> list[str]:
    """The words that may stand at a path below a model, found by walking its annotations."""
    annotations: list[Any] = [model]
    for step in path:
        inner: list[Any] = []
        for annotation in annotations:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                fields = annotation.model_fields.items()
                inner += [field.annotation for name, field in fields if step in (name, field.alias)]
            elif get_origin(annotation) in (dict, list):
                inner.append(get_args(annotation)[-1])
        annotations = list(_flat(inner))
    models = [found for found in annotations if isinstance(found, type) and issubclass(found, BaseModel)]
    return [word for found in models for word in words_of(found)]


def _flat(annotations: Iterable[Any]) -> Iterable[Any]:
    """Unions and Annotated taken apart."""
    for annotation in annotations:
        if get_origin(annotation) in (Union, UnionType):
            yield from _flat(get_args(annotation))
        elif hasattr(annotation, "__metadata__"):
            yield from _flat([annotation.__origin__])
        else:
            yield annotation
