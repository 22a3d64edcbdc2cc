"""A budget is never overshot and never leaks: on a running gateway, against a provider that keeps its own bill."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway.demo.bill import PRICES
from gateway.demo.simulator import Spawned, spawn
from gateway.leases import Account
from gateway.ledger import Spend, Window
from tests.processes import environment, serving
from tests.running import ADMIN, KEY, Running, config, running
from tests.scripted import Asked, Scripted, answer, events, plain, say, scripted

pytestmark = pytest.mark.serial  # that nothing is held a second later is looked at where nothing runs beside

MONTH = {"limit_usd": "0.1", "per": "month"}


@pytest.fixture(scope="module")
def simulator() -> Any:
    with spawn() as spawned:
        yield spawned


def price(model: str) -> dict[str, str]:
    """pico-USD per token as USD per million tokens."""
    parts = {"input": PRICES[model].input, "cached_input": PRICES[model].cached, "output": PRICES[model].output}
    return {part: str(Decimal(pico) / 1_000_000) for part, pico in parts.items()}


def simulated(url: str, budgets: dict[str, Any]) -> dict[str, Any]:
    models = {
        name: {"targets": [{"provider": "up", "model": model}], "price": price(model)}
        for name, model in (
            ("m", "sim-small"),
            ("large", "sim-large"),
            ("reason", "sim-reason"),
            ("embed", "sim-embed"),
        )
    }
    models["twice"] = {
        "targets": [{"provider": "gone", "model": "sim-small"}, {"provider": "up", "model": "sim-small", "weight": 0}],
        "price": price("sim-small"),
    }
    said = config(f"{url}/v1", models=models, teams={"checkout": budgets})
    said["providers"]["gone"] = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-x"}
    return said


@asynccontextmanager
async def budgeted(script: Any = plain, **over: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    async with scripted(script) as up, running(config(up.url, **over)) as gateway:
        yield gateway, up


async def settled(gateway: Running) -> dict[str, Window]:
    """The windows, once nothing is held in memory and nothing waits to be posted; within 1 s, or the test fails."""
    books = gateway.app.books
    assert books is not None
    async with asyncio.timeout(1):
        while books.holds or gateway.app.pipeline.running:
            await asyncio.sleep(0.01)
        while books._reports:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert await books.ledger.audit() == []
    for account in books.accounts.values():
        assert isinstance(account, Account)
        assert not account.held
    return {window.budget: window for window in await books.ledger.windows()}


async def spent(gateway: Running) -> int:
    books = gateway.app.books
    assert books is not None
    await settled(gateway)
    found: list[Spend] = await books.ledger.spend(["team"])
    return sum(line.amount for line in found)


async def test_a_call_that_may_cost_more_than_is_left_is_refused_before_a_provider_hears_of_it() -> None:
    tiny = {"budgets": [{"limit_usd": "0.000001", "per": "month"}]}
    async with budgeted(teams={"checkout": tiny}) as (gateway, up):
        reply = await gateway.chat(max_tokens=1000)
        assert reply.status_code == 429
        error = reply.json()["error"]
        assert (error["code"], error["type"]) == ("budget_exhausted", "insufficient_quota")
        assert "team checkout month" in error["message"]
        assert reply.headers["x-should-retry"] == "false"
        assert 0 < int(reply.headers["retry-after"]) <= 31 * 86_400
        assert up.asked == []
        assert (await settled(gateway))["team checkout month"].reserved == 0


async def test_the_openai_sdk_raises_at_once_and_does_not_retry() -> None:
    tiny = {"budgets": [{"limit_usd": "0.000001", "per": "total"}]}
    async with (
        budgeted(teams={"checkout": tiny}) as (gateway, _),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=3) as client,
    ):
        with pytest.raises(openai.RateLimitError, match="budget"):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        await gateway.finished()
        assert len(gateway.seen) == 1


async def test_the_caller_is_told_what_is_left() -> None:
    async with budgeted(teams={"checkout": {"budgets": [MONTH]}}) as (gateway, _):
        reply = await gateway.chat(max_tokens=10)
        assert Decimal("0.09") < Decimal(reply.headers["x-tollkeeper-budget-remaining-usd"]) < Decimal("0.1")


async def test_the_ledger_equals_the_providers_bill_to_the_nano_dollar(simulator: Spawned) -> None:
    said = simulated(simulator.url, {"budgets": [MONTH], "user_budgets": [{"limit_usd": 1, "per": "day"}]})
    async with running(said) as gateway, httpx2.AsyncClient(base_url=simulator.url) as provider:
        calls: list[Any] = []
        for number in range(40):
            model = ("m", "large", "reason", "twice")[number % 4]
            body = {"model": model, "stream": number % 3 == 0, "max_tokens": 200, "n": 1 + number % 2}
            headers = {"x-user-id": f"u-{number % 5}"}
            if number % 10 == 9:
                headers["x-sim-fault"] = "status=429"
            calls.append(gateway.chat(f"Tell me about the number {number}", headers, **body))
        replies = await asyncio.gather(*calls)
        assert {reply.status_code for reply in replies} >= {200}
        for reply in replies:
            await reply.aread()
        windows = await settled(gateway)
        rows = (await provider.get("/sim/bill")).json()["rows"]
        ids = {x.id for x in gateway.seen}
        bill = sum(row["nano_usd"] for row in rows if row["billed"] and row["attempt"].rpartition(".")[0] in ids)
        assert bill > 0
        assert windows["team checkout month"].spent == bill
        assert sum(window.spent for name, window in windows.items() if name.startswith("user ")) == bill
        assert await spent(gateway) == bill


async def test_exactly_as_many_calls_are_sent_as_the_budget_can_pay_at_worst() -> None:
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.05)
        await asked.wire.whole(200, answer(usage={"prompt_tokens": 1, "completion_tokens": 2000, "total_tokens": 2001}))

    free = {"m": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 0, "output": 1}}}
    team = {"budgets": [{"limit_usd": "0.1", "per": "month"}]}  # 50 calls of 2,000 tokens at 1 USD per million
    async with budgeted(slow, models=free, teams={"checkout": team}) as (gateway, up):
        replies = await asyncio.gather(*(gateway.chat(max_tokens=2000) for _ in range(200)))
        assert sorted(reply.status_code for reply in replies) == [200] * 50 + [429] * 150
        assert len(up.asked) == 50
        window = (await settled(gateway))["team checkout month"]
        assert (window.spent, window.reserved, window.overrun) == (100_000_000, 0, 0)


@pytest.mark.parametrize(
    "where",
    [
        {"budgets": [{"limit_usd": 0, "per": "day"}]},
        {"models": {"m": {"budgets": [{"limit_usd": 0, "per": "day"}]}}},
        {"teams": {"checkout": {"budgets": [{"limit_usd": 0, "per": "week"}]}}},
        {"teams": {"checkout": {"user_budgets": [{"limit_usd": 0, "per": "day"}]}}},
        {"teams": {"checkout": {"feature_budgets": [{"limit_usd": 0, "per": "day"}]}}},
        {"teams": {"checkout": {"keys": [{"name": "web", "key": KEY, "budgets": [{"limit_usd": 0, "per": "total"}]}]}}},
    ],
    ids=["organisation", "model", "team", "user", "feature", "key"],
)
async def test_every_scope_can_refuse(where: dict[str, Any]) -> None:
    async with budgeted(**where) as (gateway, up):
        reply = await gateway.chat(headers={"x-user-id": "u", "x-feature": "f"})
        assert reply.json()["error"]["code"] == "budget_exhausted"
        assert up.asked == []


async def test_a_user_who_has_spent_all_does_not_stop_another() -> None:
    team = {"user_budgets": [{"limit_usd": "0.0006", "per": "day"}]}
    async with budgeted(teams={"checkout": team}) as (gateway, _):
        codes = [(await gateway.chat(headers={"x-user-id": "a"}, max_tokens=2)).status_code for _ in range(40)]
        assert codes[0] == 200
        assert codes[-1] == 429
        assert (await gateway.chat(headers={"x-user-id": "b"}, max_tokens=2)).status_code == 200


async def test_a_soft_budget_counts_and_never_refuses() -> None:
    team = {"budgets": [{"limit_usd": "0.000001", "per": "day", "hard": False}]}
    async with budgeted(teams={"checkout": team}) as (gateway, _):
        assert [(await gateway.chat()).status_code for _ in range(5)] == [200] * 5
        assert (await settled(gateway))["team checkout day"].spent == 5 * 9000


@pytest.mark.parametrize("stream", [False, True])
async def test_no_ending_leaves_a_hold(stream: bool) -> None:
    """Hung up before and after the first byte, broken off, refused, failed, not reached, ended."""
    hold = asyncio.Event()

    async def script(asked: Asked) -> None:
        kind = asked.json["messages"][0]["content"]
        if kind == "silent":
            await hold.wait()
        elif kind == "refused":
            await asked.wire.whole(400, b'{"error": {"message": "no"}}')
        elif kind == "limited":
            await asked.wire.whole(429, b'{"error": {"message": "slow"}}')
        elif kind == "failed":
            await asked.wire.whole(500, b"{}")
        elif kind == "broken" and stream:
            await asked.wire.head()
            for piece in events("one", "two")[:2]:
                await asked.wire.chunk(piece)
            asked.wire.reset()
        elif kind == "broken":
            asked.wire.reset()
        elif kind == "slow" and stream:
            await say(asked, events(*("word " for _ in range(50))), pause=0.05)
        elif kind == "slow":
            await asyncio.sleep(1)
            await plain(asked)
        else:
            await plain(asked)

    async with budgeted(script, teams={"checkout": {"budgets": [MONTH]}}) as (gateway, _):
        for kind in ("ended", "refused", "limited", "failed", "broken"):
            try:
                await gateway.chat(kind, stream=stream, max_tokens=100)
            except httpx2.HTTPError:
                assert kind == "broken"
            await settled(gateway)
        for kind in ("silent", "slow"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.25):
                    await gateway.chat(kind, stream=stream, max_tokens=100)
            await settled(gateway)
        hold.set()
        window = (await settled(gateway))["team checkout month"]
        assert 9000 <= window.spent < 50_000_000


@pytest.mark.parametrize("billed", [True, False])
async def test_an_outage_of_a_provider_that_bills_no_failures_eats_no_budget(billed: bool) -> None:
    async def failing(asked: Asked) -> None:
        await asked.wire.whole(502, b"{}")

    over = {"providers": {"up": {"failures_billed": billed}}, "teams": {"checkout": {"budgets": [MONTH]}}}
    async with budgeted(failing, **over) as (gateway, _):
        assert (await gateway.chat(max_tokens=100)).status_code == 502
        window = (await settled(gateway))["team checkout month"]
        assert (window.spent > 0) == billed


async def test_a_fallback_that_does_not_fit_returns_the_first_failure() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(500, b'{"error": {"message": "cheap is broken"}}')

    models = {
        "m": {
            "targets": [{"provider": "up", "model": "up"}],
            "price": {"input": 1, "output": 1},
            "fallbacks": ["dear"],
        },
        "dear": {"targets": [{"provider": "up", "model": "dear"}], "price": {"input": 1000, "output": 1000}},
    }
    team = {"budgets": [{"limit_usd": "0.01", "per": "month"}]}
    async with budgeted(script, models=models, teams={"checkout": team}) as (gateway, up):
        reply = await gateway.chat(max_tokens=1000)
        assert reply.status_code == 502
        assert reply.json()["error"]["code"] != "budget_exhausted"
        assert len(up.asked) == 1
        x = await gateway.finished()
        assert [decision.outcome for decision in x.decisions][-1] == "denied:budget_exhausted"


async def test_shrinking_lowers_the_calls_own_cap_and_tells_the_caller() -> None:
    team = {"budgets": [{"limit_usd": "0.005", "per": "month"}]}
    policies = [{"use": "access"}, {"use": "budget", "shrink": True}]
    async with budgeted(teams={"checkout": team}, policies=policies) as (gateway, up):
        reply = await gateway.chat()
        assert reply.status_code == 200
        cap = int(reply.headers["x-tollkeeper-output-cap"])
        assert 64 <= cap < 2500
        assert cap in (up.asked[0].json.get("max_tokens"), up.asked[0].json.get("max_completion_tokens"))


async def test_a_created_budget_acts_from_the_next_call_on_and_a_declared_one_cannot_be_created() -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    async with budgeted(teams={"checkout": {"budgets": [MONTH]}}) as (gateway, up):
        path = "/admin/v1/budgets"
        assert (await gateway.chat(max_tokens=10)).status_code == 200
        twice = {"scope": "team", "team": "checkout", "limit_usd": "5", "per": "month"}
        reply = await gateway.client.post(path, json=twice, headers=admin)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "declared_in_config")
        for body in (
            {"scope": "team", "team": "checkout", "per": "day"},
            {"scope": "key", "team": "checkout", "key": "web", "per": "day"},
            {"scope": "user", "team": "checkout", "user": "u", "per": "day"},
            {"scope": "feature", "feature": "search", "per": "week"},
            {"scope": "feature", "team": "checkout", "feature": "search", "per": "week"},
            {"scope": "model", "model": "m", "per": "total"},
            {"scope": "model", "team": "checkout", "model": "m", "per": "total"},
        ):
            labels = {"x-user-id": "u", "x-feature": "search"}
            made = await gateway.client.post(path, json={**body, "limit_usd": "0"}, headers=admin)
            assert made.status_code == 201, made.text
            refused = await gateway.chat(headers=labels, max_tokens=10)
            assert refused.json()["error"]["code"] == "budget_exhausted", body
            one = f"{path}/{made.json()['id']}"
            raised = await gateway.client.patch(one, json={"limit_usd": "7"}, headers=admin)
            assert raised.status_code == 200, raised.text
            assert (await gateway.chat(headers=labels, max_tokens=10)).status_code == 200
            assert (await gateway.client.delete(one, headers=admin)).status_code == 200
        assert len(up.asked) == 8


async def test_a_second_gateway_on_one_sqlite_ledger_refuses_to_start_and_says_what_to_set(tmp_path: Path) -> None:
    said = config("http://127.0.0.1:9", teams={"checkout": {"budgets": [MONTH]}})
    with serving(said, folder=tmp_path) as first:
        command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--config", str(tmp_path / "config.yaml")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())
        assert second.returncode == 2
        assert "one SQLite ledger serves one process" in second.stderr
        assert "postgresql://" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.stop() == 0


async def test_what_was_not_declared_is_not_counted() -> None:
    async with budgeted(server={"admin_key": None}) as (gateway, _):
        assert gateway.app.books is None
        reply = await gateway.chat()
        assert reply.status_code == 200
        assert "x-tollkeeper-budget-remaining-usd" not in reply.headers


async def test_budgets_show_in_the_metrics() -> None:
    async with budgeted(teams={"checkout": {"budgets": [MONTH], "user_budgets": [MONTH]}}) as (gateway, _):
        await gateway.chat(max_tokens=10)
        await settled(gateway)
        assert gateway.app.books is not None
        await gateway.app.books._look()
        text = (await gateway.client.get("/metrics")).text
        labels = '{budget="team checkout month",team="checkout"}'
        assert f"tollkeeper_budget_limit_usd{labels} 0.1\n" in text
        assert f"tollkeeper_budget_spent_usd{labels} 9e-06\n" in text
        assert "tollkeeper_ledger_defects 0.0\n" in text
        assert 'budget="user' not in text
