"""Finished exchanges, as the pipeline leaves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from gateway import providers, settings
from gateway.adapter import Adapter
from gateway.dialects import openai
from gateway.errors import GatewayError
from gateway.exchange import Answer, Attempt, Caller, Exchange, Trace, Usage
from gateway.targets import Target

MS = 1_000_000


def target(name: str = "openai", model: str = "gpt-4o-mini-2024", **said: Any) -> Target:
    provider = settings.Provider(base_url="https://api.openai.test/v1", api_key="sk-provider-secret", **said)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200))  # nothing is sent in these tests
    return Target(
        "gpt-4o-mini", providers.build(name, provider, openai, Adapter(transport, settings.Timeouts(), 5.0)), model
    )


class Exchanges:
    """Builds exchanges: times are milliseconds after the start."""

    def __init__(self) -> None:
        self.openai = target()
        self.azure = target("backup", "gpt-4o-mini-eu", catalogue="azure")

    def attempt(self, x: Exchange, at: Target | None = None, error: GatewayError | None = None, **said: Any) -> Attempt:
        started = x.started + said.pop("began", 1) * MS
        ended = x.started + said.pop("ended", 200) * MS
        made = Attempt(at or self.openai, span_id=said.pop("span_id", 77), started=started, ended=ended, error=error)
        made.sent = said.pop("sent", started)
        if error is None:
            made.status, made.complete, made.cost, made.price = 200, True, 39_000, "config:gpt-4o-mini@2026-01-01"
            made.usage = Usage(120, 35)
            made.first_byte = made.headers = x.started + 100 * MS
            made.answer = Answer("chatcmpl-1", "gpt-4o-mini-2024-07-18", "default", "fp_1", ["stop"], ["the answer"])
        for name, value in said.items():
            setattr(made, name, value)
        x.attempts.append(made)
        return made

    def bare(self, **said: Any) -> Exchange:
        """A request that no provider was asked about."""
        now = time.perf_counter_ns()
        facts: dict[str, Any] = {
            "id": "req_0192",
            "endpoint": "chat",
            "operation": "chat",
            "method": "POST",
            "path": "/v1/chat/completions",
            "route": "/v1/chat/completions",
            "started": now,
            "started_at": time.time_ns(),
            "trace": Trace(0x0AF7651916CD43DD8448EB211C80319C, 0, 0xB7AD6B7169203331, False),
            "caller": Caller("checkout", "web"),
            "dialect": openai,
            "model": "gpt-4o-mini",
            "alias": "gpt-4o-mini",
            "status": 200,
            "first_byte": now + 201 * MS,
            "ended": now + 202 * MS,
        }
        facts.update(said)
        return Exchange(**facts)

    def answered(self, **said: Any) -> Exchange:
        """A request that its first attempt answered."""
        x = self.bare(**said)
        self.attempt(x)
        x.upstream = 199 * MS
        return x


@pytest.fixture
def make() -> Exchanges:
    return Exchanges()


@pytest.fixture
def cost_of() -> Callable[[Callable[[], object]], float]:
    """Microseconds per call: the best of several rounds, for the machine has other work too."""

    def measure(call: Callable[[], object], times: int = 2000) -> float:
        rounds = []
        for _ in range(7):
            began = time.perf_counter_ns()
            for _ in range(times):
                call()
            rounds.append((time.perf_counter_ns() - began) / times / 1000)
        return min(rounds)

    return measure
