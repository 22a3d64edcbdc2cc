"""Budgets from the admin API: exact amounts, one for each scope and period, and no absurd one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.running import Running, config, running
from tests.scripted import plain, scripted

ONE: dict[str, Any] = {"scope": "team", "team": "checkout", "limit_usd": 50, "per": "month"}


async def test_a_budgets_life() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/budgets", **ONE, zone="Europe/Berlin", warn_at=[0.9, 0.5, 0.9], hard=False)
        assert (made["limit_usd"], made["warn_at"], made["zone"]) == ("50", [0.5, 0.9], "Europe/Berlin")
        changed = await gateway.admin("PATCH", f"/budgets/{made['id']}", {"limit_usd": "0.000000001"})
        assert changed.json() == made | {"limit_usd": "0.000000001"}
        assert gateway.app.roster is not None
        (live,) = gateway.app.roster.budgets()
        assert (live.id, live.limit_usd) == (made["id"], "0.000000001")
        assert (await gateway.admin("DELETE", f"/budgets/{made['id']}")).json()["deleted"]
        assert gateway.app.roster.budgets() == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (0, "0"),
        ("9200000000", "9200000000"),
        (0.1, "0.1"),
        ("1e3", "1000"),
        ("0.100", "0.1"),
        (9.999999999, "9.999999999"),
    ],
)
async def test_amounts_are_exact(said: Any, kept: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        assert (await gateway.made("/budgets", **ONE | {"limit_usd": said}))["limit_usd"] == kept


async def test_one_of_each_scope_and_none_twice() -> None:
    scopes: list[dict[str, Any]] = [
        {"scope": "team", "team": "checkout"},
        {"scope": "key", "team": "checkout", "key": "web"},  # of config.yaml
        {"scope": "key", "team": "checkout", "key": "app"},
        {"scope": "user", "team": "checkout", "user": "anybody 💥"},
        {"scope": "organisation", "organisation": "acme"},
        {"scope": "feature", "feature": "search box"},
        {"scope": "feature", "feature": "search box", "team": "checkout"},
        {"scope": "model", "model": "m"},
        {"scope": "model", "model": "m", "team": "checkout"},
    ]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/organisations", name="acme")
        await gateway.made("/keys", team="checkout", name="app")
        for scope in scopes:
            for per in ("day", "week", "month", "total"):
                await gateway.made("/budgets", **scope, limit_usd=1, per=per)
            await refused(gateway, {**scope, "limit_usd": 2, "per": "day"}, 409, "per")
        assert len(gateway.app.roster.budgets()) == 4 * len(scopes)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "status", "param"),
    [
        ({"limit_usd": -1}, 400, "limit_usd"),
        ({"limit_usd": "-0.000000001"}, 400, "limit_usd"),
        ({"limit_usd": "NaN"}, 400, "limit_usd"),
        ({"limit_usd": "Infinity"}, 400, "limit_usd"),
        ({"limit_usd": 1e300}, 400, "limit_usd"),
        ({"limit_usd": "9200000000.1"}, 400, "limit_usd"),
        ({"limit_usd": "0.0000000001"}, 400, "limit_usd"),
        ({"limit_usd": "1; DROP TABLE item"}, 400, "limit_usd"),
        ({"limit_usd": None}, 400, "limit_usd"),
        ({"per": "fortnight"}, 400, "per"),
        ({"zone": "Mars/Olympus"}, 400, "zone"),
        ({"zone": "../../etc/passwd"}, 400, "zone"),
        ({"zone": "/etc/localtime"}, 400, "zone"),
        ({"hard": "yes"}, 400, "hard"),
        ({"warn_at": [0]}, 400, "warn_at.0"),
        ({"warn_at": [0.5, 1.1]}, 400, "warn_at.1"),
        ({"warn_at": [0.1] * 9}, 400, "warn_at"),
        ({"scope": "everything"}, 400, "scope"),
        ({"team": None}, 400, "team"),
        ({"team": "none"}, 404, "team"),
        ({"key": "web"}, 400, "key"),
        ({"scope": "key"}, 400, "key"),
        ({"scope": "key", "key": "none"}, 404, "key"),
        ({"scope": "user"}, 400, "user"),
        ({"scope": "user", "user": "a\tb"}, 400, "user"),
        ({"scope": "organisation", "team": None, "organisation": "none"}, 404, "organisation"),
        ({"scope": "model", "team": None, "model": "none"}, 404, "model"),
        ({"scope": "feature", "team": None}, 400, "feature"),
        ({"spent_usd": 0}, 400, "spent_usd"),
    ],
)
async def test_what_makes_no_sense_is_named(said: dict[str, Any], status: int, param: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await refused(gateway, ONE | said, status, param)
        assert (await gateway.admin("GET", "/audit")).json()["data"] == []


async def refused(gateway: Running, body: dict[str, Any], status: int, param: str) -> None:
    answer = await gateway.admin("POST", "/budgets", body)
    told = answer.json()["error"]
    assert (answer.status_code, told["param"].split("function-")[0]) == (status, param), told
    assert param in told["message"]
