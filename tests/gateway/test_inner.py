"""What the gateway asks for itself: held and billed to the caller, told as a call of its own, never met by policies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gateway.dialects import Chunk
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.inner import Inner
from gateway.policy import Policy
from policies.budget import Budget
from tests.running import Running, config, running
from tests.scripted import Asked, Scripted, answer, scripted

VECTOR: Any = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "model": "up-embed",
    "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
}


async def provider(asked: Asked) -> None:
    if asked.path.endswith("/embeddings"):
        if asked.json["input"] == "hang":
            await asked.wire.gone()
        await asked.wire.whole(200, json.dumps(VECTOR).encode())
    else:
        await asked.wire.whole(200, answer())


class Asks(Policy[str]):
    """Embeds what is asked, in admit; counts how often it is called itself."""

    inner: Inner

    def __init__(self, seconds: float = 5.0, model: str = "embed") -> None:
        self.seconds = seconds
        self.model = model
        self.heard: list[bytes] = []
        self.raised: GatewayError | None = None
        self.calls = 0

    async def admit(self, x: Exchange) -> str:
        self.calls += 1
        text = json.loads(x.body)["messages"][0]["content"]
        call = {"model": self.model, "input": text}
        try:
            self.heard.append(await self.inner.ask(x, "embeddings", call, why="embed", seconds=self.seconds))
        except GatewayError as error:
            self.raised = error
        return "receipt"

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk:
        self.calls += 1
        return chunk


def said(url: str, limit: str = "1", **team: Any) -> dict[str, Any]:
    embed = {"targets": [{"provider": "up", "model": "up-embed"}], "price": {"input": 10, "output": 0}}
    budgets = [{"limit_usd": limit, "per": "total"}]
    return config(url, models={"embed": embed}, teams={"checkout": {"budgets": budgets, **team}})


def built(gateway: Running, asks: Asks) -> None:
    asks.inner = gateway.app.inner


async def asked(up: Scripted, asks: Asks, limit: str = "1", text: str = "hi", **team: Any) -> list[Exchange]:
    """Both exchanges of one call: the inner one, which ends first, and the outer."""
    settings = said(up.url, limit, **team)
    async with running(settings) as whole:  # for its books only
        assert whole.app.books is not None
        budget = Budget(books=whole.app.books, meter=whole.app.meter, config=whole.app.config, teams=whole.app.teams)
        async with running(settings, [asks, budget]) as gateway:
            built(gateway, asks)
            headers = {"x-user-id": "ann", "x-session-id": "s-1"}
            assert (await gateway.chat(text, headers=headers)).status_code == 200
            await gateway.finished(2)
            return gateway.seen


async def test_it_is_a_call_of_its_own_for_the_same_caller_and_billed_to_its_budget() -> None:
    asks = Asks()
    async with scripted(provider) as up:
        inner, outer = await asked(up, asks)
        (call, _) = up.asked
    assert json.loads(asks.heard[0]) == VECTOR
    assert call.json == {"model": "up-embed", "input": "hi"}
    assert call.headers["authorization"] == "Bearer sk-secret-of-the-provider"
    assert (inner.inner, inner.endpoint, inner.alias, inner.status) == ("embed", "embeddings", "embed", 200)
    assert (inner.caller, inner.user, inner.session) == (outer.caller, "ann", "s-1")
    assert inner.cost == 10_000_000  # 1,000 tokens at 10 USD per million
    assert (inner.trace.trace_id, inner.trace.parent_id) == (outer.trace.trace_id, outer.trace.span_id)
    assert outer.id in inner.path


async def test_no_policy_is_asked_to_admit_or_to_screen_it() -> None:
    asks = Asks()
    async with scripted(provider) as up:
        await asked(up, asks, models=["m"])  # the team may not use the model `embed` itself
    assert asks.calls == 2  # admit and screen of the outer call
    assert asks.heard


async def test_where_no_budget_pays_for_it_nothing_is_sent_and_who_asked_is_told() -> None:
    asks = Asks()
    async with scripted(provider) as up:
        inner, _ = await asked(up, asks, limit="0.02", text="hi" * 2000)
        assert [call.path for call in up.asked] == ["/v1/chat/completions"]
    assert asks.raised is not None
    assert asks.raised.code == "budget_exhausted"
    assert (inner.status, inner.cost) == (429, 0)


async def test_one_that_takes_too_long_is_stopped_and_the_outer_call_goes_on() -> None:
    asks = Asks(seconds=0.2)
    async with scripted(provider) as up:
        inner, outer = await asked(up, asks, text="hang")
        assert up.asked[0].closed_at
    assert asks.raised is not None
    assert asks.raised.code == "upstream_timeout"
    assert inner.error is not None
    assert outer.error is None


async def test_an_outer_call_whose_caller_hangs_up_takes_it_along() -> None:
    asks = Asks(seconds=30)
    async with scripted(provider) as up, running(said(up.url), [asks]) as gateway:
        built(gateway, asks)
        call = asyncio.create_task(gateway.chat("hang"))
        async with asyncio.timeout(5):
            while not up.asked:
                await asyncio.sleep(0.005)
        call.cancel()
        inner = await gateway.finished(1)
        outer = await gateway.finished(2)
    assert inner.error is not None
    assert outer.error is not None
    assert inner.error.code == outer.error.code == "client_gone"


async def test_a_model_that_is_not_configured_is_named() -> None:
    asks = Asks(model="nowhere")
    async with scripted(provider) as up, running(said(up.url), [asks]) as gateway:
        built(gateway, asks)
        await gateway.chat()
    assert asks.raised is not None
    assert asks.raised.code == "model_not_found"


async def test_records_tell_what_it_was_for() -> None:
    asks = Asks()
    async with scripted(provider) as up, running(said(up.url), [asks]) as gateway:
        built(gateway, asks)
        await gateway.chat()
        inner, outer = gateway.seen
        record = await gateway.record(inner.id)
    assert record.path == f"embed for {outer.id}"
    assert record.cost_nano == 10_000_000
