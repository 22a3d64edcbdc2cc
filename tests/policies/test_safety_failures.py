"""Assessors that raise, hang, return junk or hold up the loop; and what is kept of what was found: nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, ClassVar

import pytest

from gateway.assessor import Assessor, Verdict
from gateway.exchange import Assessment, Exchange
from gateway.patterns import Found
from policies.safety import Safety
from tests.running import ADMIN, config, running
from tests.scripted import Asked, answer, event, events, say, scripted

SECRET = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"
CANARY = "xylophone-canary-7731"


class Odd(Assessor):
    """Does what its settings say, for this test."""

    class Settings(Assessor.Settings):
        does: str = "pass"
        takes: float = 0.0

    heard: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, said: Settings) -> None:
        self._said = said

    async def assess(self, text: str, stage: str) -> Verdict:
        Odd.heard.append((stage, text))
        does = self._said.does
        if does == "raise":
            raise RuntimeError(f"I was asked about {text}")
        if does == "hang":
            await asyncio.sleep(3600)
        if does == "block the loop":
            time.sleep(0.2)
        await asyncio.sleep(self._said.takes)
        if does.startswith("{"):
            return Verdict(**json.loads(does))
        if does == "none":
            return None  # type: ignore[return-value]
        if does == "text":
            return "unsafe"  # type: ignore[return-value]
        if does == "canary" and CANARY in text:
            at = text.index(CANARY)
            return Verdict(0.9, 0.9, "a canary", [Found(at, at + len(CANARY), "canary")])
        return Verdict(0.0)


ODD = f"{__name__}:Odd"
alerts: list[tuple[str, Assessment]] = []


def alert(x: Exchange, one: Assessment) -> None:
    alerts.append((x.id, one))
    raise RuntimeError("an alert that breaks")


def safety(*assessors: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"use": "safety", "assessors": list(assessors), **more}]


async def plain(asked: Asked) -> None:
    if asked.json.get("stream"):
        await say(asked, events("It is ", "fine."))
    else:
        await asked.wire.whole(200, answer("It is fine."))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    Odd.heard.clear()
    alerts.clear()


@pytest.mark.parametrize(
    ("does", "error"),
    [
        ("raise", "error"),
        ("hang", "timeout"),
        ("none", "junk"),
        ("text", "junk"),
        ('{"score": 7}', "junk"),
        ('{"score": "high"}', "junk"),
        ('{"score": NaN}', "junk"),
        ('{"score": 1, "confidence": -1}', "junk"),
    ],
)
@pytest.mark.parametrize("stage", ["input", "output"])
async def test_an_assessor_that_fails_refuses_or_lets_pass_as_it_is_told(does: str, error: str, stage: str) -> None:
    one = {"use": ODD, "name": "odd", "does": does, "timeout_seconds": 0.1, "stages": [stage]}
    async with scripted(plain) as up:
        for stream in (False, True):
            async with running(config(up.url, policies=safety(one))) as gateway:
                response = await gateway.chat(stream=stream)
                assert "policy_failed" in response.text, response.text
                assert "fine" not in response.text
                assert "asked about" not in response.text
                x = await gateway.finished()
                assert [(a.verdict, a.error) for a in x.assessments] == [("failed", error)]
            async with running(config(up.url, policies=safety(one | {"on_error": "allow"}))) as gateway:
                response = await gateway.chat(stream=stream)
                assert response.status_code == 200
                assert "fine." in response.text
                x = await gateway.finished()
                assert [(a.verdict, a.error) for a in x.assessments] == [("failed_open", error)]
                if stage == "input":
                    assert response.headers["x-tollkeeper-safety"] == "failed_open"
                metrics = (await gateway.client.get("/metrics")).text
                assert 'tollkeeper_assessments_total{assessor="odd",verdict="failed_open"} 1.0' in metrics


async def test_an_assessor_that_only_flags_fails_open() -> None:
    one = {"use": ODD, "does": "raise", "action": "flag"}
    async with scripted(plain) as up, running(config(up.url, policies=safety(one))) as gateway:
        assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize(
    "spans", ['[[0, 1000000, "x"]]', '[[-5, 3, "x"]]', '[[4, 2, "x"]]', '[[0, 3, "x"], [1, 2, "y"]]']
)
async def test_spans_that_make_no_sense_break_nothing(spans: str) -> None:
    class Junk(Odd):
        async def assess(self, text: str, stage: str) -> Verdict:
            return Verdict(1.0, 1.0, "", [Found(*one) for one in json.loads(spans)])

    policy = Safety(Safety.Settings.model_validate({"assessors": []}))
    from gateway.judging import Rule

    policy._rules = [(None, Rule(Junk(Junk.Settings()), "redact", frozenset({"input", "output"})))]
    policy.looks = True
    policy.name = "safety"
    async with scripted(plain) as up, running(config(up.url), [policy]) as gateway:
        for stream in (False, True):
            response = await gateway.chat("hello", stream=stream)
            assert response.status_code in (200, 503)
            if response.status_code == 200 and not stream:
                json.loads(response.content)


@pytest.mark.serial
async def test_one_that_holds_up_the_loop_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Rude(Odd):
        quick = True

        async def assess(self, text: str, stage: str) -> Verdict:
            time.sleep(0.15)
            return Verdict(0.0)

    from gateway.judging import Rule

    policy = Safety(Safety.Settings.model_validate({"assessors": []}))
    rude = Rude(Rude.Settings())
    rude.name = "rude"
    policy._rules = [(None, Rule(rude, "block", frozenset({"input"})))]
    policy.name = "safety"
    async with scripted(plain) as up, running(config(up.url), [policy]) as gateway:
        with caplog.at_level(logging.WARNING):
            assert (await gateway.chat()).status_code == 200
        assert "the assessor rude held up the event loop for 15" in caplog.text


@pytest.mark.serial
async def test_slow_ones_are_asked_side_by_side() -> None:
    several = [{"use": ODD, "name": f"odd{n}", "takes": 0.3, "stages": ["input", "output"]} for n in range(5)]
    async with scripted(plain) as up, running(config(up.url, policies=safety(*several))) as gateway:
        began = time.monotonic()
        assert (await gateway.chat()).status_code == 200
        assert 0.6 <= time.monotonic() - began < 1.2


@pytest.mark.serial
@pytest.mark.parametrize("beside", [False, True])
async def test_input_may_be_judged_while_the_provider_is_called_and_its_answer_waits(beside: bool) -> None:
    async def script(asked: Asked) -> None:
        await asyncio.sleep(0.3)
        await plain(asked)

    slow = {"use": ODD, "takes": 0.3, "stages": ["input"]}
    unsafe = {"use": ODD, "name": "bad", "does": '{"score": 1}', "takes": 0.4, "stages": ["input"]}
    async with scripted(script) as up:
        async with running(config(up.url, policies=safety(slow, beside=beside))) as gateway:
            began = time.monotonic()
            assert "fine" in (await gateway.chat()).text
            took = time.monotonic() - began
            assert (took < 0.5) == beside, took
        async with running(config(up.url, policies=safety(slow, unsafe, beside=beside))) as gateway:
            for stream in (False, True):
                sent = len(up.asked)
                response = await gateway.chat(stream=stream)
                assert "blocked_by_safety" in response.text
                assert "fine" not in response.text
                assert (len(up.asked) > sent) == beside


async def test_a_caller_who_hangs_up_ends_what_was_asked() -> None:
    async with scripted(plain) as up, running(config(up.url, policies=safety({"use": ODD, "does": "hang"}))) as gateway:
        call = asyncio.create_task(gateway.chat())
        while not Odd.heard:
            await asyncio.sleep(0.01)
        call.cancel()
        x = await gateway.finished()
        assert x.error is not None
        assert x.error.code == "client_gone"
        await asyncio.sleep(0.05)
        assert not [task for task in asyncio.all_tasks() if "assess" in repr(task.get_coro())]
        assert not gateway.app.pipeline.policies[0]._states  # type: ignore[attr-defined]


@pytest.mark.serial
async def test_text_is_judged_by_windows_of_characters_or_of_time_and_leaves_while_the_provider_is_silent() -> None:
    sent: list[float] = []

    async def script(asked: Asked) -> None:
        await asked.wire.head()
        for piece in ("a" * 100, "b" * 100, "c" * 100):
            await asked.wire.chunk(event({"content": piece}))
        sent.append(time.monotonic())
        await asyncio.sleep(1.5)
        await asked.wire.chunk(event({}, "stop") + b"data: [DONE]\n\n")
        await asked.wire.chunk(b"")

    one = {"use": ODD, "stages": ["output"]}
    rules = safety(one, hold_characters=256, hold_seconds=0.4)
    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        got: list[tuple[float, str]] = []
        call = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=call) as response:
            async for line in response.aiter_lines():
                if '"content"' in line:
                    got.append((time.monotonic() - sent[0], line))
        assert [len(text) for _, text in Odd.heard] == [300]
        assert all(at < 0.3 for at, _ in got)
        Odd.heard.clear()
    rules = safety(one, hold_characters=1000, hold_seconds=0.4)
    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        got = []
        async with gateway.client.stream("POST", "/v1/chat/completions", json=call) as response:
            async for line in response.aiter_lines():
                if '"content"' in line:
                    got.append((time.monotonic() - sent[-1], line))
        assert [len(text) for _, text in Odd.heard] == [300]
        assert all(0.3 < at < 1.2 for at, _ in got), got  # before the provider went on


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("action", ["block", "redact"])
@pytest.mark.parametrize("where", ["input", "output"])
async def test_what_was_found_is_kept_and_told_nowhere(
    stream: bool, action: str, where: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def script(asked: Asked) -> None:
        text = f"It is {CANARY}, yes." if where == "output" else "It is fine."
        if asked.json.get("stream"):
            await say(asked, events(*[text[at : at + 4] for at in range(0, len(text), 4)]))
        else:
            await asked.wire.whole(200, answer(text))

    team = {"checkout": {"content": "full"}}
    words = {"use": "words", "name": "words", "topics": {"birds": [CANARY]}, "action": action}
    said = config(
        "", policies=safety(words, alert=f"{__name__}:alert"), teams=team, telemetry={"logs": {"access": True}}
    )
    async with scripted(script) as up:
        said["providers"]["up"]["base_url"] = up.url
        with caplog.at_level(logging.DEBUG):
            async with running(said) as gateway:
                response = await gateway.chat(f"Tell me of {CANARY}" if where == "input" else "hi", stream=stream)
                x = await gateway.finished()
                record = await gateway.record(x.id)
                metrics = (await gateway.client.get("/metrics")).text
                shown = (await gateway.admin("GET", f"/exchanges/{x.id}")).text
    logged = "".join(one.getMessage() for one in caplog.records if one.name.startswith(("gateway", "tollkeeper")))
    told = (response.text, repr(record), metrics, shown, *capfd.readouterr(), logged, repr(x.assessments), repr(alerts))
    for text in told:
        assert CANARY not in text
    verdict = {"block": "blocked", "redact": "redacted"}[action]
    one = next(one for one in record.assessments if one.verdict == verdict)
    assert (one.assessor, one.score, one.explanation, one.spans, one.type) == ("words", 1.0, "birds", 1, "pattern")
    assert f'tollkeeper_assessments_total{{assessor="words",verdict="{verdict}"}} 1.0' in metrics
    assert 'tollkeeper_assessor_seconds_count{assessor="words"}' in metrics
    assert [one.verdict for _, one in alerts] == (["blocked"] if action == "block" else [])
    assert ADMIN not in shown
