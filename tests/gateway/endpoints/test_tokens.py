"""Admin tokens: shown once, each with a role that makes sense.  What each reaches: tests/gateway/test_plane.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.running import config, running
from tests.scripted import plain, scripted


async def test_a_token_is_shown_once() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        made = await gateway.made("/tokens", name="ci", role="owner", teams=["checkout", "checkout"])
        token = made.pop("token")
        assert token.startswith("tka_")
        assert (made["teams"], made["state"], made["hint"]) == (["checkout"], "active", token[-4:])
        assert (await gateway.admin("GET", f"/tokens/{made['id']}")).json() == made
        for path in ("/tokens", "/audit"):
            assert token not in (await gateway.admin("GET", path)).text
        assert (await gateway.chat(headers={"authorization": f"Bearer {token}"})).status_code == 401
        revoked = (await gateway.admin("DELETE", f"/tokens/{made['id']}")).json()
        assert revoked["state"] == "revoked"
        assert (await gateway.admin("DELETE", f"/tokens/{made['id']}")).json() == revoked
        assert (await gateway.admin("DELETE", "/tokens/none")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "a"}, 400, "role"),
        ({"name": "a", "role": "root"}, 400, "role"),
        ({"name": "a", "role": "owner"}, 400, "teams"),
        ({"name": "a", "role": "owner", "teams": []}, 400, "teams"),
        ({"name": "a", "role": "admin", "teams": ["checkout"]}, 400, "teams"),
        ({"name": "a", "role": "viewer", "teams": ["checkout", "none"]}, 404, "teams.1"),
        ({"name": "taken", "role": "viewer"}, 409, "name"),
        ({"name": "a", "role": "viewer", "expires": "2000-01-01T00:00:00Z"}, 400, "expires"),
        ({"name": "a' --", "role": "viewer"}, 400, "name"),
    ],
)
async def test_what_makes_no_sense_is_named(body: dict[str, Any], status: int, param: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await gateway.made("/tokens", name="taken", role="viewer")
        answer = await gateway.admin("POST", "/tokens", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert len((await gateway.admin("GET", "/tokens")).json()["data"]) == 1
