"""Spend questions over real sockets: exact, scoped to who asks, and clear where they cannot be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from tests.running import KEY, Running, config, running
from tests.scripted import plain, scripted

COST = Decimal("0.000009")  # of a scripted answer
OTHER = "tk-test-key-of-the-search-team"


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    month = [{"limit_usd": 1, "per": "month"}]
    teams = {
        "checkout": {"budgets": month, "user_budgets": [{"limit_usd": 1, "per": "day"}]},
        "search": {"keys": [{"name": "bot", "key": OTHER}], "budgets": month},
    }
    async with scripted(plain) as up, running(config(up.url, teams=teams)) as gateway:
        for number in range(6):
            headers = {"x-user-id": f"u-{number % 2}", "x-feature": "cart"}
            assert (await gateway.chat(headers=headers, max_tokens=10)).status_code == 200
        assert (await gateway.chat(headers={"authorization": f"Bearer {OTHER}"}, max_tokens=10)).status_code == 200
        await asyncio.sleep(0.3)
        yield gateway


async def told(gateway: Running, query: str, token: str | None = None) -> list[tuple[object, ...]]:
    answer = await (
        gateway.admin("GET", f"/spend?{query}", token=token) if token else gateway.admin("GET", f"/spend?{query}")
    )
    assert answer.status_code == 200, answer.text
    return [(*line["values"], Decimal(line["usd"]), line["calls"]) for line in answer.json()["data"]]


async def test_spend_is_told_by_whom_it_was(gateway: Running) -> None:
    assert await told(gateway, "by=team") == [("checkout", 6 * COST, 6), ("search", COST, 1)]
    assert await told(gateway, "by=key,model&team=search") == [("bot", "m", COST, 1)]
    assert await told(gateway, "by=user&feature=cart") == [("u-0", 3 * COST, 3), ("u-1", 3 * COST, 3)]
    assert await told(gateway, "") == [(7 * COST, 7)]
    assert await told(gateway, "by=team&since=1h") == await told(gateway, "by=team")
    assert await told(gateway, "by=team&until=1h") == []
    assert len(await told(gateway, "by=day")) == 1


async def test_windows_their_holders_and_a_freeze(gateway: Running) -> None:
    page = (await gateway.admin("GET", "/ledger/windows?budget=team")).json()
    windows = {one["budget"]: one for one in page["data"]}
    assert set(windows) == {"team checkout month", "team search month"}
    one = windows["team checkout month"]
    assert (Decimal(one["limit_usd"]), Decimal(one["spent_usd"]), one["hard"]) == (1, 6 * COST, True)
    holders = (await gateway.admin("GET", f"/ledger/windows/{one['id']}/holders")).json()["data"]
    assert sum(Decimal(held["held_usd"]) for held in holders) == Decimal(one["reserved_usd"])
    frozen = await gateway.admin("POST", f"/ledger/windows/{one['id']}/freeze", {"frozen": True})
    assert frozen.json()["frozen"] is True
    async with asyncio.timeout(6):
        while (answer := await gateway.chat(max_tokens=10)).status_code == 200:
            await asyncio.sleep(0.1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "budget_frozen")
    await gateway.admin("POST", f"/ledger/windows/{one['id']}/freeze", {"frozen": False})
    async with asyncio.timeout(6):
        while (await gateway.chat(max_tokens=10)).status_code != 200:
            await asyncio.sleep(0.1)
    assert (await gateway.admin("GET", "/ledger/audit")).json() == {"sound": True, "defects": []}


async def test_a_token_for_one_team_learns_nothing_of_another(gateway: Running) -> None:
    made = await gateway.made("/tokens", name="viewer", role="viewer", teams=["search"])
    token = made["token"]
    assert await told(gateway, "by=key&team=search", token) == [("bot", COST, 1)]
    for query, status in (("by=team", 400), ("team=checkout", 404), ("team=nobody", 404)):
        assert (await gateway.admin("GET", f"/spend?{query}", token=token)).status_code == status, query
    for path in ("/ledger/windows", "/ledger/audit", "/ledger/windows/1/holders"):
        assert (await gateway.admin("GET", path, token=token)).status_code == 403, path
    freeze = await gateway.admin("POST", "/ledger/windows/1/freeze", {"frozen": True}, token=token)
    assert freeze.status_code == 403


@pytest.mark.parametrize(
    ("query", "field"),
    [("by=colour", "by"), ("by=team,team", "by"), ("since=yesterday", "since"), ("colour=red", "colour")],
)
async def test_a_question_that_makes_no_sense_names_the_parameter(gateway: Running, query: str, field: str) -> None:
    answer = await gateway.admin("GET", f"/spend?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_a_window_that_is_not_there_is_404(gateway: Running) -> None:
    for id in ("999999", "x", "1;DROP TABLE entry", "9" * 30):
        assert (await gateway.admin("GET", f"/ledger/windows/{id}/holders")).status_code == 404, id
    assert KEY
