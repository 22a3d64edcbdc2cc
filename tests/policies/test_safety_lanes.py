"""What a reader joins is judged as one, wherever a model or a provider cuts it; and nothing waits longer than it may."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.policies.test_safety import SECRET, SHOWN, safety
from tests.running import config, running
from tests.scripted import DONE, Asked, answer, event, say, scripted

HALF, REST = SECRET[:9], SECRET[9:]
HI = [{"role": "user", "content": "hi"}]
REDACT = safety({"use": "secrets", "action": "redact"}, hold_seconds=20)


def arguments(piece: str, index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def native(*said: Any) -> list[bytes]:
    return [b"data: %s\n\n" % json.dumps(one).encode() for one in said]


def typed(*said: dict[str, Any]) -> list[bytes]:
    return [b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in said]


def delta(kind: str, text: str, **marks: int) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": "i", "output_index": 0, **marks, "delta": text}


def gemini(text: str, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    return {"candidates": [candidate], "responseId": "0f3a-4111-1111", "modelVersion": "gemini-2.5", **more}


def block(text: str, index: int) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}


def spoken(raw: str) -> str:
    """All that a client could join of a stream: the strings of its events, in their order."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                walk(inner)

    for line in raw.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            walk(json.loads(line[6:]))
    return "|".join(found)


CHAT: dict[str, list[bytes]] = {
    "reasoning between": [event({"content": f"It is {HALF}"}), event({"reasoning_content": "Hm, so. "}), event({"content": f"{REST} ok"}), event({}, "stop"), DONE],
    "content between": [event({"reasoning_content": f"It is {HALF}"}), event({"content": "Hm, so. "}), event({"reasoning_content": f"{REST} ok"}), event({}, "stop"), DONE],
    "a tool call between": [event({"content": f"It is {HALF}"}), event(arguments('{"a":1}')), event({"content": f"{REST} ok"}), event({}, "stop"), DONE],
    "content between arguments": [event(arguments('{"k":"' + HALF)), event({"content": "Wait. "}), event(arguments(REST + ' ok"}')), event({}, "tool_calls"), DONE],
    "behind a finish reason": [event({"content": f"It is {HALF}"}), event({}, "stop"), event({"content": f"{REST} ok"}), DONE],
    "behind two": [event({"content": f"It is {HALF}"}, "length"), event({"content": f"{REST} ok"}, "stop"), DONE],
    "behind the end": [event({"content": f"It is {HALF}"}), DONE, event({"content": f"{REST} ok"})],
    "a message behind deltas": [event({"content": f"It is {HALF}"}), event(None, choices=[{"index": 0, "message": {"content": f"{REST} ok"}}]), event({}, "stop"), DONE],
    "a message that says it again": [event({"content": HALF}), event(None, choices=[{"index": 0, "message": {"content": f"{SECRET} ok"}}]), event({}, "stop"), DONE],
    "an index with a point": [event({"content": f"It is {HALF}"}), event(None, choices=[{"index": 5, "delta": {"content": "x "}}, {"index": 0.0, "delta": {"content": f"{REST} ok"}}]), event({}, "stop"), DONE],
    "a call's index with a point": [event(arguments('{"k":"' + HALF)), event({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}, {"index": 0.0, "function": {"arguments": REST + ' ok"}'}}]}), event({}, "tool_calls"), DONE],
    "parts of one event": [event({"content": [{"type": "text", "text": f"It is {HALF}"}, {"type": "text", "text": f"{REST} ok"}]}), event({}, "stop"), DONE],
    "parts of two events": [event({"content": [{"type": "text", "text": "x"}, {"type": "text", "text": f"It is {HALF}"}]}), event({"content": [{"type": "text", "text": f"{REST} ok"}]}), event({}, "stop"), DONE],
}  # fmt: skip
OTHERS: dict[str, list[bytes]] = {
    "gemini": native(gemini("It is "), gemini(HALF), gemini(f"{REST} ok")),
    "gemini parts": native({"candidates": [{"content": {"parts": [{"text": f"It is {HALF}"}, {"text": f"{REST} ok"}]}}]}),
    "gemini candidates": native(*[{"candidates": [{"content": {"parts": [{"text": text}]}}, {"content": {"parts": [{"text": "No. "}]}}]} for text in (f"It is {HALF}", f"{REST} ok")]),
    "a field of its own": native({"token": {"text": f"It is {HALF}"}, "n": 1}, {"token": {"text": f"{REST} ok"}, "n": 2}),
    "typed": native({"type": "token", "content": f"It is {HALF}"}, {"type": "token", "content": f"{REST} ok"}),
    "blocks": typed(block(f"It is {HALF}", 0), {"type": "content_block_stop", "index": 0}, block(f"{REST} ok", 1), {"type": "message_stop"}),
    "blocks with a tool between": typed(block(f"It is {HALF}", 0), {"type": "content_block_stop", "index": 0}, {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'}}, {"type": "content_block_stop", "index": 1}, block(f"{REST} ok", 2), {"type": "message_stop"}),
    "a block's beginning": typed({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": f"It is {HALF}"}}, block(f"{REST} ok", 0), {"type": "message_stop"}),
    "a message's beginning": typed({"type": "message_start", "message": {"id": "msg_1", "content": [{"type": "text", "text": "x "}, {"type": "text", "text": f"It is {HALF}"}]}}, block("y ", 0), block(f"{REST} ok", 1), {"type": "message_stop"}),
    "a part's beginning": typed({"type": "response.content_part.added", "item_id": "i", "output_index": 0, "content_index": 0, "part": {"type": "output_text", "text": f"It is {HALF}"}}, delta("output_text", "x ", content_index=1), delta("output_text", f"{REST} ok", content_index=0)),
    "a summary's beginning": typed({"type": "response.reasoning_summary_part.added", "item_id": "i", "output_index": 0, "summary_index": 0, "part": {"type": "summary_text", "text": f"It is {HALF}"}}, delta("reasoning_summary_text", f"{REST} ok", summary_index=0)),
    "an item's beginning": typed({"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "i", "content": [{"type": "output_text", "text": f"It is {HALF}"}]}}, delta("output_text", f"{REST} ok", content_index=0)),
    "a call's beginning": typed({"type": "response.output_item.added", "output_index": 0, "item": {"type": "function_call", "id": "i", "name": "f", "arguments": '{"k":"' + HALF}}, delta("function_call_arguments", REST + ' ok"}')),
    "code's beginning": typed({"type": "response.output_item.added", "output_index": 0, "item": {"type": "code_interpreter_call", "id": "i", "code": f"k = {HALF}"}}, delta("code_interpreter_call_code", f"{REST} ok")),
    "a beginning of cohere's": native({"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": f"It is {HALF}"}}}}, {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": f"{REST} ok"}}}}),
    "texts in turns": native(*[{"type": "text-delta", "id": id, "delta": text} for id, text in (("1", f"It is {HALF}"), ("2", "hello "), ("1", f"{REST} ok"))]),
    "events with ids": native(*[{"type": "text-delta", "id": id, "delta": text} for id, text in (("1", f"It is {HALF}"), ("2", f"{REST} ok"))]),
    "arguments in events with ids": native(*[{"type": "tool_call.delta", "id": id, "delta": {"arguments": text}} for id, text in (("1", '{"k":"' + HALF), ("2", REST + ' ok"}'))]),
    "lists": native(["t", f"It is {HALF}"], ["t", f"{REST} ok"]),
    "lists of texts": native(["It is ", HALF], [f"{REST} ok"]),
    "items": typed(*[{"type": "response.output_text.delta", "item_id": f"msg_{at}", "output_index": at, "content_index": 0, "delta": text} for at, text in enumerate((f"It is {HALF}", f"{REST} ok"))], {"type": "response.completed", "response": {"id": "resp_1"}}),
}  # fmt: skip


@pytest.mark.parametrize("action", ["redact", "block"])
async def test_what_a_reader_joins_is_one_text_whatever_stands_between(action: str) -> None:
    async def script(asked: Asked) -> None:
        await say(asked, (CHAT | OTHERS)[name])

    policies = safety({"use": "secrets", "action": action}, hold_seconds=20)
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        for name in CHAT | OTHERS:
            path = "/v1/chat/completions" if name in CHAT and name != "behind the end" else "/v1/anything"
            response = await gateway.client.post(path, json={"model": "m", "stream": True, "messages": HI})
            text = spoken(response.text)
            assert HALF[:4] not in text, (name, text)
            assert REST[-4:] not in text, (name, text)
            assert text.count(SHOWN) == (action == "redact"), (name, text)
            assert ("blocked_by_safety" in response.text) == (action == "block"), (name, text)
            assert action == "block" or "ok" in text, (name, text)


WHOLE: dict[str, Any] = {
    "parts of a message": {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": [{"type": "text", "text": f"It is {HALF}"}, {"type": "text", "text": f"{REST} ok"}]}}]},
    "blocks of a message": {"type": "message", "content": [{"type": "text", "text": f"It is {HALF}"}, {"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": f"{REST} ok"}]},
    "items of a response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": text}]} for text in (f"It is {HALF}", f"{REST} ok")]},
    "a list of chunks": [gemini(f"It is {HALF}"), gemini(f"{REST} ok")],
    "a choice that is a string": {"choices": [f"It is {SECRET} ok"]},
    "half a character": {"text": f"It is {SECRET} ok \ud83d"},
}  # fmt: skip


async def test_parts_of_a_list_are_one_text_too() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, json.dumps(WHOLE[name]).replace("AKIA", "\\u0041KIA").encode())

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        for name in WHOLE:
            told = json.dumps((await gateway.client.post("/v1/anything", json={"model": "m"})).json())
            assert HALF[:4] not in told, (name, told)
            assert REST[-4:] not in told, (name, told)
            assert f"It is {SHOWN}" in told, (name, told)
            assert "ok" in told, (name, told)
            assert ("\\ud83d" in told) == (name == "half a character")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_json_in_another_encoding_is_read_as_clients_read_it(encoding: str) -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(
            200, json.dumps({"text": f"It is {SECRET}"}).replace("AKIA", "\\u0041KIA").encode(encoding)
        )

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        response = await gateway.client.post("/v1/anything", json={"model": "m"})
    assert json.loads(response.content) == {"text": f"It is {SHOWN}"}


@pytest.mark.parametrize("field", ["response", "message"])
async def test_lines_of_json_are_one_text_by_their_places(field: str) -> None:
    texts = ("It ", f"is {HALF}", REST, " ok")
    said = [
        {
            "created_at": "2026-01-02T03:04:05.1Z",
            field: {"role": "assistant", "content": text} if field == "message" else text,
            "n": "411",
        }
        for text in texts
    ]

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, b"\n".join(json.dumps(one).encode() for one in said), "application/x-ndjson")

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        response = await gateway.client.post("/v1/anything", json={"model": "m"})
    heard = [json.loads(line)[field] for line in response.text.splitlines()]
    assert "".join(one["content"] if field == "message" else one for one in heard) == f"It is {SHOWN} ok"


async def test_fields_that_repeat_or_count_are_not_glued_into_nonsense() -> None:
    """Each by itself is harmless; one after the other they would be card numbers, addresses and telephone numbers."""
    said = [
        {"text": f"word{at} ", "responseId": "41111111", "n": "4111", "at": f"2026-01-02T03:04:0{at}Z", "stamp": "2026-01-02T03:04:05Z",
         "created_at": f"1111 111{at}", "requestId": f"4111{at}", "modelVersion": "8.8", "user_name": "4111 1111"}
        for at in range(8)
    ]  # fmt: skip

    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, native(*said))
        else:
            await asked.wire.whole(200, b"\n".join(json.dumps(one).encode() for one in said), "application/x-ndjson")

    policies = safety({"use": "secrets"}, {"use": "personal_data"})
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        for stream in (True, False):
            response = await gateway.client.post("/v1/anything", json={"model": "m", "stream": stream})
            assert response.status_code == 200
            assert "blocked_by_safety" not in response.text
            assert all(f"word{at} " in response.text for at in range(8))


async def test_what_is_whole_in_one_place_is_found_although_a_letter_stands_before_it_in_another() -> None:
    said = [{"name": "bob", "key": key} for key in ("abc", SECRET, "xyz")]

    async def script(asked: Asked) -> None:
        await say(asked, native(*said))

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        response = await gateway.client.post("/v1/anything", json={"model": "m", "stream": True})
    assert SECRET not in response.text
    assert SHOWN in response.text


# ── how long it waits ───────────────────────────────────────────────────────────────────────────────────────────────


async def arrivals(*pieces: bytes, pause: float = 0.0, **more: Any) -> tuple[str, dict[str, float]]:
    """A stream's text, and when each event's words came, in seconds from the first byte of the answer's head."""

    async def script(asked: Asked) -> None:
        await asked.wire.head()
        for piece in pieces:
            await asked.wire.chunk(piece)
            await asyncio.sleep(pause)
        await asked.wire.chunk(b"")

    policies = safety({"use": "secrets", "action": "redact"}, **more)
    came: dict[str, float] = {}
    raw = ""
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        call = {"model": "m", "stream": True, "messages": HI}
        began = time.perf_counter()
        async with gateway.client.stream("POST", "/v1/chat/completions", json=call) as response:
            async for piece in response.aiter_text():
                raw += piece
                for word in spoken(raw).replace("|", " ").split():
                    came.setdefault(word, time.perf_counter() - began)
    return raw, came


async def test_the_end_of_a_text_waits_for_so_many_characters_of_another_and_no_longer() -> None:
    more = [event({"content": f"word{at} " * 4}) for at in range(12)]
    _, came = await arrivals(
        event({"reasoning_content": "I see. Done"}), *more, event({}, "stop"), DONE,
        pause=0.05, hold_characters=64, hold_seconds=20,
    )  # fmt: skip
    assert came["Done"] < came["word8"]  # 64 characters: three events
    assert came["word0"] < came["word8"]


async def test_or_for_so_many_seconds() -> None:
    _, came = await arrivals(
        event({"reasoning_content": "I see. Done"}), event({"content": "Yes. "}), event({"content": "No. "}), event({}, "stop"), DONE,
        pause=0.4, hold_seconds=0.2,
    )  # fmt: skip
    assert 0.2 < came["Done"] < came["No."]


def choice(index: int, text: str, finish: str | None = None) -> bytes:
    return event(None, choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}])


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (event(arguments('{"city": "I see. Done')), lambda words: event(arguments(words, 1))),
        (choice(0, "I see. Done"), lambda words: choice(1, words)),
        (choice(0, "I see. Done"), lambda words: choice(1, "", "stop") if words.startswith("word0") else choice(2, words)),
    ],
    ids=["tool calls", "choices", "choices of which one has ended"],
)  # fmt: skip
async def test_no_text_waits_longer_for_another_of_its_kind(first: bytes, more: Callable[[str], bytes]) -> None:
    others = [more(f"word{at} " * 4) for at in range(12)]
    for pause, held in ((0.05, {"hold_characters": 64, "hold_seconds": 20}), (0.2, {"hold_seconds": 0.5})):
        _, came = await arrivals(first, *others, event({}, "stop"), DONE, pause=pause, **held)
        done = next(at for word, at in came.items() if "Done" in word)
        assert done < came["word8"], held
        assert came["word1"] < pause * 9, held


@pytest.mark.parametrize(
    "made",
    [
        lambda text: {"text": text, "mood": f"so {len(text)}"},
        lambda text: {"choices": [{"index": 0, "delta": {"reasoning": text, "reasoning_details": [{"type": "t", "text": text}]}}]},
        lambda text: {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": text},
    ],
)  # fmt: skip
async def test_what_stands_beside_a_text_in_each_event_does_not_end_it(made: Any) -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.head()
        for piece in native(made(f"It is {HALF}"), made(f"{REST} ok")):
            await asked.wire.chunk(piece)
            await asyncio.sleep(0.3)
        await asked.wire.chunk(b"")

    policies = safety({"use": "secrets", "action": "redact"}, hold_seconds=0.1)
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        response = await gateway.client.post("/v1/anything", json={"model": "m", "stream": True})
    assert HALF[:4] not in response.text
    assert SHOWN in response.text


async def test_what_goes_on_too_late_loses_only_its_beginning() -> None:
    between = [event({"reasoning_content": "so and so. " * 30})]
    raw, _ = await arrivals(
        event({"content": f"It is {HALF}"}), *between, event({"content": f"{REST} ok"}), event({}, "stop"), DONE
    )
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        for line in raw.splitlines()
        if line.startswith("data: {")
    )
    assert text == f"It is {HALF}{SHOWN} ok"


async def test_an_assessor_that_needs_all_of_a_text_gets_all_of_it_though_a_tool_call_stands_between() -> None:
    rules = safety({"use": "json_schema", "schema": {"type": "object", "required": ["b"]}})

    async def script(asked: Asked) -> None:
        await say(
            asked,
            [
                event({"content": '{"a":1,'}),
                event(arguments('{"a":1}')),
                event({"content": '"b":2}'}),
                event({}, "stop"),
                DONE,
            ],
        )

    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        response = await gateway.chat(stream=True)
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"b' in response.text


# ── log-probabilities ───────────────────────────────────────────────────────────────────────────────────────────────


def told(*tokens: str) -> dict[str, Any]:
    return {
        "content": [{"token": one, "logprob": -0.1, "bytes": list(one.encode()), "top_logprobs": []} for one in tokens]
    }


def chosen(delta: dict[str, Any], tokens: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
    return event(None, choices=[{"index": 0, "delta": delta, "logprobs": tokens, "finish_reason": finish}])


@pytest.mark.parametrize(
    "pieces",
    [
        [chosen({"content": f"It is {HALF}"}), chosen({"content": REST}), chosen({}, told("It", " is ", HALF, REST), "stop")],
        [chosen({}, told("It", " is ", HALF)), chosen({}, told(REST)), chosen({"content": f"It is {SECRET}"}), chosen({}, None, "stop")],
        [chosen({"content": f"It is {HALF}"}, told("It", " is ")), chosen({"content": REST}, told(HALF)), chosen({"content": " ok"}, told(REST)), chosen({}, None, "stop")],
        [chosen({"content": f"It is {SECRET} "}), chosen({"content": "ok"}, told("\\x41", "KIA")), chosen({}, None, "stop")],
    ],
    ids=["behind", "before", "one event late", "not as text"],
)  # fmt: skip
async def test_log_probabilities_do_not_tell_what_was_taken_out_of_another_event(pieces: list[bytes]) -> None:
    async def script(asked: Asked) -> None:
        await say(asked, [*pieces, DONE])

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        response = await gateway.chat(stream=True, logprobs=True)
    assert SHOWN in response.text
    for inner in (HALF, REST, json.dumps(list(HALF.encode())), json.dumps(list(REST.encode())), "KIA"):
        assert inner not in response.text


async def test_log_probabilities_of_what_is_harmless_stay() -> None:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(
                asked,
                [
                    chosen({"content": "It"}, told("It")),
                    chosen({"content": " is"}, told(" is")),
                    chosen({}, None, "stop"),
                    DONE,
                ],
            )
        else:
            await asked.wire.whole(
                200,
                answer(
                    choices=[
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "It is\n1234 5678"},
                            "logprobs": told("It", " is"),
                            "finish_reason": "stop",
                        }
                    ]
                ),
            )

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        for stream in (True, False):
            response = await gateway.chat(stream=stream, logprobs=True)
            assert response.text.count('"logprob"') == 2


@pytest.mark.parametrize(
    "parts",
    [
        ["ada.love", "lace@ana", "lytical.com"],
        ["4111 1111 ", "1111 1111"],
        [{"text": "4111 1111 "}, {"text": "1111 1111"}],
    ],
)
@pytest.mark.parametrize("where", ["before", "behind", "in the choice"])
async def test_lists_beside_a_message_are_one_text_too(where: str, parts: Any) -> None:
    message = {"role": "assistant", "content": "hi"}
    choice = {
        "index": 0,
        **({"reasoning": parts} if where == "in the choice" else {}),
        "message": message,
        "finish_reason": "stop",
    }
    body = {"id": "c", "choices": [choice]}
    body = {"output": parts, **body} if where == "before" else {**body, "output": parts} if where == "behind" else body

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, json.dumps(body).encode())

    policies = [{"use": "safety", "assessors": [{"use": "personal_data", "action": "redact"}]}]
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        text = (await gateway.chat("hi")).text
    for part in parts:
        assert (part["text"] if isinstance(part, dict) else part) not in text
