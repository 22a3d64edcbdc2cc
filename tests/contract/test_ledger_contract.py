"""What every ledger promises, shown on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger import MAX_NANO, Budget, Granted, LedgerError, Posting, Refused, Window
from tests.ledgers import House, house, ns
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

TEAM = Budget("team:checkout/month", "month", "UTC", 1000, True)
ORG = Budget("org/month", "month", "UTC", 5000, True)
USER = Budget("user:u/day", "day", "UTC", 10, False)


@pytest.fixture(params=["sqlite", "postgres"])
async def at(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[House]:
    async with house(request.param, tmp_path, server) as made:
        yield made
        if "defects" not in request.keywords:
            assert await made.ledger.audit() == []


async def ids(at: House, *budgets: Budget) -> list[int]:
    return [window.id for window in await at.ledger.open_windows(budgets)]


async def sums(at: House, id: int) -> tuple[int, int, int]:
    (window,) = await at.ledger.windows(ids=[id], current=False)
    return window.spent, window.reserved, window.overrun


async def hold(at: House, id: str, windows: list[int], amount: int, ttl: float = 60) -> Granted | Refused:
    return await at.ledger.reserve(id, windows, amount, owner="me", ttl=ttl)


async def test_a_window_is_made_once_and_told_the_same_again(at: House) -> None:
    first, second = await at.ledger.open_windows([TEAM, USER])
    assert first == Window(
        first.id, TEAM.id, ns("2026-03-01T00:00:00+00:00"), ns("2026-04-01T00:00:00+00:00"), 1000, 1000, 0, 0, 0, False,
        True, 0, 15.5 * 86400,
    )  # fmt: skip
    assert (second.hard, second.ceiling) == (False, 2**63 - 1)
    assert await at.ledger.open_windows([USER, TEAM]) == [second, first]
    assert await asyncio.gather(*(at.ledger.open_windows([TEAM]) for _ in range(10))) == [[first]] * 10


async def test_ten_gateways_that_open_a_new_window_at_once_make_one(at: House) -> None:
    opened = await asyncio.gather(*(at.ledger.open_windows([TEAM, ORG]) for _ in range(10)))
    assert all(one == opened[0] for one in opened)
    assert len(await at.ledger.windows()) == 2


async def test_what_is_reserved_is_charged_and_the_rest_given_back(at: House) -> None:
    windows = await ids(at, TEAM, ORG)
    assert await hold(at, "r", windows, 400) == Granted("r", 400, 600)
    assert [await sums(at, id) for id in windows] == [(0, 400, 0)] * 2
    assert await at.ledger.post([Posting("r.1", "r", 150, 400)]) == ["ok"]
    assert [await sums(at, id) for id in windows] == [(150, 250, 0)] * 2
    assert await at.ledger.release("r", 50) == "released"
    assert await at.ledger.release("r") == "closed"
    assert await at.ledger.release("r") == "already"
    assert [await sums(at, id) for id in windows] == [(150, 0, 0)] * 2


async def test_the_last_posting_of_a_reservation_gives_back_its_rest_in_the_same_step(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "paid", windows, 400)
    await hold(at, "void", windows, 400)
    last = [Posting("paid.1", "paid", 150, 400, last=True), Posting("void.1", "void", None, 400, last=True)]
    assert await at.ledger.post(last) == ["ok", "ok"]
    assert await sums(at, windows[0]) == (150, 0, 0)
    assert await at.ledger.post(last) == ["already", "already"]
    assert await sums(at, windows[0]) == (150, 0, 0)


async def test_a_cost_of_zero_is_an_entry_and_no_bill_is_none(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "r", windows, 400)
    await at.ledger.post([Posting("r.1", "r", 0, 100), Posting("r.2", "r", None, 100)])
    assert await at.sql("SELECT hold, amount FROM tollkeeper.entry") == [("r.1", 0)]


async def test_nothing_is_reserved_where_one_of_several_windows_refuses(at: House) -> None:
    windows = await ids(at, ORG, TEAM)
    assert await hold(at, "r", windows, 1001) == Refused("exhausted", windows[1], 15.5 * 86400, 1000)
    assert [await sums(at, id) for id in windows] == [(0, 0, 0)] * 2


async def test_exhausted_is_what_was_spent_and_contended_what_others_hold(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await hold(at, "a", [window], 600)
    assert await hold(at, "b", [window], 500) == Refused("contended", window, 1.0, 400)
    await at.ledger.post([Posting("a.1", "a", 600, 600, last=True)])
    assert await hold(at, "b", [window], 500) == Refused("exhausted", window, 15.5 * 86400, 400)
    assert await hold(at, "b", [window], 400) == Granted("b", 400, 0)


async def test_a_budget_without_end_that_is_spent_has_no_time_to_come_back(at: House) -> None:
    (window,) = await ids(at, TEAM._replace(id="all", period="total"))
    assert await hold(at, "r", [window], 1001) == Refused("exhausted", window, None, 1000)


async def test_a_window_that_is_missing_refuses(at: House) -> None:
    windows = await ids(at, TEAM)
    assert await hold(at, "r", [*windows, 999], 1) == Refused("unknown_window", 999)
    assert await sums(at, windows[0]) == (0, 0, 0)


async def test_a_frozen_window_grants_nothing_and_still_takes_the_truth(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "r", windows, 10)
    assert [await at.ledger.freeze(windows), await at.ledger.freeze(windows)] == [1, 0]
    assert await hold(at, "s", windows, 10) == Refused("frozen", windows[0])
    assert await at.ledger.post([Posting("r.1", "r", 10, 10)]) == ["ok"]
    assert await at.ledger.freeze(windows, False) == 1
    assert isinstance(await hold(at, "s", windows, 10), Granted)


async def test_the_same_reservation_asked_for_again_is_granted_once(at: House) -> None:
    windows = await ids(at, TEAM, ORG)
    answers = await asyncio.gather(*(hold(at, "r", windows, 400) for _ in range(10)))
    assert sorted(answer.replay for answer in answers if isinstance(answer, Granted)) == [False] + [True] * 9
    assert await sums(at, windows[0]) == (0, 400, 0)
    with pytest.raises(LedgerError, match="an id names one reservation only"):
        await hold(at, "r", windows[:1], 400)
    await at.ledger.release("r")
    assert await hold(at, "r", windows, 400) == Refused("lost", None)


async def test_a_posting_repeated_changes_nothing(at: House) -> None:
    windows = await ids(at, TEAM, ORG)
    await hold(at, "r", windows, 400)
    posting = Posting("r.1", "r", 150, 400)
    assert await at.ledger.post([posting, posting]) == ["ok", "already"]
    assert await at.ledger.post([posting._replace(amount=300)]) == ["already"]
    assert [await sums(at, id) for id in windows] == [(150, 250, 0)] * 2


async def test_a_posting_for_nothing_known_is_told_and_does_not_harm_its_neighbours(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "r", windows, 400)
    assert await at.ledger.post([Posting("x.1", "x", 1, 1), Posting("r.1", "r", 5, 400)]) == ["unknown", "ok"]
    assert await at.ledger.release("x") == "unknown"


async def test_what_was_given_back_before_it_came_is_never_granted(at: House) -> None:
    """A process asks, is killed, and its successor gives back what it asked for: the question may arrive last."""
    windows = await ids(at, TEAM)
    assert await at.ledger.release("r") == "unknown"
    assert await hold(at, "r", windows, 400) == Refused("lost", None)
    assert await at.ledger.release("r") == "already"
    assert await sums(at, windows[0]) == (0, 0, 0)


async def test_what_is_billed_above_the_hold_is_an_overrun_that_blocks(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "r", windows, 400)
    assert await at.ledger.post([Posting("r.1", "r", 900, 400, last=True)]) == ["overrun"]
    assert await sums(at, windows[0]) == (400, 0, 500)
    assert await hold(at, "s", windows, 101) == Refused("exhausted", windows[0], 15.5 * 86400, 100)
    assert await at.sql("SELECT kind, amount FROM tollkeeper.entry ORDER BY id") == [("settle", 400), ("overrun", 500)]


async def test_many_holds_are_paid_from_one_lease(at: House) -> None:
    (window,) = await ids(at, TEAM)
    lease = await at.ledger.reserve("l", [window], 5000, minimum=100, owner="me", ttl=60)
    assert lease == Granted("l", 1000, 0)
    paid = [Posting(f"h{i}", "l", 10, 50) for i in range(20)]
    assert await at.ledger.post(paid) == ["ok"] * 20
    assert await sums(at, window) == (200, 800, 0)
    assert await at.ledger.reserve("m", [window], 10, minimum=1, owner="you", ttl=60) == Refused(
        "contended", window, 1.0, 0
    )
    assert await at.ledger.release("l", 300) == "released"
    assert await at.ledger.reserve("m", [window], 500, minimum=1, owner="you", ttl=60) == Granted("m", 300, 0)


async def test_a_lease_below_its_minimum_is_refused(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await hold(at, "r", [window], 950)
    assert await at.ledger.reserve("l", [window], 500, minimum=51, owner="me", ttl=60) == Refused(
        "contended", window, 1.0, 50
    )
    assert await at.ledger.reserve("l", [window], 500, minimum=50, owner="me", ttl=60) == Granted("l", 50, 0)


async def test_a_lease_grows_while_there_is_room(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await at.ledger.reserve("l", [window], 400, minimum=1, owner="me", ttl=60)
    assert await at.ledger.grow("l", 400, 100) == Granted("l", 400, 200)
    assert await at.ledger.grow("l", 400, 100) == Granted("l", 200, 0)
    assert await at.ledger.grow("l", 400, 100) == Refused("contended", window, 1.0, 0)
    assert await sums(at, window) == (0, 1000, 0)
    await at.ledger.release("l")
    assert await at.ledger.grow("l", 1, 1) == Refused("lost", None)


async def test_only_a_lease_grows(at: House) -> None:
    await hold(at, "r", await ids(at, TEAM, ORG), 1)
    with pytest.raises(ValueError, match="only a lease of one window grows"):
        await at.ledger.grow("r", 1, 1)


async def test_a_soft_budget_counts_and_never_refuses(at: House) -> None:
    windows = await ids(at, USER)
    assert await hold(at, "r", windows, 10_000) == Granted("r", 10_000, None)
    assert await at.ledger.post([Posting("r.1", "r", 9_000, 10_000, last=True)]) == ["ok"]
    assert await sums(at, windows[0]) == (9_000, 0, 0)
    assert isinstance(await hold(at, "s", windows, 1), Granted)


async def test_an_expired_reservation_of_which_nothing_is_known_is_charged_to_hard_windows_only(at: House) -> None:
    hard, soft = await ids(at, TEAM, USER)
    await hold(at, "r", [hard, soft], 400, ttl=10)
    assert await at.ledger.expire(lambda _: None) == 0
    await at.move(10)
    assert await at.ledger.expire(lambda _: None) == 1
    assert [await sums(at, hard), await sums(at, soft)] == [(400, 0, 0), (0, 0, 0)]
    assert await at.ledger.expire(lambda _: None) == 0


async def test_the_truth_that_arrives_after_expiry_is_one_correction(at: House) -> None:
    hard, soft = await ids(at, TEAM, USER)
    await hold(at, "r", [hard, soft], 400, ttl=10)
    await at.move(11)
    await at.ledger.expire(lambda _: None)
    assert await at.ledger.renew("me", 60) == ["r"]
    late = Posting("r.1", "r", 150, 400, last=True)
    assert await at.ledger.post([late, late]) == ["corrected", "already"]
    assert [await sums(at, hard), await sums(at, soft)] == [(150, 0, 0), (150, 0, 0)]
    assert await at.ledger.renew("me", 60) == []
    rows = await at.sql("SELECT kind, amount FROM tollkeeper.entry ORDER BY id")
    assert rows == [("expire", 400), ("correct", -250), ("correct", 150)]


async def test_each_hold_of_an_expired_lease_claims_its_own_and_releasing_gives_back_the_rest(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await at.ledger.reserve("l", [window], 1000, minimum=1, owner="me", ttl=10)
    await at.ledger.post([Posting("h0", "l", 5, 100)])
    await at.move(11)
    assert await at.ledger.expire(lambda _: None) == 1
    assert await sums(at, window) == (1000, 0, 0)
    assert await at.ledger.post([Posting("h1", "l", 30, 100), Posting("h2", "l", None, 100)]) == ["corrected"] * 2
    assert await sums(at, window) == (1000 - 70 - 100, 0, 0)
    assert await at.ledger.release("l") == "closed"
    assert await sums(at, window) == (35, 0, 0)
    assert await at.ledger.post([Posting("h3", "l", 40, 100)]) == ["corrected"]
    assert await sums(at, window) == (75, 0, 0)


async def test_a_late_truth_above_what_was_held_is_an_overrun(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await hold(at, "r", [window], 400, ttl=10)
    await at.move(11)
    await at.ledger.expire(lambda _: None)
    assert await at.ledger.post([Posting("r.1", "r", 450, 400)]) == ["overrun"]
    assert await sums(at, window) == (400, 0, 50)


async def test_a_late_truth_that_no_charge_covers_is_spent_where_it_fits_and_overrun_beyond(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await hold(at, "r", [window], 400, ttl=10)
    await at.move(11)
    await at.ledger.expire(lambda _: [])  # the journal says: it held nothing
    assert await sums(at, window) == (0, 0, 0)
    await hold(at, "s", [window], 900)
    assert await at.ledger.post([Posting("r.1", "r", 400, 400)]) == ["overrun"]
    assert await sums(at, window) == (100, 900, 300)


async def test_expiry_by_a_journal_posts_what_it_knows_and_gives_back_the_rest(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await at.ledger.reserve("l", [window], 900, minimum=1, owner="me", ttl=10)
    known = [
        Posting("h1", "l", 30, 100),
        Posting("h2", "l", 100, 100, kind="expire"),
        Posting("h3", "l", None, 100),
    ]
    await at.move(11)
    asked: list[str] = []

    def journal(id: str) -> list[Posting]:
        asked.append(id)
        return known

    assert await at.ledger.expire(journal) == 1
    assert asked == ["l"]
    assert await sums(at, window) == (130, 0, 0)
    assert await at.ledger.post([known[1]._replace(amount=20, kind="settle"), known[0]]) == ["corrected", "already"]
    assert await sums(at, window) == (50, 0, 0)
    assert await at.ledger.post([known[1], known[1]._replace(kind="settle")]) == ["already", "already"]


async def test_who_renews_keeps_its_reservations(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "mine", windows, 10, ttl=10)
    await at.ledger.reserve("yours", windows, 20, owner="you", ttl=10)
    await at.move(9)
    assert await at.ledger.renew("me", 10) == []
    await at.move(2)
    assert await at.ledger.expire(lambda _: None) == 1
    assert await sums(at, windows[0]) == (20, 10, 0)
    assert await at.ledger.renew("you", 10) == ["yours"]
    (holder,) = await at.ledger.holders(windows[0])
    assert (holder.reservation, holder.owner, holder.rest, holder.seconds_left) == ("mine", "me", 10, 8.0)


async def test_a_clock_that_leaps_ends_no_more_than_a_hundred_at_once(at: House) -> None:
    windows = await ids(at, TEAM)
    await asyncio.gather(*(hold(at, f"r{i}", windows, 1, ttl=10) for i in range(150)))
    await at.move(3600)
    assert await at.ledger.expire(lambda _: None) == 100
    await at.ledger.renew("me", 10)
    assert await at.ledger.expire(lambda _: None) == 0
    assert await sums(at, windows[0]) == (100, 50, 0)


async def test_a_limit_that_changes_counts_at_once_and_never_breaks_what_is_committed(at: House) -> None:
    (window,) = await ids(at, TEAM)
    await hold(at, "r", [window], 800)
    (lowered,) = await at.ledger.open_windows([TEAM._replace(limit=500)])
    assert (lowered.id, lowered.limit, lowered.ceiling) == (window, 500, 800)
    assert await hold(at, "s", [window], 1) == Refused("contended", window, 1.0, 0)
    assert await at.ledger.post([Posting("r.1", "r", 800, 800)]) == ["ok"]
    (raised,) = await at.ledger.open_windows([TEAM._replace(limit=900)])
    assert (raised.limit, raised.ceiling) == (900, 900)
    assert isinstance(await hold(at, "s", [window], 100), Granted)
    (soft,) = await at.ledger.open_windows([TEAM._replace(limit=900, hard=False)])
    assert (soft.hard, soft.ceiling, soft.spent) == (False, 2**63 - 1, 800)
    (hard,) = await at.ledger.open_windows([TEAM._replace(limit=700)])
    assert (hard.hard, hard.ceiling) == (True, 900)


async def test_the_largest_amounts_stay_exact(at: House) -> None:
    big = TEAM._replace(limit=MAX_NANO)
    windows = await ids(at, big, USER)
    assert await hold(at, "r", windows, MAX_NANO - 1) == Granted("r", MAX_NANO - 1, 1)
    assert await hold(at, "s", windows, MAX_NANO) == Refused("contended", windows[0], 1.0, 1)
    assert await at.ledger.post([Posting("r.1", "r", MAX_NANO - 3, MAX_NANO - 1, last=True)]) == ["ok"]
    assert await sums(at, windows[0]) == (MAX_NANO - 3, 0, 0)


async def test_a_new_period_is_a_new_row_and_late_postings_go_to_the_window_that_admitted_them(at: House) -> None:
    tokyo = Budget("team:t/month", "month", "Asia/Tokyo", 100, True)
    await at.at("2026-03-31T14:59:59.900+00:00")
    (march,) = await at.ledger.open_windows([tokyo])
    assert await hold(at, "r", [march.id], 100) == Granted("r", 100, 0)
    assert await hold(at, "s", [march.id], 1) == Refused("contended", march.id, 1.0, 0)
    await at.at("2026-03-31T15:00:00.100+00:00")
    assert await hold(at, "s", [march.id], 1) == Refused("window_over", march.id, 0.0)
    (april,) = await at.ledger.open_windows([tokyo])
    assert (april.start, april.spent, april.reserved) == (march.end, 0, 0)
    assert await hold(at, "s", [april.id], 100) == Granted("s", 100, 0)
    assert await at.ledger.post([Posting("r.1", "r", 60, 100, last=True)]) == ["ok"]
    assert [await sums(at, march.id), await sums(at, april.id)] == [(60, 0, 0), (0, 100, 0)]


async def test_a_budget_whose_zone_changes_keeps_its_window_until_that_ends(at: House) -> None:
    (utc,) = await at.ledger.open_windows([TEAM])
    (same,) = await at.ledger.open_windows([TEAM._replace(zone="Asia/Tokyo")])
    assert same.id == utc.id
    await at.at("2026-04-01T00:00:00+00:00")
    (tokyo,) = await at.ledger.open_windows([TEAM._replace(zone="Asia/Tokyo")])
    assert (tokyo.start, tokyo.end) == (utc.end, ns("2026-04-30T15:00:00+00:00"))


async def test_a_new_window_begins_where_the_last_one_ended_whatever_its_zone_and_period(at: House) -> None:
    """Both months begin at the same moment and end an hour apart: there is one window for that hour, not none."""
    (london,) = await at.ledger.open_windows([TEAM._replace(zone="Europe/London")])
    await at.at("2026-03-31T23:30:00+00:00")
    (utc,) = await at.ledger.open_windows([TEAM])
    assert (utc.start, utc.end) == (london.end, ns("2026-04-01T00:00:00+00:00"))
    await at.at("2026-04-01T00:00:00+00:00")
    (april,) = await at.ledger.open_windows([TEAM])
    assert (april.start, april.end) == (utc.end, ns("2026-05-01T00:00:00+00:00"))


async def test_windows_are_found_by_prefix_and_id_page_by_page(at: House) -> None:
    budgets = [Budget(f"user:{name}/day", "day", "UTC", 5, False) for name in ("a_b", "a%b", "axb", "b")]
    made = await ids(at, *budgets)
    assert [w.id for w in await at.ledger.windows("user:a%")] == [made[1]]
    assert [w.id for w in await at.ledger.windows("user:a_")] == [made[0]]
    assert [w.id for w in await at.ledger.windows(limit=2)] == made[:2]
    assert [w.id for w in await at.ledger.windows(limit=2, after=made[1])] == made[2:]
    await at.move(86400)
    assert await at.ledger.windows("user:") == []
    assert len(await at.ledger.windows("user:", current=False)) == 4


async def test_words_that_a_database_cannot_hold_are_kept_as_near_as_it_can(at: House) -> None:
    """A caller chooses the name of its user: it must not stop its own bill, let alone those posted beside it."""
    windows = await ids(at, TEAM)
    bad = {"team": "a", "user": "u\0\ud800\x1b", "fea\0ture": True}
    await at.ledger.reserve("r", windows, 10, owner="me", ttl=60, note=bad)
    assert (await at.ledger.holders(windows[0]))[0].note == {"team": "a", "user": "u��\x1b", "fea�ture": True}
    assert await at.ledger.post([Posting("r.1", "r", 5, 10, note=bad)]) == ["ok"]
    (line,) = await at.ledger.spend(["user"], filters={"team": "a"})
    assert line.values == ("u��\x1b",)


async def test_one_reservation_that_cannot_be_expired_does_not_keep_the_others(at: House) -> None:
    windows = await ids(at, TEAM)
    await hold(at, "first", windows, 10, ttl=1)
    await hold(at, "second", windows, 20, ttl=2)
    await at.move(3)
    known = {"first": [Posting("h", "other", 1, 1)]}
    with pytest.raises(ValueError, match="was asked for first and told of other"):
        await at.ledger.expire(known.get)
    assert await sums(at, windows[0]) == (20, 10, 0)


NASTY = "x'); DROP TABLE entry; -- \"\\ %s $1 {0} 💰"


async def test_words_of_callers_are_values_and_never_statements(at: House) -> None:
    windows = await ids(at, TEAM._replace(id=NASTY))
    await at.ledger.reserve(NASTY, windows, 10, owner=NASTY, ttl=60, note={"team": NASTY})
    await at.ledger.post([Posting(NASTY + ".1", NASTY, 5, 10, note={"team": NASTY, "user": NASTY})])
    assert (await at.ledger.spend(["team"], filters={"user": NASTY}))[0].values == (NASTY,)
    assert (await at.ledger.windows(NASTY))[0].spent == 5
    assert (await at.ledger.holders(windows[0]))[0].note == {"team": NASTY}
    for bad in ("team; --", "note", "amount"):
        with pytest.raises(ValueError, match="is not one of"):
            await at.ledger.spend([bad])  # type: ignore[list-item]  # what a caller may send
        with pytest.raises(ValueError, match="is not one of"):
            await at.ledger.spend([], filters={bad: "x"})
