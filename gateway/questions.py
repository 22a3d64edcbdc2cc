"""When two calls ask the same: what of a call counts, for whom, and under which configuration.

Every field of a body counts, known or not, but those of UNASKED; and every header that reaches the model's providers
and may change an answer.  So does what config.yaml says of the model: its targets, its fallbacks, their providers, and
all policies, for one that redacts shapes answers too.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from pydantic import BaseModel, SecretStr

from gateway import settings
from gateway.answers import Question, Tenants, canonical
from gateway.exchange import Exchange
from gateway.roster import Teams
from gateway.targets import Targets

# How an answer is sent, who is named as its cause, and what a provider files it under.  The model counts by its
# configured name, whichever of its aliases a call uses.
UNASKED: Final = frozenset(
    {"stream", "stream_options", "user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention",
     "model"}
)  # fmt: skip
_SENT: Final = frozenset({"stream", "stream_options", "model"})  # of these, what holds no text
_NO_MATTER: Final = frozenset({b"accept", b"content-type", b"idempotency-key", b"user-agent"})


class Questions:
    def __init__(
        self,
        config: settings.Config,
        targets: Targets,
        tenants: Tenants,
        share: Literal["team", "key", "user"],
        groups: Sequence[Sequence[str]],
        teams: Teams,
    ) -> None:
        self._config = config
        self._targets = targets
        self._tenants = tenants
        self._share = share
        rules = [rule for use in config.policies if use.use == "safety" for rule in _rules(use)]
        self._masks = any(rule.get("action") == "mask" for rule in rules)
        self._changing = [rule.get("teams") for rule in rules if _changes(rule)]  # of which teams they change questions
        self.rules = hmac.digest(b"revision of policies", msgspec.json.encode(_plain(config.policies)), "sha256")
        self._groups = {team: sorted(group) for group in groups for team in group}
        self._teams = teams
        # By endpoint and model: how what is asked begins, and the headers that count.
        self._known: dict[tuple[str, str], tuple[bytes, tuple[bytes, ...]]] = {}

    def of(self, x: Exchange) -> Question:
        """For a body of a megabyte this takes milliseconds; it may be called in a thread."""
        head, caller, tenant = self._head(x), x.caller, self._tenants[self.tenant(x)]
        if self._masks:  # placeholders are numbered as the values stand in the body, all of it
            head += b"\0".join([name.encode() for name in x.fields if name not in _SENT])
            head += b"\0" + besides(x)
        key = tenant.mac(head + b"\0" + canonical(x.fields, UNASKED))
        return Question(tenant, key, caller.team, caller.key, x.alias)

    def context(self, x: Exchange, question: Question) -> tuple[bytes, str] | None:
        """A digest of all that is asked but the last user message, and that message; None where it is no plain text."""
        field = "prompt" if x.endpoint == "completions" else "messages"
        raw = x.fields.get(field)
        if x.endpoint == "embeddings" or raw is None:
            return None
        try:
            said: object = msgspec.json.decode(raw)
        except (ValueError, RecursionError):  # a number beyond floats, say, which the provider may take
            return None
        rest: object = None
        if isinstance(said, list) and said and isinstance(said[-1], dict) and said[-1].get("role") == "user":
            *before, last = said
            said = last.pop("content", None)
            rest = [before, last]
        if not isinstance(said, str) or not said.strip():
            return None
        same = [self._head(x), canonical(x.fields, UNASKED | {field}), msgspec.json.encode(rest)]
        return question.tenant.mac(b"context" + b"\0".join(same)), said

    def tenant(self, x: Exchange) -> str:
        """The name of those who share with this caller.  Who was created anew is another, by the old name."""
        caller = x.caller
        team = f"{caller.team} {caller.born}"
        if self._share == "key":
            return f"key {team} {caller.key} {caller.id}"
        if self._share == "user":
            return f"user {team} {x.user}"
        if (group := self._groups.get(caller.team)) is None:
            return f"team {team}"
        born = self._teams.born
        return "group " + " ".join([team if one == caller.team else f"{one} {born.get(one, '')}" for one in group])

    def _head(self, x: Exchange) -> bytes:
        """All that counts beside the body."""
        head, counting = self._known.get((x.endpoint, x.alias)) or self._learn(x.endpoint, x.alias)
        if counting and not x.headers.keys().isdisjoint(counting):
            head += b"".join([b"%b:%b\n" % (name, x.headers[name]) for name in counting if name in x.headers])
        return head + self._changed(x.caller.team)

    def _changed(self, team: str) -> bytes:
        """Which rules change what this team asks.  Of a group, those whose questions reach the provider alike share."""
        if team not in self._groups:
            return b""
        return bytes([teams is None or team in teams for teams in self._changing])

    def _learn(self, endpoint: str, alias: str) -> tuple[bytes, tuple[bytes, ...]]:
        models = [alias, *self._config.models[alias].fallbacks]
        names = dict.fromkeys(target.provider for model in models for target in self._config.models[model].targets)
        said: list[Any] = [(model, self._config.models[model]) for model in models]
        said += [(name, self._config.providers[name]) for name in names]
        said += self._config.policies
        digest = hmac.digest(b"revision of a model", msgspec.json.encode(_plain(said)), "sha256")
        passed = [header for name in names for header in self._targets.provider(name).provider.passed]
        counting = tuple(sorted({header for header in passed if header not in _NO_MATTER}))
        known = self._known[endpoint, alias] = digest + endpoint.encode() + b"\0", counting
        return known


def _rules(use: settings.PolicyUse) -> list[dict[str, Any]]:
    return [rule for rule in (use.model_extra or {}).get("assessors") or () if isinstance(rule, dict)]


def _changes(rule: Mapping[str, Any]) -> bool:
    """May the provider be asked something else than the caller asked?"""
    return rule.get("action") == "mask" or (rule.get("action") == "redact" and rule.get("stages") != ["output"])


def besides(x: Exchange) -> bytes:
    """What a call says in fields that do not count as asked."""
    return canonical({name: x.fields[name] for name in UNASKED & x.fields.keys()}, _SENT)


def as_one(x: Exchange, other: Exchange) -> bool:
    """May a refusal of one be the other's too?  One that may be about what does not count as asked is not."""
    return all(x.fields.get(name) == other.fields.get(name) for name in UNASKED - {"model"})


def _plain(value: Any) -> Any:
    """Settings as JSON can write them.  Secrets count: a provider's headers may choose what it answers."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return {name: _plain(inner) for name, inner in _fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _fields(model: BaseModel) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        yield name, getattr(model, name)
    yield from (model.model_extra or {}).items()
