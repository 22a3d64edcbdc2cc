"""The house keeps its own rules: who may import whom, a test beside each file, short files, everything documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from gateway import errors
from gateway.settings import Config
from gateway.telemetry.catalogue import METRICS

ROOT = Path(__file__).parents[1]
SOURCES = sorted(file for package in ("gateway", "policies") for file in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NAMES = {file: str(file.relative_to(ROOT)) for file in [*SOURCES, *TESTS]}

WINGS = ("endpoints", "dialects", "providers", "store", "counters", "ledger", "telemetry", "answers")
WIRES = {"gateway/app.py", "gateway/opened.py", "gateway/cli.py", "gateway/serve.py"}  # they put the parts together

# module: why others in its own wing, and outside it, may import it
SHARED = {
    "gateway.dialects.sse": "framing of server-sent events, which no dialect owns",
    "gateway.dialects.openai_answers": "the other half of the dialect openai",
    "gateway.dialects.openai_replay": "the same dialect's answers in their other form",
    "gateway.dialects.openai_texts": "the texts in what the dialect openai writes",
    "gateway.dialects.openai_lanes": "which of those texts go on, and which are joined",
    "gateway.dialects.opaque": "reads a relayed answer, which is in no dialect",
    "gateway.store.directory": "the shape of what every directory keeps, and the chain of its log",
    "gateway.ledger.accounts": "the bookkeeping of the SQLite ledger, inside a transaction; opens no file",
    "gateway.ledger.batches": "the same for many postings at once",
    "gateway.store.aside": "a PostgreSQL database in a thread of its own, for each of its stores",
    "gateway.store.rows": "records as rows, and questions as SQL, for every store; opens nothing",
    "gateway.store.sqlite_file": "opens a SQLite file, for both stores that have one",
    "gateway.telemetry.catalogue": "what every metric is called and means",
    "gateway.telemetry.w3c": "pure reading and writing of trace context; no sink of its own",
}
# file: the most that stands in the lower layers may import
FLOOR = {
    "gateway/errors.py": set[str](),
    "gateway/exchange.py": set[str](),
    "gateway/dialects/__init__.py": {"gateway.errors", "gateway.exchange", "gateway.body"},
    "gateway/policy.py": {"gateway.dialects", "gateway.exchange", "gateway.errors"},
}
# file: why it has no twin of its own
NO_TWIN = {
    "gateway/exchange.py": "states the shape of what flows; tests/gateway/test_pipeline.py fills and reads it",
    "gateway/policy.py": "states four empty hooks; tests/gateway/test_pipeline.py calls each of them",
}
# file: (lines, why)
LONG_FILES: dict[str, tuple[int, str]] = {}
# file:function: (lines, why)
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}

SAY_NOTHING = {
    "util", "utils", "helper", "helpers", "common", "base", "core", "manager", "handler", "handlers", "misc", "v2",
}  # fmt: skip


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each of our modules that a file imports when it runs: not those for types only."""
    todo: list[ast.AST] = [tree(file)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{NAMES.get(file, file)}:{node.lineno} imports relatively: name the module in full"
            names = [_module(f"{node.module}.{alias.name}") or str(node.module) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("gateway", "policies"))


def _module(name: str) -> str | None:
    place = ROOT / name.replace(".", "/")
    return name if place.with_suffix(".py").exists() or (place / "__init__.py").exists() else None


def wing(module: str) -> str | None:
    """`gateway.store.sqlite` is in the wing `store`; a wing's __init__, which holds its protocol, is everybody's."""
    parts = module.split(".")
    if parts[0] == "policies" and len(parts) > 1:
        return "policies"
    return parts[1] if len(parts) > 2 and parts[1] in WINGS else None


def own_name(file: Path) -> str:
    return NAMES[file].removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def broken_rules(file: Path) -> list[str]:
    found = []
    for line, module in imported(file):
        where = f"{NAMES[file]}:{line}"
        floor = FLOOR.get(NAMES[file])
        if floor is not None and module not in floor:
            found.append(f"{where} stands below {module} and must not import it")
        other = wing(module)
        if NAMES[file].startswith("gateway/") and other == "policies":
            found.append(f"{where} imports a policy: policies are loaded by the names in config.yaml")
        elif other is None or module in SHARED or module == own_name(file):
            continue
        elif wing(own_name(file)) == other:
            found.append(f"{where} imports its sibling {module}: what both need belongs to the wing's __init__")
        elif NAMES[file] not in WIRES and not NAMES[file].startswith("gateway/demo/"):
            found.append(f"{where} names the concrete {module}: only app.py does")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=NAMES.get)
def test_imports_go_in_the_allowed_directions(file: Path) -> None:
    assert broken_rules(file) == []


def test_an_import_in_a_forbidden_direction_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = {
        "gateway/errors.py": ("from gateway import settings", "stands below"),
        "gateway/pipeline.py": ("from policies.access import Access", "imports a policy"),
        "gateway/store/sqlite.py": ("import gateway.store.postgres", "sibling"),
        "gateway/reply.py": ("from gateway.dialects import openai", "only app.py"),
        "policies/access.py": ("from policies.budget import Budget", "sibling"),
    }
    for name, (line, says) in cases.items():
        file = tmp_path / "one.py"
        file.write_text(f"def late():\n    {line}\n")
        monkeypatch.setitem(NAMES, file, name)
        assert says in " ".join(broken_rules(file)), name


@pytest.mark.parametrize("file", SOURCES, ids=NAMES.get)
def test_every_source_file_has_a_twin_among_the_tests(file: Path) -> None:
    if file.stem.startswith("__") or NAMES[file] in NO_TWIN:
        return
    twin = ROOT / "tests" / file.relative_to(ROOT).with_name(f"test_{file.name}")
    assert twin.exists(), f"{NAMES[file]} has no {twin.relative_to(ROOT)}"


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=NAMES.get)
def test_files_functions_and_parameter_lists_stay_short(file: Path) -> None:
    name = NAMES[file]
    lines = len(file.read_text(encoding="utf-8").splitlines())
    most = LONG_FILES.get(name, (450 if name.startswith("tests/") else 400, ""))[0]
    assert lines <= most, f"{name} has {lines} lines of at most {most}: which part of it has a name of its own?"
    for node in ast.walk(tree(file)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        most = LONG_FUNCTIONS.get(f"{name}:{node.name}", (60, ""))[0]
        assert lines <= most, f"{name}:{node.lineno} {node.name} has {lines} lines of at most {most}"
        asked = [one.arg for one in node.args.posonlyargs + node.args.args if one.arg not in ("self", "cls")]
        assert len(asked) <= 6 or name.startswith("tests/"), (
            f"{name}:{node.lineno} {node.name}: {len(asked)} parameters"
        )


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=NAMES.get)
def test_a_file_has_a_name_that_says_something_and_tells_first_what_it_is_for(file: Path) -> None:
    assert not SAY_NOTHING & set(file.stem.removeprefix("test_").split("_")), f"{NAMES[file]}: name it after what it is"
    text = file.read_text(encoding="utf-8")
    if text or file.name != "__init__.py":
        assert ast.get_docstring(tree(file)), f"{NAMES[file]} has no sentence that says what it is for"
        assert text.startswith(('"""', 'r"""')), f"{NAMES[file]}: that sentence is not its first line"


def test_exceptions_to_the_rules_are_still_needed() -> None:
    for name, (_, why) in LONG_FILES.items():
        assert why
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert lines > 400, f"{name} is short by now: take it off the list"
    for name in [*FLOOR, *WIRES, *NO_TWIN]:
        assert (ROOT / name).exists(), f"{name} is gone: take it off the list"
    for module in SHARED:
        assert _module(module), f"{module} is gone: take it off the list"


def models_in(kind: object) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type can hold."""
    if get_origin(kind) in (Annotated, Union, UnionType, list, dict):
        for inner in get_args(kind):
            yield from models_in(inner)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind


def words(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in models_in(field.annotation):
            yield from words(inner)


def test_every_setting_stands_in_the_example_configuration() -> None:
    example = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    keys = {token.value for token in yaml.scan(example) if isinstance(token, yaml.ScalarToken)}
    known = set(words(Config))
    assert {"server", "first_byte", "cached_input", "otlp_endpoint", "fail_open"} <= known  # the walk is deep
    assert known - keys == set()


def documented(page: str) -> list[list[str]]:
    """The cells of a page's tables, row by row."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_every_metric_is_documented_and_nothing_else_is() -> None:
    assert sorted(row[0].strip("`") for row in documented("metrics.md")) == sorted(metric.name for metric in METRICS)


def test_every_error_code_is_documented_with_what_to_do_and_nothing_else_is() -> None:
    rows = documented("errors.md")
    assert sorted(row[0].strip("`") for row in rows) == sorted(errors.CODES)
    for code, status, meaning, mend in rows:
        assert all(400 <= int(word) <= 599 for word in status.split(", ")), f"{code}: {status} is no status"
        assert len(meaning) > 10, f"{code} does not say what it means"
        assert len(mend) > 10, f"{code} does not say what to do"
