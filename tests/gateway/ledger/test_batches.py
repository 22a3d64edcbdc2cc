"""Postings written at once leave the ledger as postings written one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gateway.ledger import Budget, Granted, Posting
from gateway.ledger.sqlite import SqliteLedger

NOTE = {"team": "t", "key": "k", "model": "m"}
BUDGETS = [Budget(f"team {n} month", "month", "UTC", 10_000, n != 2) for n in range(3)]


async def ledger_with_leases(path: Path) -> tuple[SqliteLedger, list[str]]:
    ledger = SqliteLedger(path)
    windows = await ledger.open_windows(BUDGETS)
    for window in windows:
        granted = await ledger.reserve(f"l{window.id}", [window.id], 5000, minimum=1, owner="o", ttl=60)
        assert isinstance(granted, Granted)
    both = await ledger.reserve("both", [window.id for window in windows], 1000, owner="o", ttl=60)
    assert isinstance(both, Granted)
    return ledger, [f"l{window.id}" for window in windows] + ["both"]


async def told(ledger: SqliteLedger) -> list[object]:
    assert await ledger.audit() == []
    windows = [(w.budget, w.spent, w.reserved, w.overrun) for w in await ledger.windows()]
    return [windows, await ledger.spend(["team", "key", "user"]), await ledger.spend(["model"])]


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_does_what_its_postings_do_one_by_one(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    one, leases = await ledger_with_leases(tmp_path / "one.db")
    many, _ = await ledger_with_leases(tmp_path / "many.db")
    try:
        for batch in range(6):
            strange = 0.2 if batch % 2 else 0.0  # overruns, repetitions, unknown leases, late ones
            postings = []
            for number in range(dice.randrange(1, 90)):
                odd = dice.random() < strange
                amount = dice.choice([None, 0, dice.randrange(0, 20)])
                if odd:
                    amount = dice.randrange(0, 400)
                hold = f"h{batch}.{number % 7 if odd else number}"
                lease = "nobody" if odd and dice.random() < 0.2 else dice.choice(leases)
                note = dice.choice([NOTE, None, {**NOTE, "estimated": True}])
                postings.append(Posting(hold, lease, amount, 20, note=note, counted=dice.random() < 0.7))
            words = [word for posting in postings for word in await one.post([posting])]
            assert await many.post(postings) == words
            assert await told(many) == await told(one)
    finally:
        await one.aclose()
        await many.aclose()
