"""The same value has the same placeholder; it comes back wherever an answer repeats it, however it is cut."""

from __future__ import annotations

from gateway.holding import add
from gateway.masking import Masking, Restorer
from gateway.patterns import Found


def test_placeholders_are_numbered_by_their_first_occurrence_and_never_those_of_the_text() -> None:
    masking = Masking(["I write [EMAIL_2] myself"])
    assert [masking.placeholder("email", one) for one in ("a@b", "c@d", "a@b")] == [
        "[EMAIL_1]",
        "[EMAIL_3]",
        "[EMAIL_1]",
    ]
    assert masking.placeholder("card", "4111") == "[CARD_1]"
    assert "a@b" not in repr(masking)


def test_they_come_back_in_any_case_and_cut_anywhere() -> None:
    masking = Masking()
    masking.placeholder("email", 'a"b@c')
    text = "to [EMAIL_1], [email_1] and [EMAIL_9] [x] ["
    for in_json, value in ((False, 'a"b@c'), (True, 'a\\"b@c')):
        for cut in range(len(text)):
            restorer, edits = Restorer(masking, in_json), list[Found]()
            add(edits, restorer.feed(text[:cut], False))
            assert restorer.settled <= cut
            add(edits, restorer.feed(text[cut:], True))
            assert restorer.settled == len(text)
            assert [(one.start, one.end, one.replacement) for one in edits] == [(3, 12, value), (14, 23, value)]
