"""How an assessor follows a text: by scans, by windows, or once at the end; and what is loaded by name."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from gateway.assessor import (
    LONGEST,
    Assessor,
    NoAssessor,
    Verdict,
    WholeFollower,
    WindowFollower,
    find,
    known,
)
from gateway.patterns import Found
from tests.assessed import made


class Heard(Assessor):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.window, self.context = 10, 4

    async def assess(self, text: str, stage: str) -> Verdict:
        self.texts.append(text)
        at = text.find("bad")
        return Verdict(1.0, 1.0, "", [Found(at, at + 3, "bad")]) if at >= 0 else Verdict(0.0)


async def test_windows_overlap_and_places_are_counted_from_the_start() -> None:
    heard = Heard()
    follower = WindowFollower(heard, "output")
    spans = []
    for piece in ("abcdef", "ghijkl", "mnba", "dxyz", "uvw"):
        spans += (await follower.feed(piece, False, False)).spans
    assert heard.texts == ["abcdefghijkl", "ijklmnbadxyzuvw"[:15]]
    assert follower.settled == 23
    assert [(one.start, one.end) for one in spans] == [(14, 17)]
    await follower.feed("!", False, True)
    assert heard.texts[-1] == "zuvw!"
    assert follower.settled == 24


async def test_the_whole_is_judged_once_and_has_a_limit() -> None:
    heard = Heard()
    follower = WholeFollower(heard, "output")
    await follower.feed("ba", False, True)
    assert follower.settled == 0
    await follower.feed("d", True, False)
    assert (heard.texts, follower.settled) == (["bad"], 3)
    with pytest.raises(ValueError, match="over"):
        await WholeFollower(heard, "output").feed("x" * (LONGEST + 1), False, False)


def test_names_are_known_and_what_is_none_is_told_with_the_nearest() -> None:
    assert {"secrets", "personal_data", "injection", "words", "urls", "judge", "moderation", "webhook"} <= set(known())
    for name in known():
        assert issubclass(find(name), Assessor)
    with pytest.raises(NoAssessor) as caught:
        find("secret")
    assert caught.value.mend == 'did you mean "secrets"?'
    for use in ("json:loads", "no.such.module:X"):
        with pytest.raises(NoAssessor):
            find(use)


PATTERNS: dict[str, dict[str, Any]] = {
    "secrets": {}, "personal_data": {}, "injection": {}, "words": {"words": ["zephyr"]},
    "urls": {"deny": ["a.example"]},
    "length": {"characters": 10_000_000}, "language": {"allow": ["en"]},
}  # fmt: skip
HOSTILE = [
    "a", "-", " ", "1 ", "1.2.3.4 ", "@a.", "AKIA", "eyJa.", "password = ", "://a:b", "-----BEGIN PRIVATE KEY-----",
    "ignore all ", "DE89 ", "4111 1111 ", "https://a", "\u200bi", "AB 12 ", "(1", "QUFB",
]  # fmt: skip


@pytest.mark.serial
async def test_pattern_assessors_take_200_us_at_most_for_a_message_of_2_kb_all_on() -> None:
    text = ("It was late in the year, and the 12 ships lay still in the harbour while the men sat and talked. " * 30)[
        :2000
    ]
    assessors = [made(name, **said) for name, said in PATTERNS.items()]
    best = float("inf")
    for _ in range(60):
        began = time.perf_counter()
        for assessor in assessors:
            await assessor.assess(text, "input")
        best = min(best, time.perf_counter() - began)
    print(f"\nall {len(assessors)} pattern assessors on 2 kB: {best * 1e6:.0f} us")
    assert best < 200e-6


@pytest.mark.serial
@pytest.mark.parametrize("name", PATTERNS)
async def test_a_hostile_megabyte_holds_the_loop_up_for_20_ms_at_most(name: str) -> None:
    assessor = made(name, **PATTERNS[name])
    worst = 0.0
    gc.disable()  # a collection of all that the tests have left is not what is measured
    for piece in HOSTILE:
        task = asyncio.create_task(assessor.assess((piece * (1_000_000 // len(piece) + 1))[:1_000_000], "input"))
        until = time.perf_counter() + 0.4  # the first slices are as bad as the last
        while not task.done() and time.perf_counter() < until:
            began = time.thread_time()  # what others take of the core does not count
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - began)
        task.cancel()
        await asyncio.wait({task})
    gc.enable()
    print(f"\n{name}: the loop waited {worst * 1e3:.1f} ms at most")
    assert worst < 0.02
