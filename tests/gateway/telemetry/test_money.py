"""Budgets in the metrics: those that are declared, with what the ledger says of them, and never those callers name."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from gateway.books import Books, Hold
from gateway.leases import Claim
from gateway.ledger import Budget
from gateway.ledger.sqlite import SqliteLedger
from gateway.telemetry.catalogue import BY_NAME
from gateway.telemetry.money import Money

USD = 1_000_000_000
BUDGETS = [
    Budget("team checkout month", "month", "UTC", 10 * USD, True),
    Budget("key checkout web day", "day", "UTC", 5 * USD, True),
    Budget("user checkout day mallory", "day", "UTC", USD, True),
    Budget("organisation total", "total", "UTC", 100 * USD, False),
]


def shown(books: Books | None) -> list[str]:
    registry = CollectorRegistry()
    registry.register(Money(books))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


async def test_what_is_allowed_spent_and_held_is_shown_for_each_declared_budget(tmp_path: Path) -> None:
    books = Books(SqliteLedger(tmp_path / "ledger.db"), tmp_path / "ledger")
    await books.open()
    hold = await books.hold("req_1.1", [Claim(budget) for budget in BUDGETS], USD, "web", {})
    assert isinstance(hold, Hold)
    assert "tollkeeper_open_holds 1.0" in shown(books)
    books.report(hold, USD // 2)
    await books._post()
    await books._look()
    lines = shown(books)
    assert 'tollkeeper_budget_limit_usd{budget="team checkout month",team="checkout"} 10.0' in lines
    assert 'tollkeeper_budget_spent_usd{budget="team checkout month",team="checkout"} 0.5' in lines
    assert 'tollkeeper_budget_spent_usd{budget="key checkout web day",team="checkout"} 0.5' in lines
    assert 'tollkeeper_budget_spent_usd{budget="organisation total",team=""} 0.5' in lines
    assert "mallory" not in " ".join(lines)
    assert "tollkeeper_ledger_defects 0.0" in lines
    assert "tollkeeper_open_holds 0.0" in lines
    await books.aclose()


def test_all_it_shows_is_in_the_catalogue() -> None:
    for line in shown(None):
        name = line.partition(" ")[0].partition("{")[0]
        assert name in BY_NAME
