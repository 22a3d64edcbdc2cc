"""What config.yaml names as stores is opened where it says.  What each does is told beside it."""

from __future__ import annotations

from pathlib import Path

from gateway import opened
from gateway.answers.memory import MemoryStore
from gateway.answers.valkey import ValkeyStore
from gateway.books import Books
from gateway.config import load
from gateway.counters.memory import MemoryCounters
from gateway.counters.valkey import ValkeyCounters
from gateway.settings import Config


def config(folder: Path, **over: str) -> Config:
    file = folder / "config.yaml"
    lines = [f"{word}: {value}" for word, value in {"store": f"sqlite:///{folder}/t.db", **over}.items()]
    file.write_text("\n".join([*lines, "providers: {up: {base_url: https://a.io}}"]))
    return load(file, {})


async def test_counters_and_answers_by_their_address(tmp_path: Path) -> None:
    assert isinstance(opened.counters(config(tmp_path)), MemoryCounters)
    assert isinstance(opened.counters(config(tmp_path, counters="valkey://127.0.0.1:1/0")), ValkeyCounters)
    assert isinstance(opened.answers("memory://", 1000), MemoryStore)
    assert isinstance(opened.answers("redis://127.0.0.1:1/0", 1000), ValkeyStore)


async def test_books_only_where_something_is_or_can_be_budgeted(tmp_path: Path) -> None:
    assert opened.books(config(tmp_path), changeable=False) is None
    books = opened.books(config(tmp_path), changeable=True)
    assert isinstance(books, Books)
    await books.open()
    await books.aclose()
    assert (tmp_path / "t.ledger.db").exists()


def test_no_directory_where_nothing_can_be_created_and_nothing_was(tmp_path: Path) -> None:
    assert opened.directory(config(tmp_path)) == (None, None)
