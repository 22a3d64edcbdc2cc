"""Organisations, teams, users and budgets from the shell, against a running gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.processes import serving
from tests.running import KEY, config
from tests.scripted import plain, scripted
from tests.shells import Shell


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    async with scripted(plain) as up:
        with serving(config(up.url)) as running:
            yield Shell(running)


async def test_an_organisations_life(shell: Shell) -> None:
    await shell.done("organisations", "create", "acme")
    await shell.done("teams", "create", "search", "--organisation", "acme")
    key = (await shell.done("keys", "create", "--team", "search", "--name", "app")).stdout.strip()
    assert await shell.listed("organisations") == [["acme", "on", "search"]]
    await shell.done("organisations", "switch", "acme", "off")
    assert await shell.call(key) == 401
    assert (await shell.listed("organisations"))[0][1] == "off"
    await shell.done("organisations", "switch", "acme", "on")
    assert await shell.call(key) == 200
    refused = await shell.say("organisations", "delete", "acme")
    assert (refused.exit_code, "it has the teams search" in refused.output) == (2, True)
    await shell.done("teams", "change", "search", "--no-organisation")
    await shell.done("organisations", "delete", "acme")
    assert await shell.listed("organisations") == []


async def test_a_teams_life(shell: Shell) -> None:
    await shell.done(
        "teams", "create", "search", "--model", "m", "--limit", "concurrent=5", "--user-limit", "concurrent=1"
    )
    lines = (await shell.done("teams", "list")).output.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "DECLARED", "BY", "IS", "MODELS", "ORGANISATION", "LIMITS", "USER", "LIMITS"],
        ["checkout", "config.yaml", "on", "all"],
        ["search", "api", "on", "m", "concurrent=5", "concurrent=1"],
    ]
    made = await shell.done("keys", "create", "--team", "search", "--name", "app")
    key, id = made.stdout.strip(), made.stderr.split(":")[0]
    await shell.done("teams", "change", "search", "--limit", "concurrent=none", "--limit", "requests_per_day=1")
    assert (await shell.listed("teams"))[1] == ["search", "api", "on", "m", "", "requests_per_day=1", "concurrent=1"]
    assert [await shell.call(key) for _ in range(2)] == [200, 429]
    await shell.done("teams", "change", "search", "--limit", "requests_per_day=none", "--all-models")
    assert await shell.call(key) == 200
    await shell.done("teams", "switch", "search", "off")
    assert await shell.call(key) == 401
    await shell.done("teams", "switch", "search", "on")
    assert (await shell.say("teams", "delete", "search")).exit_code == 2
    await shell.done("keys", "revoke", id)
    await shell.done("teams", "delete", "search")
    assert len(await shell.listed("teams")) == 1


async def test_a_users_limits(shell: Shell) -> None:
    made = await shell.done("users", "create", "--team", "checkout", "--user", "u-1", "--limit", "requests_per_day=5")
    id = made.output.split(":")[0]
    assert await shell.listed("users") == [["checkout", "u-1", "requests_per_day=5", id]]
    changed = await shell.done("users", "change", id, "--limit", "requests_per_day=none", "--limit", "concurrent=2")
    assert changed.output == f"{id}: concurrent=2.\n"
    assert (await shell.done("users", "list", "--team", "checkout")).output.splitlines()[1].split()[2] == "concurrent=2"
    await shell.done("users", "delete", id)
    assert await shell.listed("users") == []


async def test_a_budgets_life(shell: Shell) -> None:
    words = ("--limit", "0.5", "--per", "month", "--zone", "Europe/Berlin", "--warn-at", "0.5", "--warn-at", "0.9")
    made = await shell.done("budgets", "create", "team", "--team", "checkout", *words)
    id = made.output.split(":")[0]
    assert made.output == f"{id}: team checkout may spend 0.5 USD per month (hard).\n"
    line = ["team checkout", "0.5", "month", "Europe/Berlin", "hard", "0.5 0.9", id]
    assert await shell.listed("budgets") == [line]
    assert await shell.call(KEY, max_tokens=10) == 200
    assert await shell.call(KEY, max_tokens=10**6) == 429  # dearer than the budget
    refused = await shell.say("budgets", "change", id, "--limit", "0.000000001")
    assert (refused.exit_code, "spent or held" in refused.output) == (2, True)
    await shell.done("budgets", "change", id, "--soft", "--no-warnings")
    assert (await shell.listed("budgets"))[0][4:6] == ["soft", ""]
    assert await shell.call(KEY, max_tokens=10**6) == 200
    await shell.done("budgets", "change", id, "--hard", "--limit", "0.000000001", "--force")
    assert (await shell.listed("budgets"))[0][1] == "0.000000001"
    await shell.done("budgets", "delete", id)
    assert await shell.listed("budgets") == []
    assert await shell.call(KEY, max_tokens=10**6) == 200


async def test_each_scope_of_a_budget_can_be_named(shell: Shell) -> None:
    await shell.done("organisations", "create", "acme")
    for words in (
        ("key", "--team", "checkout", "--key", "web"), ("user", "--team", "checkout", "--user", "u 1"),
        ("organisation", "--organisation", "acme"), ("feature", "--feature", "cart"),
        ("feature", "--feature", "cart", "--team", "checkout"), ("model", "--model", "m"),
    ):  # fmt: skip
        await shell.done("budgets", "create", *words, "--limit", "1", "--per", "day")
    assert sorted(line[0] for line in await shell.listed("budgets")) == [
        "feature cart", "feature checkout cart", "key checkout web", "model m", "organisation acme",
        "user checkout u 1",
    ]  # fmt: skip
    only = (await shell.done("budgets", "list", "--team", "checkout")).output.splitlines()
    assert len(only) == 1 + 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("organisations", "create", "a\tb"), "name"),
        (("organisations", "delete", "nobody"), "organisation: there is no such organisation"),
        (("teams", "change", "checkout"), "say what changes"),
        (("teams", "change", "checkout", "--limit", "concurrent=5"), "config.yaml declares this team"),
        (("teams", "create", "t", "--organisation", "nobody"), "organisation: there is no such organisation"),
        (("users", "create", "--team", "nobody", "--user", "u"), "team: there is no such team"),
        (("users", "change", "user_none", "--limit", "concurrent=x"), "requests_per_minute=60"),
        (("users", "delete", "../teams/checkout"), "id: there is no such user"),
        (("budgets", "create", "team", "--limit", "1", "--per", "day"), "team: a budget of the scope 'team' must name"),
        (("budgets", "create", "model", "--model", "m", "--limit", "-1", "--per", "day"), "limit_usd"),
        (("budgets", "create", "everything", "--limit", "1", "--per", "day"), "everything"),
        (("budgets", "change", "budget_none"), "say what changes"),
        (("budgets", "change", "budget_none", "--limit", "5"), "id: there is no such budget"),
        (("budgets", "list", "--team", "nobody"), "team: there is no such team"),
    ],
)
async def test_what_is_wrong_is_said(shell: Shell, words: tuple[str, ...], says: str) -> None:
    result = await shell.say(*words)
    assert result.exit_code == 2
    assert says in result.output, result.output
