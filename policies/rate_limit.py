"""Requests, tokens and calls at once that a team, a key, a user or a model may have.

Tokens are reserved when a call is admitted: a quarter of the prompt's bytes, and the most it may answer, which is the
call's own cap times its choices; `output_tokens` where it sets none; nothing for embeddings, for uploads and for calls
that name no model.  When the call is over, what the provider reported of all attempts takes the reservation's place;
nothing, where nothing was sent to a provider; the reservation stays where usage is not known.

A call refused by one limit takes nothing of the others.  A call that a later policy refuses, before anything was sent,
gives its request back as well; one that the cache answers keeps it.

What the gateway asks itself for a call (a judge, an embedding) was admitted with that call, so no limit refuses it.  It
counts: its tokens for the team, the key and the user, and all of it for its model, where those that follow wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

from msgspec import Raw
from pydantic import Field

from gateway import settings
from gateway.counters import Charge, Counters, Refusal, Taken
from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy
from gateway.roster import Teams
from gateway.tokens import by_length

_MOST: Final = 1_000_000_000_000  # no limit is higher
_NEVER: Final = 1_000_000_000_000_000  # a limit that is never reached
_CAPS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_SAY_NOTHING: Final = ("embeddings", "moderation")  # operations whose answers are no text
_CHOICES: Final = ("n", "best_of")


class _Measure(NamedTuple):
    setting: str
    kind: str  # as the x-ratelimit headers say it; empty: they do not
    window: float  # seconds
    words: str


_MEASURES: Final = (
    _Measure("requests_per_minute", "requests", 60.0, "requests per minute"),
    _Measure("requests_per_day", "requests", 86_400.0, "requests per day"),
    _Measure("tokens_per_minute", "tokens", 60.0, "tokens per minute"),
    _Measure("tokens_per_day", "tokens", 86_400.0, "tokens per day"),
    _Measure("concurrent", "", 0.0, "calls at once"),
)


_NAMES: Final = {
    kind: (b"x-ratelimit-limit-" + word, b"x-ratelimit-remaining-" + word, b"x-ratelimit-reset-" + word)
    for kind, word in (("requests", b"requests"), ("tokens", b"tokens"))
}


class _Rule(NamedTuple):
    """One limit of one scope."""

    scope: str  # in words
    key: str  # of the counter; a user's name is still to be added to it
    limit: int
    measure: _Measure
    per_user: bool


class _Plan:
    """The limits of a place, with all of them that is the same for each of its calls."""

    __slots__ = ("charges", "per_user", "rules", "tokens")

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self.rules = rules
        self.charges = [Charge(rule.key, 1, rule.limit, rule.measure.window) for rule in rules]
        self.tokens = [at for at, rule in enumerate(rules) if rule.measure.kind == "tokens"]
        self.per_user = [at for at, rule in enumerate(rules) if rule.per_user]


class _Spent(NamedTuple):
    plan: _Plan
    reserved: int  # tokens
    taken: Taken


class RateLimit(Policy[_Spent]):
    """Refuses a call that is over a limit; acts only where limits are set, in config.yaml or by the admin API."""

    counts_inner = True

    class Settings(settings.Settings):
        output_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 1024  # reserved where a call sets no cap of its own

    def __init__(
        self,
        said: Settings | None = None,
        *,
        counters: Counters,
        teams: Mapping[str, settings.Team],
        models: Mapping[str, settings.Model],
    ) -> None:
        self._output_tokens = (said or self.Settings()).output_tokens
        self._counters = counters
        self._teams = teams if isinstance(teams, Teams) else Teams(teams)
        self._models = models
        self._revision = self._teams.revision  # of the teams by which the rules were found
        self._plans: dict[tuple[str, str, str, str, bool], _Plan] = {}

    async def admit(self, x: Exchange) -> _Spent | None:
        caller = x.caller
        if self._revision != self._teams.revision:
            self._plans, self._revision = {}, self._teams.revision
        user = x.user
        if user and (caller.team, user) not in self._teams.users:
            user = ""  # callers make up names: not one plan each
        place = (caller.team, caller.key, x.alias, user, x.inner != "")
        plan = self._plans.get(place)
        if plan is None:
            rules = self._find(*place[:4])
            plan = self._plans[place] = _Plan(_counting(rules) if x.inner else rules)
        if not plan.rules:
            return None
        charges, tokens = plan.charges, 0
        if plan.tokens or plan.per_user:
            charges = charges.copy()
            if plan.tokens:
                tokens = self._reserve(x)
            for at in plan.tokens:
                key, _, limit, window = charges[at]
                charges[at] = Charge(key, tokens, limit, window)
            for at in plan.per_user:
                key, amount, limit, window = charges[at]
                charges[at] = Charge(key + x.user, amount, limit, window)
        found = await self._counters.take(charges)
        _tell(x.reply_headers, plan.rules, found)
        if isinstance(found, Refusal):
            raise _refuse(plan.rules[found.which], tokens, found)
        return _Spent(plan, tokens, found)

    def settle(self, x: Exchange, spent: _Spent) -> None:
        plan, reserved, taken = spent
        used = [0 if isinstance(x.error, Denied) and not _sent(x) else 1] * len(plan.rules)
        if plan.tokens:
            tokens = _used(x, reserved)
            for at in plan.tokens:
                used[at] = tokens
        self._counters.give_back(taken, used)

    def _find(self, team: str, key: str, model: str, user: str) -> list[_Rule]:
        """The limits of a call, the widest first: a refusal names the team before its key."""
        found: list[_Rule] = []
        if (of_team := self._teams.get(team)) is not None:
            found += _rules(f"team '{team}'", f"team {team}", of_team.limits)
            for one in of_team.keys:
                if one.name == key:
                    found += _rules(f"key '{key}'", f"key {team} {key}", one.limits)
            found += _rules("user", f"user {team}", self._teams.users.get((team, user), of_team.users), per_user=True)
        if (of_model := self._models.get(model)) is not None:
            found += _rules(f"model '{model}'", f"model {model}", of_model.limits)
        return found

    def _reserve(self, x: Exchange) -> int:
        """Tokens that the call may take, by the rule at the top."""
        if not x.alias or x.upload is not None:
            return 0
        prompt = sum(map(by_length, x.texts())) if x.texts is not None else 0
        prompt = prompt or -(-len(x.body) // 4)
        if x.operation in _SAY_NOTHING:
            return prompt
        fields = x.fields
        caps = [cap for name in _CAPS if name in fields and (cap := _number(fields[name])) is not None]
        choices = [_number(fields[name]) or 1 for name in _CHOICES if name in fields]
        return min(prompt + max(caps, default=self._output_tokens) * max(choices, default=1), _MOST + 1)


def _rules(scope: str, key: str, limits: settings.Limits, per_user: bool = False) -> list[_Rule]:
    """Names have no blanks, so that no two counters have one key; a user's name, which may, stands last."""
    found = []
    for measure in _MEASURES:
        limit: int | None = getattr(limits, measure.setting)
        if limit is not None:
            found.append(_Rule(scope, f"{key} {measure.setting}{' ' if per_user else ''}", limit, measure, per_user))
    return found


def _counting(rules: Sequence[_Rule]) -> list[_Rule]:
    """Those for which an inner call counts, and which refuse nothing."""
    counted = [rule for rule in rules if rule.measure.kind == "tokens" or rule.key.startswith("model ")]
    return [rule._replace(limit=_NEVER) for rule in counted]


def _number(raw: Raw) -> int | None:
    digits = bytes(raw)
    return int(digits) if digits.isdigit() and len(digits) <= 12 else None


def _sent(x: Exchange) -> bool:
    return any(attempt.sent for attempt in x.attempts)


def _used(x: Exchange, reserved: int) -> int:
    """Tokens of all attempts; at least what was reserved, where a provider may have billed an amount nobody knows."""
    known, unknown = 0, False
    for attempt in x.attempts:
        if attempt.usage is not None:
            known += attempt.usage.input + attempt.usage.output
        elif attempt.sent and not attempt.free:
            unknown = True
    return max(known, reserved) if unknown else known


def _refuse(rule: _Rule, tokens: int, found: Refusal) -> Denied:
    _, _, limit, measure, _ = rule
    if found.retry_after == math.inf:
        message = (
            f"This call may take {tokens} tokens (its prompt, and the most it may answer); the {rule.scope} may use "
            f"{limit} {measure.words}. Set a lower max_completion_tokens, or shorten the prompt."
        )
        return _denied(message, None, should_retry=False)
    wait = max(1, math.ceil(found.retry_after))
    if not measure.window:
        return _denied(f"The {rule.scope} is at its limit of {limit} {measure.words}. Retry when one has ended.", wait)
    return _denied(f"The {rule.scope} is at its limit of {limit} {measure.words}. Retry in {wait} s.", wait)


def _denied(message: str, wait: int | None, should_retry: bool | None = None) -> Denied:
    error = Denied(message, code="rate_limited", status=429, retry_after=wait, should_retry=should_retry)
    error.kind = "rate_limit_error"
    return error


def _tell(headers: list[tuple[bytes, bytes]], rules: Sequence[_Rule], found: Taken | Refusal) -> None:
    """Of requests and of tokens the limit that refused, else the one with the least left; as OpenAI writes them."""
    remaining = found.remaining
    if isinstance(found, Refusal):
        remaining = remaining.copy()
        remaining[found.which] = -1
    told: dict[str, int] = {}
    for at, rule in enumerate(rules):
        kind = rule.measure.kind
        if kind and (kind not in told or remaining[at] < remaining[told[kind]]):
            told[kind] = at
    for kind, at in told.items():
        limit, left, reset = _NAMES[kind]
        headers += (
            (limit, b"%d" % rules[at].limit),
            (left, b"%d" % found.remaining[at]),
            (reset, _span(math.ceil(found.reset[at] * 1000))),
        )


def _span(ms: int) -> bytes:
    """1s, 6m0s, 250ms: as OpenAI and Go write durations; whole seconds where there are any, rounded up."""
    return b"%dms" % ms if ms < 1000 else _seconds(-(-ms // 1000))


@lru_cache(maxsize=4096)
def _seconds(seconds: int) -> bytes:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{seconds}s".encode()
