"""The page of metrics is what the catalogue prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_printed_by_its_command() -> None:
    run = subprocess.run([sys.executable, "-m", "gateway.telemetry.catalogue"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == PAGE.read_text(encoding="utf-8")
