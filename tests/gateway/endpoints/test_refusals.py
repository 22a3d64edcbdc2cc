"""Who hit a limit, over real sockets: counted exactly by whom and by what, scoped to who asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.running import Running, config, running
from tests.scripted import plain, scripted

OTHER = "tk-test-key-of-the-search-team"
BIG = 100_000  # tokens of an answer: dearer than its team's budget


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    teams = {
        "checkout": {"budgets": [{"limit_usd": 0.1, "per": "month"}]},
        "search": {"keys": [{"name": "bot", "key": OTHER}], "limits": {"requests_per_minute": 2}},
    }
    async with scripted(plain) as up, running(config(up.url, teams=teams)) as gateway:
        assert (await gateway.chat(max_tokens=10)).status_code == 200
        for number in range(5):
            headers = {"x-user-id": f"u-{number % 2}", "x-feature": "cart"}
            assert (await gateway.chat(headers=headers, max_tokens=BIG)).status_code == 429
        for status in (200, 200, 429, 429, 429):
            answer = await gateway.chat(headers={"authorization": f"Bearer {OTHER}"}, max_tokens=10)
            assert answer.status_code == status
        assert (await gateway.client.post("/v1/chat/completions", json={"model": "none"})).status_code >= 400
        yield gateway


async def told(gateway: Running, query: str, **asker: Any) -> list[tuple[object, ...]]:
    answer = await gateway.admin("GET", f"/refusals?{query}", **asker)
    assert answer.status_code == 200, answer.text
    return [(*line["values"], line["count"]) for line in answer.json()["data"]]


async def test_who_was_refused_is_told_by_whom_and_by_what(gateway: Running) -> None:
    assert await told(gateway, "by=team,code") == [
        ("checkout", "budget_exhausted", 5), ("search", "rate_limited", 3),
    ]  # fmt: skip
    assert await told(gateway, "") == [
        *[("checkout", "web", "u-0", "budget_exhausted", 3), ("search", "bot", None, "rate_limited", 3)][::-1],
        ("checkout", "web", "u-1", "budget_exhausted", 2),
    ]
    assert await told(gateway, "by=key&code=rate_limited") == [("bot", 3)]
    assert await told(gateway, "by=feature,model&team=checkout") == [("cart", "m", 5)]
    assert await told(gateway, "by=team&user=u-1&since=1h") == [("checkout", 2)]
    assert await told(gateway, "by=team&until=1h") == []
    page = (await gateway.admin("GET", "/refusals?by=team,code&limit=1")).json()
    assert (page["by"], len(page["data"]), page["more"]) == (["team", "code"], 1, True)


async def test_the_last_ones_words_name_the_budget_and_its_id_explains_it(gateway: Running) -> None:
    (line,) = (await gateway.admin("GET", "/refusals?by=team&team=checkout")).json()["data"]
    assert "team checkout month" in line["last_message"]
    assert line["first"] < line["last"]
    record = (await gateway.admin("GET", f"/exchanges/{line['last_id']}")).json()
    assert (record["at"], record["error"]["message"]) == (line["last"], line["last_message"])


async def test_a_token_for_one_team_learns_nothing_of_another(gateway: Running) -> None:
    token = (await gateway.made("/tokens", name="v", role="viewer", teams=["search"]))["token"]
    assert await told(gateway, "by=team", token=token) == [("search", 3)]
    assert (await gateway.admin("GET", "/refusals?team=checkout", token=token)).status_code == 404
    assert (await gateway.admin("GET", "/refusals", token="wrong")).status_code == 401


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=colour", "by"), ("by=team,team", "by"), ("by=day", "by"), ("by=team;DROP TABLE exchange", "by"),
        ("code=teapot", "code"), ("since=yesterday", "since"), ("limit=0", "limit"), ("colour=red", "colour"),
    ],
)  # fmt: skip
async def test_a_question_that_makes_no_sense_names_the_parameter(gateway: Running, query: str, field: str) -> None:
    answer = await gateway.admin("GET", f"/refusals?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("word", ["' OR '1'='1", "x'; DROP TABLE exchange; --", "%", '"'])
async def test_words_of_sql_find_nothing_and_do_nothing(gateway: Running, word: str) -> None:
    for name in ("team", "key", "user", "feature", "model"):
        answer = await gateway.client.get(
            "/admin/v1/refusals", params={name: word}, headers={"authorization": "Bearer admin-key-for-tests"}
        )
        assert (answer.status_code, answer.json()["data"]) == (200, []), name
    assert len(await told(gateway, "")) == 3
