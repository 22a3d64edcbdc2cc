"""One request, its whole story: answer, trace, metrics, record and waterfall agree."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import BaseModel

from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.explain import waterfall
from gateway.policy import Policy
from gateway.settings import Model
from gateway.store import StoreError
from tests.otlp import Collector, attributes
from tests.running import ADMIN, config, running
from tests.scripted import Asked, plain, scripted
from tests.servers import Postgres, postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
LABELS = {
    "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
    "x-session-id": "s-1",
    "x-user-id": "u-1",
    "x-feature": "receipt",
    "x-tags": "a, b",
}


async def failing(asked: Asked) -> None:
    await asked.wire.whole(503, b"{}")


def two(bad: str, good: str, collector: str) -> dict[str, Any]:
    said = config(bad, telemetry={"traces": {"otlp_endpoint": collector, "service_name": "gateway-under-test"}})
    said["providers"]["second"] = {"base_url": good, "api_key": "sk-second-provider-key"}
    said["models"]["m"]["fallbacks"] = ["n"]
    said["models"]["n"] = {"targets": [{"provider": "second", "model": "other"}], "price": {"input": 10, "output": 20}}
    return said


async def test_a_fallback_is_told_the_same_way_by_every_witness() -> None:
    collector = Collector()
    try:
        async with (
            scripted(failing) as bad,
            scripted(plain) as good,
            running(two(bad.url, good.url, collector.url)) as gateway,
        ):
            response = await gateway.chat(stream=True, headers=LABELS)
            id = response.headers["x-request-id"]
            admin = {"authorization": f"Bearer {ADMIN}"}
            story = (await gateway.client.get(f"/admin/v1/exchanges/{id}", headers=admin)).json()
            listed = (await gateway.client.get("/admin/v1/exchanges?team=checkout&user=u-1", headers=admin)).json()
            metrics = (await gateway.client.get("/metrics")).text
            record = await gateway.record(id)
            async with asyncio.timeout(5):
                while len(collector.spans) < 3:
                    await asyncio.sleep(0.05)
    finally:
        collector.close()
    # the record
    assert [attempt["provider"] for attempt in story["attempts"]] == ["up", "second"]
    assert story["attempts"][0]["error"]["code"] == "upstream_unavailable"
    assert story["attempts"][1]["cost_nano"] == story["cost_nano"] == 90_000
    assert (story["session"], story["user"], story["feature"], story["tags"]) == ("s-1", "u-1", "receipt", ["a", "b"])
    assert [(decision["policy"], decision["outcome"]) for decision in story["decisions"]] == [
        ("access", "passed"),
        ("rate_limit", "passed"),
        ("budget", "passed"),  # of each of the two attempts
        ("budget", "passed"),
    ]
    assert story["timings"]["overhead_us"] + story["timings"]["upstream_us"] <= story["timings"]["total_us"]
    assert [line["id"] for line in listed["data"]] == [id]
    # the trace
    assert story["trace_id"] == TRACE
    spans = {span.name: span for span in collector.spans}
    server, first, second = spans["POST /v1/chat/completions"], spans["chat up"], spans["chat other"]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.parent_span_id.hex() == "00f067aa0ba902b7"
    assert first.parent_span_id == second.parent_span_id == server.span_id
    assert attributes(server)["tollkeeper.request.id"] == id
    assert "gen_ai.usage.input_tokens" not in attributes(first)
    assert attributes(second)["gen_ai.usage.input_tokens"] == 5
    # the metrics
    assert 'tollkeeper_upstream_attempts_total{outcome="upstream_unavailable",provider="up"} 1.0' in metrics
    assert 'tollkeeper_upstream_attempts_total{outcome="ok",provider="second"} 1.0' in metrics
    assert 'tollkeeper_cost_usd_total{model="n",team="checkout"} 9e-05' in metrics
    # for people
    shown = waterfall(record)
    for word in (id, "checkout", "up", "second", "upstream_unavailable", "0.00009", "access"):
        assert word in shown, word
    assert '"cost_usd":"0.000090000"' in response.text


async def test_a_refusal_leaves_its_record_too() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        answers = [
            await gateway.chat(headers={"authorization": "Bearer wrong"}),
            await gateway.chat(model="nobody"),
            await gateway.chat(max_tokens=-1),
        ]
        records = [await gateway.record(answer.headers["x-request-id"]) for answer in answers]
    assert [answer.status_code for answer in answers] == [401, 404, 400]
    codes = [record.error.code for record in records if record.error is not None]
    assert codes == ["invalid_api_key", "model_not_found", "invalid_type"]
    assert [record.team for record in records] == ["", "checkout", "checkout"]


async def test_a_dead_collector_is_not_noticed_and_its_losses_are_counted() -> None:
    said = config(
        "filled in", telemetry={"traces": {"otlp_endpoint": "http://127.0.0.1:1", "queue": 16, "per_second": 1000}}
    )
    async with scripted(plain) as up:
        said["providers"]["up"]["base_url"] = up.url
        async with running(said) as gateway:
            for _ in range(30):
                assert (await gateway.chat()).status_code == 200
            await asyncio.sleep(1.2)
            metrics = (await gateway.client.get("/metrics")).text
    lost = [
        line for line in metrics.splitlines() if line.startswith('tollkeeper_telemetry_dropped_total{sink="traces"}')
    ]
    assert len(lost) == 1
    assert float(lost[0].rpartition(" ")[2]) > 0


async def test_two_gateways_on_one_database_see_each_others_exchanges(server: Postgres) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    async with server.database() as url, scripted(plain) as up:
        said = config(up.url, store=url, server={"key_pepper": "p" * 32})
        async with running(said) as one, running(said) as other:
            first = (await one.chat("a")).headers["x-request-id"]
            second = (await other.chat("b")).headers["x-request-id"]
            await one.record(first)
            await other.record(second)
            for gateway in (one, other):
                listed = (await gateway.client.get("/admin/v1/exchanges", headers=admin)).json()
                assert [line["id"] for line in listed["data"]] == [second, first]
            story = (await one.client.get(f"/admin/v1/exchanges/{second}", headers=admin)).json()
            assert (story["id"], story["attempts"][0]["provider"]) == (second, "up")


async def test_a_database_without_its_library_stops_the_start_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store.postgres", "store.postgres_directory", "store.aside", "ledger.postgres", "database"):
        monkeypatch.delitem(sys.modules, f"gateway.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    bare = config("http://127.0.0.1:1", store="postgresql://u:hunter2@h/db", server={"admin_key": None})
    off = {"telemetry": {"records": {"enabled": False}}}
    for said in (
        bare,
        bare | off | {"server": {"key_pepper": "p" * 32}},
        bare | off | {"budgets": [{"limit_usd": 1, "per": "day"}]},
    ):
        with pytest.raises(StoreError, match=r"needs asyncpg, .* pip install 'tollkeeper\[postgres\]'"):
            async with running(said):
                pass


async def test_keys_and_money_of_two_gateways_on_one_database_are_the_same(server: Postgres) -> None:
    async with server.database() as url, scripted(plain) as up:
        said = config(up.url, store=url, server={"key_pepper": "p" * 32}, budgets=[{"limit_usd": 50, "per": "day"}])
        async with running(said) as one, running(said) as other:
            made = await one.made("/keys", team="checkout", name="app")
            headers = {"authorization": f"Bearer {made['key']}"}
            async with asyncio.timeout(5):
                while (await other.chat(headers=headers)).status_code == 401:
                    await asyncio.sleep(0.1)
            assert (await one.chat(headers=headers)).status_code == 200
            assert [row["action"] for row in (await other.admin("GET", "/audit")).json()["data"]] == ["create"]
        connection = await asyncpg.connect(url)
        spent, reserved = await connection.fetchrow("SELECT spent, reserved FROM tollkeeper.budget_window")
        paid = await connection.fetchval("SELECT sum(cost_nano) FROM tollkeeper_records.exchange")
        await connection.close()
        assert (spent, reserved) == (paid, 0)
        assert spent > 0
        with pytest.raises(StoreError, match=r"the keys in postgresql://\S+ were made with another pepper"):
            async with running(
                said | {"server": {"key_pepper": "q" * 32}, "telemetry": {"records": {"enabled": False}}}
            ):
                pass


async def test_a_dead_database_costs_callers_without_budgets_nothing_and_readiness_neither() -> None:
    with postgres("fsync=off") as own:
        async with scripted(plain) as up:
            said = config(up.url, store=own.url(), server={"key_pepper": "p" * 32})
            async with running(said) as gateway:
                made = await gateway.made("/keys", team="checkout", name="app")
                assert (await gateway.chat()).status_code == 200
                await asyncio.to_thread(own.stop)
                headers = {"authorization": f"Bearer {made['key']}"}
                waits = [await timed(gateway.chat(headers=headers)) for _ in range(50)]
                assert max(waits) < 1, "nobody waits for a database that is dead"
                assert (await gateway.client.get("/readyz")).status_code == 200
                listed = await gateway.admin("GET", "/exchanges")
                assert (listed.status_code, listed.json()["error"]["code"]) == (503, "overloaded")
                assert (await gateway.admin("POST", "/keys", {"team": "checkout", "name": "b"})).status_code == 503
                await asyncio.to_thread(own.start)
                async with asyncio.timeout(15):
                    while (await gateway.admin("GET", "/exchanges")).status_code == 503:
                        await asyncio.sleep(0.1)
                    while len((await gateway.admin("GET", "/exchanges")).json()["data"]) < 51:
                        await asyncio.sleep(0.1)
                assert gateway.app.records is not None
                assert gateway.app.records.dropped == 0


async def timed(call: Awaitable[httpx2.Response]) -> float:
    begun = time.perf_counter()
    assert (await call).status_code == 200
    return time.perf_counter() - begun


async def test_what_is_not_there_is_404_in_the_callers_shape() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.client.get("/nothing/here")
    assert response.status_code == 404
    assert json.loads(response.text)["error"]["code"] == "not_found"


class Guard(Policy[None]):
    """An operator's own."""

    class Settings(BaseModel):
        word: str

    def __init__(self, settings: Settings, models: Mapping[str, Model]) -> None:
        self.word = settings.word
        self.models = models

    async def admit(self, x: Exchange) -> None:
        if self.word.encode() in x.body and x.alias in self.models:
            raise Denied("not that word", code="blocked_by_safety", status=400)


async def test_a_policy_of_an_operators_own_is_switched_on_by_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("acme_guard")
    module.Guard = Guard  # type: ignore[attr-defined]  # a module made by hand has no such name
    monkeypatch.setitem(sys.modules, "acme_guard", module)
    said = config("filled in", policies=[{"use": "acme_guard:Guard", "word": "forbidden"}])
    async with scripted(plain) as up:
        said["providers"]["up"]["base_url"] = up.url
        async with running(said) as gateway:
            assert (await gateway.chat("allowed")).status_code == 200
            refused = await gateway.chat("forbidden")
    assert refused.json()["error"]["code"] == "blocked_by_safety"


def kept(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(("-wal", "-shm")))


async def test_keys_outlive_a_restart_and_their_files_stand_beside_the_store(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        said = config(up.url) | {"store": f"sqlite:///{tmp_path}/data.db"}
        async with running(said) as gateway:
            made = await gateway.made("/keys", team="checkout", name="app")
        assert kept(tmp_path) == [
            "data.db", "data.directory.db", "data.ledger.db", "data.ledger.db.lock", "data.pepper",
        ]  # fmt: skip
        said["server"]["admin_key"] = None  # closes the plane; the keys go on
        async with running(said) as gateway:
            answer = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"})
            assert answer.status_code == 200
            assert (await gateway.admin("GET", "/keys")).status_code == 403


async def test_without_an_admin_key_no_directory_is_made(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        said = config(up.url, server={"admin_key": None}) | {"store": f"sqlite:///{tmp_path}/data.db"}
        async with running(said) as gateway:
            assert (await gateway.chat()).status_code == 200
            for path in ("/keys", "/anything"):
                answer = await gateway.admin("GET", path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_only")
        assert kept(tmp_path) == ["data.db"]


async def test_a_start_with_another_pepper_than_the_keys_were_made_with_is_refused(tmp_path: Path) -> None:
    async with scripted(plain) as up:
        said = config(up.url, server={"key_pepper": "p" * 32}) | {"store": f"sqlite:///{tmp_path}/data.db"}
        async with running(said) as gateway:
            made = await gateway.made("/keys", team="checkout", name="app")
        assert "data.pepper" not in kept(tmp_path)
        said["server"]["key_pepper"] = "q" * 32
        with pytest.raises(StoreError, match=r"another pepper than server\.key_pepper") as caught:
            async with running(said):
                pass
        assert "qqq" not in str(caught.value)
        said["server"]["key_pepper"] = "p" * 32
        async with running(said) as gateway:
            answer = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"})
            assert answer.status_code == 200
