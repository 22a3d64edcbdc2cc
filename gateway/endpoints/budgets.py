"""/admin/v1/budgets: how much a team, a key, a user, an organisation, a feature or a model may spend in a period."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Final
from zoneinfo import available_timezones

from msgspec import Struct, to_builtins
from msgspec.structs import replace
from pydantic import AfterValidator, Field

from gateway import settings
from gateway.credentials import new_id
from gateway.errors import Unavailable
from gateway.ledger import Ledger, LedgerUnavailable
from gateway.narrowing import printable_only
from gateway.plane import PAGED, Asked, Body, Gone, Operation, Parameter, bad, conflict, forbidden, missing, page
from gateway.reply import usd
from gateway.roster import Decided, Operator, Roster, Snapshot
from gateway.settings import Name
from gateway.store import write_time
from gateway.store.directory import BudgetSetting, Period, Scope

PATH: Final = "/admin/v1/budgets"
# scope: what must be named, and what may be
NAMES: Final[Mapping[Scope, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "team": (("team",), ()),
    "key": (("team", "key"), ()),
    "user": (("team", "user"), ()),
    "organisation": (("organisation",), ()),
    "feature": (("feature",), ("team",)),
    "model": (("model",), ("team",)),
}
OWNERS: Final = ("key", "user")  # scopes within a team, which its owner may divide


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() | {"UTC"})


def _zone(name: str) -> str:
    if name not in _zones():
        raise ValueError("no such time zone; an IANA name is wanted, e.g. Europe/Berlin or UTC")
    return name


def _fractions(said: list[float]) -> list[float]:
    return sorted(set(said))


Usd = Annotated[Decimal, Field(ge=0, le=Decimal("9200000000"), max_digits=19, decimal_places=9)]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Fractions = Annotated[list[Fraction], Field(max_length=8), AfterValidator(_fractions)]
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(printable_only)]


class NewBudget(Body):
    scope: Scope
    team: Name | None = None
    key: Name | None = None  # its name
    user: Label | None = None  # as x-user-id names it
    organisation: Name | None = None
    feature: Label | None = None  # as x-feature names it
    model: Name | None = None
    limit_usd: Usd
    per: Period
    zone: Zone = "UTC"  # where its days, weeks and months begin
    hard: bool = True  # false: it warns and lets calls pass
    warn_at: Fractions = Field(default=[])  # of the limit


class BudgetChange(Body):
    """What is left out stays."""

    limit_usd: Usd = Decimal(0)
    hard: bool = True
    warn_at: Fractions = Field(default=[])
    force: bool = False  # true: also below what is spent or held already; then nothing more is admitted


class BudgetTold(Struct, frozen=True, kw_only=True):
    id: str
    scope: Scope
    team: str | None
    key: str | None
    user: str | None
    organisation: str | None
    feature: str | None
    model: str | None
    limit_usd: str
    per: Period
    zone: str
    hard: bool
    warn_at: list[float]
    created: str
    created_by: str


class BudgetPage(Struct, frozen=True):
    data: list[BudgetTold]
    next_cursor: str | None


class Budgets:
    """ledger: None where no budget is enforced."""

    def __init__(self, roster: Roster, ledger: Ledger | None) -> None:
        self._roster = roster
        self._ledger = ledger

    def operations(self) -> list[Operation]:
        one, told, new = PATH + "/{id}", BudgetTold, "Set a budget"
        query = (Parameter("team", "only this team's budgets", "checkout"), *PAGED)
        return [
            Operation("GET", PATH, "listBudgets", "Budgets", self._list, BudgetPage, query=query),
            Operation("POST", PATH, "createBudget", new, self._create, told, NewBudget, (), "owner", status=201),
            Operation("GET", one, "getBudget", "One budget", self._show, told),
            Operation("PATCH", one, "changeBudget", "Change a budget", self._change, told, BudgetChange, (), "owner"),
            Operation("DELETE", one, "deleteBudget", "Delete a budget", self._delete, Gone, role="owner"),
        ]

    async def _list(self, asked: Asked) -> BudgetPage:
        team = asked.query.get("team")
        if team is not None and not (asked.operator.sees(team) and team in self._roster.teams):
            raise missing("team", "team")
        budgets = self._roster.snapshot.budgets
        mine = {id: b for id, b in budgets.items() if asked.operator.sees(b.team) and team in (None, b.team)}
        found, cursor = page(mine, asked.query)
        return BudgetPage([_told(one) for one in found], cursor)

    async def _show(self, asked: Asked) -> BudgetTold:
        return _told(_find(asked, self._roster.snapshot))

    async def _create(self, asked: Asked) -> BudgetTold:
        body: NewBudget = asked.body
        id, at = new_id("budget"), write_time(time.time_ns())

        def decide(snapshot: Snapshot) -> Decided[BudgetTold]:
            self._check_names(body, asked.operator, snapshot)
            names = {word: getattr(body, word) for word in ("team", "key", "user", "organisation", "feature", "model")}
            new = BudgetSetting(
                id, body.scope, _plain(body.limit_usd), body.per, at, asked.operator.name, body.zone, body.hard,
                body.warn_at, **names,
            )  # fmt: skip
            if body.per in self._declared(body):
                raise conflict("per", "config.yaml declares this budget: change it there", "declared_in_config")
            if any(_place(one) == _place(new) for one in snapshot.budgets.values()):
                raise conflict("per", "there is a budget for the same and this period: change that", "already_exists")
            return Decided(_told(new), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _change(self, asked: Asked) -> BudgetTold:
        body: BudgetChange = asked.body
        said: dict[str, Any] = {word: getattr(body, word) for word in body.model_fields_set - {"force"}}
        if "limit_usd" in said:
            said["limit_usd"] = _plain(body.limit_usd)
        committed = 0 if body.force else await self._committed(_find(asked, self._roster.snapshot))

        def decide(snapshot: Snapshot) -> Decided[BudgetTold]:
            old = _find(asked, snapshot)
            _may(asked.operator, old.scope, "id")
            new = replace(old, **said)
            if new.hard and (new.limit_usd, True) != (old.limit_usd, old.hard) and _nano(new.limit_usd) < committed:
                wrong = f"{usd(committed)} USD are spent or held in this period; `force` lowers it all the same"
                raise conflict("limit_usd", wrong, "below_committed")
            return Decided(_told(new), "change", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _delete(self, asked: Asked) -> Gone:
        def decide(snapshot: Snapshot) -> Decided[Gone]:
            old = _find(asked, snapshot)
            _may(asked.operator, old.scope, "id")
            return Decided(Gone(old.id), "delete", old, None)

        return await self._roster.change(asked.operator.name, decide)

    async def _committed(self, one: BudgetSetting) -> int:
        """nano-USD spent and held in the period that runs.  Raises Unavailable."""
        if self._ledger is None:
            return 0
        name, after, committed = _ledger_name(one), 0, 0
        try:
            while found := await self._ledger.windows(name, after=after):  # users' names may begin alike
                committed += sum(w.spent + w.overrun + w.reserved for w in found if w.budget == name)
                after = found[-1].id
        except LedgerUnavailable as error:
            raise Unavailable(f"{error}; `force` changes it all the same", retry_after=1)
        return committed

    def _declared(self, body: NewBudget) -> set[Period]:
        """The periods for which config.yaml sets a budget of the same scope and names."""
        config = self._roster.config
        team, model = config.teams.get(body.team or ""), config.models.get(body.model or "")
        found: Sequence[settings.Budget] = ()
        if body.scope == "team" and team is not None:
            found = team.budgets
        elif body.scope == "key" and team is not None:
            found = [budget for key in team.keys if key.name == body.key for budget in key.budgets]
        elif body.scope == "model" and model is not None and body.team is None:
            found = model.budgets
        return {budget.per for budget in found}

    def _check_names(self, body: NewBudget, operator: Operator, snapshot: Snapshot) -> None:
        """Raises where a name is missing, too much, unknown, or not this operator's to set a budget for."""
        needed, possible = NAMES[body.scope]
        for word in ("team", "key", "user", "organisation", "feature", "model"):
            given = getattr(body, word) is not None
            if word in needed and not given:
                raise bad(word, f"a budget of the scope '{body.scope}' must name it")
            if given and word not in (*needed, *possible):
                raise bad(word, f"a budget of the scope '{body.scope}' does not name it")
        if body.team is not None and not (operator.sees(body.team) and body.team in self._roster.teams):
            raise missing("team", "team")
        _may(operator, body.scope, "scope")
        if not self._roster.enforces("budget"):
            raise bad("scope", "no policy enforces budgets: add `- use: budget` to policies in config.yaml")
        if body.key is not None and not any(key.name == body.key for key in self._roster.teams[body.team or ""].keys):
            raise missing("key", "key of this team")
        if body.organisation is not None and body.organisation not in snapshot.organisations:
            raise missing("organisation", "organisation")
        if body.model is not None and body.model not in self._roster.config.models:
            raise missing("model", "model")


def _may(operator: Operator, scope: Scope, field: str) -> None:
    """An owner divides what its team has, and cannot give it more."""
    if operator.role == "owner" and scope not in OWNERS:
        raise forbidden(field, f"an owner sets budgets of keys and users; one of a {scope} is for the role 'admin'")


def _find(asked: Asked, snapshot: Snapshot) -> BudgetSetting:
    found = snapshot.budgets.get(asked.path["id"])
    if found is None or not asked.operator.sees(found.team):
        raise missing("id", "budget")
    return found


def _ledger_name(one: BudgetSetting) -> str:
    """What the policy `budget` calls it in the ledger."""
    scope = [one.scope, one.team, one.key, one.organisation, one.model]
    if one.scope == "feature" and one.team is None:
        scope[1] = "*"
    return " ".join(word for word in (*scope, one.per, one.user, one.feature) if word is not None)


def _nano(limit_usd: str) -> int:
    return int(Decimal(limit_usd) * 1_000_000_000)


def _place(one: BudgetSetting) -> tuple[str | None, ...]:
    return one.scope, one.team, one.key, one.user, one.organisation, one.feature, one.model, one.per


def _plain(usd: Decimal) -> str:
    """50, 0.000000001: never 5E+1, never 50.00."""
    text = format(usd, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _told(one: BudgetSetting) -> BudgetTold:
    facts = to_builtins(one)
    return BudgetTold(**{word: facts[word] for word in BudgetTold.__struct_fields__})
