"""What only the PostgreSQL ledger promises: a schema of its own, many gateways, no hang, nothing done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from gateway.ledger import Budget, Granted, LedgerError, LedgerUnavailable, Posting
from gateway.ledger.postgres import MIGRATIONS, PostgresLedger, migrate
from tests.ledgers import persistent
from tests.servers import Postgres, postgres, shared_server, until  # noqa: F401  (pytest finds the fixture by this import)

TEAM = Budget("team", "month", "UTC", 1000, True)
# A clock that is a step further each time somebody looks, and that reaches the end of the month on its way.
RUNNING_CLOCK = """
CREATE SEQUENCE public.ticks;
CREATE OR REPLACE FUNCTION tollkeeper.gw_now() RETURNS timestamptz LANGUAGE sql AS
$$ SELECT '2026-03-31T23:59:50Z'::timestamptz + make_interval(secs => nextval('public.ticks')) $$;
"""


@pytest.fixture
async def url(server: Postgres) -> AsyncIterator[str]:
    async with server.database() as made:
        yield made


@pytest.fixture
async def shell(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[PostgresLedger]:
    made = PostgresLedger(url)
    yield made
    await made.aclose()


async def test_the_schema_is_made_once_by_many_gateways_that_start_at_once(url: str, shell: asyncpg.Connection) -> None:
    gateways = [PostgresLedger(url, size=2) for _ in range(6)]
    opened = await asyncio.gather(*(gateway.open_windows([TEAM]) for gateway in gateways))
    assert {one[0].id for one in opened} == {opened[0][0].id}
    assert [tuple(row) for row in await shell.fetch("SELECT version, name FROM tollkeeper.migration")] == [
        (1, MIGRATIONS[0])
    ]
    await asyncio.gather(*(gateway.aclose() for gateway in gateways))


async def test_least_rights_are_enough_once_the_schema_is_made(url: str, shell: asyncpg.Connection) -> None:
    await migrate(shell)
    role = f"teller_{url.rpartition('/')[2]}"
    await shell.execute(
        f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA tollkeeper TO {role}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tollkeeper TO {role}"
    )
    ledger = PostgresLedger(url.replace("postgres@", f"{role}@"))
    (window,) = await ledger.open_windows([TEAM])
    assert isinstance(await ledger.reserve("r", [window.id], 400, owner="me", ttl=60), Granted)
    assert await ledger.post([Posting("r.1", "r", 150, 400, last=True)]) == ["ok"]
    assert await ledger.audit() == []
    await ledger.aclose()
    await shell.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_migrating_again_changes_nothing_and_touches_no_table_of_others(shell: asyncpg.Connection) -> None:
    await shell.execute("CREATE TABLE public.entry(theirs text); INSERT INTO public.entry VALUES ('kept')")
    await migrate(shell)
    await migrate(shell)
    assert await shell.fetchval("SELECT theirs FROM public.entry") == "kept"
    schemas = "SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_name = 'reservation'"
    assert [row[0] for row in await shell.fetch(schemas)] == ["tollkeeper"]


async def test_a_migration_that_fails_half_way_leaves_nothing(shell: asyncpg.Connection) -> None:
    await shell.execute("CREATE SCHEMA tollkeeper; CREATE TABLE tollkeeper.entry(in_the_way int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(shell)
    found = await shell.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'tollkeeper'")
    assert [row[0] for row in found] == ["entry"]


async def test_a_newer_schema_is_refused_and_left_alone(url: str, shell: asyncpg.Connection) -> None:
    await migrate(shell)
    await shell.execute("INSERT INTO tollkeeper.migration VALUES (99, 'from the future', now())")
    ledger = PostgresLedger(url)
    with pytest.raises(LedgerError, match="has schema 99 and this Tollkeeper knows up to 1"):
        await ledger.start()
    with pytest.raises(LedgerError, match="has schema 99"):
        await ledger.open_windows([TEAM])
    await ledger.aclose()


async def test_a_database_that_is_not_there_is_unavailable_and_not_an_error_of_the_caller() -> None:
    ledger = PostgresLedger("postgresql://postgres@127.0.0.1:1/nothing")
    with pytest.raises(LedgerUnavailable, match="the database does not answer"):
        await ledger.open_windows([TEAM])
    await ledger.aclose()


async def test_entries_cannot_be_emptied(ledger: PostgresLedger, shell: asyncpg.Connection) -> None:
    await ledger.start()
    with pytest.raises(asyncpg.RaiseError, match="entries are never changed or deleted"):
        await shell.execute("TRUNCATE tollkeeper.entry CASCADE")


async def test_a_hot_row_locked_by_another_session_is_unavailable_and_others_go_on(
    ledger: PostgresLedger, shell: asyncpg.Connection
) -> None:
    team, other = await ledger.open_windows([TEAM, TEAM._replace(id="other")])
    async with shell.transaction():
        await shell.execute("SELECT * FROM tollkeeper.budget_window WHERE id = $1 FOR UPDATE", team.id)
        waiting = asyncio.ensure_future(ledger.reserve("r", [team.id], 1, owner="me", ttl=60))
        assert isinstance(await ledger.reserve("s", [other.id], 1, owner="me", ttl=60), Granted)
        with pytest.raises(LedgerUnavailable, match="locked by another session"):
            await waiting
    assert isinstance(await ledger.reserve("r", [team.id], 1, owner="me", ttl=60), Granted)


async def test_the_reaper_leaves_to_others_what_they_are_at(ledger: PostgresLedger, shell: asyncpg.Connection) -> None:
    (team,) = await ledger.open_windows([TEAM])
    await ledger.reserve("busy", [team.id], 1, owner="me", ttl=0.001)
    await ledger.reserve("due", [team.id], 2, owner="me", ttl=0.001)
    await asyncio.sleep(0.01)
    async with shell.transaction():
        await shell.execute("SELECT * FROM tollkeeper.reservation WHERE id = 'busy' FOR UPDATE")
        assert await ledger.expire(lambda _: None) == 1
    assert await ledger.expire(lambda _: None) == 1


async def test_two_reapers_charge_an_expired_reservation_once(url: str, ledger: PostgresLedger) -> None:
    (team,) = await ledger.open_windows([TEAM])
    for i in range(20):
        await ledger.reserve(f"r{i}", [team.id], 10, owner="me", ttl=0.001)
    await asyncio.sleep(0.01)
    second = PostgresLedger(url)
    ended = await asyncio.gather(ledger.expire(lambda _: None), second.expire(lambda _: None))
    await second.aclose()
    assert sum(ended) == 20
    assert (await ledger.windows())[0].spent == 200
    assert await ledger.audit() == []


async def test_settlements_in_any_order_meet_no_deadlock(url: str) -> None:
    """Batches name reservations in opposite orders, over the same windows; both sides go on at once."""
    ledgers = [PostgresLedger(url, size=2) for _ in range(2)]
    windows = [window.id for window in await ledgers[0].open_windows([TEAM._replace(id=f"b{i}") for i in range(4)])]
    await ledgers[1].start()
    for round in range(15):
        ids = [f"r{round}.{i}" for i in range(12)]
        for i, id in enumerate(ids):
            await ledgers[0].reserve(id, [windows[i % 4], windows[(i + 1) % 4]], 2, owner=f"o{i % 2}", ttl=60)
        batch = [Posting(f"{id}.1", id, 1, 2, last=True) for id in ids]
        await asyncio.gather(
            ledgers[0].post(batch[:8]), ledgers[1].post(batch[:3:-1]),
            ledgers[0].renew("o0", 60), ledgers[1].renew("o1", 60),
            ledgers[1].open_windows([TEAM._replace(id="b0", limit=1000 + round)]), ledgers[0].freeze(windows, False),
        )  # fmt: skip
    (deadlocks,) = await ledgers[0]._database.rows(
        "report", "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks[0] == 0
    assert sum(window.spent for window in await ledgers[0].windows()) == 15 * 12 * 2
    assert await ledgers[0].audit() == []
    for ledger in ledgers:
        await ledger.aclose()


async def test_nothing_is_kept_in_a_session(ledger: PostgresLedger) -> None:
    """What a pooler in transaction mode needs: no step relies on a setting or lock of the one before."""
    (team,) = await ledger.open_windows([TEAM])
    for number in range(10):
        await ledger._database.rows(
            "admit", "SELECT pg_advisory_unlock_all(), set_config('search_path', 'pg_catalog', false)"
        )
        assert isinstance(await ledger.reserve(f"r{number}", [team.id], 1, owner="me", ttl=60), Granted)
    settings = await ledger._database.rows("admit", "SELECT current_setting('lock_timeout')")
    assert settings[0][0] == "0"


async def test_what_was_renewed_between_being_found_due_and_being_expired_is_left_alone(
    ledger: PostgresLedger, shell: asyncpg.Connection
) -> None:
    (team,) = await ledger.open_windows([TEAM])
    await ledger.reserve("r", [team.id], 1, owner="me", ttl=60)
    assert await shell.fetchval("SELECT tollkeeper.expire('r', NULL)") is False
    await shell.execute("UPDATE tollkeeper.reservation SET expires = now()")
    assert await shell.fetchval("SELECT tollkeeper.expire('r', NULL)") is True


@pytest.mark.parametrize("ticks", range(1, 12))
async def test_a_period_that_ends_while_windows_are_opened_is_opened_anew(
    ticks: int, ledger: PostgresLedger, shell: asyncpg.Connection
) -> None:
    await ledger.start()
    await shell.execute(RUNNING_CLOCK)
    await ledger.open_windows([TEAM])
    await shell.execute(f"SELECT setval('public.ticks', {ticks})")
    opened = await ledger.open_windows([TEAM, TEAM._replace(id="other")])
    assert [window.budget for window in opened] == ["team", "other"]


async def test_what_was_answered_outlives_a_crash_whatever_the_server_is_set_to(tmp_path: Path) -> None:
    with postgres("synchronous_commit=off", "wal_writer_delay=10s") as server:
        ledger = PostgresLedger(server.url())
        (team,) = await ledger.open_windows([TEAM])
        steps: list[Awaitable[object]] = [
            ledger.reserve("r", [team.id], 100, owner="me", ttl=600),
            ledger.post([Posting("r.1", "r", 10, 20)]),
            ledger.release("r", 5),
            ledger.reserve("l", [team.id], 10, minimum=1, owner="me", ttl=600),
            ledger.grow("l", 10, 1),
            ledger.freeze([team.id]),
            ledger.open_windows([TEAM._replace(limit=999)]),
            ledger.renew("me", 1200),
        ]
        for step in steps:
            await step
            (told,) = await ledger.windows()
            server.stop("immediate")
            server.start()
            await until("the database is back", server.url())
            (kept,) = await persistent(ledger.windows)
            assert replace(kept, seconds_left=0) == replace(told, seconds_left=0)
        assert (await ledger.holders(team.id))[0].seconds_left > 1100
        await ledger.aclose()


async def test_spend_is_of_one_moment(ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth arrives while the question is being answered: it is in all of the answer, or in none of it."""
    (team,) = await ledger.open_windows([TEAM])
    await ledger.reserve("r", [team.id], 100, owner="me", ttl=0.001)
    await asyncio.sleep(0.01)
    await ledger.expire(lambda _: None)
    ask = ledger._database.rows

    async def interrupted(pool: str, sql: str, *values: object) -> list[asyncpg.Record]:
        found = await ask(pool, sql, *values)
        monkeypatch.undo()
        await ledger.post([Posting("r.1", "r", 40, 100)])
        return found

    monkeypatch.setattr(ledger._database, "rows", interrupted)
    assert [line.amount for line in await ledger.spend([])] == [100]
    assert [line.amount for line in await ledger.spend([])] == [40]


async def test_giving_back_part_of_what_is_not_held_any_more_leaves_nothing_behind(
    ledger: PostgresLedger, shell: asyncpg.Connection
) -> None:
    (team,) = await ledger.open_windows([TEAM])
    await ledger.reserve("r", [team.id], 100, owner="me", ttl=60)
    assert await ledger.release("r") == "closed"
    assert await ledger.release("r", 5) == "already"
    assert await shell.fetchval("SELECT count(*) FROM tollkeeper.step") == 0


async def test_a_reservation_committed_while_a_posting_waits_for_a_lock_is_not_touched_unlocked(
    url: str, ledger: PostgresLedger, shell: asyncpg.Connection
) -> None:
    """Its reserve was given up on, and is still on its way; what was not locked may change at any moment."""
    slow, late = await ledger.open_windows([TEAM, TEAM._replace(id="late")])
    await ledger.reserve("slow", [slow.id], 100, owner="me", ttl=60)
    void = [Posting(f"{id}.1", id, None, 100, last=True) for id in ("slow", "late")]
    other = await asyncpg.connect(url)
    async with shell.transaction():
        await shell.execute("SELECT * FROM tollkeeper.budget_window WHERE id = $1 FOR UPDATE", slow.id)
        async with other.transaction():
            await other.execute("SELECT tollkeeper.reserve('late', $1, 100, NULL, 'me', 60, NULL)", [late.id])
            waiting = asyncio.ensure_future(ledger.post(void))
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    await other.close()
    assert await waiting == ["ok", "unknown"]
    assert await ledger.post(void) == ["already", "ok"]
    assert [window.reserved for window in await ledger.windows()] == [0, 0]
