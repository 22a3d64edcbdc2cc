"""The responses endpoint, through the openai SDK."""

import json
from typing import Any

from openai import AsyncOpenAI

from gateway.demo.simulator import Simulator

TOOL = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {"hour": {"type": "integer"}}},
}


async def test_a_stream_ends_with_the_whole_response_and_its_usage(openai: AsyncOpenAI, sim: Simulator) -> None:
    whole = await openai.responses.create(model="sim-reason", input="hi")
    events: list[Any] = [e async for e in await openai.responses.create(model="sim-reason", input="hi", stream=True)]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    last = events[-1]
    assert last.type == "response.completed"
    assert "".join(deltas) == last.response.output_text == whole.output_text
    usage = last.response.usage
    assert usage.output_tokens == len(deltas) + usage.output_tokens_details.reasoning_tokens
    assert sim.bill.rows[0].charge == sim.bill.rows[1].charge
    assert sim.bill.rows[1].charge.output == usage.output_tokens


async def test_a_limit_leaves_the_response_incomplete(openai: AsyncOpenAI) -> None:
    answer = await openai.responses.create(
        model="sim-small", input=[{"role": "user", "content": "hi"}], max_output_tokens=16
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 16


async def test_tools_are_called_in_fragments(openai: AsyncOpenAI) -> None:
    events: list[Any] = [
        e async for e in await openai.responses.create(model="sim-small", input="use tools", tools=[TOOL], stream=True)
    ]
    fragments = [e for e in events if e.type == "response.function_call_arguments.delta"]
    calls = events[-1].response.output
    assert len(calls) == 2
    for at, call in enumerate(calls):
        joined = "".join(e.delta for e in fragments if e.output_index == at)
        assert joined == call.arguments
        assert isinstance(json.loads(joined)["hour"], int)
