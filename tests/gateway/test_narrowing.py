"""What belongs to a team never gets more than the team has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.errors import BadCall, Denied
from gateway.narrowing import changed, check_models, printable_only, within
from gateway.roster import Roster
from gateway.settings import Limits, Team

TEAM = Team(models=["m"], limits=Limits(concurrent=5))


def roster(*policies: str) -> Roster:
    said: Any = SimpleNamespace(enforces=policies.__contains__, config=SimpleNamespace(models={"m": None, "n": None}))
    return cast(Roster, said)


BOTH = roster("access", "rate_limit")


def test_limits_are_merged_word_by_word() -> None:
    old = {"concurrent": 3, "tokens_per_day": 7}
    assert changed(old, Limits(), BOTH) == old
    assert changed(old, Limits(concurrent=None, requests_per_day=1), BOTH) == {
        "tokens_per_day": 7,
        "requests_per_day": 1,
    }
    with pytest.raises(BadCall, match="nothing enforces"):
        changed({}, Limits(concurrent=1), roster("access"))
    assert changed({"concurrent": 1}, Limits(concurrent=None), roster()) == {}


def test_what_is_said_is_held_to_the_team_and_what_stood_there_is_not() -> None:
    assert within({}, Limits(concurrent=5, requests_per_day=99), TEAM, BOTH) == {
        "concurrent": 5,
        "requests_per_day": 99,
    }
    with pytest.raises(Denied) as caught:
        within({}, Limits(concurrent=6), TEAM, BOTH)
    assert caught.value.param == "limits.concurrent"
    assert within({"concurrent": 9}, Limits(requests_per_day=1), TEAM, BOTH)["concurrent"] == 9  # the team was narrowed


def test_models_are_configured_the_teams_and_enforced() -> None:
    check_models(["m"], BOTH, TEAM)
    check_models(["n"], BOTH, Team())
    check_models([], BOTH)
    for models, team, by, error in (
        (["m", "x"], TEAM, BOTH, BadCall),
        (["n"], TEAM, BOTH, Denied),
        (["m"], TEAM, roster("rate_limit"), BadCall),
    ):
        with pytest.raises(error):
            check_models(models, by, team)


def test_a_label_is_printable() -> None:
    assert printable_only("ünï 💥") == "ünï 💥"
    for bad in ("a\n", "\x00", "\u202e"):
        with pytest.raises(ValueError, match="printable"):
            printable_only(bad)
