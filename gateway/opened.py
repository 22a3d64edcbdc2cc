"""Opens what config.yaml names as stores: of keys, money, records, limits and answers, each where it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.answers import Store
from gateway.answers.memory import MemoryStore
from gateway.books import Books
from gateway.config import masked
from gateway.counters import Counters
from gateway.counters.memory import MemoryCounters
from gateway.credentials import Pepper, kept_pepper
from gateway.ledger.sqlite import SqliteLedger
from gateway.settings import Config, budgeted
from gateway.store import RecordStore, StoreError
from gateway.store.directory import Directory
from gateway.store.sqlite import SqliteRecordStore
from gateway.store.sqlite_directory import SqliteDirectory
from gateway.telemetry.records import Records


def counters(config: Config) -> Counters:
    if config.counters == "memory://":
        return MemoryCounters()
    from gateway.counters.valkey import ValkeyCounters  # an extra: imported where it is named

    return ValkeyCounters(config.counters, MemoryCounters(), config.server.replicas)


def answers(place: str, limit: int) -> Store:
    if place == "memory://":
        return MemoryStore(limit)
    from gateway.answers.valkey import ValkeyStore  # an extra: imported where it is named

    return ValkeyStore(place)


def books(config: Config, changeable: bool) -> Books | None:
    """None: nothing is budgeted, nor can be.  changeable: budgets may be created."""
    if not (budgeted(config) or (changeable and any(use.use == "budget" for use in config.policies))):
        return None
    journals = _beside(config, "ledger")
    if config.store.startswith("sqlite:"):
        return Books(SqliteLedger(_beside(config, "ledger.db")), journals)
    with _postgres_extra():
        from gateway.ledger.postgres import PostgresLedger
    return Books(PostgresLedger(config.store), journals)


def records(config: Config) -> tuple[Records | None, RecordStore | None]:
    """Raises StoreError.  Whether traffic may come does not depend on them: what was not written waits, or is lost."""
    said = config.telemetry.records
    if not said.enabled:
        return None, None
    store = _record_store(config.store)
    return Records(store, days=said.days, queue=said.queue), store


def _record_store(place: str) -> RecordStore:
    if place.startswith("sqlite:"):
        return SqliteRecordStore(place.removeprefix("sqlite:///"))
    with _postgres_extra():
        from gateway.store.postgres import PostgresRecordStore
    return PostgresRecordStore(place)


def directory(config: Config) -> tuple[Directory | None, Pepper | None]:
    """Where nothing can be created and nothing was, none is made.  Raises StoreError."""
    said, shared = config.server.key_pepper, not config.store.startswith("sqlite:")
    file, beside = _beside(config, "directory.db"), _beside(config, "pepper")
    if said is None if shared else config.server.admin_key is None and not file.exists():
        return None, None
    try:
        pepper = Pepper(said.get_secret_value().encode() if said is not None else kept_pepper(beside))
    except (OSError, ValueError) as error:
        raise StoreError(f"the pepper of keys cannot be had: {error}; set server.key_pepper, or mend it") from error
    directory = _shared_directory(config.store) if shared else SqliteDirectory(file)
    if directory.seal(pepper.mark) != pepper.mark:
        raise StoreError(
            f"the keys in {masked(config.store) if shared else file} were made with another pepper than "
            f"{'server.key_pepper' if said else beside}: bring that one back, or every key that was created would be "
            "refused"
        )
    return directory, pepper


def _shared_directory(place: str) -> Directory:
    with _postgres_extra():
        from gateway.store.postgres_directory import PostgresDirectory
    return PostgresDirectory(place)


def _beside(config: Config, what: str) -> Path:
    """Where this gateway keeps a file of its own: beside the store's, or in the working directory."""
    path = Path(config.store.removeprefix("sqlite:///") if config.store.startswith("sqlite:") else "tollkeeper.db")
    return path.with_name(f"{path.stem}.{what}")


@contextmanager
def _postgres_extra() -> Iterator[None]:
    """What is not always installed is imported where the configuration names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        wrong = f"store: postgresql:// needs {error.name}, which is not installed"
        raise StoreError(f"{wrong}: pip install 'tollkeeper[postgres]'") from error
