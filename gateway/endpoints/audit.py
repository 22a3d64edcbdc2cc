"""/admin/v1/audit: who changed what, and whether the log of it is as it was written."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from gateway.plane import PAGED, Asked, Operation, bad, read_limit
from gateway.roster import Roster
from gateway.store.directory import AuditEntry, Checked

PATH: Final = "/admin/v1/audit"


class AuditPage(Struct, frozen=True):
    data: list[AuditEntry]
    next_cursor: str | None


class Audit:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        changes, verify = "Changes, newest first", "Whether a row of the log was altered, removed or moved"
        return [
            Operation("GET", PATH, "listAudit", changes, self._list, AuditPage, None, PAGED, everywhere=True),
            Operation("GET", PATH + "/verify", "verifyAudit", verify, self._verify, Checked, everywhere=True),
        ]

    async def _list(self, asked: Asked) -> AuditPage:
        cursor, limit = asked.query.get("cursor"), read_limit(asked.query)
        if cursor is not None and not re.fullmatch(r"[1-9][0-9]{0,17}", cursor):
            raise bad("cursor", "not a cursor of this list: take next_cursor of the page before, as it is")
        rows = await self._roster.directory.audit(None if cursor is None else int(cursor), limit + 1)
        return AuditPage(rows[:limit], str(rows[limit - 1].seq) if len(rows) > limit else None)

    async def _verify(self, asked: Asked) -> Checked:
        return await self._roster.directory.check()
