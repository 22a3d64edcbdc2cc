"""What killed gateways left behind, compared call by call: their own history, the ledger, the provider's bill."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from tests.ledgers import House

PART = re.compile(r"\+\d+$")  # a hold is posted in each of its budgets, under a name of its own


@dataclass
class Entry:
    """amount: nano-USD.  doubt: charged in full by the journal of a killed process.  guess: its answer broke off."""

    amount: int
    doubt: bool
    guess: bool


@dataclass
class Compared:
    """All that is known after so many kills; `look` reads it anew, and raises where anything is not explained."""

    folder: Path
    place: str  # the ledger: a file, or a postgresql:// URL
    provider: str  # the simulator's URL
    held: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int | None] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)
    billed: dict[str, int] = field(default_factory=dict)
    rows: int = 0  # of the bill, read so far
    lines: int = 0  # of the history
    certain: int = 0  # nano-USD
    doubted: int = 0
    in_doubt: int = 0  # calls

    @property
    def history(self) -> Path:
        return self.folder / "history"

    async def look(self, client: httpx2.AsyncClient) -> None:
        """While no call is under way, and whoever was killed was recovered from."""
        self._read_history()
        await self._read_bill(client)
        if not self.died and not self.held:
            return  # there may be no ledger yet
        windows = await self._sql("SELECT id, budget, hard, reserved, overrun, spent, limit_nano FROM {0}budget_window")
        for _, budget, _, reserved, overrun, spent, limit in windows:
            assert (reserved, overrun) == (0, 0), f"{budget}: {reserved} are still held, {overrun} overrun"
            assert not str(budget).startswith("team") or int(str(spent)) <= int(str(limit)), budget
        sums = {int(str(id)): 0 for id, *_ in windows}
        hard = {int(str(id)): bool(is_hard) for id, _, is_hard, *_ in windows}
        team = next((int(str(id)) for id, budget, *_ in windows if str(budget) == "team checkout month"), 0)
        charged: set[str] = set()
        self.certain = self.doubted = self.in_doubt = 0
        for window, name, entry in await self._entries():
            id = PART.sub("", name)
            sums[window] += entry.amount
            self._explain(id, entry, hard[window])
            if window == team:
                charged.add(id)
                self._count(id, entry)
        for id, _, _, _, _, spent, _ in windows:
            assert sums[int(str(id))] == spent
        assert {id for id, cost in self.billed.items() if cost} <= charged, "a call was billed and not charged"
        assert charged <= self.held.keys(), "a call was charged that nobody held"
        assert self.certain + self.doubted == sums.get(team, 0)  # nothing is unexplained

    def _explain(self, id: str, entry: Entry, hard: bool) -> None:
        """Each call is charged its own bill, or, where its end is not known, exactly what it held."""
        bill, held = self.billed.get(id, 0), self.held[id]
        if id in self.ended:
            assert not entry.doubt, f"{id} had ended, and is in doubt"
            assert entry.amount == (self.ended[id] or 0), id
        if entry.doubt:
            assert entry.amount == (held if hard else 0), id
        elif entry.guess:
            assert entry.amount == held, id
        else:
            assert entry.amount == bill, f"{id} was charged {entry.amount} and billed {bill}"
        assert not hard or entry.amount >= bill, id

    def _count(self, id: str, entry: Entry) -> None:
        if entry.doubt or entry.guess:
            self.doubted += self.held[id]
            self.in_doubt += entry.doubt
        else:
            self.certain += self.billed.get(id, 0)

    async def audit(self) -> None:
        ledger = PostgresLedger(self.place) if "://" in self.place else SqliteLedger(self.place, watch=True)
        try:
            assert await ledger.audit() == []
        finally:
            await ledger.aclose()

    def _read_history(self) -> None:
        lines = self.history.read_text().splitlines()
        for line in lines[self.lines :]:
            word, *told = line.split()
            if word == "h":
                self.held[told[0]] = int(told[1])
            elif word == "s":
                self.ended[told[0]] = None if told[1] == "None" else int(told[1])
            else:
                self.died.append(" ".join(told))
        self.lines = len(lines)

    async def _read_bill(self, client: httpx2.AsyncClient) -> None:
        rows = (await client.get(f"{self.provider}/sim/bill?after={self.rows}")).json()["rows"]
        self.rows += len(rows)
        for row in rows:
            assert row["attempt"] not in self.billed, "one attempt was sent twice"
            self.billed[row["attempt"]] = row["nano_usd"] if row["billed"] else 0

    async def _entries(self) -> list[tuple[int, str, Entry]]:
        column = "window_id" if "://" in self.place else "window"
        found: dict[tuple[int, str], Entry] = {}
        asked = f"SELECT {column}, hold, amount, coalesce(CAST(note AS text), '') FROM {{0}}entry"
        for window, hold, amount, note in await self._sql(asked):
            key = int(str(window)), str(hold)
            entry = found.setdefault(key, Entry(0, False, False))
            entry.amount += int(str(amount))
            entry.doubt = entry.doubt or "in_doubt" in str(note)
            entry.guess = entry.guess or "estimated" in str(note)
        first = {hold: entry for (_, hold), entry in found.items()}
        for (_, hold), entry in found.items():  # only the part that is counted keeps its note
            of = first.get(PART.sub("", hold), entry)
            entry.doubt, entry.guess = of.doubt, of.guess
        return [(*key, entry) for key, entry in found.items()]

    async def _sql(self, text: str) -> list[tuple[object, ...]]:
        return await House(None, self.place, 0).sql(text.format("tollkeeper."))  # type: ignore[arg-type]  # only its SQL
