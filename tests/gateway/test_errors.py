"""Applications switch on error codes: none may leave the gateway that is not on the list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import errors

ROOT = Path(__file__).parents[2]
# The simulator plays a provider: its codes are that provider's.
FILES = [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "policies").rglob("*.py")]
SOURCES = [file for file in FILES if "demo" not in file.parts]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]


def said() -> Iterator[tuple[str, str]]:
    """Every literal that is passed as `code=`, and the place where it stands."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                for one in (node.value.body, node.value.orelse) if isinstance(node.value, ast.IfExp) else (node.value,):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value:
                        yield one.value, f"{file.relative_to(ROOT)}:{one.lineno}"


def test_every_code_that_the_code_names_is_on_the_list() -> None:
    found = dict(said())
    assert "upstream_broke_off" in found
    assert {code: place for code, place in found.items() if code not in errors.CODES} == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_carries_what_its_class_says_unless_told_otherwise(kind: type[errors.GatewayError]) -> None:
    plain = kind("what went wrong")
    assert (plain.code, plain.status, plain.kind) == (kind.code, kind.status, kind.kind)
    assert plain.code in errors.CODES
    assert 400 <= plain.status <= 599
    told = kind("what went wrong", code="overloaded", status=503, param="model", retry_after=7, should_retry=False)
    assert (told.code, told.status, told.param) == ("overloaded", 503, "model")
    assert (told.retry_after, told.should_retry) == (7, False)
    assert str(told) == told.message == "what went wrong"


def test_the_drawn_tree_shows_every_kind_of_error() -> None:
    assert errors.__doc__ is not None
    for kind in KINDS:
        assert kind.__name__ in errors.__doc__


def test_only_a_providers_failure_may_be_tried_elsewhere_and_may_be_free() -> None:
    failure = errors.UpstreamError("it failed")
    assert failure.retryable
    assert not failure.free
    final = errors.UpstreamError("refused", retryable=False, free=True, kind="rate_limit_error", said="quota")
    assert (final.retryable, final.free, final.kind, final.said) == (False, True, "rate_limit_error", "quota")
