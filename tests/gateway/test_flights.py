"""An answer that several wait for: each gets all of it, none holds up the others, and what is kept is bounded."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import flights
from gateway.dialects import Chunk
from gateway.errors import Broken, ClientGone, Denied, GatewayError, Unavailable, UpstreamError
from gateway.flights import Flight, Room, shared


class Presence:
    """Of a leader: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def reconsider(self) -> None:
        self.asked.append("reconsider")

    def cut(self) -> None:
        self.asked.append("cut")


def flight(longest: int = 10_000, room: Room | None = None) -> Flight:
    leader: Any = SimpleNamespace(awaited=False, presence=Presence(), stream=True, sending=0)
    return Flight(leader, room or Room(), longest)


def chunk(text: str, last: bool = False) -> Chunk:
    return Chunk(text.encode(), last=last)


async def read(one: flights.Follower, pause: float = 0.0) -> str:
    text = ""
    async for piece in one.chunks():
        text += piece.raw.decode()
        await asyncio.sleep(pause)
    one.leave()
    return text


async def test_each_reads_all_at_its_own_pace() -> None:
    one = flight()
    early = asyncio.create_task(read(one.join()))
    for letter in "abcd":
        one.add(chunk(letter))
        await asyncio.sleep(0)
    slow = asyncio.create_task(read(one.join(), 0.01))
    one.add(chunk("e", last=True))
    one.land()
    late = one.join()
    assert await early == await slow == await read(late) == "abcde"
    assert one.raw() == b"abcde"


async def test_a_slow_follower_holds_up_nobody_and_no_more_than_the_bound() -> None:
    room = Room()
    one = flight(1000, room)
    slow, quick = one.join(), one.join()
    reader = asyncio.create_task(read(quick))
    pieces = slow.chunks()
    await anext_of(one, pieces)
    for _ in range(100):
        one.add(chunk("x" * 100))
        await asyncio.sleep(0)
        assert room.used <= 1000 + 164
    one.add(chunk("!", last=True))
    one.land()
    assert await reader == "first" + "x" * 10_000 + "!"
    with pytest.raises(Unavailable):
        await anext(pieces)
    slow.leave()
    assert room.used == 0


async def anext_of(one: Flight, pieces: Any) -> None:
    one.add(chunk("first"))
    assert (await anext(pieces)).raw == b"first"


async def test_an_answer_that_outgrows_the_bound_is_not_kept_and_not_joined() -> None:
    room = Room()
    one = flight(1000, room)
    for _ in range(20):
        one.add(chunk("x" * 100))
    assert not one.kept
    assert one.raw() is None
    assert room.used <= 1000
    one.land()
    assert room.used == 0


async def test_answers_that_nobody_else_waits_for_are_given_up_when_all_together_take_too_much() -> None:
    room = Room(limit=1000)
    waited, others = flight(room=room), [flight(room=room) for _ in range(10)]
    follower = waited.join()
    for _ in range(3):
        for one in (waited, *others):
            one.add(chunk("x" * 100))
    assert waited.kept
    assert not all(one.kept for one in others)
    assert room.used <= 1000 + 200
    for one in (waited, *others):
        one.land()
    follower.leave()
    assert room.used == 0


async def test_a_leader_is_awaited_as_long_as_somebody_follows_and_asked_anew_when_nobody_does() -> None:
    one = flight()
    first, second = one.join(), one.join()
    assert one.leader.awaited
    first.leave()
    first.leave()
    assert one.leader.awaited
    second.leave()
    assert not one.leader.awaited
    assert one.leader.presence.asked == ["reconsider"] * 3  # type: ignore[union-attr]  # this test's own


async def test_a_leader_whose_caller_takes_nothing_is_cut_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "PATIENCE", 0.1)
    one = flight()
    one.leader.sending = time.perf_counter_ns()
    await asyncio.sleep(0.2)
    assert one.leader.presence.asked == []  # type: ignore[union-attr]
    follower = one.join()
    await asyncio.sleep(0.05)
    assert one.leader.presence.asked == ["reconsider", "cut"]  # type: ignore[union-attr]
    follower.leave()


ERRORS: list[tuple[GatewayError | None, bool]] = [
    (UpstreamError("down", code="upstream_unavailable", status=503, retry_after=3), True),
    (Denied("no money", code="budget_exhausted", status=429), False),
    (ClientGone("gone"), False),
    (Unavailable("stopping", code="shutting_down"), False),
    (Broken("a defect"), False),
]


@pytest.mark.parametrize(("error", "everybodys"), ERRORS)
async def test_only_a_providers_error_is_everybodys(error: GatewayError, everybodys: bool) -> None:
    one = flight()
    follower = one.join()
    one.land(error)
    if not everybodys:
        assert await follower.begun() is False
        assert await follower.ended() is False
        return
    with pytest.raises(UpstreamError) as raised:
        await follower.begun()
    told = raised.value
    assert told is not error  # each has its own
    assert (told.code, told.status, told.retry_after, told.message) == ("upstream_unavailable", 503, 3, "down")


@pytest.mark.parametrize(("error", "everybodys"), [*ERRORS, (None, False)])
async def test_after_a_byte_an_answer_that_fails_never_ends_cleanly(error: GatewayError, everybodys: bool) -> None:
    one = flight()
    follower = one.join()
    one.add(chunk("half"))
    one.land(error)
    assert await follower.begun()
    with pytest.raises(GatewayError) as raised:
        await read(follower)
    assert not isinstance(raised.value, (ClientGone, Broken))
    assert "defect" not in raised.value.message


def test_a_retry_is_never_tried_inside_the_gateway_again() -> None:
    error = shared(UpstreamError("x", retryable=True))
    assert error is not None
    assert not error.retryable
