"""`tollkeeper cache forget` against a running gateway."""

from __future__ import annotations

import asyncio

from click.testing import CliRunner

from gateway.cli import main
from tests.policies.test_cache import ask, cached, word
from tests.running import ADMIN


async def test_answers_are_forgotten_from_the_shell() -> None:
    async with cached() as (gateway, _):
        env = {"TOLLKEEPER_URL": gateway.url, "TOLLKEEPER_ADMIN_KEY": ADMIN}

        async def said(*words: str) -> tuple[int, str]:
            result = await asyncio.to_thread(CliRunner().invoke, main, ["cache", "forget", *words], env=env)
            return result.exit_code, result.output

        for words, what in {
            ("--team", "checkout"): "team checkout",
            ("--team", "checkout", "--key", "web"): "key checkout web",
            ("--model", "m"): "model m",
            ("--all",): "all",
        }.items():
            await ask(gateway)
            assert await said(*words) == (0, f"Forgotten: {what}.\n")
            assert word(await ask(gateway)) == "miss"
        code, output = await said()
        assert (code, "name one of" in output) == (2, True)
