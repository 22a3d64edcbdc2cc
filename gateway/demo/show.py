"""`tollkeeper demo`: a simulated provider, a gateway on it, varied traffic, and everything left up to look at."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import httpx2
import yaml

from gateway.demo import traffic
from gateway.demo.bill import PRICES
from gateway.demo.simulator import spawn

READY_SECONDS = 15.0
MODELS = {"small": "sim-small", "large": "sim-large", "reason": "sim-reason", "embed": "sim-embed"}


_RULES: dict[str, Any] = {
    "assessors": [
        {"use": "secrets", "action": "redact"},
        {"use": "personal_data", "action": "mask"},
        {"use": "injection", "action": "block"},
    ],
    "unjudged": "allow",  # speech and pictures, which nobody here can read
}


class Upstream(Protocol):
    """A provider in a process of its own."""

    url: str

    def stop(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Money:
    """What the provider billed and what the gateway recorded, in nano-USD."""

    billed: int
    recorded: int  # where the provider told its usage
    estimated: int  # where an answer broke off and we could only count what we saw
    requests: int


def run(port: int, requests: int, leave: bool, local: bool) -> int:
    """Blocks until it is told to stop (or, with `leave`, until the traffic is through).  The exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets its background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    if local:
        from gateway.demo import local as real

        return _run(real.spawn_local(), _local_config, port, min(requests, 6), leave)
    return _run(spawn(pace="realistic"), _config, port, requests, leave)


def _run(upstream: Upstream, configure: Any, port: int, requests: int, leave: bool) -> int:
    admin_key = f"demo-admin-{secrets.token_hex(8)}"
    gateway: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="tollkeeper-demo-") as folder:
        try:
            port = port or _free_port()
            url = f"http://127.0.0.1:{port}"
            file = Path(folder, "config.yaml")
            file.write_text(yaml.safe_dump(configure(upstream.url, folder, admin_key), sort_keys=False))
            gateway = _start(file, port, Path(folder, "gateway.log"))
            _wait_until_ready(url, gateway, Path(folder, "gateway.log"))
            tally = traffic.Tally()
            print(f"Gateway on {url}, provider on {upstream.url}. Sending {requests} sample requests …")
            began = time.monotonic()
            asyncio.run(_traffic(url, requests, tally, configure is _local_config))
            print(f"\nThrough in {time.monotonic() - began:.1f} s.\n")
            print(_summary(url, admin_key, tally, upstream.url, configure is _local_config))
            if not leave:
                print("\nEverything stays up. Ctrl-C ends it.")
                _wait_for_signal(gateway)
        except KeyboardInterrupt:
            pass
        except Failed as error:
            print(f"tollkeeper demo: {error}", file=sys.stderr)
            return 1
        finally:
            if gateway is not None:
                gateway.terminate()
                gateway.wait(40)
            upstream.stop()
    return 0


class Failed(Exception):
    """The demo cannot go on; the words say why and what to do."""


def _config(provider: str, folder: str, admin_key: str) -> dict[str, Any]:
    """As an operator would write it: two providers (the second takes over), four models, three teams, all policies."""
    base = f"{provider}/v1"
    models: dict[str, Any] = {
        name: {"targets": [{"provider": "sim", "model": model}], "price": _price(model)}
        for name, model in MODELS.items()
    }
    models["large"]["fallbacks"] = ["large-at-backup"]
    models["large-at-backup"] = {
        "targets": [{"provider": "backup", "model": "sim-small"}],
        "price": _price("sim-small"),
    }
    teams: dict[str, Any] = {
        team: {"provider": "sim", "keys": [{"name": "demo", "key": key}]} for team, key in traffic.TEAMS.items()
    }
    for team in teams.values():
        team["budgets"] = [{"limit_usd": 25, "per": "day"}]
        team["limits"] = {"requests_per_minute": 6000}
    teams["support"]["models"] = ["small", "large", "embed"]
    poor = {"name": "poor", "key": traffic.POOR, "budgets": [{"limit_usd": "0.00001", "per": "day"}]}
    teams["support"]["keys"].append(poor)
    return {
        "server": {"admin_key": admin_key},
        "store": f"sqlite:///{folder}/tollkeeper.db",
        "providers": {
            # Faults are asked for by a header that only the demo's provider understands.
            "sim": {
                "base_url": base,
                "api_key": "sk-demo-provider",
                "forward_headers": ["x-sim-fault"],
                "on_hangup": "drain",
            },
            "backup": {"base_url": base, "api_key": "sk-demo-backup", "on_hangup": "drain"},
        },
        "models": models,
        "teams": teams,
        "policies": [{"use": name} for name in ("access", "rate_limit", "cache", "budget")]
        + [{"use": "safety", **_RULES}],
    }


def _local_config(provider: str, folder: str, admin_key: str) -> dict[str, Any]:
    base = f"{provider}/v1"
    price = {"input": "0.02", "output": "0.06"}
    return {
        "server": {"admin_key": admin_key},
        "store": f"sqlite:///{folder}/tollkeeper.db",
        "providers": {"local": {"base_url": base}},
        "models": {"smollm2": {"targets": [{"provider": "local", "model": "smollm2"}], "price": price}},
        "teams": {team: {"keys": [{"name": "demo", "key": key}]} for team, key in traffic.TEAMS.items()},
    }


def _price(model: str) -> dict[str, str]:
    """The simulator's price list, in config.yaml's words: USD per million tokens."""
    price = PRICES[model]
    parts = {"input": price.input, "cached_input": price.cached, "output": price.output}
    return {part: str(Decimal(pico) / 1_000_000) for part, pico in parts.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(file: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--port", str(port)]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=_environment())  # noqa: S603 - our own command


def _environment() -> Mapping[str, str]:
    """Without settings of the operator's: the demo is the same everywhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}


def _wait_until_ready(url: str, gateway: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if gateway.poll() is not None:
            raise Failed(f"the gateway did not start (is the port taken? try --port 0):\n{log.read_text()[-2000:]}")
        try:
            if httpx2.get(f"{url}/readyz", timeout=1).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise Failed(f"the gateway was not ready within {READY_SECONDS:.0f} s:\n{log.read_text()[-2000:]}")


async def _traffic(url: str, requests: int, tally: traffic.Tally, local: bool) -> None:
    live = sys.stdout.isatty()

    def progress(tally: traffic.Tally) -> None:
        done = tally.answered + tally.refused + tally.broken + tally.hung_up
        words = f"{done}/{requests}: {tally.answered} answered, {tally.refused} refused"
        words += f", {tally.broken} broke off, {tally.hung_up} hung up"
        if live:
            print(f"\r  {words}   ", end="", flush=True)
        elif done % 50 == 0 or done == requests:
            print(f"  {words}", flush=True)

    if local:
        await traffic.send_local(url, requests, tally, progress)
    else:
        await traffic.send(url, requests, tally, progress)


def _summary(url: str, admin_key: str, tally: traffic.Tally, provider: str, local: bool) -> str:
    """What to look at next."""
    example = tally.ids.get("fallback after 503") or next(iter(tally.ids.values()))
    key = next(iter(traffic.TEAMS.values()))
    model = "smollm2" if local else "small"
    lines = [
        f"  metrics    curl -s {url}/metrics | grep tollkeeper_",
        f"  one story  TOLLKEEPER_ADMIN_KEY={admin_key} tollkeeper explain --url {url} {example}",
        f"  records    curl -s -H 'Authorization: Bearer {admin_key}' '{url}/admin/v1/exchanges?status=5xx'",
        "  your turn  "
        f"curl -s {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
    ]
    if not local:
        again, masked = tally.ids.get("asked again, streamed"), tally.ids.get("a customer's address")
        lines.append(f"  others     of an answer from the cache: {again}; of a masked address: {masked}")
        codes = tally.codes
        lines += [
            "",
            f"  {tally.cached} answers came from the cache; the provider was not called for "
            f"{codes['budget_exhausted']} calls over a budget and {codes['blocked_by_safety']} that safety blocked.",
        ]
        money = compare(url, admin_key, provider)
        verdict = "equal to the nano-dollar" if money.billed == money.recorded else "DIFFERENT: please report this"
        lines += [
            f"  The provider billed {_usd(money.billed)} USD; the gateway recorded {_usd(money.recorded)} USD over "
            f"{money.requests} requests: {verdict}.",
            f"  Besides, {_usd(money.estimated)} USD are estimates for answers that broke off.",
        ]
    return "\n".join(lines)


def compare(url: str, admin_key: str, provider: str) -> Money:
    """The provider's own bill beside the sum of the records."""
    recorded = estimated = requests = 0
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {admin_key}"}, timeout=30) as client:
        cursor: str | None = None
        while True:
            page = client.get(
                "/admin/v1/exchanges", params={"limit": 500, **({"cursor": cursor} if cursor else {})}
            ).json()
            for line in page["data"]:
                requests += 1
                if not line["cost_nano"]:
                    continue
                for attempt in client.get(f"/admin/v1/exchanges/{line['id']}").json()["attempts"]:
                    usage = attempt["usage"]
                    if usage is not None and usage["estimated"]:
                        estimated += attempt["cost_nano"] or 0
                    else:
                        recorded += attempt["cost_nano"] or 0
            cursor = page["next_cursor"]
            if cursor is None:
                break
    billed = httpx2.get(f"{provider}/sim/bill", params={"rows": "none"}, timeout=30).json()["nano_usd"]
    return Money(billed, recorded, estimated, requests)


def _usd(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09d}"


def _wait_for_signal(gateway: subprocess.Popen[bytes]) -> None:
    while gateway.poll() is None:
        time.sleep(0.2)
    raise Failed("the gateway ended by itself")
