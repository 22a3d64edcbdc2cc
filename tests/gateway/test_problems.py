"""How problems are worded and ordered."""

from __future__ import annotations

from gateway.problems import ConfigError, Problem, nearest, spell


def test_a_problem_prints_as_place_path_message_and_mend() -> None:
    problem = Problem("config.yaml", 12, 5, "models.a.targets[0].provider", "no provider named x", "did you mean y?")
    assert str(problem) == "config.yaml:12:5 models.a.targets[0].provider: no provider named x; did you mean y?"
    assert str(Problem("$A__B", 0, 0, "a.b", "wrong")) == "$A__B a.b: wrong"
    assert str(Problem("c.yaml", 1, 2, "", "not YAML")) == "c.yaml:1:2: not YAML"


def test_problems_come_in_the_order_of_the_file() -> None:
    error = ConfigError([Problem("c", 9, 1, "", "b"), Problem("c", 2, 7, "", "a2"), Problem("c", 2, 3, "", "a1")])
    assert [problem.message for problem in error.problems] == ["a1", "a2", "b"]
    assert str(error).splitlines() == ["c:2:3: a1", "c:2:7: a2", "c:9:1: b"]


def test_the_nearest_word_is_offered_and_else_all_of_them() -> None:
    assert nearest("opnai", ["openai", "groq"]) == 'did you mean "openai"?'
    assert nearest("OPENAI", ["OpenAI", "groq"]) == 'did you mean "OpenAI"?'
    assert nearest("zzz", ["openai", "groq"], "providers") == "providers: openai, groq"
    assert nearest("zzz", [], "providers") == "providers: none"
    assert nearest("zzz", [f"name{n}" for n in range(23)]).endswith("name19 and 3 more")


def test_a_key_in_the_place_of_a_name_is_not_spelled_out() -> None:
    assert spell(("teams", "a", "keys", 0, "key")) == "teams.a.keys[0].key"
    assert spell(("teams", "tk-0123456789abcdef")) == "teams.…"
