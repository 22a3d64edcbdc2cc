"""`tollkeeper ledger` against a running gateway: what it prints, and CSV that no spreadsheet runs."""

from __future__ import annotations

import csv
import io

from click.testing import CliRunner

from gateway.cli import main
from gateway.reports import written
from tests.processes import serving
from tests.running import ADMIN, KEY, config
from tests.scripted import plain, scripted

TEAMS = {"checkout": {"budgets": [{"limit_usd": 1, "per": "month"}]}}


async def test_the_ledger_from_the_shell() -> None:
    import asyncio

    import httpx2

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


def test_no_cell_of_a_csv_is_a_formula() -> None:
    cells = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", 'a"b,c', "multi\nline"]
    (row,) = list(csv.reader(io.StringIO(written([cells]))))
    assert [cell.removeprefix("'") for cell in row] == cells
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
