"""`make assess` measures every assessor that is built in, but for those that ask somebody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.assess import SETS

ROOT = Path(__file__).parents[2]
ASK_OTHERS = {"judge", "moderation", "webhook"}


def test_each_built_in_assessor_is_measured_and_printed() -> None:
    built_in = {file.stem for file in (ROOT / "policies" / "assessors").glob("*.py")} - {"__init__"}
    assert set(SETS) == built_in - ASK_OTHERS
    ended = subprocess.run(
        [sys.executable, "-m", "bench.assess"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    lines = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()[1:]}
    assert set(lines) == set(SETS)
    for name, told in lines.items():
        if told[:2] == ["not", "installed"]:
            assert name in ("presidio", "injection_model", "toxicity")
            continue
        texts, precision, recall, _, short, long = told
        assert int(texts) >= 8, name
        assert 0.5 < float(precision) <= 1, name
        assert 0.5 < float(recall) <= 1, name
        assert float(short.replace(",", "")) > 0, name
        assert float(long.replace(",", "")) > 0, name
