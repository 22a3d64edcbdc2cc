"""Chat and completions, through the openai SDK."""

import json
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI

from gateway.demo.language import tokenize
from gateway.demo.simulator import Simulator

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {key: {"type": kind}}}},
    }
    for name, key, kind in (("weather", "city", "string"), ("clock", "hour", "integer"))
]


async def _events(openai: AsyncOpenAI, **body: Any) -> list[Any]:
    return [event async for event in await openai.chat.completions.create(stream=True, **body)]


async def test_the_same_prompt_has_the_same_answer_and_another_has_another(openai: AsyncOpenAI, ask: Any) -> None:
    texts = [
        (await openai.chat.completions.create(**ask(words))).choices[0].message.content for words in ("a", "a", "b")
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_every_streamed_content_chunk_is_one_token_of_the_usage(openai: AsyncOpenAI, ask: Any) -> None:
    whole = await openai.chat.completions.create(**ask("hi"))
    events = await _events(openai, **ask("hi", stream_options={"include_usage": True}))
    pieces = [e.choices[0].delta.content for e in events if e.choices and e.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) == events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert events[-1].choices == []
    assert events[-2].choices[0].finish_reason == "stop"
    assert len({e.id for e in events}) == 1


async def test_a_stream_tells_its_usage_only_when_asked(openai: AsyncOpenAI, ask: Any) -> None:
    assert all(event.usage is None and event.choices for event in await _events(openai, **ask("hi")))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_cuts_the_answer(openai: AsyncOpenAI, ask: Any, field: str) -> None:
    answer = await openai.chat.completions.create(**ask("hi"), **{field: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == len(tokenize(answer.choices[0].message.content)) == 5


async def test_choices_take_turns_in_a_stream_and_are_all_counted(openai: AsyncOpenAI, ask: Any) -> None:
    body = ask("hi", n=3, max_tokens=4)
    whole = await openai.chat.completions.create(**body)
    assert len({c.message.content for c in whole.choices}) == 3
    assert whole.usage.completion_tokens == 12
    spoken = [e.choices[0] for e in await _events(openai, **body) if e.choices[0].delta.content]
    assert [c.index for c in spoken] == [0, 1, 2] * 4


@pytest.mark.parametrize("stream", [False, True])
async def test_parallel_tool_calls_are_interleaved_and_fit_their_schemas(
    openai: AsyncOpenAI, ask: Any, sim: Simulator, stream: bool
) -> None:
    body = ask("please use tools", tools=TOOLS)
    if stream:
        deltas = [c for e in await _events(openai, **body) for c in (e.choices[0].delta.tool_calls or [])]
        assert [d.index for d in deltas[:6]] == [0, 1, 0, 1, 0, 1]
        joined = ["".join(d.function.arguments for d in deltas if d.index == at) for at in (0, 1)]
        assert len(deltas) == sim.bill.rows[-1].charge.output
    else:
        message = (await openai.chat.completions.create(**body)).choices[0]
        assert message.finish_reason == "tool_calls"
        assert message.message.content is None
        joined = [call.function.arguments for call in message.message.tool_calls]
    assert isinstance(json.loads(joined[0])["city"], str)
    assert isinstance(json.loads(joined[1])["hour"], int)


async def test_one_tool_call_where_parallel_ones_are_not_wanted(openai: AsyncOpenAI, ask: Any) -> None:
    answer = await openai.chat.completions.create(**ask("use tools", tools=TOOLS, parallel_tool_calls=False))
    assert len(answer.choices[0].message.tool_calls) == 1


async def test_structured_output_fits_its_schema(openai: AsyncOpenAI, ask: Any) -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await openai.chat.completions.create(**ask("hi", response_format=form))
    assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")


async def test_a_prompt_can_say_what_is_answered_up_to_a_stop(openai: AsyncOpenAI, ask: Any) -> None:
    answer = await openai.chat.completions.create(**ask("say: my key is sk-12345 END more", stop=["END"]))
    assert answer.choices[0].message.content == "my key is sk-12345 "


async def test_a_reasoning_model_reports_hidden_tokens_as_part_of_its_output(openai: AsyncOpenAI, ask: Any) -> None:
    usage = (await openai.chat.completions.create(**ask("hi", model="sim-reason"))).usage
    assert 64 <= usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    tight = await openai.chat.completions.create(**ask("hi", model="sim-reason", max_completion_tokens=10))
    assert tight.choices[0].message.content == ""
    assert tight.choices[0].finish_reason == "length"
    assert tight.usage.completion_tokens == tight.usage.completion_tokens_details.reasoning_tokens == 10


async def test_a_long_prompt_is_cached_the_second_time_and_billed_so(
    sim: Simulator, openai: AsyncOpenAI, ask: Any
) -> None:
    for _ in range(3):
        answer = await openai.chat.completions.create(**ask("word " * 1500, max_tokens=1))
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached == 1408
    assert [row.charge.cached for row in sim.bill.rows] == [0, cached, cached]
    first, second, _ = (row.nano_usd for row in sim.bill.rows)
    assert first - second == cached * 75


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        ({"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}, sdk.NotFoundError, None),
        ({"model": "sim-small", "messages": []}, sdk.BadRequestError, "messages"),
        ({"model": "sim-small", "messages": [{"role": "user"}], "n": 0}, sdk.BadRequestError, "n"),
        ({"model": "sim-small", "messages": [{"role": "user"}], "tools": "x"}, sdk.BadRequestError, "tools"),
    ],
)
async def test_a_call_that_cannot_be_answered_is_refused_and_not_billed(
    sim: Simulator, openai: AsyncOpenAI, body: Any, error: type[sdk.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as refused:
        await openai.chat.completions.create(**body)
    assert refused.value.body["param"] == param
    assert [(row.billed, row.nano_usd) for row in sim.bill.rows] == [(False, 0)]


async def test_the_older_endpoint_answers_every_prompt(openai: AsyncOpenAI) -> None:
    whole = await openai.completions.create(model="sim-small", prompt=["a", "b"], max_tokens=5)
    assert [c.index for c in whole.choices] == [0, 1]
    assert whole.usage.completion_tokens == 10
    stream = await openai.completions.create(
        model="sim-small", prompt=["a", "b"], max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    events = [event async for event in stream]
    text = "".join(c.text for e in events for c in e.choices if c.index == 1)
    assert text == whole.choices[1].text
    assert events[-1].usage.completion_tokens == 10
