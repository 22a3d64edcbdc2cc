"""Events leave whole, in order, and not before their texts are decided; tests/policies/test_safety.py proves it."""

from __future__ import annotations

import pytest

from gateway.dialects import openai
from gateway.errors import Denied
from gateway.holding import Holding, add
from gateway.lanes import Unjudged
from gateway.patterns import Found
from tests.scripted import DONE, event


class Last:
    """Holds the last `count` characters back, and takes out what it is told to."""

    timed = True

    def __init__(self, count: int, edits: list[Found]) -> None:
        self.count, self.edits, self.size, self.settled = count, list(edits), 0, 0

    async def hear(self, piece: str, final: bool, due: bool) -> None:
        self.size += len(piece)
        self.settled = self.size if final or due else max(self.settled, self.size - self.count)

    async def let_go(self) -> None:
        self.settled = self.size


def holding(count: int = 0, edits: tuple[Found, ...] = (), stream: bool = True, seconds: float = 60) -> Holding:
    def unjudged(what: str) -> None:
        raise Denied(what)

    return Holding(openai, stream, lambda kind, aside: Last(count, list(edits)), unjudged, seconds)


async def test_an_event_waits_until_its_text_is_decided_and_those_behind_it_too() -> None:
    held = holding(3)
    first, second, third = event({"content": "abc"}), event({"content": "d"}), event({"content": "ef"})
    assert await held.take(first, False) == b""
    assert await held.take(second, False) == b""
    assert await held.take(third, False) == first
    assert await held.take(event({}, "stop"), False) == b""  # the choice may be come back to
    assert await held.take(DONE, True) == second + third + event({}, "stop") + DONE
    assert held.said == ["abc", "d", "ef"]


async def test_what_is_taken_out_is_replaced_where_it_begins() -> None:
    held = holding(0, (Found(1, 4, "x", False, "[x]"),))
    out = b"".join([await held.take(event({"content": piece}), False) for piece in ("ab", "c", "de")])
    assert [part.text for data in out.split(b"\n\n")[:-1] for part in openai.read_said(data[6:])[0]] == [
        "a[x]",
        "",
        "e",
    ]
    assert held.changed


async def test_a_silent_stream_lets_go_in_time() -> None:
    held = holding(10, seconds=0.0001)
    assert await held.take(event({"content": "abc"}), False) == b""
    assert held.waits is not None
    import asyncio

    await asyncio.sleep(0.001)
    assert await held.take(b"", False) == event({"content": "abc"})
    assert held.waits is None


async def test_comments_do_not_carry_anything_past() -> None:
    held = holding()
    assert await held.take(b": a secret\n\n", False) == b":\n\n"
    out = await held.take(b": a secret\ndata: {}\n\n", False)
    assert b"secret" not in out


async def test_what_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Denied, match="not JSON"):
        await holding().take(b"data: {\n\n", False)
    with pytest.raises(Denied, match="not text"):
        await holding(stream=False).take(b"\xff\xfe", True)
    monkeypatch.setattr("gateway.holding.MOST", 10)
    with pytest.raises(Denied, match="too large"):
        await holding(stream=False).take(b"x" * 11, False)
    told: list[str] = []
    held = Holding(openai, False, lambda kind, aside: Last(0, []), told.append, 60)
    with pytest.raises(Unjudged) as caught:  # what cannot be held is not passed on, whatever is said of the unjudged
        await held.take(b"x" * 11, False)
    assert (told, caught.value.code) == ([caught.value.what], "blocked_by_safety")


async def test_what_is_held_is_counted_with_what_it_takes_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.holding.MOST", 3000)
    held = holding(3)
    for _ in range(100):  # what leaves is not held
        await held.take(b"data: {}\n\n", False)
    await held.take(event({"content": "abc"}), False)
    silent = b"data: {}\n\n"
    assert await held.take(silent, False) == b""
    with pytest.raises(Denied, match="too large"):
        await held.take(silent * 10, False)


def test_edits_are_kept_in_order() -> None:
    edits = [Found(5, 7, "a")]
    add(edits, [Found(0, 2, "b"), Found(6, 9, "c")])
    assert edits == [Found(0, 2, "b"), Found(5, 9, "a")]
