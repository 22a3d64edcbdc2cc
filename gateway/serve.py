"""Runs a gateway in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import sys

from gateway.app import Gateway
from gateway.server import server
from gateway.settings import Config
from gateway.telemetry import logs


def run(config: Config, host: str, port: int) -> None:
    """Blocks.  SIGTERM and SIGINT end it: no new calls, `grace_seconds` for those under way, then everything is written."""
    logs.configure(config.telemetry.logs, sys.stderr)
    serving = server(Gateway(config), host, port, config.server.receive_seconds, config.server.grace_seconds)
    gc.freeze()  # what the start built stays: the collector need not look at it again and again
    with asyncio.Runner(loop_factory=serving.config.get_loop_factory()) as runner:
        runner.run(serving.serve())
