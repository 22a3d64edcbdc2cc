"""Measures the gateway beside what it is built on and what it competes with: `python -m bench`.

Ratios and CPU times count: they survive a noisy machine, requests per second do not.  Exit status 1: a figure misses
its must; 2: a measurement cannot be trusted.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from bench import figures, peers, rounds, subjects
from bench.load import Failed


@click.command(context_settings={"max_content_width": 110})
@click.option("--quick", is_flag=True, help="Less than a minute: shorter, and so less exact.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(rounds.MEASUREMENTS)), help="Measure this; may be repeated."
)
@click.option("--seconds", type=click.FloatRange(0.1, 60), help="Of one subject's turn.  [default: 2.5; --quick: 0.7]")
@click.option(
    "--peers", "with_peers", is_flag=True, help="Install the LiteLLM proxy into .bench/litellm if it is not there."
)
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), help="Write the figures there as well.")
@click.option("--keep", is_flag=True, help="Keep the folder with logs, records and configurations.")
def main(
    quick: bool, only: tuple[str, ...], seconds: float | None, with_peers: bool, file: str | None, keep: bool
) -> None:
    """Measure the gateway with everything on: throughput, latency, CPU, memory, start.

    On loopback, one core for the server and one for load and provider.  The LiteLLM proxy is measured too where it is
    installed (`make bench-peers`).
    """
    plan = rounds.QUICK if quick else rounds.Plan()
    plan = replace(plan, seconds=seconds) if seconds else plan
    began = time.monotonic()
    try:
        if with_peers and not peers.installed():
            click.echo("Installing the LiteLLM proxy into .bench/litellm ...", err=True)
            peers.install()
        found = measure(plan, chosen(only, quick, with_peers), keep)
    except (Failed, OSError, TimeoutError, subprocess.CalledProcessError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    machine = describe()
    click.echo(
        f"\n{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {time.monotonic() - began:.0f} s\n"
    )
    click.echo(figures.table(found))
    if file is not None:
        shape = {"machine": machine, "figures": figures.plain(found)}
        Path(file).write_bytes(msgspec.json.format(msgspec.json.encode(shape)) + b"\n")
    if any(figure.verdict == "FAIL" for figure in found):
        sys.exit(1)


def chosen(only: tuple[str, ...], quick: bool, with_peers: bool) -> list[str]:
    """What to measure, in the order of the table.  Raises Failed for a peer that is not installed."""
    if "litellm" in only and not peers.installed():
        raise Failed("the LiteLLM proxy is not installed: run `make bench-peers`")
    if only:
        return [name for name in rounds.MEASUREMENTS if name in only]
    compared = with_peers or (peers.installed() and not quick)
    return [name for name in rounds.MEASUREMENTS if name != "litellm" or compared]


def measure(plan: rounds.Plan, names: list[str], keep: bool = False) -> list[figures.Figure]:
    """Raises Failed.  The calling process moves to the first core and stays there."""
    load_core, server_core = subjects.cores()
    os.sched_setaffinity(0, {load_core})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subjects are stopped on the way out
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-bench-"))
    found: list[figures.Figure] = []
    try:
        with subjects.upstream(folder, load_core) as provider:
            provider.ready(rounds.ONE)
            bench = rounds.Bench(plan, folder, server_core, provider, lambda line: click.echo(line, err=True))
            with bench.runner:
                for name in names:
                    found += rounds.MEASUREMENTS[name](bench)
    finally:
        if keep:
            click.echo(f"kept: {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def describe() -> dict[str, Any]:
    """The machine, as far as figures depend on it."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
