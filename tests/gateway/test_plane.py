"""Who may ask what at the admin plane: every operation, for every role, with one's own and with foreign ids."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from pydantic import Field

from gateway.errors import BadCall, Unidentified
from gateway.plane import ROOT, Body, Door, Operation, Parameter, page, read_expiry, read_parameters, understand
from gateway.roster import KnownToken, Operator
from gateway.settings import Limits
from gateway.store import write_time
from tests.running import ADMIN, KEY, Running, config, running
from tests.scripted import plain, scripted

TEAMS = {
    "mine": {"keys": [{"name": "web", "key": KEY}]},
    "theirs": {"keys": [{"name": "web", "key": "tk-key-of-the-other-team"}]},
}


async def furnished(gateway: Running) -> dict[str, dict[str, str]]:
    """Ids of one thing of each kind, of my team and of theirs."""
    ids: dict[str, dict[str, str]] = {}
    for team in ("mine", "theirs"):
        organisation = (await gateway.made("/organisations", name=f"org-{team}"))["name"]
        await gateway.made("/teams", name=f"{team}-2", organisation=organisation)
        call = await gateway.chat(headers={"authorization": f"Bearer {TEAMS[team]['keys'][0]['key']}"})
        ids[team] = {
            "organisations": organisation,
            "teams": f"{team}-2",
            "keys": (await gateway.made("/keys", team=team, name="app"))["id"],
            "users": (await gateway.made("/users", team=team, user="u"))["id"],
            "budgets": (await gateway.made("/budgets", scope="user", team=team, user="u", limit_usd=1, per="day"))[
                "id"
            ],
            "exchanges": call.headers["x-request-id"],
            "tokens": (await gateway.made("/tokens", name=f"token-{team}", role="viewer", teams=[team]))["id"],
        }
    return ids


async def operators(gateway: Running) -> dict[str, str]:
    mine = ["mine", "mine-2"]
    said: dict[str, dict[str, Any]] = {
        "admin": {"role": "admin"},
        "owner": {"role": "owner", "teams": mine},
        "viewer": {"role": "viewer"},
        "viewer of mine": {"role": "viewer", "teams": mine},
    }
    made = {who: await gateway.made("/tokens", name=who.replace(" ", "-"), **words) for who, words in said.items()}
    return {who: one["token"] for who, one in made.items()}


BODIES = {
    "organisations": {"disabled": False},
    "teams": {"content": "none"},
    "keys": {"content": None},
    "users": {"limits": {}},
    "budgets": {"limit_usd": 2},
}


def expected(who: str, method: str, family: str, whose: str) -> int:
    """The rights, said once more in other words than the gateway says them."""
    if family == "tokens":
        return 200 if who == "admin" else 403
    reads = who.startswith("viewer") or (who == "owner" and family in ("teams", "organisations"))
    if reads and method != "GET":
        return 403
    if who in ("owner", "viewer of mine") and whose == "theirs":
        return 404
    return 200


async def test_each_role_reaches_what_is_its_own_and_foreign_ids_are_not_found() -> None:
    """Every operation that takes an id, for every role, with an id of the own team and of another."""
    async with scripted(plain) as up, running(config(up.url) | {"teams": TEAMS}) as gateway:
        ids, tokens = await furnished(gateway), await operators(gateway)
        document = (await gateway.admin("GET", "/openapi.json")).json()
        asked = 0
        for path, methods in document["paths"].items():
            found = re.fullmatch(r"/admin/v1/(\w+)/{\w+}", path)
            if found is None:
                continue
            family = found[1]
            for method in sorted(methods, key=["get", "patch", "delete"].index):
                for whose in ("theirs", "mine"):
                    for who in ("viewer", "viewer of mine", "owner", "admin"):
                        if method == "delete" and expected(who, "DELETE", family, whose) == 200:
                            continue  # done below, last, by the one who may least
                        body = BODIES.get(family) if method == "patch" else None
                        answer = await gateway.admin(method, f"/{family}/{ids[whose][family]}", body, tokens[who])
                        case = (who, method, path, whose, answer.text)
                        assert answer.status_code == expected(who, method.upper(), family, whose), case
                        if answer.status_code == 404:
                            none = await gateway.admin(method, f"/{family}/none", body, tokens[who])
                            assert none.json() == answer.json(), case  # nothing tells a foreign one from none
                        asked += 1
        assert asked > 100
        for family in ("budgets", "users", "keys"):
            answer = await gateway.admin("DELETE", f"/{family}/{ids['mine'][family]}", None, tokens["owner"])
            assert answer.status_code == 200, answer.text


async def test_lists_show_each_role_its_own() -> None:
    async with scripted(plain) as up, running(config(up.url) | {"teams": TEAMS}) as gateway:
        ids, tokens = await furnished(gateway), await operators(gateway)
        for family in ("organisations", "teams", "keys", "users", "budgets", "exchanges"):
            for who, token in tokens.items():
                text = (await gateway.admin("GET", f"/{family}", None, token)).text
                assert ids["mine"][family] in text
                assert (ids["theirs"][family] in text) == (who in ("admin", "viewer")), (who, family)
        for path in (
            "/exchanges?team=theirs",
            "/keys?team=theirs",
            "/users?team=theirs",
            "/users?team=none",
            "/budgets?team=theirs",
            "/refusals?team=theirs",
        ):
            assert (await gateway.admin("GET", path, None, tokens["owner"])).status_code == 404
        assert (await gateway.admin("GET", "/exchanges?team=mine", None, tokens["owner"])).status_code == 200
        for path in ("/audit", "/audit/verify"):
            for who, status in (("owner", 403), ("viewer of mine", 403), ("viewer", 200), ("admin", 200)):
                assert (await gateway.admin("GET", path, None, tokens[who])).status_code == status


async def test_nobody_makes_what_reaches_further_than_oneself() -> None:
    async with scripted(plain) as up, running(config(up.url) | {"teams": TEAMS}) as gateway:
        await furnished(gateway)
        tokens = await operators(gateway)
        rows = (await gateway.admin("GET", "/audit")).json()["data"][0]["seq"]
        budget = {"limit_usd": 1, "per": "day"}
        for who, path, body, status, param in [
            ("owner", "/tokens", {"name": "t", "role": "admin"}, 403, None),
            ("owner", "/teams", {"name": "t"}, 403, None),
            ("owner", "/organisations", {"name": "t"}, 403, None),
            ("owner", "/keys", {"team": "theirs", "name": "t"}, 404, "team"),
            ("owner", "/users", {"team": "theirs", "user": "t"}, 404, "team"),
            ("owner", "/budgets", {"scope": "team", "team": "mine", **budget}, 403, "scope"),
            ("owner", "/budgets", {"scope": "team", "team": "theirs", **budget}, 404, "team"),
            ("owner", "/budgets", {"scope": "key", "team": "theirs", "key": "web", **budget}, 404, "team"),
            ("owner", "/budgets", {"scope": "organisation", "organisation": "org-mine", **budget}, 403, "scope"),
            ("owner", "/budgets", {"scope": "model", "model": "m", **budget}, 403, "scope"),
            ("owner", "/budgets", {"scope": "feature", "feature": "f", **budget}, 403, "scope"),
            ("viewer", "/keys", {"team": "mine", "name": "t"}, 403, None),
            ("viewer", "/budgets", {"scope": "user", "team": "mine", "user": "x", **budget}, 403, None),
        ]:
            answer = await gateway.admin("POST", path, body, tokens[who])
            told = answer.json()["error"]
            assert (answer.status_code, told["param"]) == (status, param), (path, body, told)
        assert (await gateway.admin("GET", "/audit")).json()["data"][0]["seq"] == rows
        assert (await gateway.admin("GET", "/teams", None, KEY)).status_code == 401  # a caller's key is none of these


async def test_a_token_ends_when_it_is_revoked_or_expires() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/tokens", name="a", role="admin")
        soon = write_time(time.time_ns() + 600_000_000)
        short = await gateway.made("/tokens", name="b", role="viewer", expires=soon)
        for one in (made, short):
            assert (await gateway.admin("GET", "/teams", None, one["token"])).status_code == 200
        assert (await gateway.admin("DELETE", f"/tokens/{made['id']}", None, made["token"])).status_code == 200
        await asyncio.sleep(0.65)
        for one, why in ((made, "revoked"), (short, "expired")):
            answer = await gateway.admin("GET", "/teams", None, one["token"])
            assert (answer.status_code, why in answer.text) == (401, True)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_other_methods_are_named(method: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        answer = await gateway.admin(method, "/keys")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_an_empty_admin_key_is_no_key() -> None:
    with pytest.raises(ValueError, match=r"server\.admin_key is empty"):
        Door("")


def test_the_admin_key_is_root_and_tokens_are_found_by_what_they_are() -> None:
    owner = Operator("token a", "owner", frozenset({"t"}))
    tokens = {b"good": KnownToken(owner, None, False), b"old": KnownToken(owner, 1, False)}
    door = Door(ADMIN, tokens.get)
    assert door.enter([(b"x-api-key", ADMIN.encode())]) is ROOT
    assert door.enter([(b"authorization", b"Bearer good")]) == owner
    for presented in (b"old", b"other", b""):
        with pytest.raises(Unidentified):
            door.enter([(b"x-api-key", presented)])


def test_names_with_slashes_reach_their_path_and_no_other() -> None:
    async def none(asked: Any) -> object:
        return None

    paths = ["/a/{id}", "/a/{id}/rotate", "/a", "/a/verify"]
    routes = Door(ADMIN).routes([Operation("GET", path, path, path, none, None) for path in paths])
    order = [str(getattr(route, "path", "")) for route in routes]
    assert order.index("/a/verify") < order.index("/a/{id:path}")
    assert order.index("/a/{id:path}/rotate") < order.index("/a/{id:path}")


class Said(Body):
    name: str = Field(max_length=3)
    limits: Limits = Limits()


@pytest.mark.parametrize(
    ("raw", "param", "code"),
    [
        (b"{}", "name", "invalid_request"),
        (b'{"name": "abcd"}', "name", "invalid_request"),
        (b'{"name": "a", "x\\u0000y": 1}', "x?y", "invalid_request"),
        (b'{"name": "a", "limits": {"concurrent": true}}', "limits.concurrent", "invalid_request"),
        (b'{"name": "a", "limits": {"nope": 1}}', "limits.nope", "invalid_request"),
        (b'{"name": "a"', None, "invalid_json"),
        (b"null", None, "invalid_request"),
    ],
)
def test_the_first_wrong_field_is_named_and_its_value_is_not_echoed(raw: bytes, param: str | None, code: str) -> None:
    with pytest.raises(BadCall) as caught:
        understand(raw, Said)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert "abcd" not in caught.value.message
    assert caught.value.message.isprintable()


def test_pages_hold_everything_once() -> None:
    lines = {f"{n:02}": n for n in range(10)}
    seen: list[int] = []
    given = {"limit": "3"}
    while True:
        found, cursor = page(lines, given)
        seen += found
        if cursor is None:
            break
        given = {"limit": "3", "cursor": cursor}
    assert seen == list(range(10))
    assert page({}, {}) == ([], None)


def test_parameters_are_known_once_and_short() -> None:
    known = [Parameter("team", "")]
    assert read_parameters(b"team=a%20b", known) == {"team": "a b"}
    for bad in (b"team=a&team=b", b"team=", b"other=1", b"team=" + b"a" * 513, b"team=%ff"):
        with pytest.raises(BadCall):
            read_parameters(bad, known)


@pytest.mark.parametrize("text", ["", "soon", "2027-01-01", "2027-01-01T00:00:00", "1999-01-01T00:00:00Z"])
def test_an_end_is_a_time_to_come(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_expiry(text)
    assert caught.value.param == "expires"
    assert read_expiry(None) is None
    assert read_expiry("2100-01-01T01:00:00+01:00") == "2100-01-01T00:00:00.000000000Z"


async def test_a_store_that_cannot_be_written_is_unavailable_and_nothing_has_changed() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/keys", team="checkout", name="app")
        connection = gateway.app.roster.directory._connection  # type: ignore[union-attr]
        connection.execute("ALTER TABLE audit RENAME TO away")
        for answer in (
            await gateway.admin("POST", "/teams", {"name": "a"}),
            await gateway.admin("DELETE", f"/keys/{made['id']}"),
            await gateway.admin("GET", "/audit"),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        chat = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"})
        assert chat.status_code == 200  # never 401 because of the store
        connection.execute("ALTER TABLE away RENAME TO audit")
        assert "a" not in [team["name"] for team in (await gateway.admin("GET", "/teams")).json()["data"]]
