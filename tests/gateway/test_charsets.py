"""What a head says of the bytes behind it; tests/policies/test_safety_relayed.py shows what follows from it."""

from __future__ import annotations

import pytest

from gateway.charsets import UNKNOWN, as_utf8, back, declared, event_stream, in_events


@pytest.mark.parametrize(
    ("kind", "charset"),
    [
        (b"", ""),
        (b"text/plain; charset=UTF8", ""),
        (b"text/plain; charset=us-ascii; charset=utf-8", ""),
        (b'text/plain;CharSet = "UTF-16LE"', "utf-16-le"),
        (b"text/plain; charset=utf-7; charset=utf-16", UNKNOWN),
        (b"text/plain; charset=klingon", UNKNOWN),
        (b"text/plain; charset=\xff", UNKNOWN),
        (b"text/plain; charset=latin-1", "iso8859-1"),
    ],
)
def test_a_charset_is_known_by_all_its_names(kind: bytes, charset: str) -> None:
    assert declared(kind) == charset


@pytest.mark.parametrize("charset", ["", "utf-16-le", "utf-16", "iso8859-1", "utf-32"])
def test_a_text_is_read_and_written_again(charset: str) -> None:
    raw = "It is é".encode(charset or "utf-8")
    read = as_utf8(raw, charset)
    assert read.decode() == "It is é"
    assert back(read, charset) == raw


@pytest.mark.parametrize(
    ("raw", "charset"),
    [(b"a+AEE-", "utf-7"), (b"abcd", "utf-16-le"), (b"abc", UNKNOWN), (b"abc", "hex"), (b"\xff\xff\xff", "utf-16-le")],
)
def test_what_has_two_meanings_or_none_is_not_read(raw: bytes, charset: str) -> None:
    with pytest.raises(ValueError, match="answer"):
        as_utf8(raw, charset)


def test_what_the_charset_cannot_write_becomes_a_question_mark() -> None:
    assert back("[kart\u0131]".encode(), "iso8859-1") == b"[kart?]"


def test_events_are_utf_8_whatever_their_head_says() -> None:
    assert event_stream(b" Text/Event-Stream; charset=x")
    assert not event_stream(b"text/plain")
    assert [name for name in ("", "iso8859-1", "utf-7", "utf-16-le", UNKNOWN) if in_events(name)] == ["", "iso8859-1"]
