"""/admin/v1/cache/forget: what was answered to a team, to a key, or by a model, or all of it, is not answered again."""

from __future__ import annotations

from typing import Final, cast

from msgspec import Struct

from gateway.answers import ALL, NOTED, Answers, mark
from gateway.errors import Unavailable
from gateway.plane import Asked, Body, Operation, bad, forbidden, missing
from gateway.roster import Roster
from gateway.settings import Name

PATH: Final = "/admin/v1/cache/forget"


class Forget(Body):
    """One of: a team, a key of a team, a model, all."""

    team: Name | None = None
    key: Name | None = None
    model: Name | None = None
    all: bool = False


class Forgotten(Struct, frozen=True):
    """what: as the log of changes tells it."""

    forgotten: str


class Cache:
    def __init__(self, answers: Answers, roster: Roster) -> None:
        self._answers = answers
        self._roster = roster

    def operations(self) -> list[Operation]:
        says = "Forget answers of the cache: a team's, a key's, a model's, or all"
        return [Operation("POST", PATH, "forgetAnswers", says, self._forget, Forgotten, Forget, (), "owner")]

    async def _forget(self, asked: Asked) -> Forgotten:
        body = cast("Forget", asked.body)
        what = self._understand(asked, body)
        if not await self._answers.forget(what):
            raise Unavailable("the cache's store cannot be asked now; nothing was forgotten there", retry_after=1)
        await self._roster.note(asked.operator.name, "forget", NOTED + what)
        return Forgotten(what)

    def _understand(self, asked: Asked, body: Forget) -> str:
        if (body.team is not None) + (body.model is not None) + body.all != 1:
            raise bad("team", "name one of: team, team and key, model, all")
        if body.key is not None and body.team is None:
            raise bad("key", "name its team too")
        if body.team is not None:
            team = self._roster.teams.get(body.team) if asked.operator.sees(body.team) else None
            if team is None:
                raise missing("team", "team")
            if body.key is None:
                return mark("team", body.team)
            return mark("key", body.team, body.key)  # one that was revoked may have answers still
        if asked.operator.role != "admin":
            raise forbidden("model" if body.model else "all", "answers of several teams are for the role 'admin'")
        if body.model is None:
            return ALL
        if body.model not in self._roster.config.models:
            raise missing("model", "model")
        return mark("model", body.model)
