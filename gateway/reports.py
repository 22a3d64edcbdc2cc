"""`tollkeeper ledger`: what was spent and by whom, what is held, and whether the books are sound."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import click

from gateway.shell import CSV, NUMBER, OF_TEAM, asks, fail, show, table

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.reconcile import Compared
    from gateway.remote import Remote

SINCE = click.option("--since", help="RFC 3339, or so long ago: 2h, 30d.  [default: from the start]")
UNTIL = click.option("--until", help="RFC 3339, or so long ago.")


@click.group()
def ledger() -> None:
    """Ask what was spent, by whom, what is held now, and whether the ledger is sound."""


@ledger.command()
@asks
@click.option(
    "--by", default="team", show_default=True, help="With commas: team, key, user, feature, model, provider, day."
)
@SINCE
@UNTIL
@OF_TEAM
@CSV
def report(remote: Remote, by: str, as_csv: bool, **said: Any) -> None:
    """Print what was spent, the largest first."""
    found = remote.ask("GET", "spend", query={"by": by, **said})
    head = [*found["by"], "usd", "overrun_usd", "calls"]
    lines = [
        [*(value or "-" for value in line["values"]), line["usd"], line["overrun_usd"], str(line["calls"])]
        for line in found["data"]
    ]
    show(head, lines, as_csv)
    if not as_csv:
        click.echo(f"total: {found['total_usd']} USD", err=True)


@ledger.command()
@asks
@click.option(
    "--by",
    default="team,key,user,code",
    show_default=True,
    help="With commas: team, key, user, feature, model, provider, code.",
)
@click.option("--code", help="Only these error codes, with commas.  [default: those of budgets and rate limits]")
@SINCE
@UNTIL
@OF_TEAM
@click.option("--key", help="Only this key's.")
@click.option("--user", help="Only this user's.")
@click.option("--feature", help="Only this feature's.")
@click.option("--model", help="Only calls for this model.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Lines.")
@CSV
def refused(remote: Remote, as_csv: bool, **said: Any) -> None:
    """Print who hit a limit, the most often first; the last one's words name the budget."""
    found = remote.ask("GET", "refusals", query=said)
    head = [*found["by"], "times", "first", "last", "request", "why"]
    lines = [
        [
            *(value or "-" for value in line["values"]),
            str(line["count"]),
            line["first"][:19] + "Z",
            line["last"][:19] + "Z",
            line["last_id"],
            line["last_message"],
        ]
        for line in found["data"]
    ]
    show(head, lines, as_csv)
    if found["more"]:
        click.echo("There are more lines: raise --limit.", err=True)


@ledger.command()
@asks
@click.argument("file", type=click.File("rb"))
@click.option("--provider", help="Whose export it is, as config.yaml names it.  [default: where there is but one]")
@click.option(
    "--tolerance",
    metavar="NUMBER",
    help="Tokens, or USD, by which a line may differ.  [default: 0 tokens, 0.01 USD]",
)
@click.option("--all", "every", is_flag=True, help="Print lines without a difference, too.")
@CSV
def reconcile(remote: Remote, file: IO[bytes], provider: str | None, tolerance: str | None, **shown: bool) -> None:
    """Compare with a provider's own export: costs with the ledger, usage (tokens) with the records.

    FILE: JSON of OpenAI's usage or costs API, or of Anthropic's usage_report or cost_report, page after page, or a CSV
    of their dashboards; which it is, is seen from what stands in it.  Exit status 0: equal, 1: there are differences,
    2: it cannot be compared.
    """
    from gateway import exports, reconcile

    try:
        theirs = exports.read(file.read().decode())
    except (UnicodeDecodeError, exports.BadExport) as error:
        fail(f"{getattr(file, 'name', '-')}: {error}")
    least = _tolerance(tolerance, theirs.unit)
    targets = remote.ask("GET", "targets")
    provider = provider or (targets["providers"][0] if len(targets["providers"]) == 1 else None)
    if provider not in targets["providers"]:
        fail(f"--provider: whose export is it? There are {', '.join(targets['providers'])}.")
    ours = reconcile.ask_ours(remote, theirs, str(provider), targets["data"])
    lines = reconcile.compare(theirs, ours)
    wrong = [line for line in lines if abs(line.difference) > least]
    told = [*(lines if shown["every"] else wrong), *reconcile.totals(lines)]
    show(("day", "model", "what", "ours", "theirs", "difference"), map(_cells, told), shown["as_csv"])
    if theirs.partial:
        click.echo("The export says has_more: it does not hold all days that were asked for.", err=True)
    if ours.untold or ours.estimated:
        click.echo(f"Attempts without usage: {ours.untold}; with tokens counted here: {ours.estimated}.", err=True)
    click.echo(
        f"{len(wrong)} of {len(lines)} lines differ by more than {tolerance or _amount(least, theirs.unit)}.", err=True
    )
    sys.exit(1 if wrong else 0)


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


def _tolerance(said: str | None, unit: str) -> int:
    """Tokens, or nano-USD.  A bill is rounded, line by line, to a cent at worst; a count of tokens is not."""
    text = said or ("0.01" if unit == "usd" else "0")
    if len(text) > 20 or not NUMBER.fullmatch(text) or text.startswith("-"):
        fail("--tolerance: a number is wanted, of tokens or of USD.")
    return int(Decimal(text) * (1_000_000_000 if unit == "usd" else 1))


def _amount(figure: int, unit: str) -> str:
    from gateway.store import usd

    return usd(figure) or "" if unit == "usd" else str(figure)


def _cells(line: Compared) -> list[str]:
    unit = "usd" if line.what == "usd" else "tokens"
    figures = [_amount(figure, unit) for figure in (line.ours, line.theirs, line.difference)]
    return [line.day, line.model or "(all)", "USD" if unit == "usd" else f"{line.what} tokens", *figures]
