"""`tollkeeper cache`: what was answered before is not answered again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway.shell import asks

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote


@click.group()
def cache() -> None:
    """Forget answers that the cache of a running gateway keeps."""


@cache.command()
@asks
@click.option("--team", help="All that this team was answered.")
@click.option("--key", help="With --team: only what this key of it was answered first.")
@click.option("--model", help="All that this model answered.")
@click.option("--all", "all_of_it", is_flag=True, help="Everything.")
def forget(remote: Remote, team: str | None, key: str | None, model: str | None, all_of_it: bool) -> None:
    """Forget a team's answers, a key's, a model's, or all."""
    said = {"team": team, "key": key, "model": model}
    body: dict[str, object] = {word: name for word, name in said.items() if name is not None}
    found = remote.ask("POST", "cache", "forget", body=body | ({"all": True} if all_of_it else {}))
    click.echo(f"Forgotten: {found['forgotten']}.")
