"""Who may call, as config.yaml and the directory say together: in memory, and brought up to date when either changes.

What config.yaml declares wins.  A team that it names is as it says, whatever was created under that name; keys, users
and budgets may be created for such a team, but a created key with the name of a declared one is not accepted.

No call waits for the directory: every gateway looks every second whether its revision has changed, reads what did,
builds everything anew in a thread, and swaps it.  While the directory cannot be read, what was read last stays valid.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec import Struct
from pydantic import SecretStr

from gateway import settings
from gateway.credentials import Pepper
from gateway.errors import Unavailable
from gateway.exchange import Caller, Content
from gateway.keys import Keys, Known
from gateway.store import StoreError, read_time, write_time
from gateway.store.directory import (
    AdminToken,
    BudgetSetting,
    Changes,
    Directory,
    Entry,
    Item,
    Key,
    Organisation,
    Role,
    Secret,
    Stale,
    Team,
    User,
    kind,
    told,
)

T = TypeVar("T")

POLL_SECONDS: Final = 1.0
ROWS: Final = 100  # of the log that are read at once
TRIES: Final = 50  # how often a change is decided anew because somebody else was faster
NARROW: Final[Mapping[Content, int]] = {"none": 0, "redacted": 1, "full": 2}

log = logging.getLogger("gateway")


class Operator(Struct, frozen=True):
    """Who is at the admin plane.  teams: those it sees; None: all."""

    name: str
    role: Role
    teams: frozenset[str] | None = None

    def sees(self, team: str | None) -> bool:
        return self.teams is None or team in self.teams


class KnownToken(NamedTuple):
    operator: Operator
    until: int | None
    revoked: bool


class Snapshot(Struct, frozen=True):
    """What the directory holds at one revision, by kind and id."""

    revision: int = 0
    organisations: dict[str, Organisation] = {}
    teams: dict[str, Team] = {}
    keys: dict[str, Key] = {}
    users: dict[str, User] = {}
    budgets: dict[str, BudgetSetting] = {}
    tokens: dict[str, AdminToken] = {}

    def after(self, changes: Changes) -> Snapshot:
        held: dict[str, dict[str, Any]] = {name: dict(getattr(self, name)) for name in self.__struct_fields__[1:]}
        for item in changes.items:
            held[f"{kind(item)}s"][item.id] = item
        for name, id in changes.gone:
            held[f"{name}s"].pop(id, None)
        return Snapshot(changes.revision, **held)


class Teams(Mapping[str, settings.Team]):
    """The teams as they are now, of both kinds.  revision: another one whenever one of them is different.

    users: limits of users that have their own, by team and name.
    budgets: those that were created for one user, feature, model or organisation: by scope and names.
    born: when those that were created were.
    """

    def __init__(self, declared: Mapping[str, settings.Team]) -> None:
        self.revision = 0
        self.users: Mapping[tuple[str, str], settings.Limits] = {}
        self.budgets: Mapping[tuple[str, ...], Sequence[settings.Budget]] = {}
        self.born: Mapping[str, str] = {}
        self._teams = declared

    def replace(self, view: View) -> None:
        self._teams, self.users, self.budgets, self.born = view.teams, view.users, view.budgets, view.born
        self.revision += 1

    def __getitem__(self, name: str) -> settings.Team:
        return self._teams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._teams)

    def __len__(self) -> int:
        return len(self._teams)


class View(NamedTuple):
    """What is looked up, built from a snapshot."""

    callers: Mapping[bytes, Known]
    tokens: Mapping[bytes, KnownToken]
    teams: Mapping[str, settings.Team]
    users: Mapping[tuple[str, str], settings.Limits]
    budgets: Mapping[tuple[str, ...], Sequence[settings.Budget]]
    born: Mapping[str, str]
    hidden: Sequence[str]  # what was created and config.yaml declares by now


def build(declared: Mapping[str, settings.Team], snapshot: Snapshot) -> View:
    born = {name: team.created for name, team in snapshot.teams.items() if name not in declared}
    teams = {name: _team(snapshot.teams[name]) for name in born} | dict(declared)
    hidden = [f"team {name}" for name in snapshot.teams if name in declared]
    keys_of: dict[str, list[settings.Key]] = {}
    callers: dict[bytes, Known] = {}
    for key in snapshot.keys.values():
        team = teams.get(key.team)
        same_name = team is not None and key.revoked is None and any(key.name == one.name for one in team.keys)
        if same_name:
            hidden.append(f"key {key.name} of team {key.team}")
        elif team is not None and key.revoked is None:
            keys_of.setdefault(key.team, []).append(_limited(key))
        why = "is replaced by one of the same name in config.yaml" if same_name else _refused(key, snapshot, declared)
        caller = _caller(key, team, snapshot, born.get(key.team, ""))
        for secret in (key.secret, *key.former):
            callers[bytes.fromhex(secret.digest)] = Known(caller, _until(key.expires, secret), why)
    for name, keys in keys_of.items():
        teams[name] = teams[name].model_copy(update={"keys": [*teams[name].keys, *keys]})
    budgets = _budgets(snapshot)
    for name, team in teams.items():
        teams[name] = _funded(name, team, budgets)
    return View(
        callers,
        {bytes.fromhex(token.secret.digest): _token(token) for token in snapshot.tokens.values()},
        teams,
        {(user.team, user.user): settings.Limits(**user.limits) for user in snapshot.users.values()},
        budgets,
        born,
        hidden,
    )


class Decided(NamedTuple, Generic[T]):
    """A change as it is to be written.  answer: what its maker is told."""

    answer: T
    action: str  # create | change | rotate | revoke | delete
    before: Item | None
    after: Item | None
    drop: Sequence[Item] = ()  # what goes with it

    @property
    def nothing(self) -> bool:
        return self.before == self.after


class Roster:
    """The live view, and the only way to change what it shows."""

    def __init__(self, config: settings.Config, keys: Keys, teams: Teams, directory: Directory, pepper: Pepper) -> None:
        self.config = config
        self.pepper = pepper
        self.teams = teams
        self.directory = directory
        self.snapshot = Snapshot()
        self.tokens: Mapping[bytes, KnownToken] = {}
        self.forget: Callable[[str], Awaitable[None]] | None = None  # called for each row of the log that says so
        self._keys = keys
        self._hidden: Sequence[str] = ()
        self._lock = asyncio.Lock()
        self._away = False
        self._begun = False  # the log of before is nothing to forget

    def token(self, presented: bytes) -> KnownToken | None:
        return self.tokens.get(self.pepper.token(presented))

    def enforces(self, policy: str) -> bool:
        """Does one of the policies hold callers to it?  An operator's own may."""
        used = [use.use for use in self.config.policies]
        return policy in used or any(":" in use for use in used)

    def budgets(self) -> Sequence[BudgetSetting]:
        """Every budget that was created, oldest first."""
        return sorted(self.snapshot.budgets.values(), key=lambda budget: (budget.created, budget.id))

    async def refresh(self) -> None:
        """Brings this process up to the directory's last revision.  Raises StoreError."""
        async with self._lock:
            await self._catch_up()

    async def follow(self) -> None:
        """For ever: what other gateways change is known here soon."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if await self.directory.revision() != self.snapshot.revision:
                    await self.refresh()
                if self._away:
                    log.warning("the directory can be read again")
                self._away = False
            except StoreError as error:
                if not self._away:
                    log.warning("%s; keys and teams stay as they were read last", error)
                self._away = True
            except Exception:  # a defect must not end this loop: keys that are revoked later would stay valid here
                log.exception("the directory was read and cannot be understood; what was read last stays")

    async def change(self, actor: str, decide: Callable[[Snapshot], Decided[T]]) -> T:
        """Writes what `decide` makes of the directory as it is; asked again where somebody else was faster.

        In this process the change acts before this returns.  Raises what decide raises; StoreError; Unavailable.
        """
        async with self._lock:
            for _ in range(TRIES):
                decided = decide(self.snapshot)
                if decided.nothing and not decided.drop:
                    return decided.answer
                item = decided.after or decided.before
                assert item is not None  # nothing else differs
                object = f"{kind(item)} {item.id}"
                before, after = told(decided.before), told(decided.after)
                entry = Entry(write_time(time.time_ns()), actor, decided.action, object, before, after)
                put = [decided.after] if decided.after is not None else []
                drop = [*decided.drop, *([decided.before] if decided.before and not decided.after else [])]
                try:
                    await self.directory.commit(self.snapshot.revision, entry, put, drop)
                except Stale:
                    await self._catch_up()
                    continue
                await self._catch_up()
                return decided.answer
        raise Unavailable("Others change the directory all the time; nothing was changed. Ask again.", retry_after=1)

    async def note(self, actor: str, action: str, object: str) -> None:
        """A row of the log about what is not in the directory.  Raises StoreError, Unavailable."""
        async with self._lock:
            for _ in range(TRIES):
                entry = Entry(write_time(time.time_ns()), actor, action, object, None, None)
                try:
                    await self.directory.commit(self.snapshot.revision, entry, [], [])
                except Stale:
                    await self._catch_up()
                    continue
                return await self._catch_up()
        raise Unavailable("Others change the directory all the time. Ask again.", retry_after=1)

    async def _catch_up(self) -> None:
        known = self.snapshot
        changes = await self.directory.read(known.revision)
        if changes.revision < known.revision:  # an older copy of the file was put in its place
            known, changes = Snapshot(), await self.directory.read(0)
        await self._hear(known.revision, changes.revision)
        declared = self.config.teams
        snapshot = known.after(changes)
        view = await asyncio.to_thread(build, declared, snapshot)
        self.snapshot, self.tokens, self._keys.created = snapshot, view.tokens, view.callers
        self.teams.replace(view)
        for what in view.hidden:
            if what not in self._hidden:
                log.warning("config.yaml declares the %s, which was also created: what config.yaml says holds", what)
        self._hidden, self._begun = view.hidden, True

    async def _hear(self, since: int, until: int) -> None:
        """What was forgotten after revision `since`, here or at another gateway."""
        while self._begun and self.forget is not None and until > since:
            rows = await self.directory.audit(until + 1, min(until - since, ROWS))
            for row in rows:
                if row.action == "forget" and row.seq > since:
                    await self.forget(row.object)
            until = rows[-1].seq - 1 if rows else since


def _team(team: Team) -> settings.Team:
    return settings.Team(
        models=team.models,
        provider=team.provider,
        content=team.content,
        limits=settings.Limits(**team.limits),
        users=settings.Limits(**team.users),
    )


def _budgets(snapshot: Snapshot) -> dict[tuple[str, ...], list[settings.Budget]]:
    """By scope and names: ("team", team), ("key", team, key), ("user", team, user), ("model", model) …"""
    found: dict[tuple[str, ...], list[settings.Budget]] = {}
    for one in sorted(snapshot.budgets.values(), key=lambda budget: (budget.created, budget.id)):
        names = (one.organisation, one.team, one.key, one.user, one.feature, one.model)
        place = (one.scope, *(name for name in names if name is not None))
        budget = settings.Budget(
            limit_usd=Decimal(one.limit_usd), per=one.per, hard=one.hard, zone=one.zone, warn_at=one.warn_at
        )
        found.setdefault(place, []).append(budget)
    return found


def _funded(
    name: str, team: settings.Team, budgets: Mapping[tuple[str, ...], Sequence[settings.Budget]]
) -> settings.Team:
    """With the budgets that were created for it and its keys.  What config.yaml declares for a period holds."""
    own = joined(team.budgets, budgets.get(("team", name), ()))
    keys = [
        key.model_copy(update={"budgets": joined(key.budgets, budgets.get(("key", name, key.name), ()))})
        for key in team.keys
    ]
    if own == team.budgets and keys == team.keys:
        return team
    return team.model_copy(update={"budgets": own, "keys": keys})


def joined(first: Sequence[settings.Budget], second: Sequence[settings.Budget]) -> list[settings.Budget]:
    """One budget for each period; of two, that of the first holds."""
    taken = {budget.per for budget in first}
    return [*first, *(budget for budget in second if budget.per not in taken)]


def _limited(key: Key) -> settings.Key:
    """As policies see it: the key itself is known to nobody here."""
    return settings.Key(name=key.name, key=SecretStr(""), limits=settings.Limits(**key.limits))


def _refused(key: Key, snapshot: Snapshot, declared: Mapping[str, settings.Team]) -> str:
    """Why this key is not accepted; empty: it is."""
    if key.revoked is not None:
        return "was revoked"
    if key.team in declared:
        return ""
    team = snapshot.teams.get(key.team)
    if team is None:
        return "belongs to a team that is gone"
    organisation = snapshot.organisations.get(team.organisation or "")
    if team.disabled or (organisation is not None and organisation.disabled):
        return "belongs to a team that is switched off"
    return ""


def _caller(key: Key, team: settings.Team | None, snapshot: Snapshot, born: str) -> Caller:
    """A key can only narrow what its team may."""
    if team is None:
        return Caller(key.team, key.name, frozenset())
    models = None if team.models is None else frozenset(team.models)
    if key.models is not None:
        models = frozenset(key.models) if models is None else models & frozenset(key.models)
    content = min(key.content or team.content, team.content, key=NARROW.__getitem__)
    created = snapshot.teams.get(key.team)
    organisation = (created.organisation or "") if created is not None else ""
    narrowed = key.models is not None
    return Caller(key.team, key.name, models, team.provider, content, organisation, narrowed, born, key.id)


def _until(expires: str | None, secret: Secret) -> int | None:
    ends = [end for end in (read_time(expires) if expires else None, secret.until) if end is not None]
    return min(ends, default=None)


def _token(token: AdminToken) -> KnownToken:
    teams = None if token.teams is None else frozenset(token.teams)
    operator = Operator(f"token {token.name} ({token.id})", token.role, teams)
    return KnownToken(operator, _until(token.expires, token.secret), token.revoked is not None)
