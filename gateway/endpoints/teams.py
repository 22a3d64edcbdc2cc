"""/admin/v1/teams: those that config.yaml declares, and those that are created here.  The words are the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace
from pydantic import Field

from gateway import settings
from gateway.narrowing import changed, check_models
from gateway.plane import PAGED, Asked, Body, Gone, Operation, bad, conflict, missing, page
from gateway.roster import Decided, Roster, Snapshot
from gateway.settings import Name
from gateway.store import write_time
from gateway.store.directory import Content, Team

PATH: Final = "/admin/v1/teams"
Models = Annotated[list[Name], Field(max_length=1000)]


class NewTeam(Body):
    name: Name
    organisation: Name | None = None
    models: Models | None = None  # null: all
    provider: Name | None = None
    content: Content = "none"
    limits: settings.Limits = settings.Limits()
    users: settings.Limits = settings.Limits()
    disabled: bool = False  # no key of it is accepted


class TeamChange(Body):
    """What is left out stays.  Of limits and users only the words that stand there change; null takes one away."""

    organisation: Name | None = None
    models: Models | None = None
    provider: Name | None = None
    content: Content = "none"
    limits: settings.Limits = settings.Limits()
    users: settings.Limits = settings.Limits()
    disabled: bool = False


class TeamTold(Struct, frozen=True):
    name: str
    source: Literal["config", "api"]  # who declares it
    organisation: str | None
    models: list[str] | None
    provider: str | None
    content: Content
    limits: dict[str, int]
    users: dict[str, int]
    disabled: bool
    created: str | None


class TeamPage(Struct, frozen=True):
    data: list[TeamTold]
    next_cursor: str | None


class Teams:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        one = PATH + "/{team}"
        return [
            Operation("GET", PATH, "listTeams", "Teams", self._list, TeamPage, query=PAGED),
            Operation(
                "POST", PATH, "createTeam", "Create a team", self._create, TeamTold, NewTeam, (), "admin", status=201
            ),
            Operation("GET", one, "getTeam", "One team", self._show, TeamTold),
            Operation("PATCH", one, "changeTeam", "Change a team", self._change, TeamTold, TeamChange, (), "admin"),
            Operation("DELETE", one, "deleteTeam", "Delete a team without keys", self._delete, Gone, role="admin"),
        ]

    async def _list(self, asked: Asked) -> TeamPage:
        names = {*self._roster.config.teams, *self._roster.snapshot.teams}
        mine = {name: name for name in names if asked.operator.sees(name)}
        found, cursor = page(mine, asked.query)
        return TeamPage([told for name in found if (told := self._told(name)) is not None], cursor)

    async def _show(self, asked: Asked) -> TeamTold:
        name = asked.path["team"]
        told = self._told(name) if asked.operator.sees(name) else None
        if told is None:
            raise missing("team", "team")
        return told

    async def _create(self, asked: Asked) -> TeamTold:
        body: NewTeam = asked.body

        def decide(snapshot: Snapshot) -> Decided[TeamTold]:
            self._not_declared(body.name, "name")
            if body.name in snapshot.teams:
                raise conflict("name", "there is a team of this name", "already_exists")
            new = self._with(Team(body.name, write_time(time.time_ns())), body, snapshot)
            return Decided(_created(new), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _change(self, asked: Asked) -> TeamTold:
        def decide(snapshot: Snapshot) -> Decided[TeamTold]:
            old = self._find(asked, snapshot)
            new = self._with(old, asked.body, snapshot)
            return Decided(_created(new), "change", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _delete(self, asked: Asked) -> Gone:
        def decide(snapshot: Snapshot) -> Decided[Gone]:
            old = self._find(asked, snapshot)
            keys = [key for key in snapshot.keys.values() if key.team == old.name]
            if holders := _holders(old.name, snapshot):
                said = f"it has {', '.join(holders[:10])}: revoke or delete them first, or switch the team off"
                raise conflict("team", said, "in_use")
            return Decided(Gone(old.name), "delete", old, None, keys)

        return await self._roster.change(asked.operator.name, decide)

    # ── what may be said ────────────────────────────────────────────────────────────────────────────────────────────

    def _with(self, team: Team, body: NewTeam | TeamChange, snapshot: Snapshot) -> Team:
        """The team as the body wants it.  Raises BadCall naming the field that makes no sense."""
        config = self._roster.config
        said: dict[str, Any] = {word: getattr(body, word) for word in body.model_fields_set if word != "name"}
        if said.get("organisation") is not None and said["organisation"] not in snapshot.organisations:
            raise missing("organisation", "organisation")
        if said.get("provider") is not None and said["provider"] not in config.providers:
            raise bad("provider", f"no such provider; there are {', '.join(config.providers)}")
        if said.get("models") is not None:
            check_models(said["models"], self._roster)
        for word in {"limits", "users"} & said.keys():
            said[word] = changed(getattr(team, word), said[word], self._roster, word)
        return replace(team, **said)

    def _not_declared(self, name: str, field: str) -> None:
        if name in self._roster.config.teams:
            raise conflict(field, "config.yaml declares this team: change it there", "declared_in_config")

    def _find(self, asked: Asked, snapshot: Snapshot) -> Team:
        name = asked.path["team"]
        if asked.operator.sees(name):
            self._not_declared(name, "team")
            if (found := snapshot.teams.get(name)) is not None:
                return found
        raise missing("team", "team")

    def _told(self, name: str) -> TeamTold | None:
        declared = self._roster.config.teams.get(name)
        if declared is not None:
            limits, users = _plain(declared.limits), _plain(declared.users)
            return TeamTold(
                name, "config", None, declared.models, declared.provider, declared.content, limits, users, False, None
            )
        created = self._roster.snapshot.teams.get(name)
        return None if created is None else _created(created)


def _plain(limits: settings.Limits) -> dict[str, int]:
    return {word: limit for word, limit in limits if limit is not None}


def _created(team: Team) -> TeamTold:
    return TeamTold(
        team.name, "api", team.organisation, team.models, team.provider, team.content, dict(team.limits),
        dict(team.users), team.disabled, team.created,
    )  # fmt: skip


def _holders(team: str, snapshot: Snapshot) -> Sequence[str]:
    """What would be left without its team."""
    return [
        *(f"the key {key.name}" for key in snapshot.keys.values() if key.team == team and key.revoked is None),
        *(f"the user {user.id}" for user in snapshot.users.values() if user.team == team),
        *(f"the budget {budget.id}" for budget in snapshot.budgets.values() if budget.team == team),
        *(
            f"the admin token {token.name}"
            for token in snapshot.tokens.values()
            if token.revoked is None and team in (token.teams or ())
        ),
    ]
