"""Events are the same however the network cut them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import sse
from gateway.errors import UpstreamError

# (stream, data of its events) after WHATWG HTML 9.2.6; comments and bare fields are events without data
CASES = {
    "lf": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "cr": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "mixed": (b"data: a\n\r\ndata: b\r\n\ndata: c\r\r\n", [b"a", b"b", b"c"]),
    "bom": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "second bom is text": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [None]),
    "multi-line": (b"data: a\ndata: b\n\n", [b"a\nb"]),
    "multi-line crlf": (b"data: a\r\ndata:b\r\n\r\n", [b"a\nb"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "only one space goes": (b"data:  a\n\n", [b" a"]),
    "no colon": (b"data\n\n", [b""]),
    "other fields": (b"event: x\nid: 1\ndata: a\nretry: 5\n\n", [b"a"]),
    "comment": (b": ping\n\ndata: a\n\n", [None, b"a"]),
    "dataset is another field": (b"dataset: a\n\n", [None]),
    "no final blank line": (b"data: a\n\ndata: b\n", [b"a"]),
    "unicode line separators are text": ("data: a\u2028b\x85c\n\n".encode(), ["a\u2028b\x85c".encode()]),
    "empty data": (b"data:\n\n", [b""]),
}


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = sse.Splitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    rest = splitter.close()
    return [*events, rest] if rest else events


@pytest.mark.parametrize("name", CASES)
def test_each_form_is_read_as_the_standard_says_cut_anywhere(name: str) -> None:
    stream, wanted = CASES[name]
    cuts = [[stream], [stream[i : i + 1] for i in range(len(stream))]]
    cuts += [[stream[:i], stream[i:]] for i in range(len(stream) + 1)]
    for pieces in cuts:
        found = [sse.data(event) for event in split(pieces)]
        assert [data for data in found if data is not None] == [data for data in wanted if data is not None], pieces


@given(
    st.lists(st.text(alphabet="abc: é\u2028", max_size=8), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)
def test_events_keep_their_bytes(texts: list[str], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(b"data: " + text.encode() + end + end for text in texts)
    cut = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cut], [*cut, len(stream)], strict=True)]
    events = split(pieces)
    assert b"".join(events) == stream
    assert [sse.data(event) for event in events] == [text.encode() for text in texts]


def test_an_event_without_end_is_refused_at_the_limit() -> None:
    splitter = sse.Splitter()
    for _ in range(10):
        splitter.feed(b"data: " + b"x" * 100_000)
    with pytest.raises(UpstreamError) as caught:
        splitter.feed(b"x" * 100_000)
    assert caught.value.code == "upstream_protocol"


@pytest.mark.parametrize("filler", [b"x", b"\r", b"\r\n", b"\n: "])
def test_time_grows_with_the_length_not_its_square(filler: bytes) -> None:
    def took(count: int) -> float:
        splitter = sse.Splitter()
        began = time.process_time()
        for _ in range(count):
            splitter.feed(filler)
        return time.process_time() - began

    took(1000)
    assert took(40_000) < 12 * max(took(10_000), 0.005)  # 4 when linear, 16 when square


def test_only_data_lines_are_plain() -> None:
    assert sse.plain(b"data: a\n\n")
    assert sse.plain(b"data: a\r\ndata: b\r\n\r\n")
    assert not sse.plain(b"id: 1\ndata: a\n\n")
    assert not sse.plain(b"data: a\nevent: x\n\n")
