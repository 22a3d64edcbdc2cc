"""A call's cost is bounded before it is sent: soundly, tightly enough to be useful, or not at all and said so."""

from __future__ import annotations

import json
import timeit
from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway import body as bodies
from gateway import providers, tokens
from gateway.adapter import Adapter
from gateway.bounds import FOR_TOOLS, PER_CALL, PER_TOOL, Bound, bound, shrunk
from gateway.dialects import openai
from gateway.endpoints import NO_TRACE, chat, completions, embeddings
from gateway.errors import Denied
from gateway.exchange import Caller, Exchange
from gateway.prices import Rate, catalogued, configured
from gateway.settings import Model, Price, Provider, Timeouts
from gateway.targets import Target
from tests.nasty import NASTY

DECODERS: dict[str, Any] = {
    "chat": msgspec.json.Decoder(chat.ChatCall),
    "completions": msgspec.json.Decoder(completions.CompletionCall),
    "embeddings": msgspec.json.Decoder(embeddings.EmbeddingCall),
}
ONE = configured(Price.model_validate({"input": 1, "output": 10}), "x")  # 1,000 and 10,000 nano-USD a token
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def target(model: str = "gpt-4o", base_url: str = "http://127.0.0.1:9", **said: Any) -> Target:
    provider = providers.build("p", Provider(base_url=base_url, **said), openai, Adapter(None, Timeouts(), 5.0))  # type: ignore[arg-type]  # nothing is sent
    return Target("m", provider, model)


def model(**said: Any) -> Model:
    return Model.model_validate({"targets": [{"provider": "p", "model": "up"}], **said})


async def exchange(endpoint: str, said: dict[str, Any] | bytes, **more: Any) -> Exchange:
    raw = said if isinstance(said, bytes) else json.dumps({"model": "m", **said}, ensure_ascii=False).encode()
    call, fields = await bodies.read(raw, DECODERS[endpoint]) if endpoint in DECODERS else (None, {})
    return Exchange(
        id="req_1", endpoint=endpoint, operation=endpoint, method="POST", path=f"/v1/{endpoint}", route="", started=0,
        started_at=0, trace=NO_TRACE, caller=Caller("t", "k"), dialect=openai, body=raw, fields=fields, call=call,
        **{"alias": "m", **more},
    )  # fmt: skip


def say(*texts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


async def bounded(said: dict[str, Any], at: Target | None = None, rate: Rate | None = ONE, **of_model: Any) -> Bound:
    endpoint = "chat" if "messages" in said else "completions" if "prompt" in said else "embeddings"
    return bound(await exchange(endpoint, said), at or target(), rate, model(**of_model))


NEWER = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("asked", "of_model", "output", "cap"),
    [
        (say("hi"), {}, 4096, 4096),
        (say("hi"), {"output_tokens": 100}, 100, 100),
        (say("hi"), {"max_output_tokens": 100}, 100, 100),
        (say("hi", max_tokens=None), {}, 4096, 4096),
        (say("hi", max_tokens=7), {}, 7, None),
        (say("hi", max_tokens=700), {"max_output_tokens": 100}, 100, 100),
        (say("hi", max_tokens=7, n=3), {}, 21, None),
        (say("hi", n=3), {}, 3 * 4096, 4096),
        (say("hi", max_completion_tokens=7), {}, 7, 7),  # to be renamed
        (say("hi", max_tokens=7, max_completion_tokens=None), {}, 7, 7),  # to be left out
        ({"prompt": "hi", "max_tokens": 7, "max_completion_tokens": None}, {}, 7, 7),
        ({"prompt": "hi"}, {}, 16, 16),
        ({"prompt": "hi", "max_tokens": 7}, {}, 7, None),
        ({"prompt": "hi", "max_tokens": 0}, {}, 0, None),
        ({"prompt": ["a", "b"], "max_tokens": 7, "n": 2, "best_of": 5}, {}, 70, None),
        ({"prompt": [1, 2, 3], "max_tokens": 7}, {}, 7, None),
        ({"prompt": [[1, 2], [3]], "max_tokens": 7}, {}, 14, None),
        ({"prompt": [1, "a"], "max_tokens": 7}, {}, 14, None),
        ({"input": "hi"}, {}, 0, None),
    ],
)
async def test_the_answer_is_capped_by_the_caller_or_else_by_us(
    asked: dict[str, Any], of_model: dict[str, Any], output: int, cap: int | None
) -> None:
    found = await bounded(asked, **of_model)
    assert (found.output, found.cap) == (output, cap)
    assert found.amount == found.input * 1_000 + output * 10_000


async def test_where_both_fields_are_read_the_callers_own_stays() -> None:
    at = target(base_url=NEWER)
    assert (await bounded(say("hi", max_completion_tokens=7), at)).cap is None
    assert (await bounded(say("hi", max_tokens=7), at)).cap is None
    both = await bounded(say("hi", max_tokens=7, max_completion_tokens=9), at)
    assert (both.output, both.cap) == (9, None)


@pytest.mark.parametrize(
    ("base_url", "field"),
    [
        (NEWER, "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.x.ai/v1", "max_completion_tokens"),
        ("https://evilopenai.com/v1", "max_tokens"),
        ("https://openai.com.example.org/v1", "max_tokens"),
        ("http://127.0.0.1:8080/v1", "max_tokens"),
    ],
)
def test_the_field_follows_from_the_address_or_the_setting(base_url: str, field: str) -> None:
    assert target(base_url=base_url).provider.cap_field == field
    assert target(base_url=base_url, cap_field="max_tokens").provider.cap_field == "max_tokens"


async def test_an_echo_counts_as_answered() -> None:
    found = await bounded({"prompt": "hello", "max_tokens": 5, "echo": True, "n": 2})
    assert found.output == 2 * (5 + found.input)


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("vocabulary", ["gpt-4o", "gpt-4"])
async def test_nasty_texts_have_no_more_tokens_than_the_bound(vocabulary: str, ascii_only: bool) -> None:
    for text in NASTY:
        raw = json.dumps({"model": "m", **say(text)}, ensure_ascii=ascii_only).encode()
        found = bound(await exchange("chat", raw), target(vocabulary), ONE, model())
        assert tokens.count(text, vocabulary) <= found.input - PER_CALL


@examples(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_so_have_others(text: str) -> None:
    raw = json.dumps(text).encode()  # escapes at their longest, without what a message adds
    plain = json.dumps(text, ensure_ascii=False).encode()
    assert max(tokens.count(text, name) for name in ("gpt-4o", "gpt-4")) <= min(len(raw), len(plain))


def rendered(tool: dict[str, Any]) -> list[str]:
    """A tool as chat templates write it: indented, with escapes, as TypeScript."""
    function = tool["function"]
    lines = [f"// {function.get('description', '')}", f"type {function['name']} = (_: {{"]
    for name, schema in function["parameters"].get("properties", {}).items():
        enum = " | ".join(json.dumps(word) for word in schema.get("enum", []))
        lines += [f"// {schema.get('description', '')}", f"{name}?: {enum or schema.get('type')},"]
    return [json.dumps(tool, indent=4), json.dumps(tool), "\n".join([*lines, "}) => any;"])]


def test_tools_fit_twice_their_bytes_however_they_are_rendered() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(12):
        deep = {"type": "object", "properties": {"é😀": deep, "x": {"enum": list(range(30))}}}
    word = {"type": "string", "enum": ["a", "b", "ü"], "description": "é<>&'\""}
    wide = {"properties": {f"p{i}": word for i in range(40)}}
    kinds: list[dict[str, Any]] = [
        {"description": "日本語" * 40 + "😀é" * 60, "parameters": deep},
        {"parameters": wide},
    ]
    for more in kinds:
        tool = {"type": "function", "function": {"name": "f", **more}}
        size = len(json.dumps(tool, ensure_ascii=False, separators=(",", ":")).encode())
        for text in rendered(tool):
            assert max(tokens.count(text, name) for name in ("gpt-4o", "gpt-4")) <= 2 * size + PER_TOOL


async def test_tools_schemas_and_earlier_calls_count_twice() -> None:
    plain = (await bounded(say("hi", tools=[]))).input
    for more in ({"tools": [WEATHER]}, {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}):
        size = len(json.dumps(more)) - len('{"tools": []}')
        assert (await bounded(say("hi", **more))).input >= plain + 2 * size + FOR_TOOLS - 30
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1,1,1,1]"}}
    said = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    assert (await bounded(said)).input > len(json.dumps(said)) + len(json.dumps(call))


async def test_pictures_and_sound_are_not_counted_as_text() -> None:
    picture = await bounded(say([{"type": "text", "text": "what?"}, PICTURE, PICTURE]), image_tokens=1_445)
    assert 2 * 1_445 < picture.input < 2 * 1_445 + 600
    assert 50_000 < (await bounded(say([PICTURE]))).input < 50_600
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 64_000, "format": "wav"}}
    loud = configured(Price.model_validate({"input": 1, "output": 10, "audio_input": 40}), "x")
    found = await bounded(say([sound]), rate=loud)
    assert 2_000 < found.input < 2_700
    assert found.amount >= found.input * 40_000


async def test_a_window_bounds_every_prompt() -> None:
    assert (await bounded(say("x" * 10_000), max_input_tokens=1_000)).input == 1_000
    file = {"type": "file", "file": {"file_id": "file-1"}}
    assert (await bounded(say([file]), max_input_tokens=128_000)).input == 128_000
    heard = {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}
    assert (await bounded(heard, max_input_tokens=128_000)).input == 128_000
    assert (await bounded({"messages": [{"role": "assistant", "audio": None}]})).input < 1_000


async def test_a_vocabulary_that_normalises_may_make_more_of_a_character() -> None:
    said = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 100  # 3 bytes each; 33 in form NFKC
    plain, grown = await bounded(say(said)), await bounded(say(said), target("claude-sonnet-4-5"))
    assert grown.input - plain.input == 3_000
    escaped = json.dumps({"model": "m", **say(said)}).encode()
    found = bound(await exchange("chat", escaped), target("claude-sonnet-4-5"), ONE, model())
    assert found.input >= 3_300
    long = await bounded(say(said * 300), target("claude-sonnet-4-5"))
    assert long.input >= 3_300 * 300
    english = say("Hello, world")
    assert (await bounded(english, target("claude-3"))).input == (await bounded(english)).input


# ── what has no bound ───────────────────────────────────────────────────────────────────────────────────────────────

UNBOUNDED: list[tuple[dict[str, Any], str, str]] = [
    (say("hi", web_search_options=None, prediction=None), "", ""),
    (say("hi", web_search_options={}), "web_search_options", "max_cost_usd"),
    (say("hi", n_predict=None), "n_predict", "max_cost_usd"),
    (say("hi", web_search_options={"search_context_size": "low"}), "web_search_options", "max_cost_usd"),
    (say("hi", prediction={"type": "content", "content": "x"}), "prediction", "max_cost_usd"),
    (say("hi", n_predict=100_000), "n_predict", "max_cost_usd"),
    (say("hi", models=["a-dearer-one"]), "models", "max_cost_usd"),
    (say("hi", tools=[WEATHER, {"type": "web_search"}]), "tools[1]", "max_cost_usd"),
    (say("hi", tools=[{"google_search": {}}]), "tools[0]", "max_cost_usd"),
    (say("hi", tools=["x"]), "tools", "max_cost_usd"),
    (say("hi", modalities=["text", "image"]), "modalities", "max_cost_usd"),
    (say("hi", modalities="image"), "modalities", "max_cost_usd"),
    (say("hi", modalities=["text", "audio"], audio={"voice": "x"}), "", ""),
    (say([{"type": "file", "file": {"file_id": "f"}}]), "messages[0].content", "max_input_tokens"),
    (say([{"type": "video_url", "video_url": {"url": "https://x/"}}]), "messages[0].content", "max_input_tokens"),
    (say([1]), "messages[0].content", "max_cost_usd"),
    (say(["text alone", {"type": "text", "text": "x"}]), "", ""),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio", "max_input_tokens"),
    ({"prompt": "hi", "use_beam_search": True}, "use_beam_search", "max_cost_usd"),
    ({"input": "hi", "messages_": [1]}, "messages_", "max_cost_usd"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "field", "mend"), UNBOUNDED)
async def test_what_has_no_bound_is_refused_by_name_with_its_mend(asked: dict[str, Any], field: str, mend: str) -> None:
    if not field:
        assert (await bounded(asked)).amount > 0
        return
    with pytest.raises(Denied) as caught:
        await bounded(asked)
    error = caught.value
    assert (error.code, error.status, error.should_retry, error.param) == ("model_unpriced", 400, False, field)
    assert f"models.m.{mend}" in error.message
    assert field in error.message or mend == "max_input_tokens"
    known = await bounded(asked, max_cost_usd=0)
    stated = await bounded(asked, max_cost_usd="0.5")
    assert stated.amount == max(known.amount, 500_000_000)
    assert stated.cap == (None if "input" in asked else 16 if "prompt" in asked else 4096)


async def test_a_picture_without_a_figure_a_model_without_a_price_and_other_units_have_none() -> None:
    with pytest.raises(Denied, match=r"models\.m\.image_tokens"):
        await bounded(say([PICTURE]), image_tokens=None)
    with pytest.raises(Denied, match=r"models\.m\.price"):
        await bounded(say("hi"), rate=None)
    assert (await bounded(say("hi"), rate=None, max_cost_usd=2)).amount == 2_000_000_000
    by_search, by_hour = (Rate("x", ONE.contexts, (unit,)) for unit in ("web_searches_kcount", "audio_hours"))
    assert (await bounded(say("hi"), rate=by_search)).amount > 0
    for at, rate in ((target("gpt-4o-search-preview"), by_search), (target(), by_hour)):
        with pytest.raises(Denied, match="also billed by"):
            await bounded(say("hi"), at, rate)


async def test_paths_that_are_passed_on() -> None:
    at, x = target(), await exchange("relay", b"{}", upstream_path="/responses")
    with pytest.raises(Denied, match=r"models\.m\.max_cost_usd"):
        bound(x, at, ONE, model())
    assert bound(x, at, ONE, model(max_cost_usd=1)) == (1_000_000_000, 0, 0, None)
    assert shrunk(x, at, ONE, model(max_cost_usd=1), 5) is None
    nameless = await exchange("relay", b"{}", upstream_path="/batches", alias="")
    with pytest.raises(Denied, match="name no model"):
        bound(nameless, Target("", at.provider, ""), None, None)
    nameless.upstream_path = "/files?x=1"
    assert bound(nameless, at, None, None) == (0, 0, 0, None)
    nameless.method, nameless.upstream_path = "GET", "/batches/1"
    assert bound(nameless, at, None, None) == (0, 0, 0, None)


async def test_a_free_model_needs_no_bound() -> None:
    free = configured(Price.model_validate({"input": 0, "output": 0}), "x")
    assert await bounded(say("hi", prediction={"x": 1}), rate=free) == (0, 0, 0, None)


async def test_the_dearest_tier_that_may_serve_the_call_counts() -> None:
    from genai_prices.data_snapshot import get_snapshot

    seller = next(one for one in get_snapshot().providers if one.id == "openai")
    rate = catalogued(seller, "gpt-5.4", date(2026, 11, 21))
    assert rate is not None
    amount = {
        tier: (await bounded(say("hi", service_tier=tier, max_tokens=1000), rate=rate)).amount
        for tier in ("default", "flex", "auto", "priority", None)
    }
    for tier in ("auto", "priority", None):
        assert 1.98 * amount["default"] < amount[tier] < 2.02 * amount["default"]
    assert amount["flex"] < 1.01 * amount["default"]


# ── the largest that fits ───────────────────────────────────────────────────────────────────────────────────────────


@examples(max_examples=200, deadline=None)
@given(
    available=st.integers(0, 10**9), cap=st.integers(1, 20_000), n=st.integers(1, 5), floor=st.integers(1, 200),
    output=st.sampled_from(["10", "0.0037", "0"]), ceiling=st.sampled_from([None, 50, 5_000]),
)  # fmt: skip
async def test_a_call_shrinks_to_the_largest_cap_that_fits(
    available: int, cap: int, n: int, floor: int, output: str, ceiling: int | None
) -> None:
    rate = configured(Price.model_validate({"input": 1, "output": output}), "x")
    x = await exchange("chat", say("hi", max_tokens=cap, n=n))
    said = model(max_output_tokens=ceiling)
    whole = bound(x, target(), rate, said)
    found = shrunk(x, target(), rate, said, available, floor)
    if whole.amount <= available:
        assert found == whole
    elif found is None:
        least = rate.worst(whole.input, floor * n)
        assert least > available or floor >= whole.output // n
    else:
        assert found.cap is not None
        assert floor <= found.cap < whole.output // n
        assert found.output == found.cap * n
        assert found.amount <= available < rate.worst(whole.input, (found.cap + 1) * n)
        again = await exchange("chat", say("hi", max_tokens=found.cap, n=n))
        assert bound(again, target(), rate, said).output == found.output


async def test_what_has_no_output_does_not_shrink() -> None:
    x = await exchange("embeddings", {"input": "hello"})
    assert shrunk(x, target(), ONE, model(), 5) is None
    stated = await exchange("chat", say("hi", prediction={"x": 1}))
    assert shrunk(stated, target(), ONE, model(max_cost_usd=1), 5) is None
    with pytest.raises(Denied):
        shrunk(stated, target(), ONE, model(), 5)


@pytest.mark.serial
async def test_it_costs_little() -> None:
    x, at, said = await exchange("chat", say(*["word " * 35] * 10, temperature=0.5)), target(), model()
    best = min(timeit.repeat(lambda: bound(x, at, ONE, said), number=2_000, repeat=5)) / 2_000
    print(f"{best * 1e6:.1f} us for {len(x.body)} bytes in 10 messages")
    assert best < 50e-6  # measured: 5 us
