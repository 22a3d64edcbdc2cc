"""/admin/v1/users: users of a team, as x-user-id names them, that have limits of their own."""

from __future__ import annotations

import time
from typing import Annotated, Final

from msgspec import Struct
from msgspec.structs import replace
from pydantic import AfterValidator, Field

from gateway import settings
from gateway.credentials import new_id
from gateway.narrowing import printable_only, within
from gateway.plane import PAGED, Asked, Body, Gone, Operation, Parameter, conflict, missing, page
from gateway.roster import Decided, Roster, Snapshot
from gateway.settings import Name
from gateway.store import write_time
from gateway.store.directory import User

PATH: Final = "/admin/v1/users"


class NewUser(Body):
    team: Name
    user: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(printable_only)]
    limits: settings.Limits = settings.Limits()  # in place of the team's `users`


class UserChange(Body):
    """Only the words that stand there change; null takes one away."""

    limits: settings.Limits


class UserTold(Struct, frozen=True):
    id: str
    team: str
    user: str
    limits: dict[str, int]
    created: str


class UserPage(Struct, frozen=True):
    data: list[UserTold]
    next_cursor: str | None


class Users:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        one = PATH + "/{id}"
        query = (Parameter("team", "only this team's users", "checkout"), *PAGED)
        new, change = "Give a user limits of its own", "Change a user's limits"
        delete = "Take them away: the team's `users` hold again"
        return [
            Operation("GET", PATH, "listUsers", "Users with limits of their own", self._list, UserPage, query=query),
            Operation("POST", PATH, "createUser", new, self._create, UserTold, NewUser, (), "owner", status=201),
            Operation("GET", one, "getUser", "One user", self._show, UserTold),
            Operation("PATCH", one, "changeUser", change, self._change, UserTold, UserChange, (), "owner"),
            Operation("DELETE", one, "deleteUser", delete, self._delete, Gone, role="owner"),
        ]

    async def _list(self, asked: Asked) -> UserPage:
        team = asked.query.get("team")
        if team is not None and not (asked.operator.sees(team) and team in self._roster.teams):
            raise missing("team", "team")
        users = self._roster.snapshot.users
        mine = {id: u for id, u in users.items() if asked.operator.sees(u.team) and team in (None, u.team)}
        found, cursor = page(mine, asked.query)
        return UserPage([_told(user) for user in found], cursor)

    async def _show(self, asked: Asked) -> UserTold:
        return _told(_find(asked, self._roster.snapshot))

    async def _create(self, asked: Asked) -> UserTold:
        body: NewUser = asked.body

        def decide(snapshot: Snapshot) -> Decided[UserTold]:
            if not asked.operator.sees(body.team) or body.team not in self._roster.teams:
                raise missing("team", "team")
            if any((one.team, one.user) == (body.team, body.user) for one in snapshot.users.values()):
                raise conflict("user", "this user has limits already", "already_exists")
            limits = within({}, body.limits, self._roster.teams[body.team], self._roster)
            new = User(new_id("user"), body.team, body.user, write_time(time.time_ns()), limits)
            return Decided(_told(new), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _change(self, asked: Asked) -> UserTold:
        body: UserChange = asked.body

        def decide(snapshot: Snapshot) -> Decided[UserTold]:
            old = _find(asked, snapshot)
            team = self._roster.teams.get(old.team, settings.Team())
            new = replace(old, limits=within(old.limits, body.limits, team, self._roster))
            return Decided(_told(new), "change", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _delete(self, asked: Asked) -> Gone:
        def decide(snapshot: Snapshot) -> Decided[Gone]:
            old = _find(asked, snapshot)
            return Decided(Gone(old.id), "delete", old, None)

        return await self._roster.change(asked.operator.name, decide)


def _find(asked: Asked, snapshot: Snapshot) -> User:
    found = snapshot.users.get(asked.path["id"])
    if found is None or not asked.operator.sees(found.team):
        raise missing("id", "user")
    return found


def _told(user: User) -> UserTold:
    return UserTold(user.id, user.team, user.user, dict(user.limits), user.created)
