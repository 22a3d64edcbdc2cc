"""Personal data is not sent to a provider: placeholders are, and come back as what they stand for."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.dialects import Chunk
from gateway.exchange import Exchange
from gateway.policy import Policy
from policies.safety import Safety
from tests.running import config, running
from tests.scripted import Asked, answer, event, say, scripted

MAIL, CARD = "ada.lovelace@analytical.example.com", "4111 1111 1111 1111"
MASK = [{"use": "safety", "assessors": [{"use": "personal_data", "action": "mask"}]}]
ASKED = f"Write to {MAIL} about {CARD}; again {MAIL}."


async def echo(asked: Asked) -> None:
    """Repeats what it was asked, cut after each second character, and calls a tool with it."""
    text = asked.json["messages"][-1]["content"]
    arguments = json.dumps({"to": text})
    if not asked.json.get("stream"):
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": text, "tool_calls": [call]}
        await asked.wire.whole(200, answer(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]))
        return
    pieces = [event({"content": text[at : at + 2]}) for at in range(0, len(text), 2)]
    head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces.append(event({"tool_calls": [head]}))
    for at in range(0, len(arguments), 3):
        pieces.append(event({"tool_calls": [{"index": 0, "function": {"arguments": arguments[at : at + 3]}}]}))
    await say(asked, [*pieces, event({}, "tool_calls"), b"data: [DONE]\n\n"])


def heard(raw: str) -> tuple[str, str]:
    text = arguments = ""
    for line in raw.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                text += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls", ()):
                    arguments += call["function"]["arguments"]
    return text, arguments


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_sees_placeholders_and_the_caller_what_they_stand_for(stream: bool) -> None:
    teams = {"checkout": {"content": "full"}}
    async with scripted(echo) as up, running(config(up.url, policies=MASK, teams=teams)) as gateway:
        response = await gateway.chat(ASKED, stream=stream)
        sent = up.asked[0].json["messages"][0]["content"]
        assert sent == "Write to [EMAIL_1] about [CARD_1]; again [EMAIL_1]."
        if stream:
            text, arguments = heard(response.text)
        else:
            message = response.json()["choices"][0]["message"]
            text, arguments = message["content"], message["tool_calls"][0]["function"]["arguments"]
        assert text == ASKED
        assert json.loads(arguments) == {"to": ASKED}
        x = await gateway.finished()
        record = await gateway.record(x.id)
        assert MAIL not in repr(record)
        assert CARD not in repr(record)
        assert "[EMAIL_1]" in repr(record.content)
        assert not gateway.app.pipeline.policies[0]._states  # type: ignore[attr-defined]  # the mapping is gone


async def test_a_conversation_that_grows_keeps_its_placeholders_and_a_callers_own_are_left_alone() -> None:
    first = [{"role": "user", "content": f"I am {MAIL}"}]
    longer = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": f"{CARD} and bob@b.example"}]
    async with scripted(echo) as up, running(config(up.url, policies=MASK)) as gateway:
        for messages in (first, longer):
            await gateway.client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
        one, two = (asked.json["messages"] for asked in up.asked)
        assert two[0] == one[0] == {"role": "user", "content": "I am [EMAIL_1]"}
        assert two[2]["content"] == "[CARD_1] and [EMAIL_2]"
        response = await gateway.chat(f"the word [EMAIL_1] and {MAIL}")
        assert up.asked[-1].json["messages"][0]["content"] == "the word [EMAIL_1] and [EMAIL_2]"
        assert response.json()["choices"][0]["message"]["content"] == f"the word [EMAIL_1] and {MAIL}"


async def test_a_value_that_json_must_escape_comes_back_escaped_in_a_tools_arguments() -> None:
    words = [
        {"use": "safety", "assessors": [{"use": "words", "topics": {"name": ['O"Neil \\ Sons']}, "action": "mask"}]}
    ]
    async with scripted(echo) as up, running(config(up.url, policies=words)) as gateway:
        for stream in (False, True):
            response = await gateway.chat('From O"Neil \\ Sons, hello', stream=stream)
            assert up.asked[-1].json["messages"][0]["content"] == "From [NAME_1], hello"
            if stream:
                arguments = heard(response.text)[1]
            else:
                arguments = response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
            assert json.loads(arguments) == {"to": 'From O"Neil \\ Sons, hello'}


class Saved(Policy[None]):
    """Answers in the provider's place, as a cache before `safety` does: with what the provider had said."""

    def __init__(self, text: str) -> None:
        self.name = "saved"
        self._text = text

    async def admit(self, x: Exchange) -> None:
        x.answer = self._say()

    async def _say(self) -> AsyncGenerator[Chunk, None]:
        yield Chunk(answer(self._text), last=True)


async def test_a_saved_answer_is_restored_and_judged_like_any() -> None:
    lines: list[dict[str, Any]] = [{"use": "personal_data", "action": "mask"}, {"use": "secrets", "action": "redact"}]
    policy = Safety(Safety.Settings.model_validate({"assessors": lines}))
    policy.name = "safety"
    key = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"
    async with scripted(echo) as up, running(config(up.url), [Saved(f"Dear [EMAIL_1], {key}"), policy]) as gateway:
        response = await gateway.chat(ASKED)
        assert response.json()["choices"][0]["message"]["content"] == f"Dear {MAIL}, [aws_access_key]"
        assert not up.asked
        await gateway.finished()
        gateway.seen.clear()
        import gc

        gc.collect()
        assert not policy._states


@pytest.mark.parametrize(
    "first", [None, {"use": "words", "topics": {"proj": ["kestrel"]}, "action": "mask", "stages": ["input"]}]
)
async def test_a_callers_own_placeholder_is_respected_wherever_it_stands(first: Any) -> None:
    personal = {"use": "personal_data", "action": "mask", "stages": ["input"]}
    policies = [{"use": "safety", "assessors": [first, personal] if first else [personal]}]
    messages = [
        {"role": "system", "content": "never expand [EMAIL_1]"},
        {"role": "user", "content": f"kestrel: I am {MAIL}"},
    ]
    async with scripted(echo) as up, running(config(up.url, policies=policies)) as gateway:
        await gateway.client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
        sent = up.asked[0].json["messages"]
    assert sent[0]["content"] == "never expand [EMAIL_1]"
    assert sent[1]["content"].endswith(": I am [EMAIL_2]")


@pytest.mark.parametrize(
    "content",
    [
        f"I am {MAIL} pty ltd, ok",
        [{"type": "text", "text": "I am bob@x.com"}, {"type": "text", "text": "munity is great"}],
        [{"type": "text", "text": f"{MAIL}, bob@x.com"}, {"type": "text", "text": "munity"}, {"type": "text", "text": MAIL}],
    ],
)  # fmt: skip
async def test_nothing_is_lost_where_places_overlap(content: Any) -> None:
    """What the provider is sent, with what its placeholders stand for, is what was asked."""
    company = {"use": "words", "topics": {"co": ["analytical.example.com pty ltd"]}, "action": "mask"}
    policies = [{"use": "safety", "assessors": [MASK[0]["assessors"][0], company]}]  # type: ignore[index]

    async def told(asked: Asked) -> None:
        said = asked.json["messages"][0]["content"]
        await asked.wire.whole(200, answer(said if isinstance(said, str) else "".join(one["text"] for one in said)))

    async with scripted(told) as up, running(config(up.url, policies=policies)) as gateway:
        call = {"model": "m", "messages": [{"role": "user", "content": content}]}
        response = await gateway.client.post("/v1/chat/completions", json=call)
        assert "@" not in up.asked[0].body.decode()
        assert "munity" not in up.asked[0].body.decode()
    whole = content if isinstance(content, str) else "".join(one["text"] for one in content)
    assert response.json()["choices"][0]["message"]["content"] == whole


async def test_what_an_answer_from_the_cache_stands_for_is_what_it_stood_for_first() -> None:
    """A value that another rule takes out has no placeholder, the second time neither."""
    words = {"use": "words", "topics": {"to": ["contact bob@x.com"]}, "action": "redact"}
    safe = {"use": "safety", "assessors": [words, {"use": "personal_data", "action": "mask"}]}

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer("second is [EMAIL_1]"))

    async with scripted(script) as up, running(config(up.url, policies=[{"use": "cache"}, safe])) as gateway:
        for word in ("miss", "hit"):
            response = await gateway.chat("contact bob@x.com or ada@y.com", temperature=0)
            assert response.headers["x-tollkeeper-cache"] == word
            assert response.json()["choices"][0]["message"]["content"] == "second is ada@y.com"


async def test_a_callers_own_placeholder_in_arguments_is_left_alone_however_it_is_written() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"t":"\\u005bEMAIL_1]"}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "I am bob@x.com"}]

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer("tool has [EMAIL_1], you are [EMAIL_2]"))

    async with scripted(script) as up, running(config(up.url, policies=MASK)) as gateway:
        response = await gateway.client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    assert response.json()["choices"][0]["message"]["content"] == "tool has [EMAIL_1], you are bob@x.com"
