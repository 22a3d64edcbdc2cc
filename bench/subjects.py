"""What is measured: each a process of its own on the server's core, with the files it needs in one folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench import load

ROOT: Final = Path(__file__).resolve().parent.parent
KEY: Final = "tk-bench-key-0123456789abcdef"
LOAD_CORE, SERVER_CORE = 0, 1  # places in the list of cores that this process may use

_CONFIG: Final = """\
store: sqlite:///{folder}/tollkeeper.db
providers:
  openai: {{base_url: {provider}/v1, api_key: sk-bench}}
models:
  gpt-4o-mini:
    targets: [{{provider: openai, model: gpt-4o-mini}}]
{price}
teams:
  bench:
    keys: [{{name: load, key: {key}}}]
    models: [gpt-4o-mini]
{money}
{policies}
telemetry:
  traces: {{otlp_endpoint: "{provider}"}}
  logs: {{format: json}}
"""
_MONEY: Final = """\
    budgets: [{limit_usd: 1000000, per: month}]
    limits: {requests_per_minute: 100000000, tokens_per_minute: 100000000000, concurrent: 10000}"""
_POLICIES: Final = """\
policies:
  - use: access
  - use: rate_limit
  - use: budget
"""
_CACHE: Final = "  - {use: cache, temperature: any}\n"
_SAFETY: Final = """\
  - use: safety
    assessors:
      - {use: secrets, action: redact}
      - {use: personal_data, action: redact}
      - {use: injection, action: block}
      - {use: words, topics: {secret_projects: [project zephyr, project kestrel]}}
      - {use: urls, deny: [tracker.example]}
      - {use: length, characters: 100000, repetitions: null}
"""
_PRICE: Final = "    price: {input: 0.15, cached_input: 0.075, output: 0.60}"


@dataclass
class Subject:
    """A running server.  Its standard output and error are files in `folder`."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    began: float  # time.perf_counter() when it was started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self, job: load.Work, patience: float = 20.0) -> float:
        """Seconds from its start to its first right answer.  Raises load.Failed, with its last words."""
        until = time.monotonic() + patience
        while not listens(self.port):
            if self.process.poll() is not None or time.monotonic() > until:
                raise load.Failed(f"{self.name} does not answer; it said: {self.said()}")
            time.sleep(0.002)
        load.ask_once(self.port, job, patience)
        return time.perf_counter() - self.began

    def said(self) -> str:
        return "".join(
            file.read_text(errors="replace")[-800:]
            for file in (self.folder / "stdout", self.folder / "stderr")
            if file.exists()
        )

    def cpu_ns(self) -> int:
        """CPU time of the process so far, with all its threads."""
        return time.clock_gettime_ns(~self.process.pid << 3 | 2)  # what clock_getcpuclockid(3) gives on Linux

    def rest(self, patience: float = 5.0) -> None:
        """Returns when what was put off (records, log lines) is done: the process is idle."""
        until = time.monotonic() + patience
        before = self.cpu_ns()
        while time.monotonic() < until:
            time.sleep(0.3)
            now = self.cpu_ns()
            if now - before < 9_000_000:  # 3 % of a core
                return
            before = now

    def rss(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """As an operator does: SIGTERM, and everything is written before it ends."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def cores() -> list[int]:
    """One for load and provider, one for the server.  Raises load.Failed where there are not two to choose from."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(found) < 2:
        raise load.Failed("the benchmark pins processes to cores: it needs Linux and two cores")
    return found[:2]


def start(
    name: str, command: Sequence[str], folder: Path, core: int, port: int, environ: Mapping[str, str] | None = None
) -> Subject:
    """Runs a command on one core; it inherits that, so that no thread of it is ever elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **(environ or {})})  # noqa: S603 - our own command
    finally:
        os.sched_setaffinity(0, mine)
    return Subject(name, port, process, folder, began)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def upstream(folder: Path, core: int) -> Subject:
    port = free_port()
    return start("direct", [sys.executable, "-m", "bench.upstream", str(port)], folder / "upstream", core, port)


def relay(folder: Path, core: int, provider: str, *by: str) -> Subject:
    """by: `httpx2` for a relay that calls the transport by its httpx2 interface; `itself` for one that calls nobody."""
    port, name = free_port(), "-".join(("relay", *by))
    return start(name, [sys.executable, "-m", "bench.relay", str(port), provider, *by], folder / name, core, port)


def gateway(
    folder: Path,
    core: int,
    provider: str,
    *,
    catalogue: bool = False,
    money: bool = False,
    cache: bool = False,
    safety: bool = False,
    name: str = "gateway",
) -> Subject:
    """Everything on.  catalogue: with its prices.  money: with budgets and limits.  cache, safety: with these."""
    port, home = free_port(), folder / name
    home.mkdir(parents=True)
    file = home / "config.yaml"
    file.write_text(
        _CONFIG.format(
            folder=home,
            provider=provider,
            key=KEY,
            price="" if catalogue else _PRICE,
            money=_MONEY if money else "",
            policies=_POLICIES + (_CACHE if cache else "") + (_SAFETY if safety else ""),
        )
    )
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--port", str(port)]
    return start(name, command, home, core, port)
