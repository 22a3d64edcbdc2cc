"""What a ledger tells of itself: spend, defects, periods; and what it does not let anybody do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.ledger import MAX_NANO, Budget, LedgerError, Posting, Spend
from gateway.periods import period_of
from tests.ledgers import SECOND, House, house, ns
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

TEAM = Budget("team:checkout/month", "month", "UTC", 1000, True)
SOFT = Budget("user:u/day", "day", "UTC", 10, False)
ALL = Budget("all", "total", "UTC", 100_000, True)


@pytest.fixture(params=["sqlite", "postgres"])
async def at(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[House]:
    async with house(request.param, tmp_path, server) as made:
        yield made


async def paid(at: House, hold: str, amount: int, budgets: list[Budget], **note: str) -> None:
    windows = [window.id for window in await at.ledger.open_windows(budgets)]
    await at.ledger.reserve(hold, windows, amount, owner="me", ttl=60)
    await at.ledger.post([Posting(f"{hold}.1", hold, amount, amount, note=note, last=True)])


async def test_spend_counts_a_hold_once_however_many_windows_it_lay_in(at: House) -> None:
    await paid(at, "a", 10, [TEAM, SOFT, ALL], team="checkout", user="u", model="m")
    await paid(at, "b", 20, [TEAM], team="checkout", user="v", model="m")
    await at.move(86400)
    await paid(at, "c", 40, [SOFT, ALL], team="search", user="u", model="n")
    assert await at.ledger.spend(["team"]) == [Spend(("search",), 40, 0, 1), Spend(("checkout",), 30, 0, 2)]
    assert await at.ledger.spend(["user", "day"]) == [
        Spend(("u", "2026-03-17"), 40, 0, 1),
        Spend(("v", "2026-03-16"), 20, 0, 1),
        Spend(("u", "2026-03-16"), 10, 0, 1),
    ]
    assert await at.ledger.spend([], filters={"model": "m", "user": "u"}) == [Spend((), 10, 0, 1)]
    assert await at.ledger.spend([], since=at.now) == [Spend((), 40, 0, 1)]
    assert await at.ledger.spend([], until=at.now) == [Spend((), 30, 0, 2)]
    assert await at.ledger.spend(["feature"]) == [Spend((None,), 70, 0, 3)]
    assert await at.ledger.spend([], filters={"team": "nobody"}) == []


async def test_spend_tells_overruns_apart_and_includes_them(at: House) -> None:
    (window,) = await at.ledger.open_windows([TEAM])
    await at.ledger.reserve("r", [window.id], 10, owner="me", ttl=60)
    await at.ledger.post([Posting("r.1", "r", 25, 10, note={"team": "a"}, last=True)])
    assert await at.ledger.spend(["team"]) == [Spend(("a",), 25, 15, 2)]


async def test_what_an_expiry_was_charged_moves_to_whoever_the_late_truth_names(at: House) -> None:
    (window,) = await at.ledger.open_windows([TEAM])
    await at.ledger.reserve("lease", [window.id], 100, minimum=1, owner="me", ttl=10)
    await at.ledger.reserve("r", [window.id], 50, owner="me", ttl=10, note={"team": "a"})
    await at.move(11)
    await at.ledger.expire(lambda _: None)
    assert await at.ledger.spend(["team"]) == [Spend((None,), 100, 0, 1), Spend(("a",), 50, 0, 1)]
    late = [
        Posting("h1", "lease", 7, 20, note={"team": "b"}),
        Posting("r.1", "r", 5, 50, note={"team": "a"}, last=True),
    ]
    assert await at.ledger.post(late) == ["corrected", "corrected"]
    assert {line.values: line.amount for line in await at.ledger.spend(["team"])} == {(None,): 80, ("b",): 7, ("a",): 5}
    await at.ledger.release("lease")
    assert {line.values: line.amount for line in await at.ledger.spend(["team"])} == {(None,): 0, ("b",): 7, ("a",): 5}
    (after,) = await at.ledger.windows(ids=[window.id])
    assert after.spent == 12


@pytest.mark.parametrize("sql", ["UPDATE tollkeeper.entry SET amount = 0", "DELETE FROM tollkeeper.entry"])
async def test_entries_cannot_be_changed_or_deleted_even_past_the_ledger(sql: str, at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    with pytest.raises(Exception, match="entries are never"):
        await at.sql(sql)
    assert await at.ledger.audit() == []


async def test_an_entry_cannot_be_replaced_unseen(at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    replace = "INSERT OR REPLACE INTO entry SELECT * FROM entry"
    if at.place.startswith("postgres"):
        replace = (
            "INSERT INTO tollkeeper.entry(at, hold, reservation, window_id, kind, amount, prime) VALUES "
            "(now(), 'a.1', 'a', 1, 'settle', 1, true) ON CONFLICT (hold, window_id, kind) DO UPDATE SET amount = 1"
        )
    with pytest.raises(Exception, match="entries are never"):
        await at.sql(replace)


async def test_the_database_itself_refuses_more_than_the_ceiling(at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    for column in ("reserved", "spent"):
        with pytest.raises(Exception, match="never_over"):
            await at.sql(f"UPDATE tollkeeper.budget_window SET {column} = 1001")
    for column in ("reserved", "spent", "overrun"):
        with pytest.raises(Exception, match=r"(?i)check"):
            await at.sql(f"UPDATE tollkeeper.budget_window SET {column} = -1")


PLANTED = {
    "reserved_drift": "UPDATE tollkeeper.budget_window SET reserved = reserved + 1",
    "ledger_drift": "UPDATE tollkeeper.budget_window SET spent = spent + 1",
    "overdue": "UPDATE tollkeeper.reservation SET expires = {past} WHERE id = 'open'",
}


@pytest.mark.parametrize("kind", PLANTED)
async def test_the_audit_finds_a_planted_defect_and_says_where(kind: str, at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    (window,) = await at.ledger.windows()
    await at.ledger.reserve("open", [window.id], 5, owner="me", ttl=60)
    await at.ledger.reserve("alive", [window.id], 5, owner="me", ttl=60)
    assert await at.ledger.audit() == []
    past = "gw_now() - interval '31 seconds'" if at.place.startswith("postgres") else str(at.now - 31 * SECOND)
    await at.sql(PLANTED[kind].format(past=past.replace("gw_now", "tollkeeper.gw_now")))
    (defect,) = await at.ledger.audit()
    assert defect.kind == kind
    if kind == "overdue":
        assert (defect.reservation, defect.found) == ("open", 31)
    else:
        assert (defect.window, defect.found - defect.expected) == (window.id, 1)


async def test_a_missing_entry_and_a_missing_reservation_are_defects(at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    (window,) = await at.ledger.windows()
    await at.ledger.reserve("open", [window.id], 5, owner="me", ttl=60)
    await at.sql("UPDATE tollkeeper.reservation SET rest = 0")
    if at.place.startswith("postgres"):
        await at.sql("ALTER TABLE tollkeeper.entry DISABLE TRIGGER ALL")
    else:
        await at.sql("DROP TRIGGER entry_is_never_deleted")
    await at.sql("DELETE FROM tollkeeper.entry")
    found = {(defect.kind, defect.found, defect.expected) for defect in await at.ledger.audit()}
    assert found == {("reserved_drift", 5, 0), ("ledger_drift", 10, 0)}


async def test_more_than_the_ceiling_is_a_defect_should_the_check_be_gone(at: House) -> None:
    await paid(at, "a", 10, [TEAM])
    if at.place.startswith("postgres"):
        await at.sql("ALTER TABLE tollkeeper.budget_window DROP CONSTRAINT never_over")
        await at.sql("UPDATE tollkeeper.budget_window SET ceiling = 9")
    else:
        await at.sql("PRAGMA ignore_check_constraints = ON; UPDATE budget_window SET ceiling = 9")
    assert [(defect.kind, defect.found, defect.expected) for defect in await at.ledger.audit()] == [("over", 10, 9)]


ZONES = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Havana", "Asia/Beirut",
         "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "America/St_Johns"]  # fmt: skip


@pytest.mark.parametrize("zone", ZONES)
async def test_a_database_finds_the_same_periods_as_this_language(zone: str, server: Postgres, tmp_path: Path) -> None:
    async with house("postgres", tmp_path, server) as at:
        moments = [ns("2006-01-01T00:00:00+00:00") + i * 3_641_000 * SECOND for i in range(180)]
        moments += [moment + 1800 * SECOND for moment in transitions(zone)] + transitions(zone)
        values = ", ".join(f"({moment})" for moment in moments)
        rows = await at.sql(
            "SELECT t.ns, p.name, tollkeeper.ns(w.starts), tollkeeper.ns(w.ends) "
            f"FROM (VALUES {values}) t(ns), (VALUES ('day'), ('week'), ('month')) p(name), "
            f"tollkeeper.period_of(p.name, '{zone}', to_timestamp(t.ns / 1000000000)) w"
        )
        assert len(rows) == 3 * len(moments)
        for moment, period, start, end in rows:
            assert (start, end) == period_of(str(period), zone, int(str(moment))), (moment, period)


def transitions(zone: str) -> list[int]:
    """The hours around the changes of the zone's offset, in 2010 to 2025."""
    place = ZoneInfo(zone)
    days = range(ns("2010-01-01T00:00:00+00:00"), ns("2026-01-01T00:00:00+00:00"), 86400 * SECOND)
    offsets = [datetime.fromtimestamp(day // SECOND, place).utcoffset() for day in days]
    changed = [day for day, one, other in zip(days, offsets, offsets[1:], strict=False) if one != other]
    return [day + hour * 3600 * SECOND for day in changed for hour in range(-1, 26)]


async def test_a_day_has_as_many_hours_as_its_zone_gives_it(at: House) -> None:
    lengths = {}
    for date in ("2026-03-28", "2026-03-29", "2026-10-25"):
        await at.at(f"{date}T12:00:00+00:00")
        (window,) = await at.ledger.open_windows([Budget("d", "day", "Europe/Berlin", 1, True)])
        assert window.start is not None
        assert window.end is not None
        lengths[date] = (window.end - window.start) // (3600 * SECOND)
    assert lengths == {"2026-03-28": 24, "2026-03-29": 23, "2026-10-25": 25}


async def test_a_week_begins_on_monday_and_total_never_ends(at: House) -> None:
    await at.at("2027-01-01T12:00:00+00:00")  # a Friday, of the last ISO week of 2026
    week, total = await at.ledger.open_windows([Budget("w", "week", "UTC", 1, True), ALL])
    assert (week.start, week.end) == (ns("2026-12-28T00:00:00+00:00"), ns("2027-01-04T00:00:00+00:00"))
    assert (total.start, total.end, total.seconds_left) == (None, None, None)


BAD = [
    (Budget("", "day", "UTC", 1, True), "1 to 512 characters"),
    (Budget("a\0b", "day", "UTC", 1, True), "NUL"),
    (Budget("a\ud800b", "day", "UTC", 1, True), "surrogate"),
    (Budget("b", "year", "UTC", 1, True), "period 'year' is not one of day, week, month, total"),  # type: ignore[arg-type]  # on purpose
    (Budget("b", "day", "Mars/Base", 1, True), "no time zone 'Mars/Base'; use an IANA name"),
    (Budget("b", "day", "../etc/passwd", 1, True), "no time zone"),
    (Budget("b", "day", "UTC", -1, True), "limit: -1 is not a whole number of nano-USD from 0 to"),
    (Budget("b", "day", "UTC", MAX_NANO + 1, True), "limit"),
    (Budget("b", "day", "UTC", 1.5, True), "limit: 1.5"),  # type: ignore[arg-type]  # on purpose
    (Budget("b", "day", "UTC", True, True), "limit: True"),
]


@pytest.mark.parametrize(("budget", "says"), BAD, ids=[says for _, says in BAD])
async def test_a_budget_that_cannot_be_is_refused_by_the_field(budget: Budget, says: str, at: House) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        await at.ledger.open_windows([TEAM, budget])
    assert await at.ledger.windows() == []


async def test_amounts_and_times_that_cannot_be_are_refused(at: House) -> None:
    (window,) = await at.ledger.open_windows([TEAM])
    ledger = at.ledger
    for words in (
        ("", [window.id], 1),
        ("r", [], 1),
        ("r", [window.id] * 2, 1),
        ("r", [window.id], -1),
        ("r", [window.id], 1.0),
    ):
        with pytest.raises(ValueError, match=r"amount|reservation"):
            await ledger.reserve(*words, owner="me", ttl=60)  # type: ignore[arg-type]  # on purpose
    for ttl in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ttl"):
            await ledger.reserve("r", [window.id], 1, owner="me", ttl=ttl)
    for minimum, amount, windows in ((0, 1, [window.id]), (2, 1, [window.id]), (1, 1, [window.id, 99])):
        with pytest.raises(ValueError, match=r"minimum|lease"):
            await ledger.reserve("r", windows, amount, minimum=minimum, owner="me", ttl=60)
    for posting in (
        Posting("", "r", 1, 1), Posting("h", "r", -1, 1), Posting("h", "r", 1, -1), Posting("h", "r", 2, 1, "expire"),
        Posting("h", "r", None, 1, "expire"), Posting("r", "r", 1, 1),
        Posting("r", "r", 1, 1, "expire"), Posting("h", "r", 1, 1, "correct"),  # type: ignore[arg-type]  # on purpose
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"posting|hold"):
            await ledger.post([posting])
    assert (await ledger.windows())[0].seq == 0


async def test_a_journal_that_tells_of_another_reservation_is_refused(at: House) -> None:
    (window,) = await at.ledger.open_windows([TEAM])
    await at.ledger.reserve("r", [window.id], 1, owner="me", ttl=1)
    await at.move(2)
    with pytest.raises(ValueError, match="was asked for r and told of s"):
        await at.ledger.expire(lambda _: [Posting("h", "s", 1, 1)])
    assert await at.ledger.expire(lambda _: None) == 1


async def test_the_clock_is_the_ledgers_own(at: House) -> None:
    assert await at.ledger.clock() == at.now
    await at.move(5)
    assert await at.ledger.clock() == at.now


async def test_a_defect_of_a_caller_is_told_as_such(at: House) -> None:
    (one, two) = await at.ledger.open_windows([TEAM, ALL])
    await at.ledger.reserve("r", [one.id], 1, owner="me", ttl=60)
    with pytest.raises(LedgerError, match="an id names one reservation only"):
        await at.ledger.reserve("r", [two.id], 1, owner="me", ttl=60)
