"""The audit log: one row for each change, by whom, from what to what, and nothing for what was refused."""

from __future__ import annotations

from tests.running import config, running
from tests.scripted import plain, scripted


async def test_each_change_is_one_row_that_says_who_and_what() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        token = (await gateway.made("/tokens", name="anna", role="admin"))["token"]
        await gateway.admin("POST", "/teams", {"name": "search"}, token)
        await gateway.admin("POST", "/teams", {"name": "search"}, token)  # refused
        await gateway.admin("PATCH", "/teams/search", {"disabled": True}, token)
        await gateway.admin("PATCH", "/teams/search", {"disabled": True}, token)  # changes nothing
        await gateway.admin("DELETE", "/teams/search")
        rows = (await gateway.admin("GET", "/audit")).json()["data"]
        assert [(row["seq"], row["action"], row["object"].split()[0]) for row in rows] == [
            (4, "delete", "team"),
            (3, "change", "team"),
            (2, "create", "team"),
            (1, "create", "token"),
        ]
        assert rows[0]["actor"] == "root"
        assert rows[1]["actor"].startswith("token anna (token_")
        assert (rows[1]["before"]["disabled"], rows[1]["after"]["disabled"]) == (False, True)
        assert (rows[2]["before"], rows[0]["after"]) == (None, None)
        checked = (await gateway.admin("GET", "/audit/verify")).json()
        assert checked == {"rows": 4, "problem": "", "last_seq": 4, "last_hash": rows[0]["hash"]}


async def test_the_log_is_paged_newest_first() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for n in range(5):
            await gateway.made("/teams", name=f"t{n}")
        seen: list[int] = []
        path = "/audit?limit=2"
        while True:
            page = (await gateway.admin("GET", path)).json()
            seen += [row["seq"] for row in page["data"]]
            if page["next_cursor"] is None:
                break
            path = f"/audit?limit=2&cursor={page['next_cursor']}"
        assert seen == [5, 4, 3, 2, 1]
        for cursor in ("x", "-1", "0", "9" * 30, "1' OR 1=1"):
            answer = await gateway.admin("GET", f"/audit?cursor={cursor}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cursor")
