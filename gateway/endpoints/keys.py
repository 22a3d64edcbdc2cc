"""/admin/v1/keys: a team's keys.  A new one is shown once, in the answer that makes it; it can only narrow its team."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace
from pydantic import Field

from gateway import credentials, settings
from gateway.narrowing import check_models, within
from gateway.plane import (
    PAGED,
    Asked,
    Body,
    Operation,
    Parameter,
    conflict,
    forbidden,
    missing,
    page,
    read_expiry,
)
from gateway.roster import NARROW, Decided, Roster, Snapshot
from gateway.settings import Name
from gateway.store import read_time, write_time
from gateway.store.directory import Content, Key, Secret

PATH: Final = "/admin/v1/keys"
MOST_FORMER: Final = 8  # keys that were rotated and are still valid
Models = Annotated[list[Name], Field(max_length=1000)]
Moment = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]


class NewKey(Body):
    team: Name
    name: Name
    models: Models | None = None  # null: those of its team
    content: Content | None = None  # null: as its team's
    limits: settings.Limits = settings.Limits()
    expires: Moment | None = None  # null: never


class KeyChange(Body):
    """What is left out stays.  Of limits, too, only the words that stand there change; null takes one away."""

    models: Models | None = None
    content: Content | None = None
    limits: settings.Limits = settings.Limits()
    expires: Moment | None = None


class Rotation(Body):
    overlap_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 3600  # how long the old key is valid beside the new


class FormerKey(Struct, frozen=True):
    hint: str
    until: str


class KeyTold(Struct, frozen=True, kw_only=True):
    id: str
    team: str
    name: str
    source: Literal["config", "api"]  # who declares it
    state: Literal["active", "expired", "revoked"]
    hint: str | None = None  # its last 4 characters
    former: list[FormerKey] = []  # what it was before it was rotated, as long as that is valid
    models: list[str] | None = None
    content: Content | None = None
    limits: dict[str, int] = {}
    created: str | None = None
    created_by: str | None = None
    expires: str | None = None
    revoked: str | None = None


class KeyMade(KeyTold, frozen=True, kw_only=True):
    key: str  # shown now and never again


class KeyPage(Struct, frozen=True):
    data: list[KeyTold]
    next_cursor: str | None


class Keys:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        one = PATH + "/{id}"
        query = (Parameter("team", "only this team's keys", "checkout"), *PAGED)
        new = "Create a key; it is shown once"
        rotate = "Replace a key by a new one, which is shown once; the old one stays valid for a while"
        return [
            Operation("GET", PATH, "listKeys", "Keys, without what they are", self._list, KeyPage, query=query),
            Operation("POST", PATH, "createKey", new, self._create, KeyMade, NewKey, (), "owner", status=201),
            Operation("GET", one, "getKey", "One key", self._show, KeyTold),
            Operation(
                "PATCH", one, "changeKey", "Change what a key may", self._change, KeyTold, KeyChange, (), "owner"
            ),
            Operation("DELETE", one, "revokeKey", "Revoke a key for good", self._revoke, KeyTold, role="owner"),
            Operation(
                "POST", one + "/rotate", "rotateKey", rotate, self._rotate, KeyMade, Rotation, (), "owner", status=201
            ),
        ]

    async def _list(self, asked: Asked) -> KeyPage:
        team = asked.query.get("team")
        if team is not None and not (asked.operator.sees(team) and team in self._roster.teams):
            raise missing("team", "team")
        everything = self._declared() | {key.id: _told(key) for key in self._roster.snapshot.keys.values()}
        mine = {
            id: told for id, told in everything.items() if asked.operator.sees(told.team) and team in (None, told.team)
        }
        return KeyPage(*page(mine, asked.query))

    async def _show(self, asked: Asked) -> KeyTold:
        id = asked.path["id"]
        told = self._declared().get(id)
        if told is not None and asked.operator.sees(told.team):
            return told
        return _told(self._find(asked, self._roster.snapshot))

    async def _create(self, asked: Asked) -> KeyMade:
        body: NewKey = asked.body
        key, secret = self._new_secret()
        id, at = credentials.new_id("key"), write_time(time.time_ns())

        def decide(snapshot: Snapshot) -> Decided[KeyMade]:
            if not asked.operator.sees(body.team) or body.team not in self._roster.teams:
                raise missing("team", "team")
            declared = self._roster.config.teams.get(body.team)
            if declared is not None and any(body.name == one.name for one in declared.keys):
                raise conflict("name", "config.yaml declares a key of this name for this team", "declared_in_config")
            for one in snapshot.keys.values():
                if (one.team, one.name, one.revoked) == (body.team, body.name, None):
                    raise conflict("name", "this team has a key of this name", "already_exists")
            new = self._with(Key(id, body.team, body.name, secret, at, asked.operator.name), body)
            return Decided(_made(new, key), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _change(self, asked: Asked) -> KeyTold:
        def decide(snapshot: Snapshot) -> Decided[KeyTold]:
            old = self._find(asked, snapshot, to_change=True)
            new = self._with(old, asked.body)
            return Decided(_told(new), "change", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _rotate(self, asked: Asked) -> KeyMade:
        body: Rotation = asked.body
        key, secret = self._new_secret()

        def decide(snapshot: Snapshot) -> Decided[KeyMade]:
            old = self._find(asked, snapshot, to_change=True)
            now = time.time_ns()
            former = [one for one in old.former if one.until is not None and one.until > now]
            if body.overlap_seconds:
                former.append(replace(old.secret, until=now + body.overlap_seconds * 1_000_000_000))
            if len(former) > MOST_FORMER:
                said = f"{MOST_FORMER} keys that this one replaced are still valid: rotate with 0, or wait"
                raise conflict("overlap_seconds", said, "in_use")
            new = replace(old, secret=secret, former=former if body.overlap_seconds else [])
            return Decided(_made(new, key), "rotate", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _revoke(self, asked: Asked) -> KeyTold:
        def decide(snapshot: Snapshot) -> Decided[KeyTold]:
            old = self._find(asked, snapshot, to_change=False)
            new = old if old.revoked else replace(old, revoked=write_time(time.time_ns()))
            return Decided(_told(new), "revoke", old, new)

        return await self._roster.change(asked.operator.name, decide)

    # ── what may be said ────────────────────────────────────────────────────────────────────────────────────────────

    def _new_secret(self) -> tuple[str, Secret]:
        key = credentials.make(credentials.API_KEY)
        return key, Secret(self._roster.pepper.key(key.encode()).hex(), credentials.hint(key))

    def _with(self, key: Key, body: NewKey | KeyChange) -> Key:
        """The key as the body wants it.  Raises where it would be given more than its team has."""
        said: dict[str, Any] = {word: getattr(body, word) for word in body.model_fields_set - {"team", "name"}}
        team = self._roster.teams.get(key.team)
        if team is None:
            raise missing("team", "team")
        if said.get("models") is not None:
            check_models(said["models"], self._roster, team)
        if said.get("content") is not None and NARROW[said["content"]] > NARROW[team.content]:
            raise forbidden("content", f"a key can only narrow its team's, which is '{team.content}'")
        if "limits" in said:
            said["limits"] = within(key.limits, said["limits"], team, self._roster)
        if "expires" in said:
            said["expires"] = read_expiry(said["expires"])
        return replace(key, **said)

    def _find(self, asked: Asked, snapshot: Snapshot, to_change: bool | None = None) -> Key:
        """to_change: the key is wanted to be written; not one of config.yaml, and (True) not one that was revoked."""
        id = asked.path["id"]
        declared = self._declared().get(id) if to_change is not None else None
        if declared is not None and asked.operator.sees(declared.team):
            raise conflict("id", "config.yaml declares this key: change it there", "declared_in_config")
        found = snapshot.keys.get(id)
        if found is None or not asked.operator.sees(found.team):
            raise missing("id", "key")
        if to_change and found.revoked is not None:
            raise conflict("id", "this key was revoked", "already_revoked")
        return found

    def _declared(self) -> dict[str, KeyTold]:
        return {
            told.id: told
            for name, team in self._roster.config.teams.items()
            for key in team.keys
            for told in [_declared(name, key)]
        }


def _declared(team: str, key: settings.Key) -> KeyTold:
    limits = {word: limit for word, limit in key.limits if limit is not None}
    id = f"config:{team}:{key.name}"
    return KeyTold(id=id, team=team, name=key.name, source="config", state="active", limits=limits)


def _facts(key: Key) -> Mapping[str, Any]:
    now = time.time_ns()
    expired = key.expires is not None and read_time(key.expires) <= now
    return {
        "id": key.id, "team": key.team, "name": key.name, "source": "api",
        "state": "revoked" if key.revoked else "expired" if expired else "active", "hint": key.secret.hint,
        "former": [FormerKey(old.hint, write_time(old.until)) for old in key.former if old.until and old.until > now],
        "models": key.models, "content": key.content, "limits": dict(key.limits), "created": key.created,
        "created_by": key.created_by, "expires": key.expires, "revoked": key.revoked,
    }  # fmt: skip


def _told(key: Key) -> KeyTold:
    return KeyTold(**_facts(key))


def _made(key: Key, secret: str) -> KeyMade:
    return KeyMade(**_facts(key), key=secret)
