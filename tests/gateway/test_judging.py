"""Rules act on verdicts; tests/policies/test_safety*.py ask them through a whole gateway."""

from __future__ import annotations

import asyncio

import pytest

from gateway.assessor import Assessor, Verdict
from gateway.errors import Denied
from gateway.judging import LaneJudge, Panel, Rule, judged, refused, replaced, side_by_side
from gateway.masking import Masking
from gateway.patterns import Found
from tests.assessed import made
from tests.safety_streams import exchange

OUTPUT = frozenset({"output"})


async def test_the_worst_verdict_stays_and_the_threshold_decides() -> None:
    x = exchange()
    rule = Rule(made("length"), "flag", OUTPUT, threshold=0.6)
    panel = Panel([rule], x)
    for score, verdict in ((0.5, "passed"), (0.7, "flagged"), (0.1, "flagged")):
        assert panel.act(rule, "output", Verdict(score, 0.9, f"at {score}")) == []
        assert x.assessments[0].verdict == verdict
    assert (x.assessments[0].score, x.assessments[0].explanation) == (0.7, "at 0.7")
    with pytest.raises(Denied) as caught:
        panel.act(Rule(made("length"), "block", OUTPUT), "output", Verdict(1.0))
    assert caught.value.code == "blocked_by_safety"


async def test_an_assessor_without_places_takes_all_that_it_was_asked_about() -> None:
    class Sure(Assessor):
        async def assess(self, text: str, stage: str) -> Verdict:
            return Verdict(0.9)

    sure = Sure()
    sure.name, sure.window = "sure", 4
    x = exchange()
    rule = Rule(sure, "redact", OUTPUT, replacement="<{label}>")
    judge = LaneJudge(Panel([rule], x), [rule], "output", None)
    await judge.hear("abcdef", False, False)
    assert judge.edits == [Found(0, 6, "sure", False, "<sure>")]
    assert judge.settled == 6


async def test_what_is_let_go_is_decided_and_what_comes_after_it_is_still_judged_with_it() -> None:
    secrets, whole = made("secrets"), made("json_schema", schema={})
    rules = [Rule(secrets, "redact", OUTPUT), Rule(whole, "block", OUTPUT)]
    key = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"
    for asked, settled in ((rules[:1], 14), (rules, 0)):
        judge = LaneJudge(Panel(asked, exchange()), asked, "output", None)
        await judge.hear(f"is {key[:11]}", False, False)
        await judge.let_go()
        assert judge.settled == settled  # what must be seen whole waits for the end
        await judge.hear(f"{key[11:]} ok", False, False)
        assert [(one.start, one.end) for one in judge.edits] == [(14, 23)]


async def test_who_is_asked_aside_is_a_pattern_and_puts_nothing_back() -> None:
    rules = [Rule(made("secrets"), "redact", OUTPUT), Rule(made("length"), "block", OUTPUT)]
    panel = Panel(rules, exchange())
    assert judged(panel, rules, None, "output", True) is not None
    assert judged(panel, rules[1:], Masking(), "output", True) is None
    assert judged(panel, rules[1:], Masking(), "output", False) is not None
    assert judged(panel, rules, None, "input", False) is None


async def test_the_first_refusal_ends_the_others() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def no() -> None:
        await asyncio.sleep(0.01)
        raise refused("x", "input")

    with pytest.raises(Denied):
        await side_by_side([slow(), no()])
    await asyncio.wait_for(ended.wait(), 1)


def test_a_place_with_its_own_replacement_keeps_it() -> None:
    assert replaced(Found(0, 1, "x"), "[{label}]").replacement == "[x]"
    assert replaced(Found(0, 1, "x", False, ""), "[{label}]").replacement == ""
