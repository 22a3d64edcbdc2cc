"""`tollkeeper keys`, `teams`, `tokens` and `audit`: what the admin API of a running gateway can do, from a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote

F = TypeVar("F", bound=Callable[..., Any])
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

URL: Final = click.option(
    "--url", envvar="TOLLKEEPER_URL", default="http://127.0.0.1:4000", show_default=True, help="The gateway's address."
)
ADMIN_KEY: Final = click.option(
    "--admin-key", envvar="TOLLKEEPER_ADMIN_KEY", help="The admin key, or a token.  [env: TOLLKEEPER_ADMIN_KEY]"
)


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """So long, in seconds: 90s, 15m, 12h, 30d."""
    if value is None:
        return None
    number, unit = value[:-1], value[-1:]
    if not (number.isascii() and number.isdigit() and unit in UNITS and len(number) <= 9):
        raise click.BadParameter("so long is wanted: 90s, 15m, 12h, 30d")
    return int(number) * UNITS[unit]


def _limits(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """By their words: requests_per_minute=60."""
    limits = {}
    for value in values:
        word, _, number = value.partition("=")
        if not (number.isascii() and number.isdigit() and len(number) <= 15):
            raise click.BadParameter("a limit and its number are wanted: requests_per_minute=60")
        limits[word] = int(number)
    return limits


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


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke the keys of teams."""


@keys.command("create")
@asks
@click.option("--team", required=True)
@click.option("--name", required=True, help="What it is called in metrics, logs and records.")
@click.option("--model", "models", multiple=True, help="It may use only this one; may be given several times.")
@click.option(
    "--limit",
    "limits",
    callback=_limits,
    multiple=True,
    metavar="WORD=NUMBER",
    help="E.g. requests_per_minute=60; several times.",
)
@click.option("--content", type=click.Choice(["none", "redacted", "full"]), help="[default: as its team's]")
@click.option("--expires-in", callback=_span, metavar="SPAN", help="E.g. 90d.  [default: never]")
def create_key(remote: Remote, team: str, name: str, expires_in: int | None, **said: Any) -> None:
    """Create a key and print it: it is shown this once."""
    body: dict[str, Any] = {"team": team, "name": name}
    if said["models"]:
        body["models"] = list(said["models"])
    if said["limits"]:
        body["limits"] = said["limits"]
    if said["content"]:
        body["content"] = said["content"]
    if expires_in is not None:
        body["expires"] = _moment(expires_in)
    made = remote.ask("POST", "keys", body=body)
    click.echo(made["key"])
    ends = f", until {made['expires'][:19]}Z" if made["expires"] else ""
    click.echo(f"{made['id']}: the key {made['name']} of team {made['team']}{ends}. It is not shown again.", err=True)


@keys.command("list")
@asks
@click.option("--team", help="Only this team's.")
def list_keys(remote: Remote, team: str | None) -> None:
    """List keys, without what they are."""
    lines = (
        (key["team"], key["name"], key["state"], f"…{key['hint']}" if key["hint"] else "config.yaml", key["id"])
        for key in remote.lines("keys", query={"team": team})
    )
    table(("TEAM", "NAME", "STATE", "ENDS IN", "ID"), lines)


@keys.command("rotate")
@asks
@click.argument("id")
@click.option(
    "--overlap",
    callback=_span,
    metavar="SPAN",
    default="1h",
    show_default=True,
    help="How long the old key stays valid; 0s: it does not.",
)
def rotate_key(remote: Remote, id: str, overlap: int) -> None:
    """Replace a key by a new one and print that: it is shown this once."""
    made = remote.ask("POST", "keys", id, "rotate", body={"overlap_seconds": overlap})
    click.echo(made["key"])
    until = f"stays valid until {made['former'][-1]['until'][:19]}Z" if made["former"] else "is refused from now on"
    click.echo(f"{made['id']}: the old key {until}.", err=True)


@keys.command("revoke")
@asks
@click.argument("id")
def revoke_key(remote: Remote, id: str) -> None:
    """Refuse a key for good, at every gateway within 5 seconds."""
    gone = remote.ask("DELETE", "keys", id)
    click.echo(f"{gone['id']}: the key {gone['name']} of team {gone['team']} is revoked.")


# ── teams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def teams() -> None:
    """Create, list, switch and delete teams."""


@teams.command("create")
@asks
@click.argument("name")
@click.option("--model", "models", multiple=True, help="It may use only this one; may be given several times.")
@click.option(
    "--limit",
    "limits",
    callback=_limits,
    multiple=True,
    metavar="WORD=NUMBER",
    help="E.g. tokens_per_minute=200000; several times.",
)
@click.option(
    "--user-limit",
    "users",
    callback=_limits,
    multiple=True,
    metavar="WORD=NUMBER",
    help="The same, of each of its users.",
)
@click.option("--organisation")
@click.option("--provider", help="Where calls go that name no model.")
def create_team(remote: Remote, name: str, **said: Any) -> None:
    """Create a team."""
    body: dict[str, Any] = {"name": name}
    body |= {word: said[word] for word in ("limits", "users") if said[word]}
    body |= {word: said[word] for word in ("organisation", "provider") if said[word]}
    if said["models"]:
        body["models"] = list(said["models"])
    made = remote.ask("POST", "teams", body=body)
    click.echo(f"The team {made['name']} is created; give it a key: tollkeeper keys create --team {made['name']} …")


@teams.command("list")
@asks
def list_teams(remote: Remote) -> None:
    """List teams."""
    lines = (
        (
            team["name"],
            "config.yaml" if team["source"] == "config" else "api",
            "off" if team["disabled"] else "on",
            "all" if team["models"] is None else ", ".join(team["models"]) or "none",
            team["organisation"] or "",
        )
        for team in remote.lines("teams")
    )
    table(("NAME", "DECLARED BY", "IS", "MODELS", "ORGANISATION"), lines)


@teams.command("switch")
@asks
@click.argument("name")
@click.argument("to", type=click.Choice(["on", "off"]))
def switch_team(remote: Remote, name: str, to: str) -> None:
    """Refuse all of a team's keys (off), or accept them again (on)."""
    remote.ask("PATCH", "teams", name, body={"disabled": to == "off"})
    click.echo(f"The team {name} is {to}.")


@teams.command("delete")
@asks
@click.argument("name")
def delete_team(remote: Remote, name: str) -> None:
    """Delete a team that has no keys any more."""
    remote.ask("DELETE", "teams", name)
    click.echo(f"The team {name} is deleted.")


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def tokens() -> None:
    """Create, list and revoke admin tokens: who else may use the admin plane."""


@tokens.command("create")
@asks
@click.argument("name")
@click.option("--role", type=click.Choice(["admin", "owner", "viewer"]), required=True)
@click.option("--team", "of", multiple=True, help="An owner's, or what a viewer sees; may be given several times.")
@click.option("--expires-in", callback=_span, metavar="SPAN", help="E.g. 90d.  [default: never]")
def create_token(remote: Remote, name: str, role: str, of: Sequence[str], expires_in: int | None) -> None:
    """Create an admin token and print it: it is shown this once."""
    body = {"name": name, "role": role, "teams": list(of) or None}
    made = remote.ask("POST", "tokens", body=body | ({"expires": _moment(expires_in)} if expires_in else {}))
    click.echo(made["token"])
    click.echo(f"{made['id']}: the token {name}, {role}. It is not shown again.", err=True)


@tokens.command("list")
@asks
def list_tokens(remote: Remote) -> None:
    """List admin tokens, without what they are."""
    lines = (
        (one["name"], one["role"], one["state"], ", ".join(one["teams"] or ["all teams"]), f"…{one['hint']}", one["id"])
        for one in remote.lines("tokens")
    )
    table(("NAME", "ROLE", "STATE", "SEES", "ENDS IN", "ID"), lines)


@tokens.command("revoke")
@asks
@click.argument("id")
def revoke_token(remote: Remote, id: str) -> None:
    """Refuse an admin token for good."""
    remote.ask("DELETE", "tokens", id)
    click.echo(f"{id} is revoked.")


# ── audit ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def audit() -> None:
    """Who changed what, and whether the log of it is whole."""


@audit.command("list")
@asks
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def list_audit(remote: Remote, limit: int) -> None:
    """List the last changes, newest first."""
    rows = remote.ask("GET", "audit", query={"limit": limit})["data"]
    lines = ((str(row["seq"]), f"{row['at'][:19]}Z", row["actor"], row["action"], row["object"]) for row in rows)
    table(("ROW", "AT", "WHO", "DID", "WHAT"), lines)


@audit.command("verify")
@asks
@click.option("--noted", metavar="ROW:HASH", help="What an earlier verify printed: nothing up to there was rewritten.")
def verify_audit(remote: Remote, noted: str | None) -> None:
    """Look for a row that was altered, removed or moved.  Exit status 1: there is one."""
    found = remote.ask("GET", "audit", "verify")
    problem = found["problem"]
    if noted and not problem:
        row, _, hash = noted.partition(":")
        if not row.isdigit():
            fail("--noted: ROW:HASH is wanted, as verify prints it.")
        rows = remote.ask("GET", "audit", query={"cursor": int(row) + 1, "limit": 1})["data"]
        if not rows or (str(rows[0]["seq"]), rows[0]["hash"]) != (row, hash):
            problem = f"row {row} is not the one that was noted: the log was written anew"
    if problem:
        click.echo(f"The log is not as it was written: {problem}.", err=True)
        sys.exit(1)
    click.echo(f"{found['rows']} rows, each as it was written. Note this elsewhere, for --noted later:")
    click.echo(f"{found['last_seq']}:{found['last_hash']}")


def fail(message: str) -> NoReturn:
    click.echo(f"tollkeeper: {message}", err=True)
    sys.exit(2)


def _moment(seconds: int) -> str:
    from gateway.store import write_time

    return write_time(time.time_ns() + seconds * 1_000_000_000)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Columns as wide as what stands in them; no control character reaches the terminal."""
    rows = [head, *([_clean(cell) for cell in line] for line in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _clean(cell: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in cell)
