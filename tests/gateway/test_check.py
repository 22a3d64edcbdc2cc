"""What `tollkeeper check` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.check import report
from gateway.settings import Config, Target

GOOD = """
server: {port: 4001, admin_key: ${ADMIN}}
providers:
  openai: {base_url: https://api.openai.com/v1, api_key: ${KEY}}
  local: {base_url: http://127.0.0.1:8080/v1}
models:
  gpt:
    targets: [{provider: openai, model: gpt-4o, weight: 3}, {provider: local, model: q, weight: 1}, {provider: local, model: r, weight: 0}]
    price: [{input: 0.15, output: 0.60}, {input: 0.10, output: 0.5, since: 2027-01-01}]
    aliases: [default]
    fallbacks: [small]
  small: {targets: [{provider: local, model: s}]}
teams:
  web: {keys: [{name: prod, key: tk-secret-1}], models: [gpt, small]}
  lab: {keys: [{name: a, key: tk-secret-2}, {name: b, key: tk-secret-3}]}
telemetry: {traces: {otlp_endpoint: http://127.0.0.1:4318}}
"""  # noqa: E501 - a mapping on one line is what is tested
ENVIRONMENT = {"ADMIN": "admin-secret", "KEY": "sk-secret"}


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def test_a_valid_file_is_told_as_it_was_understood(tmp_path: Path) -> None:
    status, text = report(write(tmp_path, GOOD), environ=ENVIRONMENT)
    assert status == 0
    assert text.splitlines() == [
        "config.yaml is valid.",
        "server      127.0.0.1:4001, admin plane open on the same port",
        "store       sqlite:///tollkeeper.db",
        "policies    access, rate_limit, budget",
        "telemetry   traces to http://127.0.0.1:4318, json logs at info, records for 30 days",
        "providers",
        "  openai: openai at https://api.openai.com/v1, with a key",
        "  local: openai at http://127.0.0.1:8080/v1, without a key",
        "models",
        "  gpt (also default)",
        "    -> openai/gpt-4o: 75 %",
        "         input 0.15, output 0.60 USD per million tokens (this file)",
        "         input 0.10, output 0.5 USD per million tokens from 2027-01-01 (this file)",
        "    -> local/q: 25 %",
        "         input 0.15, output 0.60 USD per million tokens (this file)",
        "         input 0.10, output 0.5 USD per million tokens from 2027-01-01 (this file)",
        "    -> local/r: when the others have failed",
        "         input 0.15, output 0.60 USD per million tokens (this file)",
        "         input 0.10, output 0.5 USD per million tokens from 2027-01-01 (this file)",
        "    then small: at most 3 attempts in all",
        "  small",
        "    -> local/s: all calls",
        "         no price is known: its cost cannot be told; set models.small.price (0 means free)",
        "teams",
        "  web: gpt, small; keys prod",
        "  lab: all models; keys a, b",
    ]


def test_prices_come_from_whoever_knows_them(tmp_path: Path) -> None:
    asked = []

    def notes(config: Config, name: str, target: Target) -> Sequence[str]:
        asked.append((name, target.provider, target.model))
        return ["0.15 (catalogue)"] if target.provider == "openai" else []

    text = report(write(tmp_path, GOOD), notes, ENVIRONMENT)[1]
    assert asked == [("gpt", "openai", "gpt-4o"), ("gpt", "local", "q"), ("gpt", "local", "r"), ("small", "local", "s")]
    assert "    -> openai/gpt-4o: 75 %\n         0.15 (catalogue)\n    -> local/q: 25 %\n         no price" in text


def test_a_file_with_problems_is_told_with_all_of_them_and_exit_status_2(tmp_path: Path) -> None:
    status, text = report(write(tmp_path, "providers: {a: {base_url: x}}\nmodel: {}\n"), environ={})
    assert status == 2
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("config.yaml:1:27 providers.a.base_url: expected http")
    assert lines[1] == 'config.yaml:2:1 model: unknown word "model"; did you mean "models"?'
    assert lines[2] == "2 problems."


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    status, text = report(tmp_path / "none.yaml", environ={})
    assert status == 2
    assert "none.yaml: cannot be read: No such file or directory; name another with --config" in text


def test_what_nobody_can_use_is_told(tmp_path: Path) -> None:
    text = report(write(tmp_path, "providers: {a: {base_url: https://a.io}}\npolicies: []\n"), environ={})[1]
    assert "models      none: only calls that name no model can be served" in text
    assert "teams       none: every call will be refused, for no key is known" in text
    assert "policies    none" in text
    assert "admin plane closed (no server.admin_key)" in text


@pytest.mark.parametrize("password", ["hunter2", "hunter2%40", "hunter2@", "hunter2/x", "hunter2#", "hunter2 "])
def test_no_password_of_a_database_is_printed_whether_it_is_right_or_wrong(tmp_path: Path, password: str) -> None:
    for line in (f'store: "postgresql://toll:{password}@db/toll"', "store: ${DATABASE}"):
        url = f"postgresql://toll:{password}@db/toll?sslpassword=hunter2"
        good = GOOD.replace("admin_key:", f"key_pepper: {'p' * 32}, admin_key:")
        status, text = report(write(tmp_path, line + good), environ=ENVIRONMENT | {"DATABASE": url})
        assert "hunter2" not in text
        if status == 0:
            assert "store       postgresql://toll:…@db/toll" in text
        else:
            assert "store: expected sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE" in text
    assert (status == 0) == (password in ("hunter2", "hunter2%40"))


def test_no_secret_is_printed(tmp_path: Path) -> None:
    assert "secret" not in report(write(tmp_path, GOOD), environ=ENVIRONMENT)[1]
    broken = (
        GOOD.replace("weight: 3", "weight: x").replace("models: [gpt", "models: [gtp").replace("-secret-2", "-secret-1")
    )
    status, text = report(write(tmp_path, broken), environ=ENVIRONMENT)
    assert (status, text.count("\n")) == (2, 3)
    assert "secret" not in text
