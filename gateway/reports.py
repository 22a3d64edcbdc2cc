"""`tollkeeper ledger`: what was spent and by whom, what is held, and whether the books are sound."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gateway.commands import asks, table

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


@click.group()
def ledger() -> None:
    """Ask what was spent, by whom, what is held now, and whether the ledger is sound."""


@ledger.command()
@asks
@click.option(
    "--by", default="team", show_default=True, help="With commas: team, key, user, feature, model, provider, day."
)
@click.option("--since", help="RFC 3339, or so long ago: 2h, 30d.  [default: from the start]")
@click.option("--until", help="RFC 3339, or so long ago.")
@click.option("--team", help="Only this team's.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="As CSV; cells that a spreadsheet would run begin with an apostrophe."
)
def report(remote: Remote, by: str, as_csv: bool, **said: Any) -> None:
    """Print what was spent, the largest first."""
    found = remote.ask("GET", "spend", query={"by": by, **said})
    head = [*found["by"], "usd", "overrun_usd", "calls"]
    lines = [
        [*(value or "-" for value in line["values"]), line["usd"], line["overrun_usd"], str(line["calls"])]
        for line in found["data"]
    ]
    if as_csv:
        click.echo(written([head, *lines]), nl=False)
    else:
        table([word.upper() for word in head], lines)
        click.echo(f"total: {found['total_usd']} USD", err=True)


@ledger.command()
@asks
@click.option("--budget", help="Only budgets whose name begins so: 'team checkout'.")
@click.option("--past", is_flag=True, help="Also windows that are over.")
def windows(remote: Remote, budget: str | None, past: bool) -> None:
    """List budgets in their periods: limit, spent, held."""
    lines = (
        [
            str(one["id"]), one["budget"], (one["start"] or "-")[:10], one["limit_usd"], one["spent_usd"],
            one["reserved_usd"], "frozen" if one["frozen"] else "hard" if one["hard"] else "soft",
        ]
        for one in remote.lines("ledger", "windows", query={"budget": budget, "past": "true" if past else None})
    )  # fmt: skip
    table(("ID", "BUDGET", "SINCE", "LIMIT", "SPENT", "HELD", ""), lines)


@ledger.command()
@asks
@click.argument("window", type=click.IntRange(1))
def holders(remote: Remote, window: int) -> None:
    """List who holds what of a window now."""
    found = remote.ask("GET", "ledger", "windows", str(window), "holders")["data"]
    lines = [[one["owner"], one["held_usd"], one["since"][:19], f"{one['seconds_left']:.0f} s"] for one in found]
    table(("GATEWAY", "HELD", "SINCE", "ENDS IN"), lines)


@ledger.command()
@asks
@click.argument("window", type=click.IntRange(1))
@click.option("--thaw", is_flag=True, help="Let it grant again.")
def freeze(remote: Remote, window: int, thaw: bool) -> None:
    """Stop a window from granting anything."""
    told = remote.ask("POST", "ledger", "windows", str(window), "freeze", body={"frozen": not thaw})
    click.echo(f"{told['budget']} is {'frozen' if told['frozen'] else 'granting'}.")


@ledger.command()
@asks
def audit(remote: Remote) -> None:
    """Check whether the ledger contradicts itself.  Exit status 1: it does."""
    found = remote.ask("GET", "ledger", "audit")
    if found["sound"]:
        click.echo("The ledger is sound.")
        return
    lines = [
        [d["kind"], str(d["window"]), str(d["reservation"]), str(d["found"]), str(d["expected"])]
        for d in found["defects"]
    ]
    table(("DEFECT", "WINDOW", "RESERVATION", "FOUND", "EXPECTED"), lines)
    sys.exit(1)


def written(rows: Iterable[Sequence[str]]) -> str:
    """CSV (RFC 4180) that no spreadsheet runs: OWASP, CSV injection."""
    out = io.StringIO()
    csv.writer(out).writerows([[f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows])
    return out.getvalue()
