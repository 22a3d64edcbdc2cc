"""What a key or a user may be given: never more than its team has."""

from __future__ import annotations

from gateway import settings
from gateway.plane import bad, forbidden
from gateway.roster import Roster
from gateway.store.directory import Limits


def changed(old: Limits, said: settings.Limits, roster: Roster, field: str = "limits") -> dict[str, int]:
    """Limits with what is said over them; null takes one away.  Raises BadCall where nobody would count."""
    both = {**old, **{word: getattr(said, word) for word in said.model_fields_set}}
    limits = {word: limit for word, limit in both.items() if limit is not None}
    if limits and not roster.enforces("rate_limit"):
        raise bad(field, "nothing enforces this: add `- use: rate_limit` to policies in config.yaml")
    return limits


def within(old: Limits, said: settings.Limits, team: settings.Team, roster: Roster) -> dict[str, int]:
    """The same, of something that belongs to a team.  Raises Denied where that is over one of the team's own limits."""
    limits = changed(old, said, roster)
    for word in said.model_fields_set & limits.keys():
        most = getattr(team.limits, word)
        if most is not None and limits[word] > most:
            raise forbidden(f"limits.{word}", f"the team's own limit is {most}, and this can only be less")
    return limits


def check_models(models: list[str], roster: Roster, team: settings.Team | None = None) -> None:
    """Raises where one is not configured, is not its team's, or where nobody would hold callers to them."""
    for index, model in enumerate(models):
        if model not in roster.config.models:
            raise bad(f"models.{index}", "no model of this name is configured")
        if team is not None and team.models is not None and model not in team.models:
            raise forbidden(f"models.{index}", "a key can only narrow its team's models, and this is none of them")
    if not roster.enforces("access"):
        raise bad("models", "nothing enforces this: add `- use: access` to policies in config.yaml")


def printable_only(text: str) -> str:
    """As labels of callers are kept: nothing else could ever be equal to one."""
    if not text.isprintable():
        raise ValueError("only printable characters can be told apart")
    return text
