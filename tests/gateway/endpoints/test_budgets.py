"""Budgets from the admin API: exact amounts, one for each scope and period, and no absurd one."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from gateway.ledger import LedgerUnavailable
from tests.running import Running, config, running
from tests.scripted import Asked, plain, scripted

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


# ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "status", "param"),
    [
        ({"limit_usd": -1}, 400, "limit_usd"),
        ({"limit_usd": "1e300"}, 400, "limit_usd"),
        ({"limit_usd": "0.0000000001"}, 400, "limit_usd"),
        ({"limit_usd": "50' OR '1'='1"}, 400, "limit_usd"),
        ({"limit_usd": None}, 400, "limit_usd"),
        ({"hard": None}, 400, "hard"),
        ({"warn_at": [2]}, 400, "warn_at.0"),
        ({"per": "day"}, 400, "per"),  # what it is of stays
        ({"scope": "organisation"}, 400, "scope"),
        ({"team": "other"}, 400, "team"),
        ({"zone": "Mars/Olympus"}, 400, "zone"),
        ({"force": "yes"}, 400, "force"),
    ],
)
async def test_a_change_that_makes_no_sense_is_named_and_changes_nothing(
    said: dict[str, Any], status: int, param: str
) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/budgets", **ONE)
        answer = await gateway.admin("PATCH", f"/budgets/{made['id']}", said)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        assert (await gateway.admin("GET", f"/budgets/{made['id']}")).json() == made
        assert len((await gateway.admin("GET", "/audit")).json()["data"]) == 1


SCOPES: list[dict[str, Any]] = [
    {"scope": "team", "team": "search"},
    {"scope": "key", "team": "search", "key": "app"},
    {"scope": "user", "team": "search", "user": "u 1"},
    {"scope": "organisation", "organisation": "acme"},
    {"scope": "feature", "feature": "cart"},
    {"scope": "feature", "feature": "cart", "team": "search"},
    {"scope": "model", "model": "m"},
    {"scope": "model", "model": "m", "team": "search"},
]


async def made_search(gateway: Running) -> dict[str, str]:
    """A created team in an organisation; the headers of a call that touches every scope."""
    await gateway.made("/organisations", name="acme")
    await gateway.made("/teams", name="search", organisation="acme")
    key = (await gateway.made("/keys", team="search", name="app"))["key"]
    return {"authorization": f"Bearer {key}", "x-user-id": "u 1", "x-feature": "cart"}


async def test_a_hard_limit_is_not_lowered_below_what_is_spent_unless_forced() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        headers = await made_search(gateway)
        made = [await gateway.made("/budgets", **scope, limit_usd=1, per="month") for scope in SCOPES]
        # Another user's name begins alike: what that one spends is not this one's.
        await gateway.made("/budgets", scope="user", team="search", user="u 11", limit_usd=1, per="month")
        for user in ("u 1", "u 11"):
            assert (await gateway.chat(headers=headers | {"x-user-id": user}, max_tokens=10)).status_code == 200
        rows = len((await gateway.admin("GET", "/audit")).json()["data"])
        for one in made:
            answer = await gateway.admin("PATCH", f"/budgets/{one['id']}", {"limit_usd": "0.000000001"})
            told = answer.json()["error"]
            assert (answer.status_code, told["code"], told["param"]) == (409, "below_committed", "limit_usd"), one
            assert (await gateway.admin("GET", f"/budgets/{one['id']}")).json() == one
        assert len((await gateway.admin("GET", "/audit")).json()["data"]) == rows
        for one in made:  # lower, but above what is spent and leased
            answer = await gateway.admin("PATCH", f"/budgets/{one['id']}", {"limit_usd": "0.9"})
            assert answer.status_code == 200, answer.text
        user = next(one for one in made if one["scope"] == "user")
        forced = await gateway.admin("PATCH", f"/budgets/{user['id']}", {"limit_usd": 0, "force": True})
        assert (forced.json()["limit_usd"], "force" in forced.json()) == ("0", False)
        assert (await gateway.chat(headers=headers, max_tokens=10)).status_code == 429
        assert (await gateway.chat(headers=headers | {"x-user-id": "u 11"}, max_tokens=10)).status_code == 200
        assert (await gateway.admin("GET", "/ledger/audit")).json()["sound"]


async def test_a_hard_limit_is_not_lowered_below_what_is_held_and_a_soft_one_may_be() -> None:
    let_go = asyncio.Event()

    async def slow(asked: Asked) -> None:
        await let_go.wait()
        await plain(asked)

    async with scripted(slow) as up, running(config(up.url)) as gateway:
        one = await gateway.made("/budgets", **ONE)
        call = asyncio.create_task(gateway.chat(max_tokens=100_000))  # may cost 0.2 USD
        while not up.asked:
            await asyncio.sleep(0.01)
        path = f"/budgets/{one['id']}"
        held = await gateway.admin("PATCH", path, {"limit_usd": "0.19"})
        assert (held.status_code, held.json()["error"]["code"]) == (409, "below_committed")
        assert (await gateway.admin("PATCH", path, {"hard": False, "limit_usd": "0.19"})).status_code == 200
        hard = await gateway.admin("PATCH", path, {"hard": True})
        assert (hard.status_code, hard.json()["error"]["code"]) == (409, "below_committed")
        assert (await gateway.admin("PATCH", path, {"warn_at": [0.5]})).status_code == 200
        let_go.set()
        assert (await call).status_code == 200


async def test_without_the_ledger_a_limit_is_lowered_by_force_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        one = await gateway.made("/budgets", **ONE)
        assert gateway.app.books is not None

        async def away(*args: object, **words: object) -> list[object]:
            raise LedgerUnavailable("the ledger is away")

        monkeypatch.setattr(gateway.app.books.ledger, "windows", away)
        asked = await gateway.admin("PATCH", f"/budgets/{one['id']}", {"limit_usd": 1})
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "1")
        forced = await gateway.admin("PATCH", f"/budgets/{one['id']}", {"limit_usd": 1, "force": True})
        assert forced.json()["limit_usd"] == "1"


SQL = ["' OR '1'='1", "x'; DROP TABLE budget_window; --", '"; DELETE FROM item; --', "u%", "$1", "?1", "a\\'b"]


@pytest.mark.parametrize("word", SQL)
async def test_words_of_sql_are_refused_or_only_words_wherever_they_stand(word: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        one = await gateway.made("/budgets", **ONE)
        for name, status in (("team", 400), ("key", 400), ("organisation", 400), ("model", 400), ("per", 400)):
            scope = {"scope": name} if name in ("team", "key", "organisation", "model") else {}
            answer = await gateway.admin("POST", "/budgets", {**ONE, **scope, name: word})
            assert answer.status_code == status, (name, answer.text)
        for method, body in (("GET", None), ("PATCH", {"limit_usd": 1}), ("DELETE", None)):
            answer = await gateway.admin(method, f"/budgets/{quote(word, safe='')}", body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), (method, answer.text)
        listed = await gateway.admin("GET", f"/budgets?team={quote(word)}")
        assert (listed.status_code, listed.json()["error"]["param"]) == (404, "team")
        assert (await gateway.admin("GET", f"/budgets?cursor={quote(word)}")).status_code == 200
        assert (await gateway.admin("GET", "/budgets")).json()["data"] == [one]
        # What a caller chooses is only a word: it has its own budget, spends from it, and is found again.
        named = await gateway.made("/budgets", scope="user", team="checkout", user=word, limit_usd=1, per="day")
        assert (await gateway.chat(headers={"x-user-id": word}, max_tokens=10)).status_code == 200
        lower = await gateway.admin("PATCH", f"/budgets/{named['id']}", {"limit_usd": "0.000000001"})
        assert (lower.status_code, lower.json()["error"]["code"]) == (409, "below_committed")
        windows = (await gateway.admin("GET", f"/ledger/windows?budget={quote('user checkout day ' + word)}")).json()
        assert [w["budget"] for w in windows["data"]] == [f"user checkout day {word}"]
        assert (await gateway.admin("GET", "/ledger/audit")).json()["sound"]
