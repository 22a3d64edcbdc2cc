"""/admin/v1/spend and /admin/v1/ledger: what was spent by whom, what is held now, and whether the ledger is sound."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Final, TypeVar, cast

from msgspec import Struct

from gateway.books import Books
from gateway.errors import Unavailable
from gateway.ledger import DIMENSIONS, Defect, Dimension, LedgerUnavailable, Window
from gateway.plane import Asked, Body, Operation, Parameter, bad, missing, read_limit, read_list, read_moment
from gateway.reply import usd
from gateway.store import write_time

T = TypeVar("T")

SPEND: Final = "/admin/v1/spend"
LEDGER: Final = "/admin/v1/ledger"
WORDS: Final = (*DIMENSIONS, "day")

_WHAT: Final = (
    Parameter("by", f"what to tell apart, with commas: {', '.join(WORDS)}; nothing: one sum", "team,day"),
    Parameter("since", "charged at or after this time: RFC 3339, or so long ago (15m, 2h, 7d)", "30d"),
    Parameter("until", "charged before this time: RFC 3339, or so long ago"),
    *(Parameter(word, f"only what has this {word}") for word in DIMENSIONS),
)
_WINDOWS: Final = (
    Parameter("budget", "only budgets whose name begins so", "team checkout"),
    Parameter("past", "true: also windows that are over", "true"),
    Parameter("limit", "windows on a page, 1 to 1000; 100 where nothing is said", "100"),
    Parameter("cursor", "next_cursor of the page before"),
)


class SpendLine(Struct, frozen=True):
    """values: of what was asked to be told apart, in that order.  overrun_usd: the part billed above what was held."""

    values: list[str | None]
    usd: str
    nano_usd: int
    overrun_usd: str
    calls: int


class Spent(Struct, frozen=True):
    by: list[str]
    data: list[SpendLine]
    total_usd: str


class WindowTold(Struct, frozen=True):
    """One budget in one period.  Times are RFC 3339; null: it does not end."""

    id: int
    budget: str
    start: str | None
    end: str | None
    limit_usd: str
    spent_usd: str
    reserved_usd: str
    overrun_usd: str
    hard: bool
    frozen: bool


class WindowPage(Struct, frozen=True):
    data: list[WindowTold]
    next_cursor: str | None


class HolderTold(Struct, frozen=True):
    """Who holds a part of a window now: a gateway's lease, from which its calls are paid."""

    reservation: str
    owner: str
    held_usd: str
    since: str
    seconds_left: float


class Holders(Struct, frozen=True):
    data: list[HolderTold]


class DefectTold(Struct, frozen=True):
    kind: str
    window: int | None
    reservation: str | None
    found: int
    expected: int


class Audited(Struct, frozen=True):
    """defects: must be empty."""

    sound: bool
    defects: list[DefectTold]


class Freeze(Body):
    frozen: bool


class LedgerEndpoints:
    def __init__(self, books: Books) -> None:
        self._ledger = books.ledger

    def operations(self) -> list[Operation]:
        one = LEDGER + "/windows/{id}"
        held, stop = "Who holds what in a window", "Stop a window from granting anything, or let it again"
        return [
            Operation("GET", SPEND, "getSpend", "What was spent, and by whom", self._spend, Spent, query=_WHAT),
            Operation("GET", LEDGER + "/windows", "listWindows", "Budgets in their periods", self._windows, WindowPage,
                      query=_WINDOWS, everywhere=True),
            Operation("GET", one + "/holders", "listHolders", held, self._holders, Holders, everywhere=True),
            Operation("POST", one + "/freeze", "freezeWindow", stop, self._freeze, WindowTold, Freeze, (), "admin"),
            Operation("GET", LEDGER + "/audit", "auditLedger", "Whether the ledger contradicts itself", self._audit,
                      Audited, everywhere=True),
        ]  # fmt: skip

    async def _spend(self, asked: Asked) -> Spent:
        query, now = asked.query, time.time_ns()
        by = read_list("by", query["by"], WORDS) if "by" in query else []
        filters = {word: query[word] for word in DIMENSIONS if word in query}
        if not asked.operator.sees(filters.get("team")):
            raise missing("team", "team") if "team" in filters else bad("team", "name one of the teams of your token")
        since, until = (read_moment(word, query.get(word), now) for word in ("since", "until"))
        found = await _answer(
            self._ledger.spend(cast("list[Dimension]", by), since=since, until=until, filters=filters)
        )
        lines = [
            SpendLine(list(line.values), usd(line.amount), line.amount, usd(line.overrun), line.entries)
            for line in found
        ]
        return Spent(by, lines, usd(sum(line.nano_usd for line in lines)))

    async def _windows(self, asked: Asked) -> WindowPage:
        query, limit = asked.query, read_limit(asked.query)
        past, after = query.get("past", "false"), query.get("cursor", "0")
        if past not in ("true", "false"):
            raise bad("past", "true or false is wanted")
        if not (after.isascii() and after.isdigit() and len(after) <= 18):
            raise bad("cursor", "not a cursor of this list: take next_cursor of the page before, as it is")
        found = await _answer(
            self._ledger.windows(query.get("budget", ""), current=past == "false", limit=limit + 1, after=int(after))
        )
        return WindowPage(
            [_told(one) for one in found[:limit]], str(found[limit - 1].id) if len(found) > limit else None
        )

    async def _holders(self, asked: Asked) -> Holders:
        window = await self._find(asked.path["id"])
        found = await _answer(self._ledger.holders(window.id))
        return Holders([
            HolderTold(one.reservation, one.owner, usd(one.rest), write_time(one.since), round(one.seconds_left, 3))
            for one in found
        ])  # fmt: skip

    async def _freeze(self, asked: Asked) -> WindowTold:
        window = await self._find(asked.path["id"])
        body = cast("Freeze", asked.body)
        await _answer(self._ledger.freeze([window.id], body.frozen))
        return _told(await self._find(asked.path["id"]))

    async def _audit(self, asked: Asked) -> Audited:
        found: list[Defect] = await _answer(self._ledger.audit())
        return Audited(not found, [DefectTold(*defect) for defect in found])

    async def _find(self, id: str) -> Window:
        if not (id.isascii() and id.isdigit() and len(id) <= 18):
            raise missing("id", "window")
        found = await _answer(self._ledger.windows(ids=[int(id)], current=False))
        if not found:
            raise missing("id", "window")
        return found[0]


def _told(window: Window) -> WindowTold:
    start, end = (None if at is None else write_time(at) for at in (window.start, window.end))
    return WindowTold(
        window.id, window.budget, start, end, usd(window.limit), usd(window.spent), usd(window.reserved),
        usd(window.overrun), window.hard, window.frozen,
    )  # fmt: skip


async def _answer(question: Awaitable[T]) -> T:
    try:
        return await question
    except LedgerUnavailable as error:
        raise Unavailable(f"{error}; calls are paid from what was leased meanwhile", retry_after=1)
