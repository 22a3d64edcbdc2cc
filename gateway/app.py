"""Builds a gateway from its configuration: the only file that knows all the others.  The URL table is at its end."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Final

import httpx2
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import opened, providers
from gateway.adapter import Adapter
from gateway.answers import Answers
from gateway.config import find_policy, policy_settings
from gateway.dialects import openai
from gateway.endpoints import House, chat, completions, embeddings, moderations
from gateway.endpoints.admin import Admin
from gateway.endpoints.audit import Audit
from gateway.endpoints.budgets import Budgets
from gateway.endpoints.cache import Cache as CacheEndpoint
from gateway.endpoints.health import Healthy, Ready
from gateway.endpoints.health import Metrics as MetricsEndpoint
from gateway.endpoints.keys import Keys as KeysEndpoints
from gateway.endpoints.ledger import LedgerEndpoints
from gateway.endpoints.models import ModelsEndpoint
from gateway.endpoints.organisations import Organisations
from gateway.endpoints.refusals import RefusalEndpoints
from gateway.endpoints.relay import RelayEndpoint
from gateway.endpoints.teams import Teams as TeamsEndpoints
from gateway.endpoints.tokens import Tokens
from gateway.endpoints.usage import UsageEndpoints
from gateway.endpoints.users import Users
from gateway.errors import BadCall
from gateway.inner import Form, Inner
from gateway.keys import Keys
from gateway.meter import Meter
from gateway.openapi import documented
from gateway.pipeline import Pipeline
from gateway.plane import Door, Operation
from gateway.policy import Policy
from gateway.prices import Prices
from gateway.redaction import redact
from gateway.roster import Roster, Teams
from gateway.settings import Config, Provider
from gateway.targets import Targets
from gateway.telemetry import Observer, w3c
from gateway.telemetry.answers import Kept
from gateway.telemetry.logs import AccessLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.money import Money
from gateway.telemetry.records import Records
from gateway.telemetry.traces import Traces
from gateway.transport import Limits, Transport

DIALECTS: Final[Mapping[str, ModuleType]] = {"openai": openai}
_FORMS: Final = {
    "chat": Form(chat.KIND, chat.ChatCall, chat.understand),
    "embeddings": Form(embeddings.KIND, embeddings.EmbeddingCall, embeddings.understand),
    "moderations": Form(moderations.KIND, moderations.ModerationCall, moderations.understand),
}

log = logging.getLogger("gateway")


class Gateway:
    """The ASGI application, and everything it owns."""

    def __init__(self, config: Config, policies: Sequence[Policy[Any]] | None = None) -> None:
        """policies: in place of those that the configuration names."""
        self.config = config
        self.stopping = False
        self.providers = {name: _provider(name, said) for name, said in config.providers.items()}
        self.targets = Targets(config.models, self.providers)
        self.records, self.store = opened.records(config)
        self.teams = Teams(config.teams)
        self.directory, pepper = opened.directory(config)
        self.keys = Keys(config.teams, pepper)
        self.roster: Roster | None = None
        if self.directory is not None and pepper is not None:
            self.roster = Roster(config, self.keys, self.teams, self.directory, pepper)
        self.traces = Traces(config.telemetry.traces, redact) if config.telemetry.traces.otlp_endpoint else None
        self.access_log = AccessLog(config.telemetry.logs, sys.stdout.buffer) if config.telemetry.logs.access else None
        self.metrics = self._metrics()
        observers: list[Observer] = [self.metrics]
        observers += [watcher for watcher in (self.records, self.traces, self.access_log) if watcher is not None]
        self.prices = Prices(config)
        self.counters = opened.counters(config)
        self.books = opened.books(config, changeable=self.roster is not None)
        self.metrics.registry.register(Money(self.books))
        self.meter = Meter(self.prices)
        self.inner = Inner(openai, _FORMS)
        self.answers = Answers(opened.answers)
        if self.roster is not None:
            self.roster.forget = self.answers.hear
        self.metrics.registry.register(Kept(self.answers))
        built = _policies(config, self._offers()) if policies is None else policies
        self.pipeline = self.inner.pipeline = Pipeline(built, self.targets, self.meter, observers)
        self.urls = self._urls()
        self.admin = self._admin_urls()
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        try:
            await self.urls(scope, receive, send)
        except asyncio.CancelledError:
            pass  # only the server cancels, when its grace is over: the caller was told, and what was held is settled

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        today = datetime.now(UTC).date()
        for complaint in await asyncio.to_thread(self.prices.unpriced, today):
            log.warning(complaint)
        if self.books is not None:
            await self.books.open()
        self._tasks.append(asyncio.create_task(self.metrics.watch_loop()))
        if self.roster is not None:
            await self.roster.refresh()  # before the first call: its key may be one that was created
            self._tasks.append(asyncio.create_task(self.roster.follow()))

    async def close(self) -> None:
        """Requests are over by now, or told to be; what is known of them is written before this returns."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        await self.pipeline.idle()
        for policy in self.pipeline.policies:
            await policy.aclose()
        if self.books is not None:
            await self.books.aclose()
        await self.counters.aclose()
        await self.answers.aclose()
        for observer in self.pipeline.observers:
            await observer.aclose()
        for provider in self.providers.values():
            await provider.sender.aclose()
        for store in (self.store, self.directory):
            if store is not None:
                await store.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _offers(self) -> dict[str, Any]:
        """What policies may ask for."""
        config = self.config
        return {
            "config": config,
            "teams": self.teams,
            "models": config.models,
            "prices": self.prices,
            "counters": self.counters,
            "books": self.books,
            "meter": self.meter,
            "inner": self.inner,
            "answers": self.answers,
            "targets": self.targets,
        }

    def _metrics(self) -> Metrics:
        config = self.config
        sinks: dict[str, Records | Traces | AccessLog | None] = {
            "records": self.records,
            "traces": self.traces,
            "logs": self.access_log,
        }
        return Metrics(
            teams=self.teams,
            models=config.models,
            providers=config.providers,
            pools={name: _pool(provider.sender) for name, provider in self.providers.items()},
            dropped={name: _dropped(sink) for name, sink in sinks.items() if sink is not None},
        )

    def _house(self) -> House:
        begin = w3c.Sampler(self.config.telemetry.traces).begin
        limit = self.config.server.body_limit_mb * 1_048_576
        return House(self.keys, self.pipeline, openai, begin, limit, self.config.server.ping_seconds)

    def _not_ready(self) -> list[str]:
        return ["shutting down"] if self.stopping else []

    def _urls(self) -> ASGIApp:
        """What is asked most is found first; the rest is the router's."""
        house = self._house()
        server = self.config.server
        models = ModelsEndpoint(house)
        relay = RelayEndpoint(house, server.upload_limit_mb * 1_048_576, tuple(self.config.providers))
        exact: dict[str, ASGIApp] = {
            "/v1/chat/completions": chat.endpoint(house),
            "/v1/completions": completions.endpoint(house),
            "/v1/embeddings": embeddings.endpoint(house),
            "/v1/models": models,
            **self._watched(),
        }
        router = self._admin_urls() if server.admin_port is None else Router(default=_nothing_here)

        async def urls(scope: Scope, receive: Receive, send: Send) -> None:
            path: str = scope["path"]
            endpoint = exact.get(path)
            if endpoint is None:
                endpoint = models if path.startswith("/v1/models/") else relay if path.startswith("/v1/") else router
            await endpoint(scope, receive, send)

        return urls

    def _watched(self) -> dict[str, ASGIApp]:
        """What probes and scrapers ask, on every port."""
        key = None if self.config.server.metrics_open else self._admin_key
        metrics = MetricsEndpoint(self.metrics.render, key)
        return {"/healthz": Healthy(), "/readyz": Ready(self._not_ready), "/metrics": metrics}

    def _admin_urls(self) -> Router:
        """The admin plane: on the main port, or alone on `server.admin_port`."""
        routes: list[BaseRoute] = [Route(path, endpoint) for path, endpoint in self._watched().items()]
        operations: list[Operation] = []
        if self.store is not None and self.records is not None:
            operations += Admin(self.store, self.records.flush).operations()
            operations += RefusalEndpoints(self.store, self.records.flush).operations()
        if self.roster is not None:
            for family in (Organisations, TeamsEndpoints, KeysEndpoints, Users, Tokens, Audit):
                operations += family(self.roster).operations()
            operations += Budgets(self.roster, None if self.books is None else self.books.ledger).operations()
            operations += CacheEndpoint(self.answers, self.roster).operations()
        if self.books is not None:
            operations += LedgerEndpoints(self.books).operations()
        flush = None if self.records is None else self.records.flush
        operations += UsageEndpoints(self.config, self.store, flush).operations()
        door = Door(self._admin_key, self.roster.token if self.roster is not None else None)
        routes += door.routes(documented(operations))
        return Router(routes, redirect_slashes=False, default=_nothing_here)

    @property
    def _admin_key(self) -> str | None:
        key = self.config.server.admin_key
        return None if key is None else key.get_secret_value()


def _provider(name: str, said: Provider) -> providers.Provider:
    sender: providers.Sender
    waits = said.timeouts
    if said.transport == "httpx":
        pool = httpx2.Limits(max_connections=said.max_connections, keepalive_expiry=60)
        transport = httpx2.AsyncHTTPTransport(http2=True, limits=pool, trust_env=said.trust_env)
        sender = Adapter(transport, waits, said.pool_seconds)
    else:
        limits = Limits(
            max_connections=said.max_connections,
            pool=said.pool_seconds,
            connect=waits.connect,
            first_byte=waits.first_byte,
            idle=waits.idle,
            total=waits.total,
        )
        sender = Transport(limits, ca_file=said.ca_file)
    return providers.build(name, said, DIALECTS[said.dialect], sender)


def _policies(config: Config, offers: Mapping[str, Any]) -> Sequence[Policy[Any]]:
    """In the order of config.yaml: that list is the registry, the on-switch and the order.

    A policy's constructor names what it needs: `settings` (or `said`), its own Settings, and any of the offers.
    """
    built = []
    for use in config.policies:
        kind = find_policy(use.use)
        settings = policy_settings(use)
        asked = inspect.signature(kind).parameters
        policy = kind(
            **{
                name: offer
                for name, offer in {**offers, "settings": settings, "said": settings}.items()
                if name in asked
            }
        )
        policy.name = use.use
        if use.fail_open is not None:
            policy.fail_open = use.fail_open
        built.append(policy)
    return built


def _dropped(sink: Records | Traces | AccessLog) -> Callable[[], int]:
    return lambda: sink.dropped


def _pool(sender: providers.Sender) -> Callable[[], Mapping[str, int]]:
    if not isinstance(sender, Transport):
        return dict
    return lambda: {"active": sender.active, "idle": sender.idle, "waiting": sender.waiting}


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    body = openai.write_error(BadCall("There is nothing at this path.", code="not_found", status=404), "")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
