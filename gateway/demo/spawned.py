"""The simulated provider in a process of its own, started and stopped from here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import gateway


class Spawned:
    """A running simulator.  Also a context manager, plain or async, that stops it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self.url = url
        self.pid = process.pid

    def stop(self) -> None:
        """End the process; a second call does nothing."""
        self._process.terminate()
        self._process.wait(5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def spawn(pace: str = "none", keys: tuple[str, ...] = (), port: int = 0) -> Spawned:
    """Start a simulator and wait until it listens; it ends with this process.  Raises RuntimeError if it does not."""
    command = [sys.executable, "-m", "gateway.demo.simulator", "--port", str(port), "--pace", pace, "--with-parent"]
    if keys:
        command += ["--keys", ",".join(keys)]
    root = Path(gateway.__file__).parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(  # noqa: S603  a command of our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    spawned = Spawned(process, line.rpartition(" ")[2].strip())
    if not line.startswith("listening on "):
        spawned.stop()
        raise RuntimeError(f"the simulator did not start: it said {line!r}")
    return spawned
