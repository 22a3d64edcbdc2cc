"""A gateway in a process of its own, as an operator runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class Ended(AssertionError):
    """The gateway ended, or said nothing, before it listened."""


@dataclass
class Process:
    url: str
    popen: subprocess.Popen[bytes]
    log: Path
    out: Path

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.popen.terminate()
        return self.popen.wait(60)


def environment(**more: str) -> dict[str, str]:
    """This process's own, without anybody's keys."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.endswith(("_API_KEY", "_BASE_URL")) and not k.startswith("TOLLKEEPER_")
    }
    return kept | more


@contextmanager
def serving(
    config: dict[str, Any] | None,
    *options: str,
    folder: Path | None = None,
    program: Sequence[str] = ("gateway",),
    **env: str,
) -> Iterator[Process]:
    """config: None: from the environment alone.  program: a module, and its own words before the command's."""
    with tempfile.TemporaryDirectory() as made:
        place = folder or Path(made)
        command = [sys.executable, "-m", *program, "serve", "--port", "0", *options]
        if config is not None:
            (place / "config.yaml").write_text(yaml.safe_dump({"store": f"sqlite:///{place}/tollkeeper.db"} | config))
            command += ["--config", str(place / "config.yaml")]
        log, out = place / "stderr.log", place / "stdout.log"
        root = str(Path(__file__).parent.parent)
        with log.open("wb") as errors, out.open("wb") as lines:
            popen = subprocess.Popen(
                command, cwd=place, stdout=lines, stderr=errors, env=environment(PYTHONPATH=root, **env)
            )
        try:
            yield Process(_address(popen, log), popen, log, out)
        finally:
            if popen.poll() is None:
                popen.kill()
            popen.wait()


def _address(popen: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if found := re.search(r"listens on (http://[^\s\"]+)", log.read_text()):
            return found.group(1)
        if popen.poll() is not None:
            break
        time.sleep(0.01)
    raise Ended(f"the gateway did not start: {log.read_text()}")
