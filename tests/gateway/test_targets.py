"""Targets are drawn by weight, the others follow, then the fallbacks in their order."""

from __future__ import annotations

from collections import Counter

import httpx2

from gateway import providers, settings
from gateway.adapter import Adapter
from gateway.dialects import openai
from gateway.targets import Targets


def targets(models: dict[str, object]) -> Targets:
    config = settings.Config.model_validate(
        {"providers": {"p": {"base_url": "https://p.example/v1"}}, "models": models}
    )
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200))
    provider = providers.build("p", config.providers["p"], openai, Adapter(transport, settings.Timeouts(), 5.0))
    return Targets(config.models, {"p": provider})


def model(*names: str, weights: tuple[int, ...] = (), **more: object) -> dict[str, object]:
    weights = weights or (1,) * len(names)
    return {
        "targets": [{"provider": "p", "model": n, "weight": w} for n, w in zip(names, weights, strict=True)],
        **more,
    }


def order(found: Targets, name: str) -> list[str]:
    known = found.find(name)
    assert known is not None
    return [target.model for target in found.order(known)]


def test_every_target_is_tried_once_and_the_first_is_drawn_by_weight() -> None:
    found = targets({"m": model("a", "b", "c", weights=(6, 3, 0))})
    orders = Counter(tuple(order(found, "m")) for _ in range(3000))
    assert set(orders) == {("a", "b", "c"), ("b", "a", "c")}
    assert 1800 < orders["a", "b", "c"] < 2200


def test_weight_0_comes_last_in_the_order_given() -> None:
    assert order(targets({"m": model("a", "b", weights=(0, 0))}), "m") == ["a", "b"]


def test_fallbacks_follow_in_their_order_and_only_a_models_own() -> None:
    found = targets({"m": model("a", fallbacks=["n", "o"]), "n": model("b", fallbacks=["m"]), "o": model("c")})
    assert order(found, "m") == ["a", "b", "c"]
    assert order(found, "n") == ["b", "a"]


def test_an_alias_finds_the_model_behind_it() -> None:
    found = targets({"m": model("a", aliases=["fast"], max_attempts=2)})
    known = found.find("fast")
    assert known is not None
    assert (known.name, known.max_attempts) == ("m", 2)
    assert found.find("nothing") is None
    assert found.names == ("m",)
