"""Runs a gateway in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Iterator
from typing import Final

from gateway import __version__
from gateway.app import Gateway
from gateway.config import passwords
from gateway.server import Server, server
from gateway.settings import Config
from gateway.telemetry import logs

SHORTEST: Final = 6  # characters of a database's password that is looked for in log lines: shorter ones are in any word

log = logging.getLogger("gateway")


def secrets(config: Config) -> Iterator[str]:
    """Every secret of the configuration: no log line may hold one."""
    if config.server.admin_key is not None:
        yield config.server.admin_key.get_secret_value()
    if config.server.key_pepper is not None:
        yield config.server.key_pepper.get_secret_value()
    for address in (config.store, config.counters):
        if found := passwords(address):
            yield from (address, *(password for password in found if len(password) >= SHORTEST))
    for provider in config.providers.values():
        if provider.api_key is not None:
            yield provider.api_key.get_secret_value()
        yield from (value.get_secret_value() for value in provider.headers.values())
    yield from (value.get_secret_value() for value in config.telemetry.traces.headers.values())
    for team in config.teams.values():
        yield from (key.key.get_secret_value() for key in team.keys)


def run(config: Config, host: str, port: int) -> None:
    """Blocks.  SIGTERM and SIGINT end it: `grace_seconds` for calls under way, then everything is written."""
    logs.configure(config.telemetry.logs, sys.stderr, list(secrets(config)))
    said = config.server
    gateway = Gateway(config)
    serving = server(gateway, host, port, said.receive_seconds, said.grace_seconds)
    admin = None
    if said.admin_port is not None:
        admin = server(gateway.admin, host, said.admin_port, said.receive_seconds, 1, lifespan="off")
    gc.freeze()  # what the start built stays: the collector need not look at it again and again
    gc.set_threshold(50_000, 20, 50)  # requests leave no cycles, but many objects live until their record is written
    with asyncio.Runner(loop_factory=serving.config.get_loop_factory()) as runner:
        runner.run(_serve(serving, admin))


async def _serve(serving: Server, admin: Server | None) -> None:
    beside = [asyncio.ensure_future(_tell_address("Tollkeeper", serving))]
    if admin is not None:
        beside.append(asyncio.ensure_future(_tell_address("The admin plane of Tollkeeper", admin)))
        beside.append(asyncio.ensure_future(admin.serve_quietly()))
    await serving.serve()
    if admin is not None:
        admin.should_exit = True
        await beside[-1]
    for task in beside:
        task.cancel()


async def _tell_address(what: str, serving: Server) -> None:
    while not serving.started:  # noqa: ASYNC110 - uvicorn sets a flag and no event
        await asyncio.sleep(0.01)
    host, port = serving.servers[0].sockets[0].getsockname()[:2]
    log.info("%s %s listens on http://%s:%d", what, __version__, f"[{host}]" if ":" in host else host, port)
