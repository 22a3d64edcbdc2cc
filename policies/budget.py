"""Holds what each call may cost at most in every budget it touches, before it is sent; charges what it did cost.

A call touches the budgets of its team, key, user, feature and model, and those of the whole organisation.  It is held
once in each, for each attempt anew, at the price of that attempt's target.  A hard budget refuses what may not fit; a
soft one only counts.  When the attempt is over the hold is charged:

* with the provider's usage, where the answer came whole;
* with nothing, where the provider certainly billed nothing: not reached, or refused as documented free;
* else, where an answer broke off or nobody waited for it, with all that was held if a budget is hard: a provider may
  have written, or thought, more than anybody saw.  Soft budgets, and `in_doubt: estimate`, are charged what is known:
  the prompt, what was answered, and two seconds more at the pace it had; of a hard one never more than was held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from gateway import settings
from gateway.books import Books, Hold
from gateway.bounds import Bound, bound, shrunk
from gateway.errors import Denied
from gateway.exchange import Attempt, Exchange
from gateway.leases import Claim, Shortage
from gateway.ledger import MAX_NANO, Note
from gateway.ledger import Budget as Limited
from gateway.meter import Meter
from gateway.policy import Policy
from gateway.reply import usd
from gateway.roster import Teams, joined

_SLACK_NS: Final = 2_000_000_000  # of output that a provider may have written and nobody saw
_REMEMBERED: Final = 10_000  # sets of budgets: callers choose the names of users and features
_LONGEST: Final = 200  # characters of a caller's word that become part of a budget's name
_PERIODS: Final = {"day": "today", "week": "this week", "month": "this month", "total": "in all"}
_REMAINING: Final = b"x-tollkeeper-budget-remaining-usd"
_CAP: Final = b"x-tollkeeper-output-cap"


class _Held(NamedTuple):
    hold: Hold
    attempt: Attempt


class _Place(NamedTuple):
    """What decides which budgets a call touches.  user, feature: empty where none of the team's has a budget."""

    organisation: str
    team: str
    key: str
    model: str
    user: str
    feature: str


class _Touched:
    """The budgets of a place.  notes: provider -> what the ledger is told of a call that names no user or feature."""

    __slots__ = ("claims", "notes")

    def __init__(self, claims: list[Claim]) -> None:
        self.claims = claims  # hard ones first: the first counts for spend questions
        self.notes: dict[str, Note] = {}


class _Scope(NamedTuple):
    """Where budgets are declared.  word: the caller's own, a user's or a feature's, which stands last in their name."""

    name: str  # of the ledger's budget: the period, and the word, are added to it
    budgets: Sequence[settings.Budget]
    word: str | None = None
    shared: bool = False  # among several keys


class Budget(Policy[_Held]):
    """Acts only where config.yaml declares budgets."""

    may_fail_open = False

    class Settings(settings.Settings):
        key_share: Annotated[float, Field(gt=0, le=1)] = (
            0.25  # of a shared hard budget that one key's open calls may hold
        )
        shrink: bool = False  # lower a call's own output cap to what fits, and tell the caller in a header
        in_doubt: Literal["hold", "estimate"] = "hold"  # what an answer that broke off is charged in hard budgets

    def __init__(
        self,
        said: Settings | None = None,
        *,
        books: Books | None,
        meter: Meter,
        config: settings.Config,
        teams: Teams,
    ) -> None:
        self._said = said or self.Settings()
        self._books = books
        self._meter = meter
        self._config = config
        self._teams = teams
        self._revision = teams.revision  # of the teams for which these were made:
        self._made: dict[tuple[str, ...], _Touched] = {}
        self._named: dict[str, tuple[bool, bool]] = {}  # team -> do its users, do its features have budgets

    async def attempt(self, x: Exchange, attempt: Attempt) -> _Held | None:
        touched = self._touched(x)
        claims = touched.claims
        if not claims:
            return None
        books = self._books
        assert books is not None, "the gateway keeps books where budgets are declared"
        hard = claims[0].budget.hard
        model = self._config.models.get(attempt.target.alias)
        rate = self._meter.rate(x, attempt)
        if rate is not None and rate.free:
            return None  # what costs nothing is stopped by no budget
        try:
            most = bound(x, attempt.target, rate, model)
        except Denied:
            if hard:
                raise
            most = Bound(0, 0, 0, None)  # a soft budget counts what it cost when that is known
        id, key, note = f"{x.id}.{len(x.attempts)}", x.caller.key, _note(x, attempt, touched)
        found = await books.hold(id, claims, most.amount, key, note)
        if isinstance(found, Shortage) and self._said.shrink and found.available and found.reason in _FITS:
            less = shrunk(x, attempt.target, rate, model, found.available)
            if less is not None:
                found = await books.hold(id, claims, less.amount, key, note)
                attempt.lowered = less.cap != most.cap
                most = less
                if less.cap is not None:
                    _tell(x, _CAP, b"%d" % less.cap)
        if isinstance(found, Shortage):
            raise _refuse(found, most.amount)
        attempt.cap = most.cap
        if hard:
            left = min([account.left for account, _ in found.parts if account.budget.hard])
            _tell(x, _REMAINING, usd(left).encode())
        return _Held(found, attempt)

    def settle(self, x: Exchange, receipt: _Held) -> None:
        hold, attempt = receipt
        hard = hold.parts[0].account.budget.hard
        assert self._books is not None
        if not attempt.sent or attempt.free:
            self._books.report(hold, None)
        elif attempt.complete and attempt.cost is not None:
            self._books.report(hold, attempt.cost, estimated=attempt.usage is not None and attempt.usage.estimated)
        elif attempt.cost is None or (self._said.in_doubt == "hold" and hard):
            self._books.report(hold, hold.amount, estimated=True)
        else:
            known = attempt.cost + self._unseen(x, attempt)
            self._books.report(hold, min(known, hold.amount) if hard else known, estimated=True)

    def _unseen(self, x: Exchange, attempt: Attempt) -> int:
        """nano-USD that the provider may have written in _SLACK_NS, at the pace it had until the answer broke off."""
        usage, rate = attempt.usage, self._meter.rate(x, attempt)
        if usage is None or rate is None:
            return 0
        wrote = max(attempt.ended - (attempt.first_byte or attempt.sent), 1)
        tokens = -(-usage.output * _SLACK_NS // wrote)
        return rate.worst(0, min(tokens, 100_000))

    def _touched(self, x: Exchange) -> _Touched:
        if self._revision != self._teams.revision:
            self._made, self._named, self._revision = {}, {}, self._teams.revision
        caller = x.caller
        named = self._named.get(caller.team)
        if named is None:
            named = self._named[caller.team] = self._names(caller.team)
        user, feature = x.user[:_LONGEST] if named[0] else "", x.feature[:_LONGEST] if named[1] else ""
        place = (caller.organisation, caller.team, caller.key, x.alias, user, feature)  # as a _Place, which is dearer
        made = self._made.get(place)
        if made is None:
            claims = [self._claim(scope, said) for scope in self._scopes(_Place(*place)) for said in scope.budgets]
            claims.sort(key=lambda claim: not claim.budget.hard)
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            made = self._made[place] = _Touched(claims)
        return made

    def _claim(self, scope: _Scope, said: settings.Budget) -> Claim:
        limit = int(said.limit_usd * 1_000_000_000)
        word = "" if scope.word is None else f" {scope.word}"
        budget = Limited(f"{scope.name} {said.per}{word}", said.per, said.zone, limit, said.hard)
        most = int(limit * self._said.key_share) if scope.shared and said.hard else MAX_NANO
        return Claim(budget, most, tuple(said.warn_at))

    def _names(self, team: str) -> tuple[bool, bool]:
        own, created = self._teams.get(team), [place[:-1] for place in self._teams.budgets]
        users = own is not None and bool(own.user_budgets)
        features = own is not None and bool(own.feature_budgets)
        return (
            users or ("user", team) in created,
            features or ("feature", team) in created or ("feature",) in created,
        )

    def _scopes(self, at: _Place) -> Iterator[_Scope]:
        created = self._teams.budgets
        if (team := self._teams.get(at.team)) is not None:
            yield _Scope(f"team {at.team}", team.budgets, shared=len(team.keys) > 1)
            for key in team.keys:
                if key.name == at.key:
                    yield _Scope(f"key {at.team} {at.key}", key.budgets)
            own = created.get(("user", at.team, at.user), ())
            yield _Scope(f"user {at.team}", joined(own, team.user_budgets), at.user)
            own = created.get(("feature", at.team, at.feature), ())
            yield _Scope(f"feature {at.team}", joined(own, team.feature_budgets), at.feature)
        yield _Scope("feature *", created.get(("feature", at.feature), ()), at.feature, shared=True)
        yield _Scope(f"model {at.team} {at.model}", created.get(("model", at.team, at.model), ()), shared=True)
        model = self._config.models.get(at.model)
        declared = model.budgets if model is not None else ()
        yield _Scope(f"model {at.model}", joined(declared, created.get(("model", at.model), ())), shared=True)
        if at.organisation:
            yield _Scope(
                f"organisation {at.organisation}", created.get(("organisation", at.organisation), ()), shared=True
            )
        yield _Scope("organisation", self._config.budgets, shared=True)


_FITS: Final = frozenset({"exhausted", "contended"})


def _note(x: Exchange, attempt: Attempt, touched: _Touched) -> Note:
    """What spend questions can be asked by."""
    provider = attempt.target.provider.name
    plain = not (x.user or x.feature) and bool(x.alias)
    known = touched.notes.get(provider) if plain else None
    if known is not None:
        return known
    note: Note = {
        "team": x.caller.team,
        "key": x.caller.key,
        "user": x.user[:_LONGEST] or None,
        "feature": x.feature[:_LONGEST] or None,
        "model": x.alias or x.model,
        "provider": provider,
    }
    if plain:
        touched.notes[provider] = note
    return note


def _tell(x: Exchange, name: bytes, value: bytes) -> None:
    """In the answer's head; a later attempt's word takes the place of an earlier one's."""
    if len(x.attempts) > 1:
        x.reply_headers = [header for header in x.reply_headers if header[0] != name]
    x.reply_headers.append((name, value))


def _refuse(shortage: Shortage, amount: int) -> Denied:
    budget = shortage.budget
    whose = f"The budget '{budget.id}' ({usd(budget.limit)} USD {_PERIODS[budget.period]})"
    wait = None if shortage.retry is None else max(1, math.ceil(shortage.retry))
    if shortage.reason == "exhausted":
        again = "It is not renewed by itself." if wait is None else f"It begins anew in {wait} s."
        error = Denied(
            f"{whose} has too little left for this call, which may cost up to {usd(amount)} USD; "
            f"{usd(shortage.available)} USD would fit. {again} Lower max_completion_tokens, or ask for more.",
            code="budget_exhausted", status=429, retry_after=wait, should_retry=False,
        )  # fmt: skip
        error.kind = "insufficient_quota"
    elif shortage.reason == "contended":
        error = Denied(
            f"{whose} is held by calls that are under way: this one may cost up to {usd(amount)} USD. Retry shortly.",
            code="budget_contended", status=429, retry_after=wait,
        )  # fmt: skip
        error.kind = "rate_limit_error"
    elif shortage.reason == "frozen":
        error = Denied(
            f"{whose} was stopped by an operator. Ask your platform team.", code="budget_frozen", should_retry=False
        )
    else:
        error = Denied(
            f"{whose} cannot be asked now, so nothing is sent. Retry.",
            code="budget_unavailable", status=503, retry_after=1,
        )  # fmt: skip
        error.kind = "overloaded_error"
    return error
