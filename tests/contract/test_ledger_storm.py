"""Many callers at once, killed clients, cut connections and a database that crashes: nothing over, lost or twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ledger import Granted, LedgerUnavailable
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from tests import ledger_storm
from tests.ledgers import House, persistent
from tests.servers import Postgres, postgres, shared_server, until  # noqa: F401  (pytest finds the fixture by this import)

ROOT = Path(__file__).parents[2]


def start(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.ledger_storm", *(str(word) for word in words)], cwd=ROOT)


async def ended(*processes: subprocess.Popen[bytes], house: House | None = None) -> None:
    """Waits for them; meanwhile, no window may be over at any moment."""
    seen: dict[int, int] = {}
    try:
        while any(process.poll() is None for process in processes):
            await asyncio.sleep(0.02)
            for window in await house.ledger.windows("storm:") if house else []:
                assert window.spent + window.reserved <= window.limit
                assert window.seq >= seen.get(window.id, 0)
                seen[window.id] = window.seq
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(processes)


async def stormed(house: House, history: Path, clients: int, count: int, kills: int = 0) -> int:
    """PostgreSQL: so many processes at once, each killed so often."""
    more = [kills] if kills else []
    await house.ledger.open_windows(ledger_storm.BUDGETS)
    processes = [start(house.place, history, f"p{i}", count // clients, 16, *more) for i in range(clients)]
    await ended(*processes, house=house)
    return await ledger_storm.check(history, house)


@asynccontextmanager
async def on_postgres(server: Postgres) -> AsyncIterator[House]:
    async with server.database() as url:
        ledger = PostgresLedger(url)
        try:
            await ledger.start()
            yield House(ledger, url, 0)
        finally:
            await ledger.aclose()


async def on_sqlite(folder: Path, count: int, kills: int = 0) -> int:
    """One process at a time: a second one is refused the file."""
    place, history = folder / "ledger.db", folder / "history"
    await ended(start(place, history, "s", count, 64, *([kills] if kills else [])))
    ledger = SqliteLedger(place)
    try:
        return await ledger_storm.check(history, House(ledger, str(place), 0))
    finally:
        await ledger.aclose()


async def test_20000_contended_reservations_in_sqlite_overshoot_by_nothing(tmp_path: Path) -> None:
    assert 1000 < await on_sqlite(tmp_path, 20_000) < 20_000


async def test_three_gateways_on_postgres_contend_for_6000_reservations_and_overshoot_by_nothing(
    server: Postgres, tmp_path: Path
) -> None:
    async with on_postgres(server) as house:
        assert 300 < await stormed(house, tmp_path / "history", 3, 6000) < 6000


async def test_a_sqlite_client_killed_ten_times_loses_nothing_it_was_told(tmp_path: Path) -> None:
    assert await on_sqlite(tmp_path, 2000, kills=10) > 100


async def test_postgres_clients_killed_ten_times_lose_nothing_they_were_told(server: Postgres, tmp_path: Path) -> None:
    async with on_postgres(server) as house:
        assert await stormed(house, tmp_path / "history", 2, 600, kills=5) > 50


async def result(ledger: SqliteLedger | PostgresLedger) -> list[object]:
    windows = await ledger.windows("storm:")
    return [(w.spent, w.reserved, w.overrun) for w in windows] + list(await ledger.spend(["team"]))


async def lived(make: Callable[[], SqliteLedger | PostgresLedger]) -> list[object]:
    """What is in the ledger after (the rest of) a life in it."""
    ledger = make()
    try:
        await ledger_storm.life(ledger)
        assert await ledger.audit() == []
        return await result(ledger)
    finally:
        await ledger.aclose()


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
async def test_a_client_killed_before_any_statement_asks_again_and_comes_to_the_same(
    stride: int, tmp_path: Path
) -> None:
    wanted = await lived(lambda: SqliteLedger(tmp_path / "whole.db"))
    await ended(start(tmp_path / "ledger.db", "steps", stride))
    files = [file for file in tmp_path.glob("ledger.db.*") if file.suffix[1:].isdigit()]
    assert len(files) > 80 / stride
    for file in files:
        assert await lived(lambda file=file: SqliteLedger(file)) == wanted, file.name


class Cut:
    """A relay to a server that cuts a connection at its n-th message, before or after it is passed on."""

    def __init__(self, port: int, at: int, passed: bool) -> None:
        self.port, self.at, self.passed = port, at, passed
        self.count = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        ways = [self.relay(reader, up_writer), self.relay(up_reader, writer)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (writer, up_writer):
            end.transport.abort()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.count += 1
            if self.count == self.at and not self.passed:
                return
            writer.write(data)
            await writer.drain()
            if self.count == self.at:
                await asyncio.sleep(0.005)  # it is acted on, and the answer is lost
                return


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("passed", [False, True], ids=["before", "after"])
async def test_a_connection_cut_at_any_message_is_asked_again_and_comes_to_the_same(
    passed: bool, stride: int, server: Postgres
) -> None:
    async with server.database() as url:
        wanted = await lived(lambda: PostgresLedger(url))
    for at in range(1, 1000, stride):
        async with server.database() as url:
            cut = Cut(server.port, at, passed)
            relay = await asyncio.start_server(cut, "127.0.0.1", 0)
            url = url.replace(str(server.port), str(relay.sockets[0].getsockname()[1]))
            assert await persistent(lambda url=url: lived(lambda: PostgresLedger(url))) == wanted, at
            relay.close()
        if cut.count < at:
            break
    assert 30 < at < 999


async def test_a_database_that_crashes_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with postgres() as server:
        async with on_postgres(server) as house:
            await house.ledger.open_windows(ledger_storm.BUDGETS)
            history = tmp_path / "history"
            storms = [start(house.place, history, f"p{i}", 2000, 16) for i in range(2)]
            while not history.exists() or history.read_text().count("\nposted ") < 20:
                await asyncio.sleep(0.01)
            server.stop("immediate")
            with pytest.raises(LedgerUnavailable):
                await house.ledger.open_windows(ledger_storm.BUDGETS)
            before = history.read_text().count("\ngranted ")
            server.start()
            await until("the database is back", house.place)
            await persistent(lambda: result(house.ledger))  # until it has noticed, too
            await ended(*storms, house=house)
            assert await ledger_storm.check(history, house) >= before
            (fresh,) = await house.ledger.open_windows([ledger_storm.BUDGETS[0]._replace(id="fresh")])
            assert isinstance(await house.ledger.reserve("after", [fresh.id], 1, owner="me", ttl=60), Granted)


@pytest.mark.long
async def test_a_million_contended_reservations_and_200_kills_overshoot_by_nothing(
    server: Postgres, tmp_path: Path
) -> None:
    (tmp_path / "sqlite").mkdir()
    await on_sqlite(tmp_path / "sqlite", 800_000)
    (tmp_path / "killed").mkdir()
    await on_sqlite(tmp_path / "killed", 20_000, kills=100)
    async with on_postgres(server) as house:
        await stormed(house, tmp_path / "history", 4, 200_000)
    async with on_postgres(server) as house:
        await stormed(house, tmp_path / "history-killed", 4, 4000, kills=25)
