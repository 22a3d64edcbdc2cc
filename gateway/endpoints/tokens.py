"""/admin/v1/tokens: who else may use the admin plane, and how far.  A token is shown once, when it is made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace
from pydantic import Field

from gateway import credentials
from gateway.plane import PAGED, Asked, Body, Operation, bad, conflict, missing, page, read_expiry
from gateway.roster import Decided, Roster, Snapshot
from gateway.settings import Name
from gateway.store import read_time, write_time
from gateway.store.directory import AdminToken, Role, Secret

PATH: Final = "/admin/v1/tokens"
TeamNames = Annotated[list[Name], Field(min_length=1, max_length=1000)]
Moment = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]


class NewToken(Body):
    name: Name
    role: Role  # admin: everything; owner: keys, users and budgets of its teams; viewer: reads
    teams: TeamNames | None = None  # an owner's, and what a viewer sees; null: all
    expires: Moment | None = None  # null: never


class TokenTold(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    role: Role
    teams: list[str] | None
    state: Literal["active", "expired", "revoked"]
    hint: str  # its last 4 characters
    created: str
    created_by: str
    expires: str | None
    revoked: str | None


class TokenMade(TokenTold, frozen=True, kw_only=True):
    token: str  # shown now and never again


class TokenPage(Struct, frozen=True):
    data: list[TokenTold]
    next_cursor: str | None


class Tokens:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        one, new = PATH + "/{id}", "Create an admin token; it is shown once"
        return [
            Operation("GET", PATH, "listTokens", "Admin tokens", self._list, TokenPage, query=PAGED, role="admin"),
            Operation("POST", PATH, "createToken", new, self._create, TokenMade, NewToken, (), "admin", status=201),
            Operation("GET", one, "getToken", "One admin token", self._show, TokenTold, role="admin"),
            Operation("DELETE", one, "revokeToken", "Revoke it for good", self._revoke, TokenTold, role="admin"),
        ]

    async def _list(self, asked: Asked) -> TokenPage:
        found, cursor = page(self._roster.snapshot.tokens, asked.query)
        return TokenPage([TokenTold(**_facts(token)) for token in found], cursor)

    async def _show(self, asked: Asked) -> TokenTold:
        return TokenTold(**_facts(_find(asked, self._roster.snapshot)))

    async def _create(self, asked: Asked) -> TokenMade:
        body: NewToken = asked.body
        if body.role == "owner" and body.teams is None:
            raise bad("teams", "an owner's teams must be named")
        if body.role == "admin" and body.teams is not None:
            raise bad("teams", "the role 'admin' is for all teams")
        expires = read_expiry(body.expires)
        key = credentials.make(credentials.ADMIN_TOKEN)
        secret = Secret(self._roster.pepper.token(key.encode()).hex(), credentials.hint(key))
        id, at = credentials.new_id("token"), write_time(time.time_ns())
        teams = None if body.teams is None else sorted(set(body.teams))

        def decide(snapshot: Snapshot) -> Decided[TokenMade]:
            for index, team in enumerate(body.teams or ()):
                if team not in self._roster.teams:
                    raise missing(f"teams.{index}", "team")
            if any((one.name, one.revoked) == (body.name, None) for one in snapshot.tokens.values()):
                raise conflict("name", "there is a token of this name", "already_exists")
            new = AdminToken(id, body.name, body.role, secret, at, asked.operator.name, teams, expires)
            return Decided(TokenMade(**_facts(new), token=key), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _revoke(self, asked: Asked) -> TokenTold:
        def decide(snapshot: Snapshot) -> Decided[TokenTold]:
            old = _find(asked, snapshot)
            new = old if old.revoked else replace(old, revoked=write_time(time.time_ns()))
            return Decided(TokenTold(**_facts(new)), "revoke", old, new)

        return await self._roster.change(asked.operator.name, decide)


def _find(asked: Asked, snapshot: Snapshot) -> AdminToken:
    found = snapshot.tokens.get(asked.path["id"])
    if found is None:
        raise missing("id", "token")
    return found


def _facts(token: AdminToken) -> Mapping[str, Any]:
    expired = token.expires is not None and read_time(token.expires) <= time.time_ns()
    return {
        "id": token.id, "name": token.name, "role": token.role, "teams": token.teams,
        "state": "revoked" if token.revoked else "expired" if expired else "active", "hint": token.secret.hint,
        "created": token.created, "created_by": token.created_by, "expires": token.expires, "revoked": token.revoked,
    }  # fmt: skip
