"""A million ledger entries and a million records, written past the stores in bulk, and what they add up to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import apsw
import asyncpg
import msgspec

from gateway.ledger import DIMENSIONS
from gateway.store import Fault, rows, write_time
from tests.recorded import record

COUNT: Final = 1_000_000
DAYS: Final = 30
START: Final = 1_772_323_200_000_000_000  # 2026-03-01, UTC
STEP: Final = DAYS * 86_400_000_000_000 // COUNT
TEAMS, USERS, FEATURES, HELD = 20, 5000, 40, 500
WORDS: Final = (*DIMENSIONS, "day")
CODES: Final = ("budget_exhausted", "rate_limited", "budget_contended", "upstream_error", "invalid_request")
_BULK: Final = 50_000


def facts(n: int) -> tuple[str, ...]:
    """team, key, user, feature, model, provider of the n-th call."""
    at = n * 2_654_435_761 % 2**32  # Knuth's hash: neighbours in time are of different teams
    team = at % TEAMS
    return (
        f"team-{team}", f"key-{team}-{at % 3}", f"u-{at % USERS}", f"f-{at // 7 % FEATURES}", f"m-{at // 11 % 12}",
        f"p-{at // 11 % 12 % 3}",
    )  # fmt: skip


def amount(n: int) -> int:
    return n * 7919 % 1_000_003 + 1


def at(n: int) -> int:
    return START + n * STEP // 1000 * 1000  # to the microsecond, as PostgreSQL keeps it


def day(n: int) -> str:
    return write_time(at(n))[:10]


def overrun(n: int) -> int:
    """Of one call in a thousand: billed above its hold, by an entry of its own."""
    return 5 if n % 1000 == 7 else 0


def sums(by: Sequence[str], **wanted: str) -> dict[tuple[str, ...], int]:
    """What spend() must answer, added up from the same facts and nothing else."""
    found: Counter[tuple[str, ...]] = Counter()
    for n in range(COUNT):
        told = dict(zip(WORDS, (*facts(n), day(n)), strict=True))
        if all(told[word] == value for word, value in wanted.items()):
            found[tuple(told[word] for word in by)] += amount(n) + overrun(n)
    return dict(found)


def windows() -> dict[int, list[int]]:
    """Team's number -> spent, overrun."""
    found = {team: [0, 0] for team in range(TEAMS)}
    for n in range(COUNT):
        one = found[n * 2_654_435_761 % 2**32 % TEAMS]
        one[0] += amount(n)
        one[1] += overrun(n)
    return found


def entries() -> Iterator[tuple[int, str, int, str, int, tuple[str, ...]]]:
    """at, hold, window, kind, amount, facts."""
    for n in range(COUNT):
        told = facts(n)
        window = int(told[0][5:]) + 1
        yield at(n), f"req_{n:032x}.1", window, "settle", amount(n), told
        if over := overrun(n):
            yield at(n), f"req_{n:032x}.1", window, "overrun", over, told


def leases() -> Iterator[tuple[str, int, int, str, int]]:
    """id, granted, rest, state, window: a month of leases, of which a few are held still."""
    for n in range(100_000):
        held = n % (100_000 // HELD) == 0
        yield f"lease-{n:06d}", 1000, 1000 if held else 0, "held" if held else "closed", n % TEAMS + 1


END: Final = START + DAYS * 86_400_000_000_000


def fill_sqlite(path: str) -> None:
    """Into a ledger that is there and not in use."""
    file = apsw.Connection(path)
    with file:
        run = file.executemany
        reserved = Counter({one[4]: 0 for one in leases()})
        for _, _, rest, _, window in leases():
            reserved[window] += rest
        run(
            "INSERT INTO budget_window(id, budget, starts, ends, limit_nano, ceiling, spent, reserved, overrun, hard) "
            "VALUES (?1,?2,?3,?4,?5,?5,?6,?7,?8,1)",
            [
                (team + 1, f"team team-{team} month", START, END, 2**60, spent, reserved[team + 1], over)
                for team, (spent, over) in windows().items()
            ],
        )
        run("INSERT INTO reservation VALUES (?,?,?,?,'me',?,?,NULL)", ((*o[:4], START, END) for o in leases()))
        run("INSERT INTO share VALUES (?,?,1,0)", ((id, window) for id, _, _, _, window in leases()))
        run(
            "INSERT INTO entry(at, hold, reservation, window, kind, amount, moved, prime, "
            'team, "key", "user", feature, model, provider) VALUES (?,?,?,?,?,?,0,1,?,?,?,?,?,?)',
            ((at, hold, "lease-000000", w, kind, nano, *told) for at, hold, w, kind, nano, told in entries()),
        )
    file.close()


async def fill_postgres(url: str) -> None:
    connection = await asyncpg.connect(url)
    begun, ends = _moment(START), _moment(END)
    reserved = Counter({one[4]: 0 for one in leases()})
    for _, _, rest, _, window in leases():
        reserved[window] += rest

    async def copy(table: str, columns: str, lines: Iterator[tuple[Any, ...]]) -> None:
        await connection.copy_records_to_table(
            table, schema_name="tollkeeper", columns=columns.split(), records=lines, timeout=300
        )

    await copy(
        "budget_window", "id budget starts ends limit_nano ceiling spent reserved overrun hard",
        (
            (team + 1, f"team team-{team} month", begun, ends, 2**60, 2**60, spent, reserved[team + 1], over, True)
            for team, (spent, over) in windows().items()
        ),
    )  # fmt: skip
    await copy(
        "reservation", "id granted rest state owner since expires", ((*o[:4], "me", begun, ends) for o in leases())
    )
    await copy("share", "reservation window_id prime", ((id, window, True) for id, _, _, _, window in leases()))
    await copy(
        "entry", "at hold reservation window_id kind amount prime note",
        (
            (_moment(at), hold, "lease-000000", w, kind, nano, True, _note(told))
            for at, hold, w, kind, nano, told in entries()
        ),
    )  # fmt: skip
    await connection.execute("ANALYZE", timeout=300)
    await connection.close()


def _moment(ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)


def _note(told: tuple[str, ...]) -> str:
    return msgspec.json.encode(dict(zip(DIMENSIONS, told, strict=True))).decode()


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def code(n: int) -> str | None:
    """Of one call in twenty."""
    return CODES[n // 20 % len(CODES)] if n % 20 == 0 else None


def refusals(by: Sequence[str], codes: Sequence[str], since: int = 0, **wanted: str) -> dict[tuple[str, ...], int]:
    found: Counter[tuple[str, ...]] = Counter()
    for n in range(0, COUNT, 20):
        told = dict(zip((*DIMENSIONS, "code"), (*facts(n), code(n)), strict=True))
        if told["code"] in codes and at(n) >= since and all(told[word] == value for word, value in wanted.items()):
            found[tuple(str(told[word]) for word in by)] += 1
    return dict(found)


def exchanges() -> Iterator[tuple[Any, ...]]:
    """Rows as the stores write them: COLUMNS, detail."""
    well, refused = (rows.row(record(0, error=error)) for error in (None, Fault("rate_limited", "The limit of m.")))
    for n in range(COUNT):
        team, key, user, feature, model, provider = facts(n)
        made = refused if code(n) else well
        yield (
            f"req_{n:032x}", at(n), team, key, model, provider, "chat", 429 if code(n) else 200, code(n), False, None,
            user, feature, *made[13:],
        )  # fmt: skip


def fill_sqlite_records(path: str) -> None:
    file = apsw.Connection(path)
    marks = ",".join("?" * 18)
    with file:
        file.executemany(f"INSERT INTO exchange({rows.COLUMNS}, detail) VALUES ({marks})", exchanges())
    file.close()


async def fill_postgres_records(url: str) -> None:
    connection = await asyncpg.connect(url)
    columns = [name.strip().strip('"') for name in f"{rows.COLUMNS}, detail".split(",")]
    lines = exchanges()
    while bulk := list(itertools.islice(lines, _BULK)):
        await connection.copy_records_to_table(
            "exchange", schema_name="tollkeeper_records", columns=columns, records=bulk, timeout=300
        )
    await connection.execute("ANALYZE", timeout=300)
    await connection.close()
