"""`tollkeeper assess` says what an assessor would say, on texts in any of the forms there are."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from gateway.assess import Sample, judge, rates, read
from gateway.cli import main
from tests.assessed import made

LINES = [
    json.dumps("mail ada@example.com"),
    json.dumps({"text": "card 4111 1111 1111 1111", "unsafe": True}),
    json.dumps({"text": "nothing", "unsafe": False}),
    json.dumps({"text": "a secret nobody finds", "unsafe": True}),
    json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "+49 30 901820"}]}, {"content": "ok"}]}
    ),
    json.dumps({"id": "req_1", "content": {"input": "8.8.8.8", "output": "fine"}}),
    "plain text with b@example.com",
]


def run(tmp_path: Path, *words: str) -> tuple[int, str, str]:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(LINES) + "\n\n")
    result = CliRunner().invoke(main, ["assess", *words, str(file)])
    return result.exit_code, result.stdout, result.stderr


def test_every_line_has_its_verdict_and_no_text_is_shown_unless_asked(tmp_path: Path) -> None:
    status, out, err = run(tmp_path, "--assessor", "personal_data")
    assert status == 0
    assert [line.split("\t")[1] for line in out.splitlines()] == [
        "found", "found", "passed", "passed", "found", "passed", "found", "passed", "found",
    ]  # fmt: skip
    assert "ada@" not in out
    assert "9 texts, 5 at 0.5 or above, 0 failures" in err
    assert "precision 1.000, recall 0.500, false alarms 0.000" in err
    assert "ada@example.com" in run(tmp_path, "--assessor", "personal_data", "--show")[1]


def test_settings_come_from_the_command_or_from_a_configuration(tmp_path: Path) -> None:
    status, out, _ = run(tmp_path, "--assessor", "personal_data", "--settings", '{"kinds": ["card"]}')
    assert (status, out.count("found")) == (0, 1)
    config = tmp_path / "config.yaml"
    config.write_text(
        "providers: {p: {base_url: 'https://p.example/v1'}}\n"
        "policies: [{use: safety, assessors: [{use: personal_data, name: pii, action: flag, kinds: [email]}]}]\n"
    )
    status, out, _ = run(tmp_path, "--assessor", "personal_data", "--config", str(config))
    assert (status, out.count("found")) == (0, 2)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    assert 'did you mean "secrets"?' in run(tmp_path, "--assessor", "secret")[2]
    assert "do not fit" in run(tmp_path, "--assessor", "secrets", "--settings", '{"a": 1}')[2]
    assert run(tmp_path, "--assessor", "secrets", "--settings", "{")[0] == 2


async def test_rates_count_only_what_is_labelled() -> None:
    judged = await judge(made("secrets"), [Sample("x"), Sample("y", False)])
    assert rates(judged, 0.5) == (None, None, 0.0)
    assert list(read("\n")) == []
