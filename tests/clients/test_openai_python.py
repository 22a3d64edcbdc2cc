"""openai-python as it is installed drives the gateway: what applications call, and that each call is billed exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tests.clients.conftest import House

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION: Any = [{"role": "user", "content": "What is a toll bridge?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "traffic")
]
USE_TOOLS: Any = [{"role": "user", "content": "Please use tools."}]


@pytest_asyncio.fixture(loop_scope="module")
async def client(house: House, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=house.url, api_key=key, max_retries=0, timeout=10) as client:
        yield client


def fault(word: str) -> dict[str, str]:
    return {"x-sim-fault": word}


async def gathered(stream: AsyncIterator[ChatCompletionChunk]) -> tuple[dict[int, str], list[CompletionUsage]]:
    """Text by choice, and every usage that was told."""
    texts: dict[int, str] = {}
    usages = []
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if chunk.usage is not None:
            assert not chunk.choices
            usages.append(chunk.usage)
    return texts, usages


class TestChat:
    async def test_a_stream_says_and_costs_what_the_whole_answer_does(self, house: House, client: AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(model="small", messages=QUESTION)
        asked = await client.chat.completions.create(
            model="small", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        texts, usages = await gathered(asked)
        assert texts == {0: whole.choices[0].message.content}
        assert usages == [whole.usage]
        one, other = await house.billed(2)
        assert one.cost == other.cost
        assert one.cost

    async def test_a_stream_tells_no_usage_where_none_was_asked_and_is_still_billed(
        self, house: House, client: AsyncOpenAI
    ) -> None:
        texts, usages = await gathered(
            await client.chat.completions.create(model="small", messages=QUESTION, stream=True)
        )
        assert texts[0]
        assert usages == []
        await house.billed()

    async def test_every_choice_arrives_whole(self, house: House, client: AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(model="small", messages=QUESTION, n=3)
        stream = await client.chat.completions.create(model="small", messages=QUESTION, n=3, stream=True)
        texts, _ = await gathered(stream)
        assert texts == {choice.index: choice.message.content for choice in whole.choices}
        assert len(set(texts.values())) == 3
        await house.billed(2)

    async def test_parallel_tool_calls_are_the_same_streamed_and_not(self, house: House, client: AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(model="small", messages=USE_TOOLS, tools=TOOLS)
        plain = [call.model_dump(exclude_none=True) for call in whole.choices[0].message.tool_calls or []]
        assert [call["function"]["name"] for call in plain] == ["weather", "traffic"]
        assert [json.loads(call["function"]["arguments"]).keys() for call in plain] == [{"city"}, {"city"}]
        async with client.chat.completions.stream(model="small", messages=USE_TOOLS, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        streamed = [
            call.model_dump(exclude={"index": True, "function": {"parsed_arguments"}}, exclude_none=True)
            for call in final.choices[0].message.tool_calls or []
        ]
        assert streamed == plain
        assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
        await house.billed(2)

    async def test_structured_output_is_parsed(self, house: House, client: AsyncOpenAI) -> None:
        class Toll(BaseModel):
            bridge: str
            cents: int

        answer = await client.chat.completions.parse(model="small", messages=QUESTION, response_format=Toll)
        assert isinstance(answer.choices[0].message.parsed, Toll)
        await house.billed()

    async def test_reasoning_tokens_are_told_and_billed(self, house: House, client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="reason", messages=QUESTION)
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        (x,) = await house.billed()
        assert x.attempts[0].usage is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == x.attempts[0].usage.reasoning > 0

    async def test_a_prompt_read_from_the_providers_cache_costs_less(self, house: House, client: AsyncOpenAI) -> None:
        long: Any = [{"role": "user", "content": "word " * 2000}]
        for _ in range(2):
            await client.chat.completions.create(model="small", messages=long, max_tokens=5)
        first, second = await house.billed(2)
        assert second.attempts[0].usage is not None
        assert second.attempts[0].usage.cache_read >= 1024
        assert first.cost is not None
        assert second.cost is not None
        assert second.cost < first.cost

    async def test_the_older_completions_work_streamed_and_not(self, house: House, client: AsyncOpenAI) -> None:
        whole = await client.completions.create(model="small", prompt="Once upon a time", max_tokens=12)
        stream = await client.completions.create(model="small", prompt="Once upon a time", max_tokens=12, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        await house.billed(2)

    async def test_the_synchronous_client_works_as_well(self, house: House, key: str) -> None:
        def work() -> tuple[str | None, str]:
            with OpenAI(base_url=house.url, api_key=key, max_retries=0) as client:
                whole = client.chat.completions.create(model="small", messages=QUESTION)
                with client.chat.completions.create(model="small", messages=QUESTION, stream=True) as stream:
                    return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

        whole, streamed = await asyncio.to_thread(work)
        assert whole == streamed
        await house.billed(2)


class TestOtherEndpoints:
    async def test_embeddings_are_the_same_vectors_in_both_encodings(self, house: House, client: AsyncOpenAI) -> None:
        texts = ["toll bridge", "toll road"]
        packed = await client.embeddings.create(model="embed", input=texts)  # the SDK asks for base64 by itself
        plain = await client.embeddings.create(model="embed", input=texts, encoding_format="float")
        assert len(plain.data) == 2
        for one, other in zip(packed.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        await house.billed(2)

    async def test_a_file_comes_back_byte_for_byte_and_can_be_deleted(self, house: House, client: AsyncOpenAI) -> None:
        data = bytes(range(256)) * 2048  # half a MiB
        made = await client.files.create(file=("notes.bin", data), purpose="assistants")
        assert made.bytes == len(data)
        assert made.id in [file.id async for file in client.files.list()]
        assert (await client.files.retrieve(made.id)).filename == "notes.bin"
        assert (await client.files.content(made.id)).content == data
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        assert {x.endpoint for x in await house.finished(6)} == {"relay"}

    async def test_speech_arrives_as_bytes_and_its_unknown_cost_is_not_called_zero(
        self, house: House, client: AsyncOpenAI
    ) -> None:
        spoken = await client.audio.speech.create(model="small", voice="alloy", input="five words of plain speech")
        assert len(spoken.content) == 5 * 1024
        assert spoken.response.headers["content-type"] == "audio/mpeg"
        (x,) = await house.finished()
        assert x.cost is None

    async def test_a_transcription_is_a_form_that_names_its_model(self, house: House, client: AsyncOpenAI) -> None:
        text = await client.audio.transcriptions.create(model="small", file=("speech.mp3", b"x" * 5000))
        assert text.text
        await house.billed()

    async def test_moderations_reach_the_teams_provider_without_a_model(
        self, house: House, client: AsyncOpenAI
    ) -> None:
        answer = await client.moderations.create(input=["I hate tolls", "nice bridge"])
        assert [result.flagged for result in answer.results] == [True, False]
        (x,) = await house.finished()
        assert x.attempts[0].target.provider.name == "up"

    async def test_responses_are_relayed_and_billed_streamed_and_not(self, house: House, client: AsyncOpenAI) -> None:
        whole = await client.responses.create(model="small", input="What is a toll bridge?")
        assert whole.output_text
        text, usage = "", None
        async for event in await client.responses.create(model="small", input="What is a toll bridge?", stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                usage = event.response.usage
        assert text == whole.output_text
        assert usage == whole.usage
        await house.billed(2)

    async def test_a_team_sees_its_own_models(self, house: House, client: AsyncOpenAI, guest: str) -> None:
        mine = {model.id async for model in client.models.list()}
        assert mine == {"small", "reason", "embed", "free"}
        assert (await client.models.retrieve("embed")).id == "embed"
        assert [model.id async for model in client.with_options(api_key=guest).models.list()] == ["small"]


REFUSALS = [
    ("a wrong key", {"key": "tk-nobody"}, openai.AuthenticationError, 401, "invalid_api_key"),
    ("a model the team may not use", {"model": "locked"}, openai.PermissionDeniedError, 403, "model_not_allowed"),
    ("an unknown model", {"model": "smal"}, openai.NotFoundError, 404, "model_not_found"),
    ("a wrong type", {"extra_body": {"stream": "yes"}}, openai.BadRequestError, 400, "invalid_type"),
    ("what the provider refuses", {"model": "embed"}, openai.NotFoundError, 404, "upstream_refused"),
    ("a rate limit", {"fault": "status=429"}, openai.RateLimitError, 429, "upstream_rate_limited"),
    ("a failing provider", {"fault": "status=500"}, openai.InternalServerError, 502, "upstream_unavailable"),
    ("a busy provider", {"fault": "status=503"}, openai.InternalServerError, 503, "upstream_unavailable"),
    ("the gateway's wrong key", {"fault": "status=401"}, openai.InternalServerError, 502, "upstream_auth"),
    ("a body too large", {"user": "x" * 1_100_000}, openai.APIStatusError, 413, "body_too_large"),
]


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "kind", "status", "code"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_refusal_is_the_sdks_own_class_with_our_code(
        self,
        client: AsyncOpenAI,
        call: dict[str, Any],
        kind: type[openai.APIStatusError],
        status: int,
        code: str,
        stream: bool,
    ) -> None:
        call = {"model": "small", **call}
        asked = client.with_options(api_key=call.pop("key")) if "key" in call else client
        if "fault" in call:
            call["extra_headers"] = fault(call.pop("fault"))
        with pytest.raises(kind) as caught:
            await asked.chat.completions.create(messages=QUESTION, stream=stream, **call)
        assert caught.value.status_code == status
        assert caught.value.code == code
        assert caught.value.request_id == caught.value.response.headers["x-request-id"]
        assert caught.value.message

    @pytest.mark.parametrize("word", ["reset=3", "eof=3", "error-event=3", "no-done,eof=5", "malformed=3"])
    async def test_a_stream_that_breaks_raises_after_what_arrived(
        self, house: House, client: AsyncOpenAI, word: str
    ) -> None:
        stream = await client.chat.completions.create(
            model="small", messages=QUESTION, stream=True, extra_headers=fault(word)
        )
        arrived: list[ChatCompletionChunk] = []

        async def read() -> None:
            async for chunk in stream:
                arrived.append(chunk)

        with pytest.raises(openai.APIError):
            await read()
        assert arrived
        assert not any(choice.finish_reason for chunk in arrived for choice in chunk.choices)
        (x,) = await house.finished()
        assert x.error is not None

    @pytest.mark.parametrize("word", ["reset=1", "eof=1", "wrong-length"])
    async def test_a_whole_answer_that_breaks_is_never_a_short_one(self, client: AsyncOpenAI, word: str) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="small", messages=QUESTION, extra_headers=fault(word))
        assert caught.value.code == "upstream_broke_off"

    @pytest.mark.parametrize("word", ["reset=2", "eof=2", "chunk-garbage"])
    async def test_a_relayed_answer_that_breaks_is_never_a_short_file(
        self, house: House, client: AsyncOpenAI, word: str
    ) -> None:
        with pytest.raises(Exception, match=r"(?i)connection|peer|incomplete|closed|protocol"):
            await client.audio.speech.create(
                model="small", voice="alloy", input="five words of plain speech", extra_headers=fault(word)
            )
        (x,) = await house.finished()
        assert x.error is not None

    async def test_no_gateway_is_a_connection_error(self, key: str) -> None:
        async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()


class TestHangingUp:
    async def test_closing_a_stream_stops_the_provider(self, house: House, client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="small", messages=QUESTION, stream=True, extra_headers=fault("pace=40")
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if len(text) > 20:
                break
        x = await house.under_way()
        await stream.close()
        assert not (await house.abandoned(x))["finished"]
        (x,) = await house.finished()
        row = await house.row(x)
        assert not row["complete"]
        usage = x.attempts[0].usage
        assert usage is not None
        assert usage.estimated
        assert 0 < usage.output <= row["output"] + 2  # counted with another tokenizer than the provider's own

    @pytest.mark.parametrize("stream", [False, True])
    async def test_cancelling_before_the_first_byte_stops_the_provider(
        self, house: House, client: AsyncOpenAI, stream: bool
    ) -> None:
        call = client.chat.completions.create(
            model="small", messages=QUESTION, stream=stream, extra_headers=fault("ttft=20")
        )
        task = asyncio.ensure_future(call)
        x = await house.under_way()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (await house.abandoned(x))["finished"]
        (x,) = await house.finished()
        assert x.error is not None
        assert x.error.code == "client_gone"

    async def test_a_client_that_times_out_stops_the_provider(self, house: House, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.2).chat.completions.create(
                model="small", messages=QUESTION, extra_headers=fault("ttft=20")
            )
        (x,) = await house.finished()
        assert not (await house.abandoned(x))["finished"]
