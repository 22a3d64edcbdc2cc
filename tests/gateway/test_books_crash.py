"""The books when several things go wrong at once: an expired lease and a kill, a lost ledger and a busy budget."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.books import Books
from gateway.leases import Account, Shortage
from gateway.ledger import LedgerUnavailable
from gateway.ledger.sqlite import SqliteLedger
from tests.gateway.test_books import KEY, SOFT, TEAM, USD, claims, held, keeping, windows


async def test_a_call_in_doubt_stays_charged_although_its_lease_had_expired_before_the_kill(tmp_path: Path) -> None:
    """The process stood still for longer than a lease lives, another ended its leases, and then it was killed."""
    clock = [0]
    ledger = SqliteLedger(tmp_path / "ledger.db", now=lambda: time.time_ns() + clock[0])
    books = Books(ledger, tmp_path / "ledger", wait=0.0)
    await held(books, "req_1.1", 6 * USD, TEAM)
    clock[0] = 120 * USD  # ns
    assert await ledger.expire(lambda reservation: None) == 1
    books._journal.close(clean=False)
    successor = Books(ledger, tmp_path / "ledger", wait=0.0)
    await successor.recover()
    (window,) = await ledger.windows("team")
    assert (window.spent, window.reserved) == (6 * USD, 0)
    assert isinstance(await successor.hold("req_2.1", claims(TEAM), 6 * USD, "web", {}), Shortage)
    await successor.aclose()


async def test_what_was_being_given_back_when_the_ledger_went_away_is_not_lost_to_those_who_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.leases.IDLE", 0.0)
    async with keeping(tmp_path) as (books, ledger):
        first = await held(books, "req_1.1", USD // 100, KEY)
        ledger.down = True
        with pytest.raises(LedgerUnavailable):
            await books._leases.return_idle()
        ledger.down = False
        await held(books, "req_2.1", USD // 100, KEY)  # there is always one
        books.report(first, 0)
        await books._post()
        await books._leases.return_idle()
        await held(books, "req_3.1", KEY.limit - USD // 100, KEY)  # all that the budget has left


async def test_a_soft_budget_whose_window_ends_while_it_is_leased_late_is_charged_at_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keeping(tmp_path) as (books, ledger):
        ledger.down = True
        hold = await held(books, "req_1.1", USD, SOFT)
        ledger.down = False
        refill, tries = books._leases.refill, []

        async def over(account: Account, amount: int) -> Shortage | None:
            tries.append(amount)
            if len(tries) == 1:
                account.ends = 0.0
                return None  # as where the ledger says that the window is over
            return await refill(account, amount)

        monkeypatch.setattr(books._leases, "refill", over)
        books.report(hold, USD)
        await books._post()
        await books._post()
        assert len(tries) == 2
    assert (await windows(tmp_path))[SOFT.id].spent == USD


async def test_a_lease_of_a_day_that_is_over_pays_for_nothing_more(tmp_path: Path) -> None:
    clock = [0]
    ledger = SqliteLedger(tmp_path / "ledger.db", now=lambda: time.time_ns() + clock[0])
    books = Books(ledger, tmp_path / "ledger", wait=0.0)
    books.report(await held(books, "req_1.1", USD // 100, KEY), 0)
    account = books.accounts[KEY.id]
    yesterday = account.window
    assert account.lease is not None
    assert account.lease.free
    clock[0] = 86_400 * USD  # ns
    account.ends = 0.0
    await held(books, "req_2.1", USD // 100, KEY)
    assert account.window != yesterday
    await books.aclose()
    watching = SqliteLedger(tmp_path / "ledger.db", watch=True)
    assert [window.spent for window in await watching.windows(current=False)] == [0, USD // 100]
    await watching.aclose()
