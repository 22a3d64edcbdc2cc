"""Near questions: within one tenant and one context, checked, in shadow first; embeddings billed to who asks."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from gateway.answers import Tenants  # noqa: E402  numpy may be missing
from gateway.config import ConfigError  # noqa: E402
from gateway.nearby import RING, Asked, Index  # noqa: E402
from gateway.sameness import facts  # noqa: E402
from tests.policies.test_cache import CRON, OTHER, ask, said, word  # noqa: E402
from tests.running import KEY, Running, running  # noqa: E402
from tests.scripted import Asked as Call  # noqa: E402
from tests.scripted import answer, plain, scripted  # noqa: E402

TENANTS = Tenants(b"root")
RED, BLUE = TENANTS["team red"], TENANTS["team blue"]
ONE, LIKE, OPPOSITE = "How do I turn on the heating?", "How can I turn on the heating", "How do I turn off the heating?"


def asked(text: str, vector: list[float], context: bytes = b"c") -> Asked:
    told = facts(text)
    assert told is not None
    made = np.asarray(vector, np.float32)
    return Asked(context, told, made / np.linalg.norm(made))


def index(limit: int = 100, threshold: float = 0.9) -> Index:
    return Index(limit, threshold, "words")


def test_the_nearest_that_is_the_same_is_found_before_one_that_is_nearer_and_is_not() -> None:
    found = index()
    found.add(RED, asked(LIKE, [1, 0.2]), b"like")
    found.add(RED, asked(OPPOSITE, [1, 0.01]), b"opposite")
    near = found.find(RED, asked(ONE, [1, 0]))
    assert near is not None
    assert (near.key, near.same) == (b"like", True)
    far = found.find(RED, asked(ONE, [0, 1]))
    assert far is None


def test_what_is_near_and_not_the_same_is_told_as_such() -> None:
    found = index()
    found.add(RED, asked(OPPOSITE, [1, 0]), b"opposite")
    near = found.find(RED, asked(ONE, [1, 0]))
    assert near is not None
    assert not near.same


def test_neither_another_tenant_nor_another_context_is_looked_at() -> None:
    found = index()
    found.add(RED, asked(ONE, [1, 0]), b"mine")
    assert found.find(BLUE, asked(ONE, [1, 0])) is None
    assert found.find(RED, asked(ONE, [1, 0], b"other")) is None
    assert found.find(RED, asked(ONE, [1, 0, 0])) is None  # of another model


def test_it_is_bounded_and_the_context_used_last_stays() -> None:
    found = index(limit=50)
    for number in range(200):
        found.add(RED, asked(ONE, [1, 0], b"kept"), b"kept")
        found.find(RED, asked(ONE, [1, 0], b"kept"))
        found.add(RED, asked(ONE, [1, 0], b"%d" % number), b"x")
        assert found.size <= 51
    assert found.find(RED, asked(ONE, [1, 0], b"kept")) is not None
    assert found.find(RED, asked(ONE, [1, 0], b"0")) is None


def test_one_context_is_a_ring() -> None:
    found = index(limit=10**6, threshold=0.999)
    for number in range(RING + 10):
        found.add(RED, asked(ONE, [number + 1, 1]), b"%d" % number)
    assert found.size == RING
    assert found.find(RED, asked(ONE, [RING + 10, 1])) is not None


# ── through the gateway ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def local() -> dict[str, Any]:
    pytest.importorskip("wordllama")
    return {"semantic": {"shadow": False, "threshold": 0.8}}


async def test_a_near_question_gets_its_answer_and_an_opposite_one_does_not(local: dict[str, Any]) -> None:
    async with scripted(plain) as up, running(said(up.url, **local)) as gateway:
        words = [word(await ask(gateway, text)) for text in (ONE, LIKE, OPPOSITE, LIKE)]
        text = (await gateway.client.get("/metrics")).text
        assert len(up.asked) == 2
    assert words == ["miss", "semantic", "miss", "semantic"]
    assert 'tollkeeper_cache_semantic_total{result="hit"} 2.0' in text
    assert 'tollkeeper_cache_semantic_total{result="refused"} 1.0' in text
    assert 'tollkeeper_cache_total{result="semantic"} 2.0' in text


async def test_a_hit_costs_nothing_saves_what_the_first_cost_and_is_streamed_where_asked(local: dict[str, Any]) -> None:
    async with scripted(plain) as up, running(said(up.url, **local)) as gateway:
        await ask(gateway, ONE)
        hit = await ask(gateway, LIKE, stream=True)
        record = await gateway.record((await gateway.finished(2)).id)
    assert hit.text.endswith("data: [DONE]\n\n")
    assert (record.cache, record.cost_nano, record.saved_nano) == ("semantic", 0, 9000)


async def test_in_shadow_nothing_is_served_and_what_would_have_been_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("wordllama")
    async with scripted(plain) as up, running(said(up.url, semantic={"threshold": 0.8})) as gateway:
        with caplog.at_level(logging.INFO, "gateway"):
            assert [word(await ask(gateway, text)) for text in (ONE, LIKE)] == ["miss", "miss"]
        assert len(up.asked) == 2
        first = gateway.seen[0].id
        text = (await gateway.client.get("/metrics")).text
    assert 'tollkeeper_cache_semantic_total{result="shadow"} 1.0' in text
    assert f"would be answered as {first} was" in caplog.text
    assert "heating" not in caplog.text


DIFFERS: dict[str, dict[str, Any]] = {
    "another team": {"key": OTHER},
    "a system prompt": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": LIKE}]},
    "an earlier turn": {"messages": [{"role": "assistant", "content": "s"}, {"role": "user", "content": LIKE}]},
    "a name in the message": {"messages": [{"role": "user", "content": LIKE, "name": "ann"}]},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "a parameter": {"top_p": 0.5},
    "a field of tomorrow": {"num_ctx": 1},
    "a header that reaches the provider": {"headers": {"openai-beta": "assistants=v2"}},
    "parts instead of text": {"messages": [{"role": "user", "content": [{"type": "text", "text": LIKE}]}]},
    "no user at the end": {"messages": [{"role": "assistant", "content": LIKE}]},
}


@pytest.mark.parametrize("what", DIFFERS)
async def test_everything_but_the_last_message_must_be_equal(local: dict[str, Any], what: str) -> None:
    async with scripted(plain) as up, running(said(up.url, **local)) as gateway:
        await ask(gateway, ONE)
        assert word(await ask(gateway, LIKE, **DIFFERS[what])) == "miss"
        assert word(await ask(gateway, LIKE, key=CRON)) == "semantic"  # of the same team
        assert len(up.asked) == 2


async def test_what_was_forgotten_is_not_found_and_no_cache_asks_anew(local: dict[str, Any]) -> None:
    async with scripted(plain) as up, running(said(up.url, **local)) as gateway:
        await ask(gateway, ONE)
        assert word(await ask(gateway, LIKE, headers={"cache-control": "no-cache"})) == "miss"
        await gateway.admin("POST", "/cache/forget", {"all": True})
        assert word(await ask(gateway, LIKE)) == "miss"


async def test_completions_too(local: dict[str, Any]) -> None:
    async def script(call: Call) -> None:
        choice = {"index": 0, "text": "x", "finish_reason": "stop"}
        await call.wire.whole(200, answer(object="text_completion", choices=[choice]))

    async with scripted(script) as up, running(said(up.url, **local)) as gateway:
        words = []
        for prompt in (ONE, LIKE, OPPOSITE):
            body = {"model": "m", "prompt": prompt, "temperature": 0}
            words.append(word(await gateway.client.post("/v1/completions", json=body)))
        assert words == ["miss", "semantic", "miss"]


def vectors(fails: bool = False) -> Any:
    """A provider that embeds as well: each text as the same vector, so that the check alone decides."""

    async def script(call: Call) -> None:
        if not call.path.endswith("/embeddings"):
            await plain(call)
        elif fails:
            await call.wire.whole(500, b"")
        else:
            usage = {"prompt_tokens": 10, "total_tokens": 10}
            told = {"object": "list", "data": [{"embedding": [3, 4], "index": 0}], "model": "e", "usage": usage}
            await call.wire.whole(200, json.dumps(told).encode())

    return script


def remote(url: str, **over: Any) -> dict[str, Any]:
    settings = said(url, semantic={"model": "embed", "shadow": False, **over})
    embed = {"targets": [{"provider": "up", "model": "e"}], "price": {"input": 10, "output": 0}}
    settings["models"]["embed"] = embed
    return settings


async def charged(gateway: Running) -> dict[tuple[str, ...], int]:
    found = (await gateway.admin("GET", "/spend?by=team,model")).json()
    return {tuple(line["values"]): line["nano_usd"] for line in found["data"]}


async def test_embeddings_of_a_provider_are_billed_to_the_caller_and_charged_to_its_budget() -> None:
    async with scripted(vectors()) as up:
        settings = remote(up.url)
        settings["teams"]["checkout"]["budgets"] = [{"limit_usd": 1, "per": "total"}]
        async with running(settings) as gateway:
            words = [word(await ask(gateway, text, max_tokens=9)) for text in (ONE, LIKE, OPPOSITE)]
            await gateway.finished(6)
            inner = [x for x in gateway.seen if x.inner]
            async with asyncio.timeout(5):  # postings are written beside the calls
                while ("checkout", "embed") not in (spent := await charged(gateway)):
                    await asyncio.sleep(0.02)
    assert words == ["miss", "semantic", "miss"]
    assert [x.cost for x in inner] == [100_000] * 3
    assert spent["checkout", "embed"] == 300_000
    assert all(x.caller.team == "checkout" and x.inner == "embed" for x in inner)


async def test_where_no_embedding_can_be_had_the_call_is_answered_all_the_same() -> None:
    async with scripted(vectors(fails=True)) as up, running(remote(up.url)) as gateway:
        assert [word(await ask(gateway, text)) for text in (ONE, LIKE, ONE)] == ["miss", "miss", "hit"]
        text = (await gateway.client.get("/metrics")).text
    assert 'tollkeeper_cache_semantic_total{result="failed"} 2.0' in text


async def test_one_that_takes_too_long_delays_the_call_by_no_more_than_that() -> None:
    async def script(call: Call) -> None:
        if call.path.endswith("/embeddings"):
            await call.wire.gone()
        await plain(call)

    async with scripted(script) as up, running(remote(up.url, seconds=0.2)) as gateway:
        response = await ask(gateway, ONE)
        assert (response.status_code, word(response)) == (200, "miss")
        assert response.elapsed.total_seconds() < 2


async def test_an_extra_that_is_missing_and_a_model_that_is_not_there_stop_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert KEY
    with pytest.raises(ConfigError, match="embed"):
        async with running(said("http://127.0.0.1:1/v1", semantic={"model": "embed"})):
            pass
    monkeypatch.setattr("gateway.nearby.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tollkeeper\[semantic\]"):
        async with running(said("http://127.0.0.1:1/v1", semantic={})):
            pass
