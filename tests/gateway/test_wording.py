"""What pydantic finds, in words an operator can act on."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from gateway.settings import Config
from gateway.source import Source
from gateway.wording import translate, words_of


def told(text: str, model: type[BaseModel] = Config) -> list[str]:
    source = Source("c.yaml", {})
    source.read(text)
    with pytest.raises(ValidationError) as error:
        model.model_validate(source.tree)
    translate(source, error.value, (), model)
    return [str(problem) for problem in source.problems]


def one(text: str) -> str:
    (problem,) = told(f"providers: {{}}\n{text}\n")
    return problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: {port: x}", "c.yaml:2:16 server.port: expected a whole number, got text"),
        ("server: {port: 1.5}", "c.yaml:2:16 server.port: expected a whole number"),
        ("server: {port: 70000}", "c.yaml:2:16 server.port: must be at most 65535"),
        ("server: {port: }", "expected a whole number, got nothing; give it a value, or delete the line"),
        ("server: {receive_seconds: 0}", "c.yaml:2:27 server.receive_seconds: must be more than 0.0"),
        ("server: {host: 1}", "c.yaml:2:16 server.host: expected text, got a number; put it in quotes"),
        ("server: {metrics_open: 7}", "c.yaml:2:24 server.metrics_open: expected true or false, got a number"),
        ("server: {admin_key: [a]}", "c.yaml:2:21 server.admin_key: expected text, got a list"),
        ("server: {prot: 1}", 'c.yaml:2:10 server.prot: unknown word "prot"; did you mean "port"?'),
        ("server: 1", "c.yaml:2:9 server: expected a mapping (name: value), got a number"),
        ("servre: {}", 'c.yaml:2:1 servre: unknown word "servre"; did you mean "server"?'),
        ("store: mysql://x", "c.yaml:2:8 store: expected sqlite:///FILE"),
        ("counters: memcached://x", "c.yaml:2:11 counters: expected memory://, or valkey://HOST:PORT/DB"),
        ("telemetry: {logs: {level: warn}}", 'expected debug, info, warning or error; did you mean "warning"?'),
        ("telemetry: {traces: {dear_usd: 0.0000000001}}", "must have at most 9 digits after the point"),
        ("telemetry: {traces: {dear_usd: -1}}", "must be at least 0"),
        ("models: {m: {targets: []}}", "models.m.targets: must have at least 1 entry"),
        ("models: {m: {}}", "c.yaml:2:10 models.m.targets: is missing; add it"),
        ("models: {'a b': {targets: [{provider: a, model: b}]}}", "c.yaml:2:10 models.a b: not a valid name; a name"),
        ("models: {m: {targets: [{provider: a, model: b, wait: 1}]}}", 'did you mean "weight"?'),
        ("models: {m: {targets: [{provider: a, model: ''}]}}", "targets[0].model: must have at least 1 character"),
        ("models: {m: {targets: [{provider: a, model: b}], max_attempts: 99}}", "must be at most 16"),
        ("teams: {t: {models: m}}", "teams.t.models: expected a list, got text; write [a, b], or one `- ` per line"),
        ("teams: {t: {keys: [{name: a}]}}", "c.yaml:2:20 teams.t.keys[0].key: is missing"),
        ("teams: {t: {limit: {}}}", 'unknown word "limit"; did you mean "limits"?'),
        ("policies: [{use: 'a b'}]", "policies[0].use: expected a policy's name such as access, or module:Class"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_place_expectation_and_mend(text: str, words: str) -> None:
    assert words in one(text)


TARGETS = "targets: [{provider: a, model: b}]"


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ("{input: 1}", "models.m.price.output: is missing"),
        ("{input: 1, output: x}", "models.m.price.output: expected a number, got text"),
        ("{input: 1, output: 1, cachd_input: 1}", 'did you mean "cached_input"?'),
        ("[{input: 1, output: 1}, {input: 1, output: 1, sinc: 2026-01-01}]", 'price[1].sinc: unknown word "sinc"'),
        ("[{input: 1, output: 1, since: yesterday}]", "models.m.price[0].since: expected a day such as 2026-01-31"),
        ("[]", "models.m.price: must have at least 1 entry"),
        ("cheap", "models.m.price: expected a mapping (name: value), got text"),
    ],
)  # fmt: skip
def test_a_price_that_is_one_or_a_list_is_told_once_and_without_the_unions_names(price: str, words: str) -> None:
    assert words in one(f"models: {{m: {{{TARGETS}, price: {price}}}}}")


@pytest.mark.parametrize("place", ["level: {}", "format: {}", "access: {}", "queue: {}", "{}: 1"])
def test_a_value_that_could_be_a_secret_is_not_printed(place: str) -> None:
    text = place.replace("{}", "sk-0123456789abcdefSECRET")
    assert "SECRET" not in one(f"telemetry: {{logs: {{{text}}}}}")
    assert "SECRET" not in one("teams: {t: {keys: [{name: a, key: bbbbbbbb, xxxx0123456789abcdefSECRET: 1}]}}")


def test_the_words_of_a_model_are_its_fields_or_their_aliases() -> None:
    assert words_of(None) == []
    assert words_of(Config)[:3] == ["server", "store", "counters"]
