"""Defects planted in books, leases, journal, bounds, policies, counters and answers: each must turn its test red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted import PLANTED

ROOT = Path(__file__).parents[1]
COPIED = ("gateway", "policies", "tests", "pyproject.toml")
AT_ONCE = (
    "a cap that is known and not written",
    "an end that is not journalled",
    "a hold that takes nothing from its lease",
    "a window that is over and still used",
)
FOUND = 1  # pytest's own status where tests ran, and failed


def planted(name: str, folder: Path) -> str:
    """A copy of the sources with this defect, and the test that must find it."""
    defect = PLANTED[name]
    for part in COPIED:
        place = ROOT / part
        if place.is_dir():
            shutil.copytree(place, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, folder / part)
    file = folder / defect.file
    source = file.read_text(encoding="utf-8")
    assert source.count(defect.old) == 1, f"{defect.file} has {source.count(defect.old)} times: {defect.old}"
    file.write_text(source.replace(defect.old, defect.new), encoding="utf-8")
    return defect.test


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.long) for name in PLANTED]
)
def test_a_planted_defect_is_found(name: str, tmp_path: Path) -> None:
    test = planted(name, tmp_path)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not long", "-p", "no:cacheprovider", f"tests/{test}"]
    command += ["--hypothesis-profile=unshrunk"]
    kept = {word: value for word, value in os.environ.items() if not word.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=kept, timeout=110)
    assert done.returncode == FOUND, f"{name}: not found\n{done.stdout[-2000:]}{done.stderr[-1000:]}"


def test_each_defect_has_its_place_and_its_test() -> None:
    for name, defect in PLANTED.items():
        assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.old) == 1, name
        file, _, function = defect.test.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
