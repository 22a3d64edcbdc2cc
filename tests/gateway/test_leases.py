"""Leases: large where much is left, small near the end, and never more than the ledger granted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.journal import Journal
from gateway.leases import LARGEST, PART, Account, Claim, Leases, Shortage
from gateway.ledger import Budget, Posting
from gateway.ledger.sqlite import SqliteLedger

USD = 1_000_000_000
HARD = Budget("team checkout month", "month", "UTC", 100 * USD, True)
SOFT = Budget("team checkout day", "day", "UTC", 1 * USD, False)


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    found = SqliteLedger(tmp_path / "ledger.db")
    yield found
    assert await found.audit() == []
    await found.aclose()


@pytest.fixture
def leases(ledger: SqliteLedger, tmp_path: Path) -> Leases:
    return Leases(ledger, Journal(tmp_path / "ledger", "me"), "me", 60.0)


async def filled(leases: Leases, budget: Budget, amount: int) -> Account:
    account = leases.account(Claim(budget))
    assert await leases.refill(account, amount) is None
    assert account.lease is not None
    assert account.lease.free >= amount
    return account


async def test_where_much_is_left_a_lease_pays_for_many_calls_and_no_part_of_one(leases: Leases) -> None:
    account = await filled(leases, HARD, USD // 300)
    assert account.lease is not None
    assert account.lease.free % (USD // 300) == 0
    assert 100 * (USD // 300) < account.lease.free <= HARD.limit // PART + USD // 300


async def test_near_the_end_a_lease_is_no_larger_than_the_call(leases: Leases) -> None:
    account = await filled(leases, HARD, 96 * USD)
    assert account.lease is not None
    account.lease.free -= 96 * USD
    account.lease.free = 0
    assert await leases.refill(account, USD) is None
    assert account.lease.free == USD


async def test_a_soft_budget_is_leased_as_much_as_is_asked_for(leases: Leases) -> None:
    account = await filled(leases, SOFT, 50 * USD)
    assert account.lease is not None
    assert account.lease.free == 50 * USD
    account = await filled(leases, SOFT._replace(id="other"), 1)
    assert account.lease is not None
    assert account.lease.free == LARGEST


async def test_many_who_need_more_at_once_ask_once(leases: Leases, ledger: SqliteLedger) -> None:
    account = leases.account(Claim(HARD))
    assert await asyncio.gather(*(leases.refill(account, 1000) for _ in range(50))) == [None] * 50
    assert len(await ledger.holders(account.window.id if account.window else 0)) == 1


async def test_what_does_not_fit_is_refused_with_what_would(leases: Leases) -> None:
    account = await filled(leases, HARD, 60 * USD)
    found = await leases.refill(account, 101 * USD)
    assert isinstance(found, Shortage)
    assert (found.reason, found.available) == ("exhausted", 100 * USD) or found.reason == "contended"


async def test_a_lease_the_ledger_ended_is_replaced_and_its_late_truth_corrected(
    leases: Leases, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await filled(leases, HARD, USD)
    lease = account.lease
    assert lease is not None
    lease.open = 1
    monkeypatch.setattr(ledger, "_now", lambda offset=120 * USD, now=ledger._now: now() + offset)
    assert await ledger.expire(lambda reservation: None) == 1
    (lost,) = await ledger.renew("me", 60)
    await leases.lost(lost)
    assert lease.lost
    assert lease.free == 0
    assert await ledger.post([Posting("h", lease.id, USD // 2, USD)]) == ["corrected"]
    lease.open = 0
    await leases.lost(lost)
    assert account.window is not None
    (window,) = await ledger.windows(ids=[account.window.id])
    assert (window.spent, window.reserved) == (USD // 2, 0)


async def test_a_passed_threshold_is_told_once(
    leases: Leases, ledger: SqliteLedger, caplog: pytest.LogCaptureFixture
) -> None:
    account = leases.account(Claim(HARD, warn_at=(0.5, 0.8, 0.95)))
    assert await leases.refill(account, 85 * USD) is None
    assert account.lease is not None
    await ledger.post([Posting("h", account.lease.id, 85 * USD, 85 * USD)])
    with caplog.at_level(logging.WARNING):
        await leases.look()
        await leases.look()
    assert [record.message for record in caplog.records] == [
        "budget 'team checkout month': 85.00 of 100.00 USD are spent (85 %)"
    ]
