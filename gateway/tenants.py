"""`tollkeeper organisations`, `teams`, `users` and `budgets`: who spends, how fast, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from gateway.shell import OF_TEAM, asks, body, change, limits, lists, models, words

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.remote import Remote

ON_OFF: Final = click.Choice(["on", "off"])
SCOPES: Final = ("team", "key", "user", "organisation", "feature", "model")


def is_on(one: dict[str, Any]) -> str:
    return "off" if one["disabled"] else "on"


# ── organisations ───────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def organisations() -> None:
    """Create, list, switch and delete organisations: groups of teams."""


@organisations.command("create")
@asks
@click.argument("name")
def create_organisation(remote: Remote, name: str) -> None:
    """Create an organisation."""
    remote.ask("POST", "organisations", body={"name": name})
    click.echo(f"The organisation {name} is created; give it teams: tollkeeper teams change TEAM --organisation {name}")


lists(
    organisations, "List organisations.",
    {"name": "name", "is": is_on, "teams": lambda one: ", ".join(one["teams"])},
)  # fmt: skip


@organisations.command("switch")
@asks
@click.argument("name")
@click.argument("to", type=ON_OFF)
def switch_organisation(remote: Remote, name: str, to: str) -> None:
    """Refuse all keys of an organisation's teams (off), or accept them again (on)."""
    remote.ask("PATCH", "organisations", name, body={"disabled": to == "off"})
    click.echo(f"The organisation {name} is {to}.")


@organisations.command("delete")
@asks
@click.argument("name")
def delete_organisation(remote: Remote, name: str) -> None:
    """Delete an organisation that has no teams any more."""
    remote.ask("DELETE", "organisations", name)
    click.echo(f"The organisation {name} is deleted.")


# ── teams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def teams() -> None:
    """Create, list, change, switch and delete teams."""


ORGANISATION: Final = click.option("--organisation", help="The group of teams that it belongs to.")
PROVIDER: Final = click.option("--provider", help="Where calls go that name no model.")
USER_LIMITS: Final = limits("--user-limit", "users", ", of each of its users")


@teams.command("create")
@asks
@click.argument("name")
@models("all")
@limits()
@USER_LIMITS
@ORGANISATION
@PROVIDER
def create_team(remote: Remote, name: str, **said: Any) -> None:
    """Create a team."""
    remote.ask("POST", "teams", body={"name": name, **body(said)})
    click.echo(f"The team {name} is created; give it a key: tollkeeper keys create --team {name} …")


lists(
    teams, "List teams.",
    {
        "name": "name", "declared by": lambda one: "config.yaml" if one["source"] == "config" else "api",
        "is": is_on,
        "models": lambda one: "all" if one["models"] is None else ", ".join(one["models"]) or "none",
        "organisation": "organisation", "limits": lambda one: words(one["limits"]),
        "user limits": lambda one: words(one["users"]),
    },
)  # fmt: skip


@teams.command("change")
@asks
@click.argument("name")
@models("all")
@click.option("--all-models", is_flag=True, help="It may use all.")
@limits()
@USER_LIMITS
@ORGANISATION
@click.option("--no-organisation", is_flag=True, help="It belongs to none.")
@PROVIDER
def change_team(remote: Remote, name: str, all_models: bool, no_organisation: bool, **said: Any) -> None:
    """Change a team that was created; of limits only those that are named."""
    change(remote, "teams", name, body(said, models=all_models, organisation=no_organisation))
    click.echo(f"The team {name} is changed.")


@teams.command("switch")
@asks
@click.argument("name")
@click.argument("to", type=ON_OFF)
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


# ── users ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def users() -> None:
    """Give users of a team, as x-user-id names them, limits of their own."""


@users.command("create")
@asks
@click.option("--team", required=True)
@click.option("--user", required=True, help="As x-user-id names it.")
@limits()
def create_user(remote: Remote, **said: Any) -> None:
    """Give a user limits in place of the team's --user-limit."""
    made = remote.ask("POST", "users", body=body(said))
    click.echo(f"{made['id']}: the user {made['user']} of team {made['team']} has limits of its own.")


lists(
    users, "List users that have limits of their own.",
    {"team": "team", "user": "user", "limits": lambda one: words(one["limits"]), "id": "id"}, OF_TEAM,
)  # fmt: skip


@users.command("change")
@asks
@click.argument("id")
@limits()
def change_user(remote: Remote, id: str, **said: Any) -> None:
    """Change a user's limits; only those that are named."""
    told = change(remote, "users", id, body(said))
    click.echo(f"{id}: {words(told['limits']) or 'no limits'}.")


@users.command("delete")
@asks
@click.argument("id")
def delete_user(remote: Remote, id: str) -> None:
    """Take a user's own limits away: the team's --user-limit hold again."""
    remote.ask("DELETE", "users", id)
    click.echo(f"{id} is deleted.")


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def budgets() -> None:
    """Set, list, change and delete budgets; what is spent of them: tollkeeper ledger windows."""


HARD: Final = click.option("--hard/--soft", default=None, help="Refuse what does not fit, or only count it.")
WARN_AT: Final = click.option(
    "--warn-at", multiple=True, type=click.FloatRange(0, 1, min_open=True), metavar="FRACTION",
    help="Say so in the log when this part of it is spent; several times.",
)  # fmt: skip


@budgets.command("create")
@asks
@click.argument("scope", type=click.Choice(SCOPES))
@click.option("--team", help="Of scope team, key, user; may stand with feature, model.")
@click.option("--key", help="Its name, of scope key.")
@click.option("--user", help="As x-user-id names it, of scope user.")
@click.option("--organisation", help="Of scope organisation.")
@click.option("--feature", help="As x-feature names it, of scope feature.")
@click.option("--model", help="Of scope model.")
@click.option("--limit", "limit_usd", required=True, metavar="USD", help="Exact, with at most 9 decimals.")
@click.option("--per", type=click.Choice(["day", "week", "month", "total"]), required=True)
@click.option("--zone", help="Where its periods begin: an IANA name.  [default: UTC]")
@HARD
@WARN_AT
def create_budget(remote: Remote, **said: Any) -> None:
    """Set a budget of a SCOPE: one for each period."""
    made = remote.ask("POST", "budgets", body=body(said))
    kind = "hard" if made["hard"] else "soft"
    click.echo(f"{made['id']}: {whose(made)} may spend {made['limit_usd']} USD per {made['per']} ({kind}).")


def whose(one: dict[str, Any]) -> str:
    """team checkout; user checkout u-1; model m."""
    named = [one[word] for word in ("organisation", "team", "key", "user", "feature", "model") if one[word] is not None]
    return " ".join([one["scope"], *named])


lists(
    budgets, "List budgets that were created; those of config.yaml: tollkeeper ledger windows.",
    {
        "of": whose, "limit": "limit_usd", "per": "per", "zone": "zone",
        "is": lambda one: "hard" if one["hard"] else "soft",
        "warns at": lambda one: " ".join(str(part) for part in one["warn_at"]), "id": "id",
    },
    OF_TEAM,
)  # fmt: skip


@budgets.command("change")
@asks
@click.argument("id")
@click.option("--limit", "limit_usd", metavar="USD", help="Exact, with at most 9 decimals.")
@HARD
@WARN_AT
@click.option("--no-warnings", is_flag=True, help="Take --warn-at back.")
@click.option("--force", is_flag=True, help="Also below what is spent or held already: nothing more is admitted then.")
def change_budget(remote: Remote, id: str, no_warnings: bool, force: bool, **said: Any) -> None:
    """Change a budget; calls under way settle as they were admitted."""
    switches: dict[str, Any] = ({"warn_at": []} if no_warnings else {}) | ({"force": True} if force else {})
    told = change(remote, "budgets", id, body(said) | switches)
    kind = "hard" if told["hard"] else "soft"
    click.echo(f"{id}: {whose(told)} may spend {told['limit_usd']} USD per {told['per']} ({kind}).")


@budgets.command("delete")
@asks
@click.argument("id")
def delete_budget(remote: Remote, id: str) -> None:
    """Delete a budget: nothing is held against it any more."""
    remote.ask("DELETE", "budgets", id)
    click.echo(f"{id} is deleted.")
