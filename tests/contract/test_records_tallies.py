"""What records are added up to, by every store: who was refused by what, and how many tokens providers told of."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.exchange import Usage
from gateway.store import AttemptRecord, Fault, Query, Record, RecordStore, Refused, Used, read_time
from tests.recorded import START, record, record_store
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

MIDNIGHT = read_time("2026-03-02T00:00:00Z")


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> AsyncIterator[RecordStore]:
    async with record_store(request.param, tmp_path, server) as opened:
        yield opened


def refused(number: int, code: str, **facts: Any) -> Record:
    return record(number, status=429, error=Fault(code, f"words of {number}"), **facts)


async def test_refusals_are_counted_exactly_most_often_first_with_the_last_ones_words(store: RecordStore) -> None:
    teams, codes = ("a", "b", "c"), ("budget_exhausted", "rate_limited", "budget_contended", "rate_limited")
    made = [refused(n, codes[n % 4], team=teams[n % 3], user=f"u-{n % 5}") for n in range(600)]
    store.write([*made, *(record(n) for n in range(600, 700))])  # the latter went well
    lines = await store.refused(("team", "user", "code"), Query(limit=1000))
    counted = Counter((r.team, r.user, r.error.code) for r in made if r.error is not None)
    assert {line.values: line.count for line in lines} == dict(counted)
    assert [line.count for line in lines] == sorted(counted.values(), reverse=True)
    for line in lines:
        mine = [n for n, r in enumerate(made) if r.error and (r.team, r.user, r.error.code) == line.values]
        last = made[mine[-1]]
        assert (line.first - START, line.last - START) == (mine[0], mine[-1])
        assert (line.id, line.message) == (last.id, f"words of {mine[-1]}")
    (whole,) = await store.refused((), Query())
    assert (whole.values, whole.count) == ((), 600)
    assert len(await store.refused(("user", "team"), Query(limit=7))) == 7


async def test_refusals_are_narrowed_by_each_word_and_by_the_span(store: RecordStore) -> None:
    store.write(
        [
            refused(1, "rate_limited", team="a", key="k1", model="m1", user="u", feature="f"),
            refused(2, "rate_limited", team="a", key="k2", model="m2"),
            refused(3, "budget_exhausted", team="b", key="k1", model="m1"),
            record(4, team="b"),
        ]
    )

    async def counts(**asked: Any) -> dict[str | None, int]:
        return {line.values[0]: line.count for line in await store.refused(("team",), Query(**asked))}

    assert await counts() == {"a": 2, "b": 1}
    assert await counts(code="rate_limited") == {"a": 2}
    assert await counts(codes=("budget_exhausted", "budget_contended")) == {"b": 1}
    assert await counts(key="k1") == {"a": 1, "b": 1}
    assert await counts(user="u") == await counts(feature="f") == await counts(model="m1", team="a") == {"a": 1}
    assert await counts(teams=frozenset("b")) == {"b": 1}
    assert await counts(teams=frozenset()) == {}
    assert await counts(since=START + 2, until=START + 3) == {"a": 1}
    (none,) = await store.refused(("provider", "user"), Query(team="b"))
    assert none == Refused((record(3).attempts[0].provider, None), 1, START + 3, START + 3, record(3).id, "words of 3")


@pytest.mark.parametrize("by", [("team", "team"), ("at",), ('team" FROM exchange; --',), ("detail",)])
async def test_only_words_that_are_known_become_part_of_the_statement(store: RecordStore, by: tuple[str, ...]) -> None:
    store.write([refused(1, "rate_limited")])
    with pytest.raises(ValueError, match="at most once"):
        await store.refused(by, Query())


def attempts(number: int, at: int, *tried: AttemptRecord) -> Record:
    return msgspec.structs.replace(record(number, at=at - START), attempts=list(tried))


def attempt(started_us: int = 0, **facts: Any) -> AttemptRecord:
    return msgspec.structs.replace(record(1).attempts[0], started_us=started_us, response_model="", **facts)


async def test_tokens_are_told_by_the_day_the_provider_and_the_model_of_each_attempt(store: RecordStore) -> None:
    usage, second = Usage(100, 20, cache_read=60), 1_000_000
    guessed = Usage(7, 3, estimated=True)
    store.write(
        [
            attempts(
                1, MIDNIGHT - 1_000_000_000,
                attempt(0, provider="one", model="m", usage=usage),  # before midnight
                attempt(2 * second, provider="two", model="m", usage=guessed),  # after it
            ),
            attempts(2, MIDNIGHT, attempt(provider="one", model="m-latest", usage=usage)),
            attempts(3, MIDNIGHT, attempt(provider="one", model="m", usage=None)),  # broke off
            attempts(4, MIDNIGHT, attempt(provider="one", model="m", usage=usage, free=True)),  # nothing is billed
            attempts(5, MIDNIGHT, attempt(provider="one", model="m", usage=usage, sent_us=None)),  # never left
            attempts(6, MIDNIGHT + 86_400_000_000_000, attempt(provider="one", model="m", usage=usage)),
            attempts(7, MIDNIGHT),
        ]
    )  # fmt: skip
    answered = msgspec.structs.replace(attempt(provider="one", model="m", usage=usage), response_model="m-2026-01-01")
    store.write([attempts(8, MIDNIGHT, answered)])
    day = 86_400_000_000_000
    assert await store.used(MIDNIGHT, MIDNIGHT + day) == [
        Used("2026-03-02", "one", "m", untold=1),
        Used("2026-03-02", "one", "m-2026-01-01", 100, 60, 20, 1),
        Used("2026-03-02", "one", "m-latest", 100, 60, 20, 1),
        Used("2026-03-02", "two", "m", 7, 0, 3, 1, 1),
    ]
    assert await store.used(MIDNIGHT - day, MIDNIGHT) == [Used("2026-03-01", "one", "m", 100, 60, 20, 1)]
    assert len(await store.used(0, 2**62)) == 6


async def test_tokens_of_more_than_a_page_are_all_added_up(store: RecordStore) -> None:
    many = [attempts(n, MIDNIGHT + n // 9, attempt(provider="p", model="m", usage=Usage(n, 1))) for n in range(5000)]
    for start in range(0, 5000, 500):
        store.write(many[start : start + 500])
    (line,) = await store.used(MIDNIGHT, MIDNIGHT + 10**9)
    assert (line.input, line.output, line.attempts) == (sum(range(5000)), 5000, 5000)
