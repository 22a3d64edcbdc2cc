"""With openai-python and the simulated provider: what is unsafe is taken out, and how much later the rest comes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import openai
import pytest

from gateway.demo.simulator import running as simulated
from tests.running import KEY, config, running
from tests.scripted import DONE, Asked, event, say, scripted

SECRET = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"
MODELS = {"m": {"targets": [{"provider": "up", "model": "sim-small"}], "price": {"input": 1, "output": 2}}}
PATTERNS = [
    {"use": name, "action": "redact", "stages": ["output"]} for name in ("secrets", "personal_data", "injection")
]
PROSE = "It was late in the year, and the men sat and talked of home. " * 4


async def test_a_streamed_answer_of_the_simulator_is_redacted_and_every_choice_too() -> None:
    async with simulated() as provider:
        said = config(f"{provider.url}/v1", policies=[{"use": "safety", "assessors": PATTERNS}], models=MODELS)
        async with running(said) as gateway:
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
                messages: Any = [{"role": "user", "content": f"say: The key is {SECRET}, the mail ada@example.com."}]
                texts: dict[int, str] = {}
                async for chunk in await client.chat.completions.create(model="m", messages=messages, n=3, stream=True):
                    for choice in chunk.choices:
                        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                assert texts == dict.fromkeys(range(3), "The key is [aws_access_key], the mail [email].")


@pytest.mark.serial
async def test_what_it_adds_where_a_model_goes_on_from_its_reasoning_to_its_answer() -> None:
    """The last word of the reasoning waits for what may follow on from it, and the answer's beginning behind it."""
    figures: dict[str, list[float]] = {}
    for ends in ("so it is.", "so it is.\n"):

        async def script(asked: Asked, ends: str = ends) -> None:
            deltas = [{"reasoning_content": f"{word} "} for word in PROSE.split()[:20]] + [{"reasoning_content": ends}]
            deltas += [{"content": f"{word} "} for word in PROSE.split() * 3]
            await say(asked, [*map(event, deltas), event({}, "stop"), DONE], pause=0.005)

        async with scripted(script) as up:
            for assessors in ([], PATTERNS[:2]):
                said = config(up.url, policies=[{"use": "safety", "assessors": assessors}])
                async with running(said) as gateway:
                    firsts = []
                    for _ in range(3):
                        began = time.perf_counter()
                        call = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
                        async with gateway.client.stream("POST", "/v1/chat/completions", json=call) as response:
                            async for line in response.aiter_lines():
                                if '"content"' in line:
                                    firsts.append(time.perf_counter() - began)
                                    break
                    figures.setdefault(ends, []).append(statistics.median(firsts) * 1e3)
    for ends, (off, on) in figures.items():
        print(
            f"\nthe answer begins {on - off:.0f} ms later behind reasoning that ends {ends!r}, at 200 tokens a second"
        )
    late, prompt = (figures[ends][1] - figures[ends][0] for ends in figures)
    assert prompt < 100
    assert late < 1100


@pytest.mark.serial
async def test_what_it_adds_to_the_first_token_and_between_chunks() -> None:
    async with simulated("200") as provider:
        figures = {}
        for name, assessors in (("off", []), ("on", PATTERNS[:2]), ("all", PATTERNS)):
            said = config(f"{provider.url}/v1", policies=[{"use": "safety", "assessors": assessors}], models=MODELS)
            async with running(said) as gateway:
                async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
                    firsts, gaps = [], []
                    for _ in range(4):
                        messages: Any = [{"role": "user", "content": f"say: {PROSE}"}]
                        began = last = time.perf_counter()
                        first = 0.0
                        async for chunk in await client.chat.completions.create(
                            model="m", messages=messages, stream=True
                        ):
                            if chunk.choices and chunk.choices[0].delta.content:
                                now = time.perf_counter()
                                if not first:
                                    first = now - began
                                else:
                                    gaps.append(now - last)
                                last = now
                        firsts.append(first)
                    figures[name] = statistics.median(firsts) * 1e3, statistics.median(gaps) * 1e3, max(gaps) * 1e3
        for name, what in (("on", "secrets and personal data"), ("all", "and injection, which holds 200 characters")):
            first, gap = (figures[name][at] - figures["off"][at] for at in (0, 1))
            print(f"\n{what}: added to the first token {first:.2f} ms, between chunks {gap:.2f} ms (median); ", end="")
            print(f"longest gap {figures[name][2]:.1f} ms against {figures['off'][2]:.1f} ms, at 200 tokens a second")
        assert figures["on"][0] - figures["off"][0] < 50
        assert figures["on"][1] - figures["off"][1] < 5
        assert figures["all"][0] - figures["off"][0] < 1000
