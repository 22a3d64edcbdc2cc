"""/admin/v1/usage and /admin/v1/targets: what a provider's own figures are compared with."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from gateway.plane import Asked, Operation, Parameter, read_moment
from gateway.settings import Config
from gateway.store import RecordStore, Used

USAGE: Final = "/admin/v1/usage"
TARGETS: Final = "/admin/v1/targets"
_SPAN: Final = (
    Parameter(
        "since", "attempts begun at or after this time: RFC 3339, or so long ago; 1d where nothing is said", "7d"
    ),
    Parameter("until", "attempts begun before this time: RFC 3339, or so long ago"),
    Parameter("provider", "only this provider's", "openai"),
)


class UsagePage(Struct, frozen=True):
    """Each line: one day (UTC), one provider, one model as it names it.  untold: attempts that told no usage."""

    data: list[Used]


class Target(Struct, frozen=True):
    """A model as callers and the ledger name it, and what a provider calls it."""

    model: str
    provider: str
    provider_model: str


class Targets(Struct, frozen=True):
    """providers: all that are configured, also those that only unnamed models go to."""

    data: list[Target]
    providers: list[str]


class UsageEndpoints:
    """store: None where no records are kept: then there are no tokens to tell of."""

    def __init__(self, config: Config, store: RecordStore | None, flush: Callable[[], Awaitable[None]] | None) -> None:
        self._config = config
        self._store = store
        self._flush = flush

    def operations(self) -> list[Operation]:
        targets = Operation(
            "GET", TARGETS, "listTargets", "What providers call each model", self._targets, Targets, everywhere=True
        )
        if self._store is None:
            return [targets]
        told = "Tokens by day, provider and model, as records have them"
        return [
            targets,
            Operation("GET", USAGE, "getUsage", told, self._usage, UsagePage, query=_SPAN, everywhere=True),
        ]

    async def _targets(self, asked: Asked) -> Targets:
        models = self._config.models.items()
        found = [Target(name, to.provider, to.model) for name, model in models for to in model.targets]
        return Targets(found, list(self._config.providers))

    async def _usage(self, asked: Asked) -> UsagePage:
        now = time.time_ns()
        since = read_moment("since", asked.query.get("since", "1d"), now)
        until = read_moment("until", asked.query.get("until"), now)
        assert self._store is not None
        assert since is not None
        if self._flush is not None:
            await self._flush()
        found = await self._store.used(since, now if until is None else until)
        provider = asked.query.get("provider")
        return UsagePage([line for line in found if provider in (None, line.provider)])
