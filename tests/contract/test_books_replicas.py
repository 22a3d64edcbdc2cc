"""Several gateways on one budget, killed at any moment: never over, never lost, and every difference explained."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ledger import Ledger, Window
from tests import books_replica
from tests.books_replica import LIMIT, ORG, TEAM
from tests.ledgers import House
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

ROOT = Path(__file__).parents[2]


def start(place: str, folder: Path, name: str, *numbers: int) -> subprocess.Popen[bytes]:
    words = [place, str(folder), name, *map(str, numbers)]
    return subprocess.Popen([sys.executable, "-m", "tests.books_replica", *words], cwd=ROOT)


@asynccontextmanager
async def placed(kind: str, folder: Path, server: Postgres | None) -> AsyncIterator[str]:
    if kind == "sqlite":
        yield str(folder / "ledger.db")
        return
    assert server is not None
    async with server.database() as url:
        yield url


def history(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """What left for the provider, and what the provider billed, by hold."""
    left: dict[str, int] = {}
    billed: dict[str, int] = {}
    for file in folder.glob("*.history"):
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) == 3:
                (left if words[0] == "d" else billed)[words[1]] = int(words[2])
    return left, billed


def size(folder: Path, name: str) -> int:
    file = folder / f"{name}.history"
    return file.stat().st_size if file.exists() else 0


async def looked(place: str) -> tuple[Ledger, dict[str, Window]]:
    ledger = books_replica.opened(place)
    return ledger, {window.budget: window for window in await ledger.windows(current=False)}


async def entries(place: str, window: int) -> dict[str, tuple[int, bool]]:
    """Hold -> what it was charged in this window, and whether its end was not known."""
    ledger = books_replica.opened(place)
    rows = await House(ledger, place, 0).sql(
        f"SELECT hold, amount, coalesce(CAST(note AS text), '') FROM tollkeeper.entry "
        f"WHERE {'window_id' if place.startswith('postgresql') else 'window'} = {window}"
    )
    await ledger.aclose()
    return {str(hold): (int(str(amount)), "in_doubt" in str(note)) for hold, amount, note in rows}


async def recovered(place: str, folder: Path) -> dict[str, Window]:
    """As a gateway that starts on the same volume leaves it."""
    process = start(place, folder, "last", 0, 1, 1, 1)
    assert await asyncio.to_thread(process.wait, 60) == 0
    ledger, windows = await looked(place)
    assert await ledger.audit() == []
    await ledger.aclose()
    return windows


@pytest.mark.parametrize(
    ("kind", "processes", "kills", "count"),
    [
        ("sqlite", 1, 6, 8000),
        ("postgres", 3, 10, 3000),
        pytest.param("sqlite", 1, 20, 40_000, marks=pytest.mark.long),
        pytest.param("postgres", 4, 40, 50_000, marks=pytest.mark.long),
    ],
)
async def test_a_kill_at_any_moment_costs_nobody_a_nano_dollar_that_cannot_be_explained(
    kind: str, processes: int, kills: int, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dice = random.Random(11)
    server = request.getfixturevalue("server") if kind == "postgres" else None
    async with placed(kind, tmp_path, server) as place:
        done = 0
        running = {f"p{n}": start(place, tmp_path, f"p{n}", count, 97, 0, 16) for n in range(processes)}
        sizes = dict.fromkeys(running, 0)
        while running:
            await asyncio.sleep(dice.random() * 0.3)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    assert process.returncode == 0, name
                    del running[name]
                elif done < kills and size(tmp_path, name) > sizes[name]:  # it is at work
                    done += 1
                    process.kill()
                    process.wait()
                    sizes[name] = size(tmp_path, name)
                    running[name] = start(place, tmp_path, name, count, 97, 0, 16)
        windows = await recovered(place, tmp_path)
        left, billed = history(tmp_path)
        charged = await entries(place, windows[TEAM.id].id)
        doubted = [hold for hold, (_, doubt) in charged.items() if doubt]
        print(f"{kind}: {len(left)} calls, {done} kills, {len(doubted)} in doubt, {windows[TEAM.id]}")
        assert done == kills
        assert {hold for hold, cost in billed.items() if cost} <= set(charged)
        for hold, (amount, doubt) in charged.items():
            # Killed between the journal's two lines of it: all that it held.  Else what the provider billed, exactly.
            assert amount == (97 if doubt else billed[hold]), hold
        for budget in (TEAM, ORG):
            window = windows[budget.id]
            assert window.reserved == 0
            assert window.overrun == 0
            assert window.spent == sum(amount for amount, _ in charged.values()) <= window.limit


async def test_three_gateways_send_exactly_as_many_calls_as_the_budget_pays(
    tmp_path: Path,
    server: Postgres,
) -> None:
    async with placed("postgres", tmp_path, server) as place:
        processes = [start(place, tmp_path, f"p{n}", 67, LIMIT // 50, LIMIT // 50, 67) for n in range(3)]
        assert [await asyncio.to_thread(process.wait, 60) for process in processes] == [0, 0, 0]
        left, _ = history(tmp_path)
        ledger, windows = await looked(place)
        assert await ledger.audit() == []
        await ledger.aclose()
        assert len(left) == 50
        assert windows[TEAM.id].spent == LIMIT
