"""Reading YAML with places, references to the environment, and variables over the file."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.problems import ConfigError, Place
from gateway.source import Source


def read(text: str, **environ: str) -> Source:
    source = Source("c.yaml", environ)
    source.read(text)
    return source


def told(text: str, **environ: str) -> list[str]:
    return [str(problem) for problem in read(text, **environ).problems]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(text)
    return str(error.value)


def test_every_value_and_every_word_has_its_place() -> None:
    source = read("server:\n  port: 4000\nmodels: {a: {targets: [{x: 1}, {x: 2}]}}\n")
    assert source.place(("server", "port")) == Place("c.yaml", 2, 9)
    assert source.place(("server", "port"), word=True) == Place("c.yaml", 2, 3)
    assert source.place(("models", "a", "targets", 1, "x")) == Place("c.yaml", 3, 36)


def test_a_missing_value_is_placed_at_the_word_that_should_hold_it() -> None:
    source = read("a: 1\nserver:\n  port: 4000\n")
    assert source.place(("server", "host")) == Place("c.yaml", 2, 1)
    assert source.place(("elsewhere",)) == Place("c.yaml", 1, 1)


def test_a_reference_on_one_line_with_braces_is_read_and_keeps_the_columns() -> None:
    source = read("server: {admin_key: ${KEY}, port: ${PORT:-4000}, x: 1}", KEY="k" * 99)
    assert source.tree == {"server": {"admin_key": "k" * 99, "port": "4000", "x": 1}}
    assert source.place(("server", "x")) == Place("c.yaml", 1, 53)


@given(st.text())
def test_a_variable_cannot_add_settings_whatever_it_holds(value: str) -> None:
    source = Source("c.yaml", {"EVIL": value})
    source.read("a: {b: ${EVIL}, c: 1}\nd: 'x${EVIL}'\ne: $${EVIL}\n")
    if value:
        assert source.tree == {"a": {"b": value, "c": 1}, "d": "x" + value, "e": "${EVIL}"}
        assert source.problems == []
    else:
        assert [problem.path for problem in source.problems] == ["a.b", "d"]


@pytest.mark.parametrize(
    ("written", "environ", "value"),
    [
        ("${A}", {"A": "1"}, "1"),
        ("${A:-b}", {}, "b"),
        ("${A:-b}", {"A": ""}, "b"),
        ("${A:-}", {}, ""),
        ("${A:-b-c/d}", {"A": "x"}, "x"),
        ("$$", {}, "$"),
        ("$${A}", {"A": "x"}, "${A}"),
        ("a$b", {}, "a$b"),
        ("${A}${B}", {"A": "${B}", "B": "2"}, "${B}2"),
    ],
)
def test_references_are_filled_in_once(written: str, environ: dict[str, str], value: str) -> None:
    assert read(f"a: '{written}'", **environ).tree == {"a": value}


def test_a_missing_variable_is_named_with_its_path_and_line() -> None:
    assert told("a:\n  - b: ${NOT_SET}\n") == [
        "c.yaml:2:8 a[0].b: the environment variable NOT_SET is not set; set it, or write ${NOT_SET:-default}"
    ]
    assert "EMPTY is empty" in told("a: ${EMPTY}", EMPTY="")[0]


@pytest.mark.parametrize("written", ["'${'", "'${1A}'", "'${A B}'", "$OPENAI_API_KEY", "'${A:+x}'"])
def test_a_reference_that_is_no_reference_is_told(written: str) -> None:
    assert "write ${NAME}" in told(f"a: {written}", A="1")[0]


def test_a_word_that_stands_twice_is_told_with_both_lines() -> None:
    assert told("a: 1\nb: {c: 1, d: 2, c: 3}\n'a': 2\n") == [
        'c.yaml:2:17 b: "c" stands here twice; the first is on line 2: delete one',
        'c.yaml:3:1: "a" stands here twice; the first is on line 1: delete one',
    ]


def test_names_are_text_as_written() -> None:
    assert read("no: 1\n1: 2\n2024-01-01: 3\n").tree == {"no": 1, "1": 2, "2024-01-01": 3}


def test_only_plain_numbers_are_numbers() -> None:
    tree = read("a: [4000, -1, 0.15, 1e-7, 1.5e3, 0x1f, 010, 1_000, 12:30, .inf]\n").tree
    assert tree["a"] == [
        *(4000, -1, Decimal("0.15"), "1e-7", "1.5e3", "0x1f", "010", "1_000", "12:30", ".inf"),
    ]
    assert read("a: [yes, Off, null, ~, '1', 2026-01-31]").tree == {"a": [True, False, None, None, "1", "2026-01-31"]}


def test_aliases_work_but_not_in_a_circle_nor_without_end() -> None:
    assert read("a: &x {b: 1}\nc: *x\n").tree == {"a": {"b": 1}, "c": {"b": 1}}
    assert "contains itself" in refused("a: &x [*x]\n")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    assert "more than 200000 values" in refused(bomb)
    assert 'merging with "<<" is not supported' in told("a: &x {b: 1}\nc: {<<: *x}\n")[0]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1,\nb: 2\n", "c.yaml:3:1"),
        ("a:\n\tb: 1\n", "c.yaml:2:1"),
        ("a: 1\nb: *nothing-sk-secret\n", "c.yaml:2:4"),
        ('a: "\\q"\n', "c.yaml:1:5"),
        ("a: 1\n--- \nb: 2\n", "c.yaml:2:1"),
        ("a: 1\nb: x\x00y\n", "c.yaml:2:5"),
        ("", "c.yaml:1:1"),
        ("- a\n", "c.yaml:1:1"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_place_and_without_its_text(text: str, place: str) -> None:
    message = refused(text)
    assert message.startswith(place)
    assert "secret" not in message


def test_an_unknown_tag_is_told_without_its_text() -> None:
    assert told("a: !sk-secret x\n") == ['c.yaml:1:4 a: a YAML tag; a value that begins with "!" must stand in quotes']


FILE = """
server: {port: 4000}
providers: {open-ai: {base_url: https://a.io}}
models: {gpt-4.1: {targets: [{provider: open-ai, model: x}]}, a-b: {}, a.b: {}}
"""


def overridden(**environ: str) -> Source:
    source = read(FILE, **environ)
    source.override()
    return source


def test_a_variable_stands_over_the_file_and_is_shown_as_the_place() -> None:
    source = overridden(
        TOLLKEEPER_SERVER__PORT="8080",
        TOLLKEEPER_SERVER__HOST="0.0.0.0",
        TOLLKEEPER_STORE="sqlite:///x.db",
        TOLLKEEPER_MODELS__GPT_4_1__TARGETS__0__WEIGHT="5",
        TOLLKEEPER_PROVIDERS__OPEN_AI__API_KEY="sk-1",
        TOLLKEEPER_TELEMETRY__TRACES__SAMPLE="0.5",
    )
    assert source.problems == []
    assert source.tree["server"] == {"port": "8080", "host": "0.0.0.0"}
    assert source.tree["store"] == "sqlite:///x.db"
    assert source.tree["models"]["gpt-4.1"]["targets"][0]["weight"] == "5"
    assert source.tree["providers"]["open-ai"]["api_key"] == "sk-1"
    assert source.tree["telemetry"] == {"traces": {"sample": "0.5"}}
    assert source.place(("server", "port")) == Place("$TOLLKEEPER_SERVER__PORT")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("TOLLKEEPER_PROVIDERS__OPENIA__API_KEY", 'no "openia" in the file; did you mean "open-ai"?'),
        ("TOLLKEEPER_MODELS__GPT_4_1__TARGETS__1__WEIGHT", "no entry 1 of models.gpt-4.1.targets: it has 1"),
        ("TOLLKEEPER_MODELS__A_B__MAX_ATTEMPTS", "it could mean a-b or a.b"),
        ("TOLLKEEPER_SERVER__PORT__X", "server.port is a single value"),
    ],
)
def test_a_variable_that_means_nothing_is_told(variable: str, words: str) -> None:
    (problem,) = overridden(**{variable: "sk-secret"}).problems
    assert problem.file == f"${variable}"
    assert words in problem.message
    assert "secret" not in str(problem)


def test_variables_of_others_are_left_alone() -> None:
    before = read(FILE).tree
    kubernetes = {"TOLLKEEPER_PORT": "tcp://10.0.0.1:4000", "TOLLKEEPER_SERVICE_HOST": "10.0.0.1"}
    source = overridden(**kubernetes, TOLLKEEPER_ADMIN_KEY="x", TOLLKEEPER_SERVER__PORT="", OTHER__X="1")
    assert (source.tree, source.problems) == (before, [])
