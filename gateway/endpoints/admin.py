"""Answers the operator's questions about past requests: those of the teams that the operator sees."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from gateway.errors import BadCall
from gateway.plane import PAGED, Asked, Operation, Parameter, bad, missing, read_limit, read_moment, read_parameters
from gateway.store import Page, Query, Record, RecordStore

NS: Final = 1_000_000_000
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

PARAMETERS: Final = (
    Parameter("team", "only this team's requests", "checkout"),
    Parameter("model", "only requests for this model, as the caller named it", "gpt-4o-mini"),
    Parameter(
        "status", "an HTTP status (200), a class (4xx, 5xx), or error: 400 and above, or broken off later", "5xx"
    ),
    Parameter("since", "begun at or after this time: RFC 3339, or so long ago (15m, 2h, 7d)", "2h"),
    Parameter("until", "begun before this time: RFC 3339, or so long ago", "2026-01-31T12:00:00Z"),
    Parameter("code", "only requests that ended with this error code", "budget_exhausted"),
    Parameter("session", "only this session, as x-session-id named it", "s-1"),
    Parameter("user", "only this user, as x-user-id named it", "u-1"),
    *PAGED,
)


class Admin:
    """Records of requests.  flush: awaited before each read, so that a request that has just finished is found."""

    def __init__(self, store: RecordStore, flush: Callable[[], Awaitable[None]] | None = None) -> None:
        self._store = store
        self._flush = flush

    def operations(self) -> list[Operation]:
        path = "/admin/v1/exchanges"
        return [
            Operation("GET", path, "listExchanges", "Requests, newest first", self._list, Page, query=PARAMETERS),
            Operation("GET", path + "/{id}", "getExchange", "All about one request", self._show, Record),
        ]

    async def _show(self, asked: Asked) -> Record:
        await self._flushed()
        record = await self._store.get(asked.path["id"])
        if record is None or not asked.operator.sees(record.team):
            raise BadCall(
                "no record has this id: it may be older than telemetry.records.days, or another gateway's",
                code="not_found",
                status=404,
                param="id",
            )
        return record

    async def _list(self, asked: Asked) -> Page:
        query = _query(asked.query, time.time_ns(), asked.operator.teams)
        if query.team is not None and not asked.operator.sees(query.team):
            raise missing("team", "team")
        await self._flushed()
        try:
            return await self._store.find(query)
        except ValueError as error:
            raise bad("cursor", f"{error}: take next_cursor of the page before, as it is")

    async def _flushed(self) -> None:
        if self._flush is not None:
            await self._flush()


def read_query(query_string: bytes, now: int) -> Query:
    """What a list was asked for.  now: ns since the epoch.  Raises BadCall naming the parameter."""
    return _query(read_parameters(query_string, PARAMETERS), now)


def _query(given: Mapping[str, str], now: int, teams: frozenset[str] | None = None) -> Query:
    status = given.get("status")
    span, failed = (None, False) if status is None else _status(status)
    return Query(
        team=given.get("team"),
        teams=teams,
        model=given.get("model"),
        code=given.get("code"),
        session=given.get("session"),
        user=given.get("user"),
        status=span,
        failed=failed,
        since=read_moment("since", given.get("since"), now),
        until=read_moment("until", given.get("until"), now),
        limit=read_limit(given),
        cursor=given.get("cursor"),
    )


def _status(text: str) -> tuple[tuple[int, int] | None, bool]:
    """The range of statuses that is wanted, and whether only failures are."""
    if text == "error":
        return None, True
    if re.fullmatch(r"[1-5]xx", text):
        lowest = int(text[0]) * 100
        return (lowest, lowest + 99), False
    if re.fullmatch(r"[1-5][0-9][0-9]", text):
        return (int(text), int(text)), False
    raise bad("status", "an HTTP status (200), a class (4xx) or `error` is wanted")
