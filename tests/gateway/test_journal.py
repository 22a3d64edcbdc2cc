"""A journal tells what was open when its process died, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway import journal
from gateway.journal import Journal, Part, left_behind
from gateway.ledger import Posting

NOTE = {"team": "checkout"}


def hold(journal: Journal, id: str, amount: int = 100, lease: str = "lease_1") -> None:
    journal.hold(id, amount, [Part(id, lease, True), Part(f"{id}+1", "lease_2", False)], NOTE)


def left(prefix: Path) -> tuple[list[Posting], list[str]]:
    found = list(journal.left_behind(prefix))
    assert len(found) == 1
    found[0].keep()
    return found[0].postings, found[0].leases


def test_a_living_process_keeps_its_journal_to_itself(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a")
    assert list(journal.left_behind(tmp_path / "ledger")) == []
    assert mine.path.stat().st_mode & 0o777 == 0o600
    mine.close(clean=True)
    assert not mine.path.exists()


def test_what_was_settled_is_posted_as_it_was_and_what_was_open_as_it_was_held(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a")
    mine.lease("lease_1")
    mine.lease("lease_2")
    mine.lease("lease_3")
    mine.returned("lease_3")
    for id in ("open", "paid", "free", "guessed", "posted"):
        hold(mine, id)
    mine.settled("paid", 40, False)
    mine.settled("free", None, False)
    mine.settled("guessed", 60, True)
    mine.settled("posted", 70, False)
    mine.posted(["posted"])
    mine.close(clean=False)
    postings, leases = left(tmp_path / "ledger")
    assert leases == ["lease_1", "lease_2"]
    told = {posting.hold: (posting.amount, posting.kind, posting.counted) for posting in postings}
    assert told == {
        "open": (100, "settle", True), "open+1": (0, "settle", False),
        "paid": (40, "settle", True), "paid+1": (40, "settle", False),
        "free": (None, "settle", True), "free+1": (None, "settle", False),
        "guessed": (60, "settle", True), "guessed+1": (60, "settle", False),
    }  # fmt: skip
    notes = {posting.hold: posting.note for posting in postings}
    assert notes["open"] == {**NOTE, "in_doubt": True}
    assert notes["guessed"] == {**NOTE, "estimated": True}


def test_a_journal_cut_at_any_byte_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a")
    mine.lease("lease_1")
    for number in range(5):
        hold(mine, f"h{number}")
        mine.settled(f"h{number}", number, False)
    data = mine.path.read_bytes().partition(b"\0")[0]
    mine.close(clean=True)
    lines = data.splitlines(keepends=True)
    for at in range(len(data) + 1):
        postings, _ = journal.read(data[:at])
        whole = data[:at].splitlines(keepends=True)
        holds = sum(1 for line in whole if line.startswith(b'["h"') and line.rstrip(b"\n") in {x[:-1] for x in lines})
        assert len(postings) == 2 * holds


def test_a_full_disk_refuses_the_hold_and_loses_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    mine = Journal(tmp_path / "ledger", "a", size=1000)
    mine.lease("lease_1")
    monkeypatch.setattr(os, "posix_fallocate", full)
    held: list[str] = []

    def hold_many() -> None:
        for number in range(100):
            hold(mine, f"h{number}")
            held.append(f"h{number}")

    with pytest.raises(OSError, match="No space left"):
        hold_many()
    for _ in range(50):
        mine.settled("unknown", 1, False)
    assert mine.lost > 0
    with pytest.raises(OSError, match="No space left"):
        Journal(tmp_path / "ledger", "b")
    mine.close(clean=False)
    postings, leases = left(tmp_path / "ledger")
    assert leases == ["lease_1"]
    assert [posting.hold for posting in postings if posting.counted] == held
    assert len(held) > 3


def test_a_long_life_does_not_make_a_long_file(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a", size=20_000)
    mine.lease("lease_1")
    hold(mine, "early")
    for number in range(2000):
        hold(mine, f"h{number}")
        mine.settled(f"h{number}", 1, False)
        mine.posted([f"h{number}"])
    assert mine.path.stat().st_size == 20_000
    assert list(journal.left_behind(tmp_path / "ledger")) == []  # the new file is locked as well
    mine.close(clean=False)
    postings, leases = left(tmp_path / "ledger")
    assert [posting.hold for posting in postings] == ["early", "early+1"]
    assert leases == ["lease_1"]


def test_as_many_holds_may_be_open_as_there_are(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a", size=20_000)
    mine.lease("lease_1")
    for number in range(2000):
        hold(mine, f"h{number}")
    mine.close(clean=False)
    postings, _ = left(tmp_path / "ledger")
    assert len(postings) == 4000


def test_only_one_of_two_takes_over_a_dead_one(tmp_path: Path) -> None:
    mine = Journal(tmp_path / "ledger", "a")
    hold(mine, "open")
    mine.close(clean=False)
    first = list(journal.left_behind(tmp_path / "ledger"))
    assert len(first) == 1
    assert list(journal.left_behind(tmp_path / "ledger")) == []
    first[0].forget()
    assert list(journal.left_behind(tmp_path / "ledger")) == []


def test_a_file_that_a_killed_process_was_making_goes_after_a_while(tmp_path: Path) -> None:
    old, young = (tmp_path / f"t.ledger.{name}.new" for name in ("old", "young"))
    for half in (old, young):
        half.write_bytes(b"half")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    assert list(left_behind(tmp_path / "t.ledger")) == []
    assert (old.exists(), young.exists()) == (False, True)
