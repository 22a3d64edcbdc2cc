"""Keys from the admin API: shown once, known at once, never wider than their team, rotated, revoked, ended."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.store import write_time
from tests.running import KEY, Running, config, running
from tests.scripted import plain, scripted

MODELS = {
    name: {"targets": [{"provider": "up", "model": name}], "price": {"input": 1, "output": 2}} for name in ("m", "n")
}


def error(answer: httpx2.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    assert told["param"] is None or told["param"].split(".")[0] in told["message"]
    return answer.status_code, told["code"], told["param"]


async def call(gateway: Running, key: str, **body: Any) -> int:
    return (await gateway.chat(headers={"authorization": f"Bearer {key}"}, **body)).status_code


async def test_a_key_is_shown_once_and_answers_at_once_for_a_declared_and_a_created_team() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/teams", name="search")
        for team in ("checkout", "search"):
            made = await gateway.made("/keys", team=team, name="app")
            key = made.pop("key")
            assert key.startswith("tk_")
            assert made["hint"] == key[-4:]
            assert await call(gateway, key) == 200
            x = await gateway.finished(len(gateway.seen))
            assert (x.caller.team, x.caller.key) == (team, "app")
            shown = (await gateway.admin("GET", f"/keys/{made['id']}")).json()
            assert shown == made
            assert await call(gateway, key[:-1] + ("a" if key[-1] != "a" else "b")) == 401
            for path in ("/keys", "/audit", "/teams", f"/keys?team={team}"):
                assert key not in (await gateway.admin("GET", path)).text
        assert gateway.app.roster is not None
        stored = Path(gateway.app.roster.directory.path).read_bytes()  # type: ignore[attr-defined]
        wal = Path(gateway.app.roster.directory.path + "-wal").read_bytes()  # type: ignore[attr-defined]
        assert key.encode() not in stored + wal
        assert key[3:40].encode() not in stored + wal


async def test_a_mistyped_key_is_told_so() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        key = (await gateway.made("/keys", team="checkout", name="app"))["key"]
        answer = await gateway.chat(headers={"authorization": f"Bearer {key[:-3]}"})
        assert answer.status_code == 401
        assert "mistyped" in answer.json()["error"]["message"]


async def test_a_revoked_key_is_refused_at_once_and_stays_so() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/keys", team="checkout", name="app")
        assert await call(gateway, made["key"]) == 200
        revoked = await gateway.admin("DELETE", f"/keys/{made['id']}")
        assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
        answer = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "revoked" in answer.json()["error"]["message"]
        again = await gateway.admin("DELETE", f"/keys/{made['id']}")
        assert again.json()["revoked"] == revoked.json()["revoked"]
        for method, path, body in (("PATCH", "", {"models": None}), ("POST", "/rotate", {})):
            answer = await gateway.admin(method, f"/keys/{made['id']}{path}", body)
            assert error(answer) == (409, "already_revoked", "id")
        assert (await gateway.made("/keys", team="checkout", name="app"))["id"] != made["id"]  # the name is free again


async def test_a_rotated_key_is_valid_until_its_overlap_ends() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/keys", team="checkout", name="app")
        path = f"/keys/{made['id']}/rotate"
        second = await gateway.made(path, overlap_seconds=1)
        assert second["id"] == made["id"]
        assert [old["hint"] for old in second["former"]] == [made["hint"]]
        assert [await call(gateway, key) for key in (made["key"], second["key"])] == [200, 200]
        await asyncio.sleep(1.05)
        assert [await call(gateway, key) for key in (made["key"], second["key"])] == [401, 200]
        third = await gateway.made(path, overlap_seconds=0)
        assert [await call(gateway, key) for key in (second["key"], third["key"])] == [401, 200]
        assert third["former"] == []
        for _ in range(8):
            await gateway.made(path)
        assert error(await gateway.admin("POST", path, {})) == (409, "in_use", "overlap_seconds")
        cut = await gateway.made(path, overlap_seconds=0)  # a leaked key is cut off, whatever was promised to others
        assert [await call(gateway, key) for key in (third["key"], cut["key"])] == [401, 200]


async def test_a_key_ends_when_it_expires() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        soon = write_time(time.time_ns() + 700_000_000)
        made = await gateway.made("/keys", team="checkout", name="app", expires=soon)
        assert await call(gateway, made["key"]) == 200
        await asyncio.sleep(0.75)
        answer = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"})
        assert answer.status_code == 401
        assert "expired" in answer.json()["error"]["message"]
        assert (await gateway.admin("GET", f"/keys/{made['id']}")).json()["state"] == "expired"
        longer = await gateway.admin("PATCH", f"/keys/{made['id']}", {"expires": None})
        assert (longer.json()["state"], longer.json()["expires"]) == ("active", None)
        assert await call(gateway, made["key"]) == 200


async def test_a_key_uses_its_own_models_and_is_told_that_it_is_the_key() -> None:
    teams = {"checkout": {"models": ["m", "n"], "keys": [{"name": "web", "key": KEY}]}}
    async with scripted(plain) as up, running(config(up.url, models=MODELS, teams=teams)) as gateway:
        made = await gateway.made("/keys", team="checkout", name="app", models=["n"])
        assert [await call(gateway, made["key"], model=model) for model in ("m", "n")] == [403, 200]
        told = (await gateway.chat(headers={"x-api-key": made["key"], "authorization": ""})).status_code
        assert told == 400  # two credentials
        answer = await gateway.chat(headers={"authorization": f"Bearer {made['key']}"}, model="m")
        assert "key 'app' of team 'checkout'" in answer.json()["error"]["message"]
        assert (await gateway.admin("PATCH", f"/keys/{made['id']}", {"models": None})).status_code == 200
        assert await call(gateway, made["key"], model="m") == 200


async def test_a_key_has_its_own_limits_and_its_teams_and_a_change_acts_at_once() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/teams", name="search", limits={"requests_per_minute": 5})
        made = await gateway.made("/keys", team="search", name="app", limits={"requests_per_minute": 2})
        other = await gateway.made("/keys", team="search", name="other")
        assert [await call(gateway, made["key"]) for _ in range(3)] == [200, 200, 429]
        path = f"/keys/{made['id']}"
        raised = await gateway.admin("PATCH", path, {"limits": {"requests_per_minute": 3, "concurrent": 9}})
        assert raised.json()["limits"] == {"requests_per_minute": 3, "concurrent": 9}
        assert [await call(gateway, made["key"]) for _ in range(2)] == [200, 429]
        dropped = await gateway.admin("PATCH", path, {"limits": {"requests_per_minute": None}})
        assert dropped.json()["limits"] == {"concurrent": 9}
        assert [await call(gateway, key) for key in (made["key"], other["key"], other["key"])] == [200, 200, 429]


BAD: list[tuple[Any, int, str, str | None]] = [
    ({}, 400, "invalid_request", "team"),
    ({"team": "checkout"}, 400, "invalid_request", "name"),
    ({"team": "checkout", "name": ""}, 400, "invalid_request", "name"),
    ({"team": "checkout", "name": "a' OR '1'='1"}, 400, "invalid_request", "name"),
    ({"team": "x'; DROP TABLE item; --", "name": "a"}, 400, "invalid_request", "team"),
    ({"team": "nobody", "name": "a"}, 404, "not_found", "team"),
    ({"team": "checkout", "name": 7}, 400, "invalid_request", "name"),
    ({"team": "checkout", "name": "a", "role": "admin"}, 400, "invalid_request", "role"),
    ({"team": "checkout", "name": "a", "key": "tk_mine"}, 400, "invalid_request", "key"),
    ({"team": "checkout", "name": "web"}, 409, "declared_in_config", "name"),
    ({"team": "checkout", "name": "taken"}, 409, "already_exists", "name"),
    ({"team": "checkout", "name": "a", "models": ["n"]}, 403, "not_allowed", "models.0"),
    ({"team": "checkout", "name": "a", "models": ["m", "x' --"]}, 400, "invalid_request", "models.1"),
    ({"team": "checkout", "name": "a", "models": ["gone"]}, 400, "invalid_request", "models.0"),
    ({"team": "checkout", "name": "a", "content": "full"}, 403, "not_allowed", "content"),
    ({"team": "checkout", "name": "a", "content": "all"}, 400, "invalid_request", "content"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": 6}}, 403, "not_allowed", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": 0}}, 400, "invalid_request", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": -1}}, 400, "invalid_request", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": 1.5}}, 400, "invalid_request", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": "1"}}, 400, "invalid_request", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"concurrent": 10**13}}, 400, "invalid_request", "limits.concurrent"),
    ({"team": "checkout", "name": "a", "limits": {"per_second": 1}}, 400, "invalid_request", "limits.per_second"),
    ({"team": "checkout", "name": "a", "expires": "tomorrow"}, 400, "invalid_request", "expires"),
    ({"team": "checkout", "name": "a", "expires": "2020-01-01T00:00:00Z"}, 400, "invalid_request", "expires"),
    ([], 400, "invalid_request", None),
    ("x", 400, "invalid_request", None),
]


async def test_what_makes_no_sense_or_reaches_too_far_is_named_and_changes_nothing() -> None:
    teams = {"checkout": {"models": ["m"], "limits": {"concurrent": 5}, "keys": [{"name": "web", "key": KEY}]}}
    async with scripted(plain) as up, running(config(up.url, models=MODELS, teams=teams)) as gateway:
        await gateway.made("/keys", team="checkout", name="taken")
        before = (await gateway.admin("GET", "/keys")).text
        for body, *told in BAD:
            assert list(error(await gateway.admin("POST", "/keys", body))) == told, body
        for id in ("key_none", "..", "x' OR '1'='1", "%00", "a/b", "config:checkout:none", "key_" + "0" * 5000):
            for method, rest, body in (
                ("GET", "", None),
                ("PATCH", "", {}),
                ("DELETE", "", None),
                ("POST", "/rotate", {}),
            ):
                path = f"/keys/{httpx2.QueryParams({'': id})!s}".replace("=", "", 1) + rest
                answer = await gateway.admin(method, path, body)
                assert answer.status_code in (404, 405), (id, method, answer.text)
        assert (await gateway.admin("GET", "/keys")).text == before
        assert (await gateway.admin("GET", "/audit")).json()["data"][0]["seq"] == 1


async def test_a_key_of_config_yaml_is_seen_and_cannot_be_changed_here() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        (listed,) = (await gateway.admin("GET", "/keys")).json()["data"]
        assert (listed["id"], listed["source"], listed["hint"]) == ("config:checkout:web", "config", None)
        assert (await gateway.admin("GET", f"/keys/{listed['id']}")).json() == listed
        for method, rest, body in (("PATCH", "", {}), ("DELETE", "", None), ("POST", "/rotate", {})):
            answer = await gateway.admin(method, f"/keys/{listed['id']}{rest}", body)
            assert error(answer) == (409, "declared_in_config", "id")


async def test_lists_are_paged_in_one_order() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        ids = {(await gateway.made("/keys", team="checkout", name=f"k{n}"))["id"] for n in range(7)}
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            more = f"&cursor={cursor}" if cursor else ""
            page = (await gateway.admin("GET", f"/keys?limit=3{more}")).json()
            seen += [line["id"] for line in page["data"]]
            cursor = page["next_cursor"]
        assert seen == sorted(ids | {"config:checkout:web"})
        assert error(await gateway.admin("GET", "/keys?limit=0")) == (400, "invalid_request", "limit")
        assert error(await gateway.admin("GET", "/keys?team=nobody")) == (404, "not_found", "team")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"team": "\\ud800"}', b"[" * 10_000, b"NaN"])
async def test_what_is_no_json_is_said(body: bytes) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        headers = {"authorization": "Bearer admin-key-for-tests", "content-type": "application/json"}
        answer = await gateway.client.post("/admin/v1/keys", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in ("invalid_json", "invalid_request")
        answer = await gateway.client.post("/admin/v1/keys", content=b"x" * 65_537, headers=headers)
        assert answer.status_code == 413
        answer = await gateway.client.post("/admin/v1/keys", content=b"{}", headers=headers | {"content-type": "a/b"})
        assert answer.status_code == 415
