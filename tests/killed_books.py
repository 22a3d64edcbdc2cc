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
    unpaid: dict[str, int] = field(default_factory=dict)  # of these, what no entry was seen of
    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)  # of a window, and a hold in it
    first: dict[str, Entry] = field(default_factory=dict)
    hard: dict[int, bool] = field(default_factory=dict)
    rows: int = 0  # of the bill, read so far
    lines: int = 0  # of the history
    seen: int = 0  # the last entry
    certain: int = 0  # nano-USD
    doubted: int = 0
    in_doubt: int = 0  # calls

    @property
    def history(self) -> Path:
        return self.folder / "history"

    async def look(self, client: httpx2.AsyncClient) -> None:
        """While no call is under way, and whoever was killed was recovered from: what is new since the last look."""
        self._read_history()
        await self._read_bill(client)
        if not self.died and not self.held:
            return  # there may be no ledger yet
        odd = "SELECT budget, reserved, overrun FROM {0}budget_window WHERE reserved <> 0 OR overrun <> 0"
        assert await self._sql(odd) == []
        self._explain(await self._read_entries())
        for hold, cost in self.unpaid.items():
            assert not cost, f"{hold} was billed and not charged"

    async def look_at_all(self, client: httpx2.AsyncClient) -> None:
        """Everything once more, and the sums."""
        await self.look(client)
        self._explain(list(self.entries))
        hard = "spent <= limit_nano OR NOT hard"
        for id, budget, spent, kept in await self._sql(f"SELECT id, budget, spent, {hard} FROM {{0}}budget_window"):
            assert spent == sum(one.amount for (window, _), one in self.entries.items() if window == id), budget
            assert kept, budget
        counted = {PART.sub("", hold): entry for (_, hold), entry in self.entries.items() if not PART.search(hold)}
        unsure = [hold for hold, entry in counted.items() if entry.doubt or entry.guess]
        self.in_doubt = sum(entry.doubt for entry in counted.values())
        self.doubted = sum(self.held[hold] for hold in unsure)
        self.certain = sum(self.billed.get(hold, 0) for hold in counted.keys() - set(unsure))
        assert self.certain + self.doubted == sum(entry.amount for entry in counted.values())  # 0 is unexplained

    def _explain(self, keys: list[tuple[int, str]]) -> None:
        """Each call is charged its own bill, or, where its end is not known, exactly what it held."""
        for window, hold in keys:
            entry, id = self.entries[window, hold], PART.sub("", hold)
            assert id in self.held, f"{id} was charged and never held"
            first = self.first.get(id, entry)  # only the part that is counted keeps its note
            bill, held, hard = self.billed.get(id, 0), self.held[id], self.hard[window]
            self.unpaid.pop(id, None)
            if id in self.ended:
                assert not first.doubt, f"{id} had ended, and is in doubt"
                assert entry.amount == (self.ended[id] or 0), id
            if first.doubt:
                assert entry.amount == (held if hard else 0), id
            elif first.guess:
                assert entry.amount == held, id
            else:
                assert entry.amount == bill, f"{id} was charged {entry.amount} and billed {bill}"
            assert not hard or entry.amount >= bill, id

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
            self.billed[row["attempt"]] = self.unpaid[row["attempt"]] = row["nano_usd"] if row["billed"] else 0

    async def _read_entries(self) -> list[tuple[int, str]]:
        """Of which windows and holds there are new ones."""
        column = "window_id" if "://" in self.place else "window"
        found: dict[tuple[int, str], None] = {}
        windows = await self._sql("SELECT id, hard FROM {0}budget_window")
        self.hard = {int(str(id)): bool(hard) for id, hard in windows}
        asked = f"SELECT id, {column}, hold, amount, coalesce(CAST(note AS text), '') FROM {{0}}entry"
        for id, window, hold, amount, note in await self._sql(f"{asked} WHERE id > {self.seen} ORDER BY id"):
            key = int(str(window)), str(hold)
            found[key] = None
            entry = self.entries.setdefault(key, Entry(0, False, False))
            entry.amount += int(str(amount))
            entry.doubt = entry.doubt or "in_doubt" in str(note)
            entry.guess = entry.guess or "estimated" in str(note)
            if not PART.search(str(hold)):
                self.first[str(hold)] = entry
            self.seen = int(str(id))
        return list(found)

    async def _sql(self, text: str) -> list[tuple[object, ...]]:
        return await House(None, self.place, 0).sql(text.format("tollkeeper."))  # type: ignore[arg-type]  # only its SQL
