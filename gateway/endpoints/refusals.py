"""/admin/v1/refusals: who hit a limit: which team, key, user, feature or model was refused, by what, and how often."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from gateway.errors import CODES
from gateway.plane import Asked, Operation, Parameter, missing, read_limit, read_list, read_moment
from gateway.store import Query, RecordStore, write_time

PATH: Final = "/admin/v1/refusals"
WORDS: Final = ("team", "key", "user", "feature", "model", "provider", "code")
NARROW: Final = ("team", "key", "user", "feature", "model")
LIMITS: Final = (
    "budget_exhausted", "budget_contended", "budget_frozen", "budget_unavailable", "model_unpriced", "rate_limited",
)  # fmt: skip

_WHAT: Final = (
    Parameter("by", f"what to tell apart, with commas: {', '.join(WORDS)}", "team,key,user,code"),
    Parameter("code", "only these error codes, with commas; where nothing is said: " + ", ".join(LIMITS)),
    Parameter("since", "begun at or after this time: RFC 3339, or so long ago (15m, 2h, 7d)", "7d"),
    Parameter("until", "begun before this time: RFC 3339, or so long ago"),
    *(Parameter(word, f"only what has this {word}") for word in NARROW),
    Parameter("limit", "lines, 1 to 1000; 100 where nothing is said", "100"),
)


class RefusalLine(Struct, frozen=True):
    """values: of what was asked to be told apart, in that order; null: not said.  first, last: RFC 3339.

    last_id, last_message: of the request that was recorded last; its words name the budget or the limit.
    """

    values: list[str | None]
    count: int
    first: str
    last: str
    last_id: str
    last_message: str


class Refusals(Struct, frozen=True):
    """Most often first.  more: there are lines beyond the limit."""

    by: list[str]
    data: list[RefusalLine]
    more: bool


class RefusalEndpoints:
    """flush: awaited before each read, so that a request that has just been refused is counted."""

    def __init__(self, store: RecordStore, flush: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._flush = flush

    def operations(self) -> list[Operation]:
        return [Operation("GET", PATH, "listRefusals", "Who hit a limit", self._list, Refusals, query=_WHAT)]

    async def _list(self, asked: Asked) -> Refusals:
        query, now = asked.query, time.time_ns()
        by = read_list("by", query.get("by", "team,key,user,code"), WORDS)
        codes = read_list("code", query["code"], sorted(CODES)) if "code" in query else LIMITS
        if "team" in query and not asked.operator.sees(query["team"]):
            raise missing("team", "team")
        since, until = (read_moment(word, query.get(word), now) for word in ("since", "until"))
        limit = read_limit(query)
        await self._flush()
        wanted = Query(
            team=query.get("team"), teams=asked.operator.teams, key=query.get("key"), model=query.get("model"),
            codes=tuple(codes), user=query.get("user"), feature=query.get("feature"), since=since, until=until,
            limit=limit + 1,
        )  # fmt: skip
        found = await self._store.refused(by, wanted)
        lines = [
            RefusalLine(
                list(one.values), one.count, write_time(one.first), write_time(one.last), one.id, one.message
            )
            for one in found[:limit]
        ]  # fmt: skip
        return Refusals(by, lines, len(found) > limit)
