"""Two calls ask the same only where nothing that could change the answer differs."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import body as bodies
from gateway.answers import Tenants, canonical
from gateway.endpoints.chat import ChatCall
from gateway.exchange import Caller
from gateway.questions import UNASKED, Questions
from gateway.roster import Teams
from gateway.settings import Config
from gateway.targets import Targets

DECODER = bodies.msgspec.json.Decoder(ChatCall)
TENANTS = Tenants(b"root")
SAID: dict[str, Any] = {
    "providers": {"up": {"base_url": "https://a.io"}, "other": {"base_url": "https://b.io"}},
    "models": {
        "m": {"targets": [{"provider": "up", "model": "x"}], "fallbacks": ["n"]},
        "n": {"targets": [{"provider": "other", "model": "y"}]},
    },
}
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def questions(said: dict[str, Any] = SAID, share: Any = "team", groups: Any = ()) -> Questions:
    provider = SimpleNamespace(passed=(b"accept", b"openai-beta", b"x-own"))
    targets: Any = SimpleNamespace(provider=lambda name: SimpleNamespace(provider=provider))
    assert Targets
    return Questions(Config.model_validate(said), targets, TENANTS, share, groups, Teams({}))


def key(raw: bytes | dict[str, Any], asks: Questions | None = None, caller: Caller | None = None, **over: Any) -> bytes:
    body = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    _, fields = asyncio.run(bodies.read(body, DECODER))
    facts = {"alias": "m", "endpoint": "chat", "headers": {}, "user": "", "caller": caller or Caller("red", "web")}
    x: Any = SimpleNamespace(fields=fields, **(facts | over))
    return (asks or questions()).of(x).key


CHANGES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi "}]},
    {"messages": [{"role": "system", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "hi", "tool_call_id": "x"}]},
    {"temperature": 0.0000001},
    {"n": 2}, {"seed": 1}, {"top_p": 1}, {"max_tokens": 5}, {"stop": ["x"]}, {"logit_bias": {"1": 2}},
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "a"}}]}, {"tool_choice": "none"},
    {"reasoning_effort": "low"}, {"num_ctx": 4096}, {"a_field_of_tomorrow": None}, {"service_tier": "flex"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: json.dumps(change)[:40])
def test_a_field_that_differs_known_or_not_is_another_question(change: dict[str, Any]) -> None:
    assert key(BODY | change) != key(BODY)


names = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name not in UNASKED and name not in BODY)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(names, values, max_size=4), st.dictionaries(names, values, max_size=4))
def test_equal_keys_are_equal_fields_and_the_reverse(one: dict[str, Any], other: dict[str, Any]) -> None:
    def fields(extra: dict[str, Any]) -> dict[str, Any]:
        return bodies.msgspec.json.decode(json.dumps(extra).encode(), type=dict[str, bodies.msgspec.Raw])

    same = json.dumps(dict(sorted(one.items()))) == json.dumps(dict(sorted(other.items())))
    assert (canonical(fields(one), UNASKED) == canonical(fields(other), UNASKED)) == same


@pytest.mark.parametrize("name", sorted(UNASKED - {"model"}))
def test_what_does_not_change_the_answer_does_not_change_the_question(name: str) -> None:
    value: Any = {"stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}}.get(name, "x")
    assert key(BODY | {name: value}) == key(BODY)


def test_nor_do_blanks_between_its_parts_nor_the_order_of_its_fields() -> None:
    turned = dict(reversed(BODY.items()))
    shapes = [json.dumps(BODY), json.dumps(BODY, indent=3), json.dumps(turned, separators=(",", ":"))]
    assert len({key(shape.encode()) for shape in shapes}) == 1


def test_blanks_inside_a_text_do_and_so_does_the_order_inside_a_field() -> None:
    def said(text: str) -> bytes:
        return json.dumps(BODY | {"messages": [{"role": "user", "content": text}]}, indent=1).encode()

    assert len({key(said(text)) for text in ('a": b', 'a":b', 'a\\": b', "a\n b", "a b", "a  b")}) == 6
    schemas = [{"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}}]
    assert len({key(BODY | {"response_format": schema}) for schema in schemas}) == 2


def test_a_name_of_a_field_cannot_pretend_to_be_two() -> None:
    bodies_of_two = [BODY | {'a":1,"b': 1}, BODY | {"a": 1, "b": 1}]
    assert len({key(one) for one in bodies_of_two}) == 2


def test_no_two_tenants_have_one_key_and_only_named_groups_share() -> None:
    callers = [Caller("red", "web"), Caller("red", "cron"), Caller("blue", "web"), Caller("green", "web")]

    def keys(asks: Questions, user: str = "ann") -> int:
        return len({key(BODY, asks, caller, user=user) for caller in callers})

    assert keys(questions()) == 3
    assert keys(questions(groups=[["red", "blue"]])) == 2
    assert keys(questions(share="key")) == 4
    assert keys(questions(share="user")) == 3
    users = questions(share="user")
    assert key(BODY, users, callers[0], user="ann") != key(BODY, users, callers[0], user="bob")


def test_the_tenant_is_not_part_of_what_is_asked() -> None:
    """A team called after another's key or user is not that tenant."""
    asks = questions(share="key")
    assert key(BODY, asks, Caller("red web", "")) != key(BODY, asks, Caller("red", "web"))


def over(path: list[Any], value: Any) -> dict[str, Any]:
    said = json.loads(json.dumps(SAID))
    place = said
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dict(said)


CONFIGURED = {
    "another target": (["models", "m", "targets"], [{"provider": "up", "model": "z"}]),
    "another weight": (["models", "m", "targets"], [{"provider": "up", "model": "x", "weight": 2}]),
    "another fallback": (["models", "m", "fallbacks"], []),
    "a fallback's target": (["models", "n", "targets"], [{"provider": "up", "model": "y"}]),
    "another address": (["providers", "up", "base_url"], "https://c.io"),
    "a header of the provider": (["providers", "up", "headers"], {"x-tier": "b"}),
    "another policy": (["policies"], [{"use": "access"}, {"use": "safety", "assessors": []}]),
}


@pytest.mark.parametrize("what", CONFIGURED)
def test_what_config_yaml_says_of_the_model_is_part_of_the_question(what: str) -> None:
    path, value = CONFIGURED[what]
    assert key(BODY, questions(over(path, value))) != key(BODY)


def test_what_it_says_of_others_is_not() -> None:
    said = over(["models", "z"], {"targets": [{"provider": "other", "model": "q"}]})
    assert key(BODY, questions(said | {"teams": {"blue": {}}})) == key(BODY)


def test_a_header_that_reaches_the_provider_counts_and_no_other() -> None:
    plain = key(BODY)
    assert key(BODY, headers={b"accept": b"x", b"user-agent": b"y", b"x-other": b"z"}) == plain
    assert key(BODY, headers={b"openai-beta": b"x"}) != plain
    assert key(BODY, headers={b"x-own": b"x"}) != key(BODY, headers={b"openai-beta": b"x"})


def test_another_endpoint_is_another_question() -> None:
    assert key(BODY, endpoint="completions") != key(BODY)
