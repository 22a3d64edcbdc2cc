"""The page of proofs names tests that exist, and says of everything else why there is none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
PITFALLS = [*range(1, 19), 30, 31, 32, 34, 36, 39, 53, 54]
STORES = range(1, 31)


@cache
def functions_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions}


def rows() -> dict[str, list[str]]:
    """Id -> the other cells of its row."""
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| [PS]\d+ \|", line)]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_each_test_that_is_named_exists() -> None:
    assert len(NAMED) > 80
    for file, name in NAMED:
        path = ROOT / "tests" / file
        assert path.exists(), f"docs/proofs.md names {file}, which is not there"
        assert name in functions_in(path), f"docs/proofs.md names {file}::{name}, which is not there"


def test_each_sentence_about_the_cache_has_a_test_or_a_reason() -> None:
    points = {"1": "abcdefgh", "2": "abcdefg", "3": "abcd", "4": "abcdefg", "5": "abcdef"}
    sentences = ["0", *(point + letter for point, letters in points.items() for letter in letters)]
    wanted = [*sentences, *map(str, [30, *range(48, 59)]), *(f"R{number}" for number in range(43, 55))]
    found = re.findall(r"^\| ([0-9]+[a-z]?|R[0-9]+) \| (.{6,}?) \| (.+) \|$", PAGE, re.MULTILINE)
    assert [id for id, *_ in found] == wanted
    for id, _, how in found:
        assert "::test_" in how or (how.startswith("— ") and len(how) > 40), f"{id} has neither a test nor a reason"


def test_each_item_has_a_test_or_a_reason() -> None:
    assert set(rows()) == {f"P{number}" for number in PITFALLS} | {f"S{number}" for number in STORES}
    for id, (what, how) in rows().items():
        assert len(what) > 5, id
        assert "::test_" in how or (how.startswith("— ") and len(how) > 40), f"{id} has neither a test nor a reason"
