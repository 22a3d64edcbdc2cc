"""Who may call and with what: organisations, teams, keys, users, budgets, admin tokens, and the log of each change.

One change is one row of the audit log, and its number is the directory's revision: who knows revision 7 asks for what
came after it.  A change names the revision it was decided upon and is refused where that is no longer the last one, so
whatever was checked in memory still holds when it is written, whoever else writes meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Struct

Content = Literal["none", "redacted", "full"]
Role = Literal["admin", "owner", "viewer"]
Scope = Literal["team", "key", "user", "organisation", "feature", "model"]
Period = Literal["day", "week", "month", "total"]
Limits: TypeAlias = Mapping[str, int]  # by the words of settings.Limits; only those that are set

START: Final = "0" * 64  # what the first row of the audit log follows


class Stale(Exception):
    """Somebody else changed the directory meanwhile: read it again and decide again."""


class Secret(Struct, frozen=True):
    """What is kept of a key: enough to know it again, not enough to use it.  until: ns since the epoch."""

    digest: str  # HMAC-SHA256 under the pepper, in hexadecimal
    hint: str  # its last 4 characters, for people
    until: int | None = None


class Organisation(Struct, frozen=True, tag="organisation"):
    """A group of teams.  disabled: no key of any of its teams is accepted."""

    name: str
    created: str
    disabled: bool = False

    @property
    def id(self) -> str:
        return self.name


class Team(Struct, frozen=True, tag="team"):
    """The words are those of config.yaml."""

    name: str
    created: str
    organisation: str | None = None
    models: list[str] | None = None
    provider: str | None = None
    content: Content = "none"
    limits: Limits = {}
    users: Limits = {}
    disabled: bool = False

    @property
    def id(self) -> str:
        return self.name


class Key(Struct, frozen=True, tag="key"):
    """A team's key.  former: what it was before it was rotated, each until its overlap ends.  Times: RFC 3339."""

    id: str
    team: str
    name: str
    secret: Secret
    created: str
    created_by: str
    former: list[Secret] = []
    models: list[str] | None = None
    content: Content | None = None  # None: as its team's
    limits: Limits = {}
    expires: str | None = None
    revoked: str | None = None


class User(Struct, frozen=True, tag="user"):
    """A user of one team, as x-user-id names it; its limits stand in place of those the team gives each user."""

    id: str
    team: str
    user: str
    created: str
    limits: Limits = {}


class BudgetSetting(Struct, frozen=True, tag="budget"):
    """How much may be spent, by whom.  limit_usd: an exact decimal.  Which of the names are set, the scope says."""

    id: str
    scope: Scope
    limit_usd: str
    per: Period
    created: str
    created_by: str
    zone: str = "UTC"
    hard: bool = True
    warn_at: list[float] = []
    team: str | None = None
    key: str | None = None
    user: str | None = None
    organisation: str | None = None
    feature: str | None = None
    model: str | None = None


class AdminToken(Struct, frozen=True, tag="token"):
    """Opens the admin plane, as far as its role goes.  teams: those it sees; None: all."""

    id: str
    name: str
    role: Role
    secret: Secret
    created: str
    created_by: str
    teams: list[str] | None = None
    expires: str | None = None
    revoked: str | None = None


Item = Organisation | Team | Key | User | BudgetSetting | AdminToken
KINDS: Final[Mapping[str, type[Item]]] = {
    "organisation": Organisation,
    "team": Team,
    "key": Key,
    "user": User,
    "budget": BudgetSetting,
    "token": AdminToken,
}


class Entry(Struct, frozen=True):
    """Who did what to which object.  before and after: the object without its secrets, as canonical JSON."""

    at: str
    actor: str
    action: str
    object: str
    before: str | None
    after: str | None


class AuditEntry(Struct, frozen=True):
    """One row of the log.  hash: SHA-256 of the hash before it and this row."""

    seq: int
    at: str
    actor: str
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


class Changes(Struct, frozen=True):
    """What differs from a revision asked about.  gone: (kind, id) of what was deleted."""

    revision: int
    items: list[Item]
    gone: list[tuple[str, str]]


class Checked(Struct, frozen=True):
    """What a walk over the whole log found.  problem: empty where every row is as it was written.

    last_seq and last_hash, noted elsewhere, show later that nothing before them was written anew.
    """

    rows: int
    problem: str
    last_seq: int
    last_hash: str


Row = tuple[int, str, str, str, str, str | None, str | None, str]  # seq … hash, as stored


class Directory(Protocol):
    """Keeps it all.  Every method raises StoreError where the store cannot be asked now."""

    def seal(self, mark: str) -> str:
        """Keeps this mark of the pepper where none is kept yet; the one that is kept.  Blocks."""

    async def revision(self) -> int:
        """The last change's number; 0: there was none."""

    async def read(self, since: int = 0) -> Changes:
        """What changed after this revision."""

    async def commit(self, base: int, entry: Entry, put: Sequence[Item], drop: Sequence[Item]) -> int:
        """Writes the change and its row of the log, both or neither; the new revision.

        Raises Stale where `base` is not the last revision.
        """

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        """Rows with a smaller number than `before`, the newest first."""

    async def check(self) -> Checked:
        """Whether the log is whole: no row altered, removed or moved."""

    async def aclose(self) -> None: ...


_canonical = msgspec.json.Encoder(order="sorted").encode


def kind(item: Item) -> str:
    return str(item.__struct_config__.tag)


def told(item: Item | None) -> str | None:
    """An object as the log may keep it: what could be used to guess a key is left out."""
    if item is None:
        return None
    facts: dict[str, Any] = msgspec.to_builtins(item)
    if "secret" in facts:
        facts["hint"] = facts.pop("secret")["hint"]
        facts["former"] = [{"hint": old["hint"], "until": old["until"]} for old in facts.get("former", ())]
    return _canonical(facts).decode()


def chain(previous: str, seq: int, entry: Entry) -> str:
    """The hash of a row that follows the one with the hash `previous`."""
    row = (seq, entry.at, entry.actor, entry.action, entry.object, entry.before, entry.after)
    return hashlib.sha256(previous.encode() + _canonical(row)).hexdigest()


class Walk:
    """Follows the log row by row, from its first, and holds what is there against what it says."""

    def __init__(self) -> None:
        self.rows = 0
        self.hash = START
        self.problem = ""
        self._last: dict[str, str | None] = {}  # each object as its last row left it
        self._keys: dict[str, set[str]] = {}  # of each team, by its object: those keys among them

    def step(self, row: Row) -> bool:
        """False: this row is not the one that was written here, and nothing after it can be trusted."""
        seq, *facts, hash = row
        at, actor, action, object, before, after = facts
        expected = self.rows + 1
        if seq != expected:
            self.problem = f"row {expected} is missing: row {seq} stands in its place"
        elif hash != chain(self.hash, seq, Entry(str(at), str(actor), str(action), str(object), before, after)):
            self.problem = f"row {seq} is not as it was written, or a row before it was replaced"
        else:
            self.rows, self.hash = seq, hash
            self._note(str(object), after)
        return not self.problem

    def _note(self, object: str, after: str | None) -> None:
        self._last[object] = after
        if object.startswith("key ") and after is not None:
            self._keys.setdefault(f"team {msgspec.json.decode(after)['team']}", set()).add(object)
        elif after is None:  # keys that were revoked go with their team, in its row
            for key in self._keys.pop(object, ()):
                self._last.pop(key, None)

    def end(self, revision: int, items: Sequence[Item]) -> Checked:
        """revision: the newest that any object has; items: all there are, read together with the last rows."""
        if not self.problem and revision > self.rows:
            self.problem = f"the rows after {self.rows} are missing: an object was changed by row {revision}"
        if not self.problem:
            self.problem = self._compare(items)
        return Checked(self.rows, self.problem, self.rows, self.hash)

    def _compare(self, items: Sequence[Item]) -> str:
        """What was written past the log.  Words that a later version added to an object are in no row of an older."""
        present = {f"{kind(item)} {item.id}": item for item in items}
        for name, item in present.items():
            logged, held = self._last.get(name), told(item)
            if logged is None or not msgspec.json.decode(logged).items() <= msgspec.json.decode(held or "{}").items():
                return f"the {name} is not as the log says: it was written past it"
        for name, after in self._last.items():
            if after is not None and name not in present:
                return f"the {name} is gone, and the log does not say so"
        return ""
