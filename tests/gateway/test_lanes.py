"""What one reader joins is one lane; tests/policies/test_safety_lanes.py shows it through a gateway."""

from __future__ import annotations

import time

import pytest

from gateway.dialects import NAME, Part
from gateway.lanes import Lanes, Unjudged
from gateway.patterns import Found


class Silent:
    """Decides nothing before the end."""

    timed = False

    def __init__(self) -> None:
        self.settled, self.edits = 0, list[Found]()

    async def hear(self, piece: str, final: bool, due: bool) -> None: ...

    async def let_go(self) -> None: ...


def lanes(characters: int = 10, seconds: float = 60) -> Lanes:
    return Lanes(lambda kind, aside: Silent(), seconds, characters)


def said(text: str, *key: str, **more: object) -> Part:
    return Part(("x", *key), text, "output", lane=key, group=("choice", 0))._replace(**more)


def test_a_lane_that_was_left_is_overdue_after_so_many_characters_of_others_and_not_once_it_goes_on() -> None:
    made = lanes()
    first = made.put(said("abc", "a"))
    assert first is not None
    made.turn()
    lane, start = first.lanes[0]
    for text, overdue in (("x" * 9, False), ("x", True)):
        made.put(said(text, "b"))
        made.turn()
        assert (made.due(lane) == 0.0) is overdue
    more = made.put(said("def", "a"))
    made.put(said("x" * 20, "b"))  # in the same event
    made.turn()
    assert more is not None
    assert (more.lanes[0], start) == ((lane, 3), 0)
    assert made.due(lane) != 0.0
    made.put(said("x" * 9, "c", group=("choice", 1)))
    made.turn()  # of another choice: that counts too
    assert made.due(lane) != 0.0
    made.put(said("x", "b"))
    assert made.due(lane) == 0.0


def test_what_has_ended_is_left_and_what_goes_on_behind_its_end_is_not() -> None:
    made = lanes(seconds=0)
    pieces = [made.put(said("abc", "a", group=("choice", index), lane=(index,))) for index in (0, 1)]
    made.turn()
    first, second = [piece.lanes[0][0] for piece in pieces if piece is not None]
    for group, left in ((("choice", 1), second), ((), first)):
        assert made.due(left) is None
        made.leave(group)
        assert made.due(left) is not None
    made.put(said("def", "a", group=("choice", 1), lane=(1,)))
    made.turn()
    assert (made.due(second), made.due(first) is None) == (None, False)
    made.leave(("choice", 1))
    assert made.due(second) is not None


def test_or_after_so_long() -> None:
    made = lanes(seconds=0)
    piece = made.put(said("abc", "a"))
    assert piece is not None
    assert made.due(piece.lanes[0][0]) is None
    made.leave(())
    due = made.due(piece.lanes[0][0])
    assert due is not None
    assert 0 < due <= time.monotonic()


def test_what_no_shape_tells_is_judged_by_itself_and_by_its_place() -> None:
    made = lanes()
    for text, sizes in (
        ("411", [True]),
        ("a long text", [False, True]),
        ("a long text", [True]),
        ("411", [False, True]),
    ):
        piece = made.put(Part(("x",), text, "output", run=("x",)))
        assert piece is not None
        assert [lane.once for lane, _ in piece.lanes] == sizes, text


def test_there_are_only_so_many_places() -> None:
    made = lanes()
    for at in range(200):
        piece = made.put(Part(("x",), "text", "output", run=("x", at)))
        assert piece is not None
    assert len([*made]) == 64


def test_parts_of_a_list_are_joined_only_where_there_are_several() -> None:
    made = lanes()
    parts = [
        Part(("x", at), text, "output", run=(run,))
        for at, (text, run) in enumerate([("a", "x"), ("b", "y"), ("c", "x")])
    ]
    made.whole(parts)
    assert [[lane.once for lane, _ in piece.lanes] for part in parts if (piece := made.put(part))] == [
        [False, True],
        [True],
        [False, True],
    ]


def test_what_was_harmless_is_not_judged_again_and_a_text_that_goes_on_always_is() -> None:
    made = lanes()
    whole = Part(("status",), "ok", "output")
    piece = made.put(whole)
    assert piece is not None
    made.judged(piece)
    assert made.put(whole) is not None  # it is not decided
    piece.lanes[0][0].judge.settled = 2
    made.judged(piece)
    assert made.put(whole) is None
    assert made.put(said("ok", "a")) is not None


def test_what_patterns_passed_as_a_name_is_judged_by_all_as_a_value() -> None:
    made = lanes()
    piece = made.put(Part(("ok", NAME), "ok", "output"))
    assert piece is not None
    piece.lanes[0][0].judge.settled = 2
    made.judged(piece)
    assert made.put(Part(("again", NAME), "ok", "output")) is None
    assert made.put(Part(("x",), "ok", "output")) is not None


def test_memory_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.lanes.MOST", 2)
    monkeypatch.setattr("gateway.lanes._CLEAN", 2)
    made = lanes()
    for text in ("one", "two", "six"):
        piece = made.put(Part(("x",), text, "output"))
        assert piece is not None
        piece.lanes[0][0].judge.settled = 3
        made.judged(piece)
        assert piece.lanes == []  # nobody need be asked again
        assert (made.put(Part(("x",), text, "output")) is None) == (text != "six")
    for key in ("a", "b"):
        assert made.put(said("abc", key)) is not None
    with pytest.raises(Unjudged, match="more than 2 texts"):
        made.put(said("abc", "c"))
    assert made.put(said("abc", "a")) is not None


def test_short_names_are_for_patterns_only() -> None:
    asked: list[bool] = []

    def judge(kind: str, aside: bool) -> Silent:
        asked.append(aside)
        return Silent()

    made = Lanes(judge, 1, 1)
    for name in ("short", "a_name_that_is_long"):
        made.put(Part(("x", name, NAME), name, "output"))
    assert asked == [True, False]
