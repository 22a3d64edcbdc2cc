"""Organisations: groups of teams, switched off together, deleted only when empty."""

from __future__ import annotations

from tests.running import config, running
from tests.scripted import plain, scripted


async def test_an_organisations_life() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/organisations", name="acme")
        assert (made["teams"], made["disabled"]) == ([], False)
        again = await gateway.admin("POST", "/organisations", {"name": "acme"})
        assert (again.status_code, again.json()["error"]["param"]) == (409, "name")
        await gateway.made("/teams", name="search", organisation="acme")
        assert (await gateway.admin("GET", "/organisations/acme")).json()["teams"] == ["search"]
        held = await gateway.admin("DELETE", "/organisations/acme")
        assert (held.status_code, held.json()["error"]["code"], "search" in held.text) == (409, "in_use", True)
        off = await gateway.admin("PATCH", "/organisations/acme", {"disabled": True})
        assert (off.status_code, off.json()["disabled"]) == (200, True)
        await gateway.admin("PATCH", "/teams/search", {"organisation": None})
        budget = await gateway.made("/budgets", scope="organisation", organisation="acme", limit_usd=1, per="day")
        assert budget["id"] in (await gateway.admin("DELETE", "/organisations/acme")).text
        await gateway.admin("DELETE", f"/budgets/{budget['id']}")
        assert (await gateway.admin("DELETE", "/organisations/acme")).json()["deleted"]
        for method, body in (("GET", None), ("PATCH", {"disabled": True}), ("DELETE", None)):
            gone = await gateway.admin(method, "/organisations/acme", body)
            assert (gone.status_code, gone.json()["error"]["param"]) == (404, "organisation")
