"""What commands share: spans, limits, bodies, safe CSV, and help that leaves nothing out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.shell import body, read_limits, read_span, table, words, written

PARAM = click.Option(["--x"])
CONTEXT = click.Context(click.Command("x"))


def test_a_span_is_seconds() -> None:
    assert [read_span(CONTEXT, PARAM, said) for said in ("90s", "15m", "12h", "30d", None)] == [
        90, 900, 43_200, 2_592_000, None,
    ]  # fmt: skip
    for wrong in ("", "s", "5", "5w", "-5s", "٥s", "1" * 10 + "s"):
        with pytest.raises(click.BadParameter):
            read_span(CONTEXT, PARAM, wrong)


def test_limits_are_read_by_their_words_and_none_takes_one_away() -> None:
    said = ("concurrent=5", "requests_per_day=none")
    assert read_limits(CONTEXT, PARAM, said) == {"concurrent": 5, "requests_per_day": None}
    assert words({"concurrent": 5, "tokens_per_day": 7}) == "concurrent=5 tokens_per_day=7"
    for wrong in ("concurrent", "concurrent=", "concurrent=-1", "concurrent=1e3", "concurrent=" + "9" * 16):
        with pytest.raises(click.BadParameter):
            read_limits(CONTEXT, PARAM, (wrong,))


def test_a_body_holds_what_was_said_and_null_for_what_is_taken_away() -> None:
    assert body({"a": None, "b": (), "c": ("x",), "d": {}, "hard": False, "n": 0}) == {
        "c": ["x"],
        "hard": False,
        "n": 0,
    }
    assert body({"models": ()}, models=True, organisation=False) == {"models": None}


def test_no_cell_of_a_csv_is_a_formula() -> None:
    cells = ["=1+1", "+1", "-1+1", "-A1", "@SUM(A1)", "\tx", "\rx", "plain", 'a"b,c', "multi\nline"]
    (row,) = list(csv.reader(io.StringIO(written([cells]))))
    assert [cell.removeprefix("'") for cell in row] == cells
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_a_number_below_zero_stays_a_number() -> None:
    assert written([["-1", "-0.000009", "-", "--1", "-1.", "-1e9"]]) == "-1,-0.000009,'-,'--1,'-1.,'-1e9\r\n"


def test_no_control_character_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "B"), [("x\x1b[2J", "y\nz")])
    assert capsys.readouterr().out == "A      B\nx?[2J  y?z\n"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), list(commands(main)), ids=lambda value: str(value))
def test_help_says_what_each_command_and_each_option_does(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert command.help, path
    for option in command.params:
        if isinstance(option, click.Option) and not (option.required or isinstance(option.type, click.Choice)):
            assert option.help or option.name == "version", (path, option.name)
