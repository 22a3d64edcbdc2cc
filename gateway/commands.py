"""`tollkeeper keys`, `tokens` and `audit`: who may call, who may administer, and who changed what."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.shell import OF_TEAM, asks, body, change, fail, limits, lists, models, moment, read_span, table, words

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote

CONTENT: Final = click.option("--content", type=click.Choice(["none", "redacted", "full"]))
EXPIRES: Final = click.option(
    "--expires-in", "expires", callback=read_span, metavar="SPAN", help="E.g. 90d.  [default: never]"
)


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def keys() -> None:
    """Create, list, change, rotate and revoke the keys of teams."""


@keys.command("create")
@asks
@click.option("--team", required=True)
@click.option("--name", required=True, help="What it is called in metrics, logs and records.")
@models("its team's")
@limits()
@CONTENT
@EXPIRES
def create_key(remote: Remote, expires: int | None, **said: Any) -> None:
    """Create a key and print it: it is shown this once."""
    made = remote.ask("POST", "keys", body=body({**said, "expires": moment(expires)}))
    click.echo(made["key"])
    ends = f", until {made['expires'][:19]}Z" if made["expires"] else ""
    click.echo(f"{made['id']}: the key {made['name']} of team {made['team']}{ends}. It is not shown again.", err=True)


lists(
    keys, "List keys, without what they are.",
    {
        "team": "team", "name": "name", "state": "state",
        "ends in": lambda one: f"…{one['hint']}" if one["hint"] else "config.yaml", "id": "id",
        "limits": lambda one: words(one["limits"]),
    },
    OF_TEAM,
)  # fmt: skip


@keys.command("change")
@asks
@click.argument("id")
@models("its team's")
@click.option("--all-models", is_flag=True, help="It may use all of its team's.")
@limits()
@CONTENT
@EXPIRES
@click.option("--no-expiry", is_flag=True, help="It does not end by itself.")
def change_key(remote: Remote, id: str, expires: int | None, **said: Any) -> None:
    """Change what a key may; of limits only those that are named."""
    cleared = {"models": said.pop("all_models"), "expires": said.pop("no_expiry")}
    told = change(remote, "keys", id, body({**said, "expires": moment(expires)}, **cleared))
    click.echo(f"{id}: the key {told['name']} of team {told['team']} is changed.")


@keys.command("rotate")
@asks
@click.argument("id")
@click.option(
    "--overlap", callback=read_span, metavar="SPAN", default="1h", show_default=True,
    help="How long the old key stays valid; 0s: it does not.",
)  # fmt: skip
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


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def tokens() -> None:
    """Create, list and revoke admin tokens: who else may use the admin plane."""


@tokens.command("create")
@asks
@click.argument("name")
@click.option("--role", type=click.Choice(["admin", "owner", "viewer"]), required=True)
@click.option("--team", "of", multiple=True, help="An owner's, or what a viewer sees; may be given several times.")
@EXPIRES
def create_token(remote: Remote, name: str, role: str, of: Sequence[str], expires: int | None) -> None:
    """Create an admin token and print it: it is shown this once."""
    made = remote.ask(
        "POST", "tokens", body=body({"name": name, "role": role, "teams": of, "expires": moment(expires)})
    )
    click.echo(made["token"])
    click.echo(f"{made['id']}: the token {name}, {role}. It is not shown again.", err=True)


lists(
    tokens, "List admin tokens, without what they are.",
    {
        "name": "name", "role": "role", "state": "state", "sees": lambda one: ", ".join(one["teams"] or ["all teams"]),
        "ends in": lambda one: f"…{one['hint']}", "id": "id",
    },
)  # fmt: skip


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
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Rows.")
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
