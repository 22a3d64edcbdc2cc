"""Defects planted in the ledgers, one at a time: each must be found, or the proofs prove nothing."""

from __future__ import annotations

import types
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis.errors import Flaky

from gateway.ledger import LedgerError, accounts, postgres, sqlite
from tests.contract.test_ledger_model import followed
from tests.contract.test_ledger_storm import on_postgres, stormed
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

# By comparison with the model, or refused by a CHECK; Flaky: Hypothesis repeats what failed, in the same ledger, whose
# sums the defect has left wrong, so that it goes on differently.
FOUND = (AssertionError, LedgerError, ExceptionGroup, Flaky)
EXAMPLES = 1500  # at most: the first that fails ends it

# name: (what stands there, what stands there in its place)
SQLITE = {
    "an admission that forgets overruns": ("used = window.spent + window.overrun\n", "used = window.spent\n"),
    "an admission that forgets what others hold": (
        "elif window.hard and used + window.reserved + least > window.limit:",
        "elif False:",
    ),
    "a frozen window that grants": ("if window.frozen:", "if False:"),
    "a window that is over and grants": ("window.seconds_left <= 0:", "window.seconds_left < -1e9:"),
    "a replay that reserves again": ("if reservation is None:\n            return None\n        if not reservation.owner:", "return None\n        if not reservation.owner:"),  # noqa: E501  (one line a defect)
    "a posting that counts twice": ('if kind != "expire" or posting.kind == "expire":\n                return "already"', "pass"),  # noqa: E501  (one line a defect)
    "an overrun that is spent": ("own = min(amount, posting.held)", "own = amount"),
    "an overrun without its entry": ('self._enter(told, "overrun", change.over, now)', "pass"),
    "a hold that takes more than is left": ("covered = min(posting.amount or 0, posting.held, rest)", "covered = min(posting.amount or 0, posting.held)"),  # noqa: E501  (one line a defect)
    "a release that leaves the window as it is": ("self.move(share.window, reserved=-given)", "pass"),
    "a release that closes too early": ('self._set(id, "held" if rest else "closed", rest)', 'self._set(id, "closed", 0)'),  # noqa: E501  (one line a defect)
    "an expiry that gives the money back": ("charged = rest if known is None and window.hard else 0", "charged = 0"),
    "an expiry that charges soft budgets": ("known is None and window.hard", "known is None"),
    "an expiry that ignores its journal": ("for posting in known or ():", "for posting in ():"),
    "a renewal of nothing": ("WHERE owner = ? AND state = 'held'\",", "WHERE owner = ? AND state = 'none'\","),
    "a late truth that corrects nothing": ("moved = min(posting.held, share.charged)", "moved = 0"),
    "a late truth that claims without end": ("self._claim(posting.reservation, share.window, moved)", "pass"),
    "a lowered limit that is not stored": ("limit_nano = ?1, hard", "limit_nano = max(limit_nano, ?1), hard"),
    "a lease above what fits": ("return min(amount, available) if", "return amount if"),
    "a lease that grows for nothing": ('"UPDATE reservation SET rest = rest + ? WHERE id = ?", (granted, id)', '"UPDATE reservation SET rest = rest + ? WHERE id = ?", (0, id)'),  # noqa: E501  (one line a defect)
}  # fmt: skip
POSTGRES = {
    "an admission that forgets overruns": ("v_least + w.spent + w.overrun + w.reserved", "v_least + w.spent + w.reserved"),  # noqa: E501  (one line a defect)
    "an admission that forgets holds": ("v_least + w.spent + w.overrun + w.reserved > w.limit_nano", "false"),
    "a frozen window that grants": ("FILTER (WHERE w.frozen)", "FILTER (WHERE false)"),
    "a window that is over and grants": ("FILTER (WHERE w.ends <= v_at)", "FILTER (WHERE false)"),
    "a posting that counts twice": ("IF EXISTS (SELECT 1 FROM tollkeeper.entry WHERE hold = p_hold AND (kind <> 'expire' OR p_kind = 'expire'))", "IF false"),  # noqa: E501  (one line a defect)
    "an overrun that is spent": ("v_own bigint := least(p_amount, p_held)", "v_own bigint := p_amount"),
    "a hold that takes more than is left": ("v_covered := least(p_amount, p_held, r.rest)", "v_covered := least(p_amount, p_held)"),  # noqa: E501  (one line a defect)
    "a release that leaves the window as it is": ("SET reserved = reserved - v_given", "SET reserved = reserved"),
    "an expiry that gives the money back": ("IF p_known IS NULL AND r.rest > 0 THEN", "IF false THEN"),
    "an expiry that charges soft budgets": ("AND w.id = s.window_id AND w.hard;", "AND w.id = s.window_id;"),
    "a late truth that corrects nothing": ("v_moved := least(p_held, s.charged)", "v_moved := 0"),
    "a late truth that claims without end": ("SET charged = charged - v_moved", "SET charged = charged"),
}  # fmt: skip
RACES = {
    "an admission without its lock": ("WHERE w.id = ANY (p_windows) ORDER BY w.id FOR UPDATE;", "WHERE w.id = ANY (p_windows);"),  # noqa: E501  (one line a defect)
}  # fmt: skip


def test_each_defect_has_its_place() -> None:
    """What is renamed here is renamed there: else a defect would be planted nowhere, and seen to be so once a month."""
    source = Path(accounts.__file__).read_text(encoding="utf-8")
    place = files("gateway.ledger") / "migrations" / "postgres" / postgres.MIGRATIONS[0]
    assert [name for name, (old, _) in SQLITE.items() if source.count(old) != 1] == []
    assert [name for name, (old, _) in {**POSTGRES, **RACES}.items() if old not in place.read_text("utf-8")] == []


@pytest.mark.long
@pytest.mark.parametrize("name", SQLITE)
def test_a_defect_in_the_sqlite_ledger_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Postgres
) -> None:
    old, new = SQLITE[name]
    source = Path(accounts.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, source.count(old)
    mutant = types.ModuleType("gateway.ledger.mutant")
    exec(compile(source.replace(old, new), name, "exec"), mutant.__dict__)
    monkeypatch.setattr(sqlite, "Accounts", mutant.Accounts)
    with pytest.raises(FOUND):
        followed("sqlite", tmp_path, server, EXAMPLES, shrink=False)


def planted(name: str, old: str, new: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("migrations") / "postgres" / postgres.MIGRATIONS[0]
    source = (files("gateway.ledger") / str(place)).read_text(encoding="utf-8")
    assert source.count(old) >= 1, name
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_text(source.replace(old, new))
    monkeypatch.setattr(postgres, "files", lambda _: folder)


@pytest.mark.long
@pytest.mark.parametrize("name", POSTGRES)
def test_a_defect_in_the_postgres_ledger_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Postgres
) -> None:
    planted(name, *POSTGRES[name], tmp_path, monkeypatch)
    with pytest.raises(FOUND):
        followed("postgres", tmp_path, server, EXAMPLES, shrink=False)


@pytest.mark.long
@pytest.mark.parametrize("name", RACES)
async def test_a_race_in_the_postgres_ledger_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Postgres
) -> None:
    planted(name, *RACES[name], tmp_path, monkeypatch)
    async with on_postgres(server) as house:
        with pytest.raises(AssertionError):
            await stormed(house, tmp_path / "history", 3, 6000)
