"""What commands share: which gateway is asked, how limits and spans are read, and how lists are printed."""

from __future__ import annotations

import csv
import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote

F = TypeVar("F", bound=Callable[..., Any])
Cell = str | Callable[[Any], str]  # a field's name, or what to make of the whole
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run
NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")  # … unless it is no more than that

URL: Final = click.option(
    "--url", envvar="TOLLKEEPER_URL", default="http://127.0.0.1:4000", show_default=True, help="The gateway's address."
)
ADMIN_KEY: Final = click.option(
    "--admin-key", envvar="TOLLKEEPER_ADMIN_KEY", help="The admin key, or a token.  [env: TOLLKEEPER_ADMIN_KEY]"
)
CSV: Final = click.option(
    "--csv", "as_csv", is_flag=True, help="As CSV; cells that a spreadsheet would run begin with an apostrophe."
)
OF_TEAM: Final = click.option("--team", help="Only this team's.")


# ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────────


def asks(command: F) -> F:
    """With the options that say which gateway; the command is given a Remote first."""

    def run(url: str, admin_key: str | None, **said: Any) -> None:
        from gateway.remote import Refused, Remote

        if not admin_key:
            fail("the admin key is needed: set TOLLKEEPER_ADMIN_KEY or give --admin-key.")
        try:
            command(Remote(url, admin_key), **said)
        except Refused as error:
            fail(str(error))

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # click's own place
    return URL(ADMIN_KEY(run))  # type: ignore[return-value]


def read_span(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """So long, in seconds: 90s, 15m, 12h, 30d."""
    if value is None:
        return None
    number, unit = value[:-1], value[-1:]
    if not (number.isascii() and number.isdigit() and unit in UNITS and len(number) <= 9):
        raise click.BadParameter("so long is wanted: 90s, 15m, 12h, 30d")
    return int(number) * UNITS[unit]


def read_limits(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int | None]:
    """By their words: requests_per_minute=60; none takes one away."""
    limits: dict[str, int | None] = {}
    for value in values:
        word, _, number = value.partition("=")
        if not (number == "none" or (number.isascii() and number.isdigit() and len(number) <= 15)):
            raise click.BadParameter("a limit and its number are wanted: requests_per_minute=60")
        limits[word] = None if number == "none" else int(number)
    return limits


def limits(flag: str = "--limit", name: str = "limits", of: str = "") -> Callable[[F], F]:
    says = f"E.g. requests_per_minute=60{of}; none takes one away; several times."
    return click.option(flag, name, callback=read_limits, multiple=True, metavar="WORD=NUMBER", help=says)


def models(of: str) -> Callable[[F], F]:
    says = f"It may use only this one of {of}; may be given several times."
    return click.option("--model", "models", multiple=True, help=says)


def moment(seconds: int | None) -> str | None:
    """So long from now, RFC 3339."""
    from gateway.store import write_time

    return None if seconds is None else write_time(time.time_ns() + seconds * 1_000_000_000)


def body(said: Mapping[str, Any], **cleared: bool) -> dict[str, Any]:
    """What was said, and null for what is to be taken away."""
    told = {word: list(value) if isinstance(value, tuple) else value for word, value in said.items()}
    told = {word: value for word, value in told.items() if value not in (None, [], {})}
    return told | {word: None for word, is_so in cleared.items() if is_so}


def change(remote: Remote, path: str, id: str, told: dict[str, Any]) -> dict[str, Any]:
    if not told:
        fail("say what changes: --help lists it.")
    changed: dict[str, Any] = remote.ask("PATCH", path, id, body=told)
    return changed


def fail(message: str) -> NoReturn:
    click.echo(f"tollkeeper: {message}", err=True)
    sys.exit(2)


# ── what is answered ────────────────────────────────────────────────────────────────────────────────────────────────


def lists(group: click.Group, says: str, columns: Mapping[str, Cell], *filters: Callable[[F], F]) -> None:
    """Adds `list` to the group that is called as the API calls them."""

    def run(remote: Remote, as_csv: bool, **query: Any) -> None:
        found = remote.lines(str(group.name), query=query)
        show(list(columns), ([_cell(one, cell) for cell in columns.values()] for one in found), as_csv)

    run.__doc__ = says
    command: Any = CSV(run)
    for option in reversed(filters):
        command = option(command)
    group.command("list")(asks(command))


def _cell(one: Mapping[str, Any], cell: Cell) -> str:
    value = one[cell] if isinstance(cell, str) else cell(one)
    return "" if value is None else str(value)


def words(told: Mapping[str, Any]) -> str:
    """Limits, as --limit takes them."""
    return " ".join(f"{word}={number}" for word, number in told.items())


def show(head: Sequence[str], lines: Iterable[Sequence[str]], as_csv: bool) -> None:
    if as_csv:
        click.echo(written([[word.lower() for word in head], *lines]), nl=False)
    else:
        table([word.upper() for word in head], lines)


def written(rows: Iterable[Sequence[str]]) -> str:
    """CSV (RFC 4180) that no spreadsheet runs: OWASP, CSV injection."""
    out = io.StringIO()
    csv.writer(out).writerows([[f"'{cell}" if runs(cell) else cell for cell in row] for row in rows])
    return out.getvalue()


def runs(cell: str) -> bool:
    """Whether a spreadsheet would take it for a formula: a number below 0 it would not."""
    return cell.startswith(FORMULA) and NUMBER.fullmatch(cell) is None


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Columns as wide as what stands in them; no control character reaches the terminal."""
    rows = [head, *([_clean(cell) for cell in line] for line in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _clean(cell: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in cell)
