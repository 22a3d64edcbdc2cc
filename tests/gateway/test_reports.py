"""`tollkeeper ledger` against a running gateway: what it prints, whether it agrees with a bill, and safe CSV."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.processes import serving
from tests.running import ADMIN, KEY, config
from tests.scripted import Asked, answer, plain, scripted

TEAMS = {"checkout": {"budgets": [{"limit_usd": 1, "per": "month"}]}}


async def test_the_ledger_from_the_shell() -> None:
    async with scripted(plain) as up:
        with serving(config(up.url, teams=TEAMS)) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as client:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
                for user in ("u-1", "=cmd()"):
                    answer = await client.post("/v1/chat/completions", json=body, headers={"x-user-id": user})
                    assert answer.status_code == 200
                await asyncio.sleep(0.3)
            env = {"TOLLKEEPER_URL": gateway.url, "TOLLKEEPER_ADMIN_KEY": ADMIN}

            async def said(*words: str) -> str:
                result = await asyncio.to_thread(CliRunner().invoke, main, ["ledger", *words], env=env)
                assert result.exit_code == 0, result.output
                return result.output

            report = await said("report", "--by", "team,user")
            assert "TEAM      USER" in report
            assert "total: 0.000018000 USD" in report
            assert "'=cmd()" in await said("report", "--by", "user", "--csv")
            windows = await said("windows")
            assert "team checkout month" in windows
            id = windows.splitlines()[1].split()[0]
            assert "GATEWAY" in await said("holders", id)
            assert "is frozen" in await said("freeze", id)
            assert "is granting" in await said("freeze", id, "--thaw")
            assert "sound" in await said("audit")


# ── who hit a limit, and a provider's own figures ───────────────────────────────────────────────────────────────────

DAY = 86_400
MODELS = {
    "m": {"targets": [{"provider": "up", "model": "gpt-x"}], "price": {"input": 1, "output": 2}},
    "n": {"targets": [{"provider": "up", "model": "gpt-y-2026-01-01"}], "price": {"input": 1, "output": 2}},
}


@pytest.fixture
async def shell() -> AsyncIterator[Callable[..., Awaitable[Result]]]:
    """A gateway that has sent 3 calls to gpt-x and 2 to gpt-y, and refused one; each is 5 tokens in, 2 out."""
    teams = {"checkout": {"budgets": [{"limit_usd": 1, "per": "month"}]}}

    async def answers(asked: Asked) -> None:
        await asked.wire.whole(200, answer(model=asked.json["model"]))

    async with scripted(answers) as up:
        with serving(config(up.url, teams=teams, models=MODELS)) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as client:
                for model in ("m", "m", "m", "n", "n"):
                    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
                    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
                refused = await client.post("/v1/chat/completions", json=body | {"max_tokens": 10**6})
                assert refused.status_code == 429
            await asyncio.sleep(0.5)
            env = {"TOLLKEEPER_URL": gateway.url, "TOLLKEEPER_ADMIN_KEY": ADMIN}

            async def said(*words: str, given: str | None = None) -> Result:
                return await asyncio.to_thread(CliRunner().invoke, main, ["ledger", *words], env=env, input=given)

            yield said


def export(*results: dict[str, Any], days: int = 1) -> str:
    """A page of OpenAI's, that ends with today."""
    today = time.time_ns() // 10**9 // DAY * DAY
    buckets = [{"start_time": today - n * DAY, "end_time": today - (n - 1) * DAY, "results": []} for n in range(days)]
    buckets[0]["results"] = list(results)
    return json.dumps({"object": "page", "data": buckets[::-1], "has_more": False})


def cost(item: str | None, usd: float) -> dict[str, Any]:
    return {"amount": {"value": usd, "currency": "usd"}, "line_item": item}


def used(model: str, calls: int, **more: int) -> dict[str, Any]:
    facts = {"input_tokens": 5 * calls, "output_tokens": 2 * calls, "input_cached_tokens": 0, "model": model}
    return facts | more


Said = Callable[..., Awaitable[Result]]


async def test_who_hit_a_limit_from_the_shell(shell: Said) -> None:
    result = await shell("refused", "--by", "team,code", "--since", "1h")
    assert result.exit_code == 0, result.output
    head, line = result.output.splitlines()
    assert head.split() == ["TEAM", "CODE", "TIMES", "FIRST", "LAST", "REQUEST", "WHY"]
    assert line.split()[:3] == ["checkout", "budget_exhausted", "1"]
    assert "team checkout month" in line
    assert (await shell("refused", "--code", "rate_limited", "--csv")).output.splitlines()[1:] == []
    assert "by: there are" in (await shell("refused", "--by", "colour")).output


async def test_costs_that_agree_with_the_ledger_to_the_nano_dollar(shell: Said) -> None:
    told = export(cost("gpt-x, input", 0.000015), cost("gpt-x, output", 0.000012), cost("gpt-y-2026-01-01", 0.000018))
    result = await shell("reconcile", "-", "--tolerance", "0", "--all", given=told)
    assert result.exit_code == 0, result.output
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["DAY", "MODEL", "WHAT", "OURS", "THEIRS", "DIFFERENCE"],
        [today, "m", "USD", "0.000027", "0.000027", "0"],
        [today, "n", "USD", "0.000018", "0.000018", "0"],
        ["total", "(all)", "USD", "0.000045", "0.000045", "0"],
    ]
    assert (await shell("reconcile", "-", given=export(cost(None, 0.000045), days=3))).exit_code == 0


async def test_a_cost_that_differs_is_a_line_and_exit_status_1(shell: Said) -> None:
    told = export(cost("gpt-x, input", 0.020027), cost("gpt-y", 0.005), cost("gpt-z, input", 1))
    result = await shell("reconcile", "-", "--csv", given=told)
    assert result.exit_code == 1
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert result.stdout.splitlines() == [
        "day,model,what,ours,theirs,difference",
        f"{today},gpt-z,USD,0,1,-1",
        f"{today},m,USD,0.000027,0.020027,-0.02",  # gpt-y is within a cent
        "total,(all),USD,0.000045,1.025027,-1.024982",
    ]
    assert "2 of 3 lines differ by more than 0.01." in result.stderr


async def test_tokens_are_compared_with_the_records_and_to_the_token(shell: Said) -> None:
    same = export(used("gpt-x", 3), used("gpt-y-2026-01-01", 2))
    result = await shell("reconcile", "-", "--provider", "up", given=same)
    assert result.exit_code == 0, result.output
    other = export(used("gpt-x", 3, output_tokens=7), used("gpt-y-2026-01-01", 2))
    result = await shell("reconcile", "-", given=other)
    assert result.exit_code == 1
    assert [line.split()[1:] for line in result.stdout.splitlines()[1:-3]] == [
        ["gpt-x", "output", "tokens", "6", "7", "-1"]
    ]
    assert (await shell("reconcile", "-", "--tolerance", "1", given=other)).exit_code == 0


@pytest.mark.parametrize(
    ("words", "given", "says"),
    [
        (("reconcile", "-"), "name,age\n", "names no columns that are known; expected is an export of OpenAI"),
        (("reconcile", "-", "--provider", "nobody"), export(cost(None, 1)), "There are up."),
        (("reconcile", "-", "--tolerance", "-1"), export(cost(None, 1)), "--tolerance: a number is wanted"),
        (("reconcile", "nothing/there.json"), "", "nothing/there.json"),
    ],
)
async def test_what_cannot_be_compared_is_exit_status_2(
    shell: Said, words: tuple[str, ...], given: str, says: str
) -> None:
    result = await shell(*words, given=given)
    assert (result.exit_code, says in result.output) == (2, True), result.output
