"""CONTRIBUTING's policy of ten minutes, done as it says: in a clone, checked and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/]+\.py)`\n\n```python\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE))


def run(clone: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=clone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_policy_of_ten_minutes_is_all_it_takes(tmp_path: Path) -> None:
    assert list(FILES) == ["policies/crowd.py", "tests/policies/test_crowd.py"]
    for name in ("gateway", "policies", "tests", "docs", "pyproject.toml", "config.example.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert "1 passed" in run(tmp_path, "pytest", "-p", "no:cacheprovider", "tests/policies/test_crowd.py")
    assert " passed" in run(tmp_path, "pytest", "-p", "no:cacheprovider", "tests/test_layout.py", "-k", "crowd")
    run(tmp_path, "ruff", "check", "--no-cache", *FILES)
    run(tmp_path, "ruff", "format", "--no-cache", "--check", *FILES)


def test_the_policy_of_ten_minutes_is_what_lets_its_test_pass(tmp_path: Path) -> None:
    for name in ("gateway", "policies", "tests", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, tmp_path / name)
    policy, test = FILES.items()
    (tmp_path / policy[0]).write_text(policy[1].replace("self.under_way[receipt] -= 1", "pass"), encoding="utf-8")
    (tmp_path / test[0]).write_text(test[1], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, "a receipt that is thrown away goes unnoticed"
    assert "1 failed" in done.stdout
