"""/admin/v1/organisations: groups of teams, which can be switched off together."""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.plane import PAGED, Asked, Body, Gone, Operation, conflict, missing, page
from gateway.roster import Decided, Operator, Roster, Snapshot
from gateway.settings import Name
from gateway.store import write_time
from gateway.store.directory import Organisation

PATH: Final = "/admin/v1/organisations"


class NewOrganisation(Body):
    name: Name
    disabled: bool = False  # no key of its teams is accepted


class OrganisationChange(Body):
    disabled: bool


class OrganisationTold(Struct, frozen=True):
    name: str
    disabled: bool
    teams: list[str]
    created: str


class OrganisationPage(Struct, frozen=True):
    data: list[OrganisationTold]
    next_cursor: str | None


class Organisations:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def operations(self) -> list[Operation]:
        one, told = PATH + "/{organisation}", OrganisationTold
        return [
            Operation("GET", PATH, "listOrganisations", "Organisations", self._list, OrganisationPage, query=PAGED),
            Operation(
                "POST", PATH, "createOrganisation", "Create an organisation", self._create, told, NewOrganisation,
                role="admin", status=201,
            ),
            Operation("GET", one, "getOrganisation", "One organisation", self._show, told),
            Operation(
                "PATCH", one, "changeOrganisation", "Switch an organisation off or on", self._change, told,
                OrganisationChange, role="admin",
            ),
            Operation(
                "DELETE", one, "deleteOrganisation", "Delete an organisation without teams", self._delete, Gone,
                role="admin",
            ),
        ]  # fmt: skip

    async def _list(self, asked: Asked) -> OrganisationPage:
        snapshot = self._roster.snapshot
        mine = {name: one for name, one in snapshot.organisations.items() if _sees(asked.operator, name, snapshot)}
        found, cursor = page(mine, asked.query)
        return OrganisationPage([_told(one, asked.operator, snapshot) for one in found], cursor)

    async def _show(self, asked: Asked) -> OrganisationTold:
        snapshot = self._roster.snapshot
        return _told(_find(asked, snapshot), asked.operator, snapshot)

    async def _create(self, asked: Asked) -> OrganisationTold:
        body: NewOrganisation = asked.body

        def decide(snapshot: Snapshot) -> Decided[OrganisationTold]:
            if body.name in snapshot.organisations:
                raise conflict("name", "there is an organisation of this name", "already_exists")
            new = Organisation(body.name, write_time(time.time_ns()), body.disabled)
            return Decided(_told(new, asked.operator, snapshot), "create", None, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _change(self, asked: Asked) -> OrganisationTold:
        body: OrganisationChange = asked.body

        def decide(snapshot: Snapshot) -> Decided[OrganisationTold]:
            old = _find(asked, snapshot)
            new = replace(old, disabled=body.disabled)
            return Decided(_told(new, asked.operator, snapshot), "change", old, new)

        return await self._roster.change(asked.operator.name, decide)

    async def _delete(self, asked: Asked) -> Gone:
        def decide(snapshot: Snapshot) -> Decided[Gone]:
            old = _find(asked, snapshot)
            if teams := _teams(old.name, snapshot):
                said = f"it has the teams {', '.join(teams[:10])}: move or delete them first"
                raise conflict("organisation", said, "in_use")
            for budget in snapshot.budgets.values():
                if budget.organisation == old.name:
                    raise conflict("organisation", f"it has the budget {budget.id}: delete that first", "in_use")
            return Decided(Gone(old.name), "delete", old, None)

        return await self._roster.change(asked.operator.name, decide)


def _find(asked: Asked, snapshot: Snapshot) -> Organisation:
    found = snapshot.organisations.get(asked.path["organisation"])
    if found is None or not _sees(asked.operator, found.name, snapshot):
        raise missing("organisation", "organisation")
    return found


def _teams(organisation: str, snapshot: Snapshot) -> list[str]:
    return sorted(team.name for team in snapshot.teams.values() if team.organisation == organisation)


def _sees(operator: Operator, organisation: str, snapshot: Snapshot) -> bool:
    return operator.teams is None or any(operator.sees(team) for team in _teams(organisation, snapshot))


def _told(one: Organisation, operator: Operator, snapshot: Snapshot) -> OrganisationTold:
    teams = [team for team in _teams(one.name, snapshot) if operator.sees(team)]
    return OrganisationTold(one.name, one.disabled, teams, one.created)
