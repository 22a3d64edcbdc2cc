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


def test_labels_of_any_letters_come_back_and_share_no_placeholder() -> None:
    masking = Masking()
    labels = ["email", "EMAIL", "credit-card", "credit card", "iban2", "2024", "Übernahme", "内部", "x" * 60, "x" * 50]
    marks = [masking.placeholder(label, f"value {at}") for at, label in enumerate(labels)]
    assert len(set(marks)) == len(labels)
    assert marks[:4] == ["[EMAIL_1]", "[EMAIL_2]", "[CREDIT_CARD_1]", "[CREDIT_CARD_2]"]
    for at, mark in enumerate(marks):
        restorer = Restorer(masking, False)
        found = [edit for piece in mark for edit in restorer.feed(piece, False)]
        assert [(one.start, one.end, one.replacement) for one in found] == [(0, len(mark), f"value {at}")], mark
