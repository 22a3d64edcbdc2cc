"""What is checked across the lines of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.references import References, private
from gateway.source import Source

PROVIDERS = "providers: {openai: {base_url: https://a.io}, groq: {base_url: https://b.io}}\n"


def told(text: str, **environ: str) -> list[str]:
    source = Source("c.yaml", environ)
    source.read(PROVIDERS + text if "providers:" not in text else text)
    References(source).check()
    return [str(problem).partition(" ")[2] for problem in source.problems]


def provider(words: str, **environ: str) -> list[str]:
    return told(f"providers: {{a: {{{words}}}}}", **environ)


def test_a_provider_that_does_not_exist_is_told_with_the_nearest() -> None:
    assert told("models: {m: {targets: [{provider: opnai, model: x}, {provider: groq, model: x}]}}") == [
        'models.m.targets[0].provider: no provider named "opnai"; did you mean "openai"?'
    ]
    assert told("teams: {t: {provider: zzz}}") == ['teams.t.provider: no provider named "zzz"; providers: openai, groq']


def test_a_value_from_a_variable_is_never_quoted_for_it_may_be_a_secret() -> None:
    (problem,) = told("teams: {t: {provider: ${OPENAI_API_KEY}}}", OPENAI_API_KEY="hunter2")
    assert problem == "teams.t.provider: names no provider; providers: openai, groq"
    (problem,) = told("teams: {t: {provider: sk-0123456789abcdef}}")
    assert "sk-" not in problem


def test_a_provider_whose_settings_are_wrong_still_exists() -> None:
    assert told("providers: {a: }\nmodels: {m: {targets: [{provider: a, model: x}]}}") == []


def test_fallbacks_and_team_models_name_models_and_not_aliases() -> None:
    models = "models: {big: {aliases: [large]}, small: {fallbacks: [large, bigg, big, big]}}\n"
    text = models + "teams: {t: {models: [large, smal]}}"
    assert told(text) == [
        'models.small.fallbacks[0]: "large" is an alias; name the model itself: big',
        'models.small.fallbacks[1]: no model named "bigg"; did you mean "big"?',
        "models.small.fallbacks[3]: stands in this list twice; delete one",
        'teams.t.models[0]: "large" is an alias; name the model itself: big',
        'teams.t.models[1]: no model named "smal"; did you mean "small"?',
    ]


def test_an_alias_is_no_other_model_and_no_other_alias() -> None:
    assert told("models: {a: {aliases: [b, x, a]}, b: {aliases: [x, y]}}") == [
        'models.a.aliases[0]: "b" is already a model; choose another name',
        'models.a.aliases[2]: "a" is already a model; choose another name',
        'models.b.aliases[0]: "x" is already an alias of a; delete one of the two',
    ]


def test_several_replicas_need_counters_that_they_share() -> None:
    assert told("server: {replicas: 2}") == [
        "server.replicas: memory:// counts in each replica alone; set counters: valkey://host:6379/0, which they share"
    ]
    assert told("server: {replicas: 2}\ncounters: valkey://host:6379/0") == []


def test_gateways_that_share_a_database_must_share_what_their_keys_are_kept_under() -> None:
    shared = "store: postgresql://host/db\nserver: {admin_key: admin-secret"
    assert told(shared + "}") == [
        "server.key_pepper: gateways that share a database must share it; "
        "set 32 random characters or more: keys that are created are kept under it"
    ]
    assert told(shared + f", key_pepper: {'p' * 32}}}") == []
    assert told("store: postgresql://host/db") == []


def test_models_may_stand_in_for_each_other_but_not_for_themselves() -> None:
    assert told("models: {a: {fallbacks: [b]}, b: {fallbacks: [a]}}") == []
    assert told("models: {a: {fallbacks: [b, a]}, b: {}}") == [
        "models.a.fallbacks[1]: a model cannot stand in for itself; remove it"
    ]


def test_two_prices_from_the_same_day_are_told() -> None:
    text = (
        "models: {m: {price: [{input: 1}, {input: 2, since: 2026-01-01}, {input: 3}, {input: 4, since: 2026-01-01}]}}"
    )
    assert told(text) == [
        "models.m.price[2]: has the same `since` as entry 0; give each its own first day",
        "models.m.price[3]: has the same `since` as entry 1; give each its own first day",
    ]


def test_two_keys_alike_are_refused_in_whatever_team_and_never_printed() -> None:
    text = (
        "server: {admin_key: secret-admin}\n"
        "teams:\n"
        "  a: {keys: [{name: x, key: secret-one}, {name: x, key: secret-two}, {name: y, key: secret-one}]}\n"
        "  b: {keys: [{name: x, key: secret-two}, {name: y, key: secret-admin}]}\n"
    )
    problems = told(text)
    assert problems == [
        "teams.a.keys[1].name: two keys of this team have this name; rename one",
        "teams.a.keys[2].key: is the same as key 0 of team a; make a new one for each",
        "teams.b.keys[0].key: is the same as key 1 of team a; make a new one for each",
        "teams.b.keys[1].key: is the same as server.admin_key; make a new one for each",
    ]
    assert "secret-" not in "".join(problems)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("''", "is empty"),
        ("'   '", "is empty"),
        ("1234567a", ""),
        ("123456a", "so short"),
        ("'1234567 '", "sent in a header"),
    ],
)
def test_a_key_is_long_enough_and_can_be_sent(key: str, words: str) -> None:
    problems = told(f"teams: {{t: {{keys: [{{name: a, key: {key}}}]}}}}")
    assert (words in problems[0]) if words else problems == []
    assert len(problems) <= 1


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        ("base_url: https://api.x.ai/v1", ""),
        ("base_url: http://api.x.ai/v1", "unencrypted"),
        ("base_url: http://api.x.ai/v1, allow_http: true", ""),
        ("base_url: http://api.x.ai/v1, allow_http: false", "unencrypted"),
        ("base_url: http://127.0.0.1:11434/v1", ""),
        ("base_url: 'http://[::1]:80/v1'", ""),
        ("base_url: http://ollama:11434/v1", ""),
        ("base_url: http://8.8.8.8/v1", "unencrypted"),
        ("base_url: https://host:99999/v1", "no valid port"),
        ("base_url: https:///v1", "names no host"),
        ("base_url: https://a.io/v1/chat/completions", "names one endpoint"),
        ("base_url: https://a.io, api_key: ''", "is empty"),
        ("base_url: https://a.io, api_key: 'a\u00e9'", "printable ASCII"),
        ('base_url: https://a.io, headers: {X-A: "b\\r\\nc: d"}', "cannot be sent"),
        ("base_url: https://a.io, headers: {Host: b}", "cannot be set"),
        ("base_url: https://a.io, headers: {'a b': c}", "cannot be set"),
        ("base_url: https://a.io, forward_headers: [x-ok, Authorization]", "is not forwarded"),
        ("base_url: https://a.io, trust_env: true", "transport: httpx"),
        ("base_url: https://a.io, trust_env: true, transport: httpx", ""),
        ("base_url: https://a.io, ca_file: /nowhere/at-all.pem", "no such file"),
    ],
)
def test_a_provider_is_an_address_that_can_be_called_safely(words: str, told_of: str) -> None:
    problems = provider(words)
    assert len(problems) == bool(told_of)
    assert told_of in "".join(problems)


def test_an_authority_file_that_exists_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    assert provider(f"base_url: https://a.io, ca_file: {tmp_path}/ca.pem") == []


def test_a_line_break_at_a_secrets_end_is_told_and_the_secret_is_not() -> None:
    (problem,) = provider("base_url: https://a.io, api_key: ${K}", K="sk-secret\n")
    assert "line break" in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("policies", "enforced"),
    [("[{use: access}]", True), ("[]", False), ("[{use: budget}]", False), ("[{use: 'acme:Access'}]", True)],
)
def test_a_teams_models_that_nothing_enforces_are_told(policies: str, enforced: bool) -> None:
    problems = told(f"models: {{m: {{}}}}\nteams: {{t: {{models: [m]}}}}\npolicies: {policies}")
    assert problems == ([] if enforced else ["teams.t.models: nothing enforces this; add `- use: access` to policies"])
    assert told(f"models: {{m: {{}}}}\nteams: {{t: {{keys: []}}}}\npolicies: {policies}") == []


LIMITED = """
models: {m: {limits: {concurrent: 1}}}
teams: {t: {limits: {requests_per_day: 1}, users: {tokens_per_day: 1}, keys: [{}, {limits: {concurrent: 2}}]}}
"""


@pytest.mark.parametrize("policies", ["policies: []", "policies: [{use: access}]"])
def test_limits_that_nothing_enforces_are_told_each_at_its_place(policies: str) -> None:
    places = ["models.m.limits", "teams.t.limits", "teams.t.users", "teams.t.keys[1].limits"]
    assert told(LIMITED + policies) == [
        f"{at}: nothing enforces this; add `- use: rate_limit` to policies" for at in places
    ]


@pytest.mark.parametrize("policies", ["", "policies: [{use: rate_limit}]", "policies: [{use: 'acme:Limits'}]"])
def test_limits_that_a_policy_enforces_are_no_problem_nor_are_empty_ones(policies: str) -> None:
    assert told(LIMITED + policies) == []
    assert told("models: {m: {limits: {}}}\nteams: {t: {limits: {concurrent: null}, users: null}}\npolicies: []") == []


def test_headers_of_the_trace_exporter_are_checked_too() -> None:
    (problem,) = told("telemetry: {traces: {headers: {Authorization: ''}}}")
    assert problem.startswith("telemetry.traces.headers.Authorization: is empty")


@pytest.mark.parametrize("wrong", ["[]", "x", "{a: [1]}", "{a: x}", "", "{a: {targets: x, fallbacks: {}, price: 1}}"])
def test_wrong_shapes_are_left_to_the_settings(wrong: str) -> None:
    assert told(f"models: {wrong}\nteams: {wrong}\nserver: {wrong}\npolicies: {wrong}\ntelemetry: {wrong}") == []


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        *(("localhost", True), ("10.1.2.3", True), ("192.168.0.1", True), ("172.16.0.1", True), ("::1", True)),
        *(("fd00::1", True), ("vllm.models.svc.cluster.local", True), ("box.lan", True), ("vllm", True)),
        *(("api.openai.com", False), ("1.1.1.1", False), ("2606:4700::1111", False), ("local.evil.com", False)),
    ],
)
def test_private_hosts_are_known(host: str, inside: bool) -> None:
    assert private(host) is inside


@pytest.mark.parametrize("first", ["access", "rate_limit"])
def test_a_cache_before_what_must_hold_for_its_answers_is_told(first: str) -> None:
    (problem,) = told(f"policies: [{{use: cache}}, {{use: {first}}}]")
    assert problem == f"policies[0]: stands before `{first}`, which would not hold for its answers; move it down"
    assert told(f"policies: [{{use: {first}}}, {{use: cache}}, {{use: budget}}]") == []


def test_a_cache_behind_safety_is_told_for_it_would_keep_what_was_masked() -> None:
    (problem,) = told("policies: [{use: safety}, {use: cache}]")
    assert problem == "policies[1]: stands behind `safety`, and would keep what that has put back; move it up"
    assert told("policies: [{use: cache}, {use: safety}]") == []


SEMANTIC = "{use: cache, semantic: {model: m}}"


@pytest.mark.parametrize(
    ("cache", "safety", "says"),
    [
        (SEMANTIC, "assessors: [{use: secrets, action: redact}]", "would send questions to its model before `safety`"),
        (
            "{use: cache, semantic: {}}",
            "assessors: [{use: personal_data, action: mask}]",
            "tell their placeholders apart",
        ),
        ("{use: cache}", "beside: true, assessors: [{use: injection}]", "waits for those who judge its question"),
        ("{use: cache, coalesce: false}", "beside: true, assessors: [{use: injection}]", ""),
        ("{use: cache, semantic: {}}", "assessors: [{use: secrets, action: redact}]", ""),
        ("{use: cache}", "assessors: [{use: personal_data, action: mask}]", ""),
    ],
)
def test_a_cache_that_would_go_round_safety_is_told(cache: str, safety: str, says: str) -> None:
    problems = [one for one in told(f"policies: [{cache}, {{use: safety, {safety}}}]") if "model: no model" not in one]
    assert [says in problem for problem in problems] == ([True] if says else [])
