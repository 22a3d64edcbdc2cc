"""The `tollkeeper` command: serve, check, explain, demo, and those of other files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import click

from gateway import __version__, assess, commands, emptying, reports, tenants

if TYPE_CHECKING:  # each command imports what it needs: `--help` answers at once
    from gateway.settings import Config, Target

CONFIG = click.option("--config", "path", type=click.Path(dir_okay=False), help="The configuration file.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tollkeeper")
def main() -> None:
    """Tollkeeper: an LLM gateway. It identifies, times, prices and explains every call to a model provider."""


for group in (
    tenants.organisations, tenants.teams, tenants.users, tenants.budgets,
    commands.keys, commands.tokens, commands.audit, reports.ledger, emptying.cache, assess.assess,
):  # fmt: skip
    main.add_command(group)


@main.command()
@CONFIG
@click.option("--host", help="Address to listen on.  [default: server.host, 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0: any free one.  [default: server.port, 4000]"
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
def serve(path: str | None, host: str | None, port: int | None, workers: int) -> None:
    """Run the gateway.

    Without --config it reads ./config.yaml; where there is none it serves the providers whose API keys are in the
    environment (OPENAI_API_KEY, …) and prints a first key of its own, once.
    """
    if workers > 1:
        _fail("--workers above 1 needs stores that processes share; this version has none. Run one worker per replica.")
    config = _load(path)
    from gateway.ledger import LedgerError
    from gateway.serve import run
    from gateway.store import StoreError

    try:
        run(config, host or config.server.host, config.server.port if port is None else port)
    except (StoreError, LedgerError) as error:
        _fail(str(error))


@main.command()
@CONFIG
@click.option("--effective", is_flag=True, help="Print every setting as it is in force, secrets masked.")
def check(path: str | None, effective: bool) -> None:
    """Validate a configuration and print what was understood.  Exit status 2: it has mistakes, each is named."""
    from gateway import check as checks
    from gateway import config as configs

    path = path or "config.yaml"
    status, text = checks.report(path, _price_notes)
    click.echo(text, err=status != 0)
    if status == 0 and effective:
        click.echo("\n" + configs.effective(configs.load(path)))
    sys.exit(status)


@main.command()
@click.argument("request_id")
@click.option(
    "--url", envvar="TOLLKEEPER_URL", default="http://127.0.0.1:4000", show_default=True, help="The gateway's address."
)
@click.option("--admin-key", envvar="TOLLKEEPER_ADMIN_KEY", help="The admin key.  [env: TOLLKEEPER_ADMIN_KEY]")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def explain(request_id: str, url: str, admin_key: str | None, as_json: bool) -> None:
    """Print what happened to a request: asked, decided, tried, answered, paid, and how long each took."""
    import msgspec

    from gateway import explain as explaining

    if not admin_key:
        _fail("the admin key is needed: set TOLLKEEPER_ADMIN_KEY or give --admin-key.")
    try:
        record = explaining.fetch(url, admin_key, request_id)
    except explaining.CannotExplain as error:
        _fail(str(error))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(record)).decode())
    else:
        click.echo(explaining.waterfall(record, colour=explaining.colourful(sys.stdout)))


@main.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4000,
    show_default=True,
    help="Port of the gateway; 0: any free one.",
)
@click.option("--requests", type=click.IntRange(1), default=200, show_default=True, help="Sample requests to send.")
@click.option(
    "--exit", "leave", is_flag=True, help="Stop when the sample traffic is through, instead of leaving all up."
)
@click.option(
    "--local", is_flag=True, help="A real model server with small weights (extra: local) in place of the simulator."
)
def demo(port: int, requests: int, leave: bool, local: bool) -> None:
    """Run a gateway on a simulated provider, send it varied traffic, and leave everything up to look at."""
    from gateway.demo import show

    sys.exit(show.run(port, requests, leave, local))


def _load(path: str | None) -> Config:
    from gateway import config as configs
    from gateway.problems import ConfigError

    try:
        if path is not None or os.path.exists("config.yaml"):
            return configs.load(path or "config.yaml")
        config, notice = configs.from_environment()
    except ConfigError as error:
        _fail(str(error))
    click.echo(notice, err=True)
    return config


def _price_notes(config: Config, name: str, target: Target) -> Sequence[str]:
    from gateway.prices import Prices, price_note

    rate = Prices(config).rate(name, target.provider, target.model, datetime.now(UTC).date())
    return [] if rate is None else [f"USD per million tokens, {rate.revision}:", *price_note(rate)]


def _fail(message: str) -> NoReturn:
    click.echo(f"tollkeeper: {message}", err=True)
    sys.exit(2)
