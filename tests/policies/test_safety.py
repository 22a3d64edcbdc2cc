"""What is unsafe does not leave: on no endpoint, in no choice, streamed or not, whatever the assessors do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import openai
import pytest

from gateway.lanes import Lanes
from gateway.problems import ConfigError
from tests import safety_shapes as shapes
from tests import safety_streams as streams
from tests.running import KEY, config, running
from tests.scripted import DONE, Asked, answer, event, events, say, scripted

SECRET = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"  # made of two, so that no scanner takes it for one
SHOWN = "[aws_access_key]"


def safety(*assessors: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"use": "safety", "assessors": list(assessors), **more}]


def said(text: str) -> Any:
    """A provider that answers this, streamed (cut after each third character) or not."""

    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, events(*[text[at : at + 3] for at in range(0, len(text), 3)]))
        else:
            await asked.wire.whole(200, answer(text))

    return script


def heard(raw: str) -> str:
    """A stream's text."""
    return "".join(one for key, one in streams.texts(_choices(raw)).items() if key[-1] == "content")


def _choices(raw: str) -> bytes:
    return b"\n\n".join(part for part in raw.encode().split(b"\n\n") if b'"choices"' in part) + b"\n\n"


# ── no byte ─────────────────────────────────────────────────────────────────────────────────────────────────────────


MADE: list[Callable[[random.Random], streams.Stream]] = [streams.stream, *shapes.SHAPES.values()]


async def prove(count: int, first: int = 0) -> tuple[int, int, int]:
    """(streams, spans planted, characters of them that reached a caller).  Every other one is a chat's, as it should be."""
    policies = [
        [streams.safety(action, hold_seconds=60, hold_characters=held) for action in ("redact", "block")]
        for held in (256, streams.HELD)
    ]
    planted = leaks = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)
        made = MADE[0 if seed % 2 else seed // 2 % len(MADE)]
        one, (redacts, blocks) = made(rng), policies[made is streams.stream]
        planted += sum(each.safe is not None for each in one.lanes)
        for policy in (redacts, blocks):
            out, error = await streams.told(policy, one, rng)
            assert (error is not None) == (policy is blocks and one.unsafe), seed
            leaks += streams.leaked(one, out, error is not None)
            assert one.relayed or out.endswith(DONE) == (error is None), seed
    return count, planted, leaks


async def test_no_byte_of_a_planted_span_reaches_the_caller() -> None:
    count, planted, leaks = await prove(120)
    print(f"\n{count} streams, {planted} texts with unsafe spans, {leaks} characters leaked")
    assert planted > 50
    assert leaks == 0


@pytest.mark.long
async def test_no_byte_of_a_planted_span_reaches_the_caller_in_10_000_streams() -> None:
    count, planted, leaks = await prove(10_000, 1_000_000)
    print(f"\n{count} streams, {planted} texts with unsafe spans, {leaks} characters leaked")
    assert leaks == 0


@pytest.mark.parametrize("made", MADE)
async def test_the_proof_would_see_a_leak(
    made: Callable[[random.Random], streams.Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = streams.safety("redact")
    if made is MADE[0]:
        for rule in policy._rules:
            rule[1].assessor.hold = lambda text: 0  # type: ignore[method-assign]  # lets go of what is not complete
    elif made is shapes.turned:
        monkeypatch.setattr(Lanes, "due", lambda self, lane: 0.0 if lane.waits else None)  # waits for nothing
    else:
        put = Lanes.put
        monkeypatch.setattr(Lanes, "put", lambda self, part: put(self, part._replace(run=None)))  # joins nothing
    leaky = 0
    for seed in range(40):
        rng = random.Random(seed)
        one = made(rng)
        out, _ = await streams.told(policy, one, rng)
        try:
            streams.leaked(one, out, False)
        except AssertionError:
            leaky += 1
    assert leaky > 10


@pytest.mark.parametrize("action", ["redact", "block"])
async def test_over_real_sockets_too(action: str) -> None:
    made = [streams.stream(random.Random(seed)) for seed in range(60)]
    queue = iter(made)

    async def script(asked: Asked) -> None:
        rng, wire = random.Random(1), next(queue).wire
        await asked.wire.head()
        while wire:
            size = rng.randint(1, 3000)
            await asked.wire.chunk(wire[:size])
            wire = wire[size:]
        await asked.wire.chunk(b"")

    rules = [rule | {"action": action} for rule in streams.RULES]
    async with (
        scripted(script) as up,
        running(config(up.url, policies=safety(*rules, hold_characters=streams.HELD))) as gateway,
    ):
        for one in made:
            response = await gateway.chat(stream=True)
            refused = "blocked_by_safety" in response.text
            assert refused == (action == "block" and one.unsafe)
            raw = _choices(response.text)
            assert streams.leaked(one, raw, refused) == 0
            assert ("data: [DONE]" in response.text) != refused


# ── block, redact, flag ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_redact_takes_out_what_was_found_and_leaves_the_rest(stream: bool) -> None:
    script = said(f"The key is {SECRET}, keep it.")
    async with (
        scripted(script) as up,
        running(config(up.url, policies=safety({"use": "secrets", "action": "redact"}))) as gateway,
    ):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
            messages: Any = [{"role": "user", "content": f"Is {SECRET} a key?"}]
            if stream:
                text = ""
                async for chunk in await client.chat.completions.create(model="m", messages=messages, stream=True):
                    text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            else:
                text = (await client.chat.completions.create(model="m", messages=messages)).choices[
                    0
                ].message.content or ""
            assert text == f"The key is {SHOWN}, keep it."
            assert up.asked[0].json["messages"] == [{"role": "user", "content": f"Is {SHOWN} a key?"}]
            x = await gateway.finished()
            assert {(one.stage, one.verdict) for one in x.assessments} == {
                ("input", "redacted"),
                ("output", "redacted"),
            }


async def test_block_ends_a_stream_with_one_error_frame_and_stops_the_provider() -> None:
    ended = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.wire.head()
        for piece in ("Here ", "it ", "is: ", SECRET[:7], SECRET[7:], " and "):
            await asked.wire.chunk(event({"content": piece}))
            await asyncio.sleep(0.01)
        await asked.wire.gone()
        ended.set()

    async with scripted(script) as up, running(config(up.url, policies=safety({"use": "secrets"}))) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            text = ""
            call: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            stream = aiter(await client.chat.completions.create(**call))
            for _ in range(3):
                text += (await anext(stream)).choices[0].delta.content or ""
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
            assert text == "Here it is: "
            assert "safety assessor 'secrets'" in str(caught.value)
            await asyncio.wait_for(ended.wait(), 1)
            x = await gateway.finished()
            assert x.error is not None
            assert x.error.code == "blocked_by_safety"


async def test_block_refuses_an_answer_that_is_not_streamed_and_a_prompt_that_is_never_sent() -> None:
    async with (
        scripted(said(f"It is {SECRET}")) as up,
        running(config(up.url, policies=safety({"use": "secrets"}))) as gateway,
    ):
        response = await gateway.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (403, "blocked_by_safety")
        assert response.headers["x-should-retry"] == "false"
        response = await gateway.chat(f"my key is {SECRET}")
        assert (response.status_code, response.json()["error"]["code"]) == (403, "blocked_by_safety")
        assert len(up.asked) == 1


async def test_flag_only_tells() -> None:
    async with scripted(said(f"It is {SECRET}")) as up:
        async with running(config(up.url, policies=safety({"use": "secrets", "action": "flag"}))) as gateway:
            for stream in (False, True):
                response = await gateway.chat(f"and {SECRET}", stream=stream)
                text = heard(response.text) if stream else response.json()["choices"][0]["message"]["content"]
                assert text == f"It is {SECRET}"
                assert SECRET in up.asked[-1].body.decode()
            x = await gateway.finished(2)
            assert {one.verdict for one in x.assessments} == {"flagged"}


async def test_every_choice_and_every_tool_call_is_judged() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"k": SECRET})}}]
    choices: list[dict[str, Any]] = [
        {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": f"not {SECRET}"}, "finish_reason": "stop"},
        {
            "index": 2,
            "message": {"role": "assistant", "content": None, "tool_calls": calls},
            "finish_reason": "tool_calls",
        },
    ]

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer(choices=choices))

    async with (
        scripted(script) as up,
        running(config(up.url, policies=safety({"use": "secrets", "action": "redact"}))) as gateway,
    ):
        got = (await gateway.chat(n=3)).json()["choices"]
        assert [one["message"]["content"] for one in got] == ["fine", f"not {SHOWN}", None]
        assert json.loads(got[2]["message"]["tool_calls"][0]["function"]["arguments"]) == {"k": SHOWN}


HALVES = SECRET[:3], SECRET[3:]
LISTS: dict[str, dict[str, Any]] = {
    "strings": {"content": [*HALVES]},
    "thinking": {"content": [{"type": "thinking", "thinking": half} for half in HALVES]},
    "reasoning": {"content": None, "reasoning_content": [*HALVES]},
}


@pytest.mark.parametrize("said", LISTS.values(), ids=LISTS)
async def test_a_whole_message_in_parts_of_any_shape_is_one_text(said: dict[str, Any]) -> None:
    async def script(asked: Asked) -> None:
        message = {"role": "assistant", **said}
        await asked.wire.whole(200, answer(choices=[{"index": 0, "message": message, "finish_reason": "stop"}]))

    async with (
        scripted(script) as up,
        running(config(up.url, policies=safety({"use": "secrets", "action": "redact"}))) as gateway,
    ):
        got = await gateway.chat()
        assert got.status_code == 200
        assert HALVES[1] not in got.text


async def test_log_probabilities_do_not_tell_what_was_taken_out() -> None:
    logprobs = {"content": [{"token": SECRET, "logprob": -0.1, "bytes": list(SECRET.encode()), "top_logprobs": []}]}

    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            choice = {"index": 0, "delta": {"content": SECRET}, "logprobs": logprobs, "finish_reason": None}
            await say(asked, [event(None, choices=[choice]), event({}, "stop"), DONE])
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": SECRET}, "logprobs": logprobs}
            await asked.wire.whole(200, answer(choices=[choice | {"finish_reason": "stop"}]))

    async with (
        scripted(script) as up,
        running(config(up.url, policies=safety({"use": "secrets", "action": "redact"}))) as gateway,
    ):
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert SHOWN in response.text
            assert SECRET not in response.text
            assert 'logprob"' not in response.text


async def test_messages_tools_and_their_results_are_all_read() -> None:
    places: list[dict[str, Any]] = [
        {"messages": [{"role": "system", "content": SECRET}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": SECRET}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET[:9]}, {"type": "text", "text": SECRET[9:]}]}]},
        {"messages": [{"role": "user", "content": "x", "name": SECRET}]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": f"result {SECRET}"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"\\u0041' + SECRET[1:] + '"}'}}]}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}]},
        {"messages": [{"role": "user", "content": "x"}], "metadata": {"note": SECRET}},
        {"messages": [{"role": "user", "content": "x"}], "user": f"me {SECRET}"},
        {"messages": [{"role": "user", "content": "x"}], "new_field": {"deep": [[{"er": SECRET}]]}},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {SECRET: {}}}}}]},
    ]  # fmt: skip
    async with scripted(said("ok")) as up, running(config(up.url, policies=safety({"use": "secrets"}))) as gateway:
        for place in places:
            response = await gateway.client.post("/v1/chat/completions", json={"model": "m", **place})
            assert response.status_code == 403, place
        assert not up.asked


async def test_a_field_that_stands_twice_at_any_depth_is_refused_not_guessed() -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"' + SECRET + '","content":"hi"}]}'
    async with scripted(said("ok")) as up, running(config(up.url, policies=safety({"use": "secrets"}))) as gateway:
        response = await gateway.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert not up.asked
        await gateway.finished()
        assert not gateway.app.pipeline.policies[0]._states  # type: ignore[attr-defined]


async def test_a_call_in_which_nothing_is_found_is_sent_as_it_was_written() -> None:
    body = b'{ "model" : "m" ,\n "messages":[{"role":"user","content":"\\u0068i"}],"x":1.50e3 }'
    async with (
        scripted(said("ok")) as up,
        running(config(up.url, policies=safety({"use": "secrets", "action": "redact"}))) as gateway,
    ):
        said_m = gateway.app.targets.find("m")
        assert said_m is not None
        await gateway.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert up.asked[0].json == json.loads(body) | {"model": "up"}
        assert b'"\\u0068i"' in up.asked[0].body
        assert b"1.50e3" in up.asked[0].body


# ── teams, stages, names ────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_assessor_may_be_for_some_teams_and_some_texts_only() -> None:
    other = "tk-test-key-of-the-other-team"
    teams = {"other": {"keys": [{"name": "web", "key": other}]}}
    rules = safety({"use": "secrets", "teams": ["checkout"], "stages": ["output"]})
    async with scripted(said(f"It is {SECRET}")) as up, running(config(up.url, policies=rules, teams=teams)) as gateway:
        assert (await gateway.chat(f"{SECRET}?")).status_code == 403
        assert len(up.asked) == 1  # its input was not judged
        answered = await gateway.chat(headers={"authorization": f"Bearer {other}"})
        assert SECRET in answered.text


async def test_no_field_and_no_header_of_a_caller_switches_it_off() -> None:
    fields: list[dict[str, Any]] = [
        {name: value}
        for name in ("guardrails", "safety", "disable_guardrails", "moderation", "policies", "metadata", "extra_body")
        for value in (False, None, [], {}, "off", {"guardrails": [], "safety": False})
    ]
    headers = {
        "x-tollkeeper-safety": "off", "x-guardrails": "none", "x-otari-guardrails": "off", "x-portkey-config": "{}",
        "x-litellm-disable-guardrails": "true", "cache-control": "no-store", "x-feature": "no-safety", "x-tags": "unsafe",
    }  # fmt: skip
    async with (
        scripted(said(f"It is {SECRET}")) as up,
        running(config(up.url, policies=safety({"use": "secrets"}))) as gateway,
    ):
        for field in fields:
            for stream in (False, True):
                response = await gateway.chat(stream=stream, headers=headers, **field)
                assert SECRET not in response.text
                assert "blocked_by_safety" in response.text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"use": "secret"}, 'assessors[0].use: no assessor named "secret"; did you mean "secrets"?'),
        ({"use": "zzzz"}, "assessors: injection"),
        ({"use": "secrets", "acton": "block"}, 'unknown word "acton"; did you mean "action"?'),
        ({"use": "secrets", "action": "blok"}, "expected block, redact, mask or flag"),
        ({"use": "words"}, "names nothing; give it words, topics or patterns"),
        ({"use": "words", "patterns": {"p": "("}}, "the pattern p cannot be used"),
        ({"use": "urls", "alow": ["a.example"]}, 'unknown word "alow"; did you mean "allow"?'),
        ({"use": "nothing.here:Pii"}, "cannot be imported"),
    ],
)  # fmt: skip
async def test_what_is_wrong_in_an_assessors_line_stops_the_start_with_its_place(
    line: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        async with running(config("http://127.0.0.1:1/v1", policies=safety(line))):
            pass
    assert says in str(caught.value)
    assert "config.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("alert", "says"), [("nothing.here:tell", "cannot be imported"), ("json:nothing", "json has no function nothing")]
)
async def test_an_alert_that_is_not_there_stops_the_start_with_its_place(alert: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with running(config("http://127.0.0.1:1/v1", policies=safety({"use": "secrets"}, alert=alert))):
            pass
    assert says in str(caught.value)
    assert ".alert: " in str(caught.value)
