"""Nothing of a text is lost when it is cut, and time grows with its length."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.documents import are_events, cut, unescaped


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a":1}\n{"b":2}\n', ['{"a":1}', '{"b":2}']),
        ('{"a":1}{"b":[2]}[3]', ['{"a":1}', '{"b":[2]}', "[3]"]),
        ('\x1e{"a":1}\n\x1e{"b":2}\n', ['{"a":1}', '{"b":2}']),
        ('{\n "a":\n 1\n}\n{\n "b": 2\n}', ['{\n "a":\n 1\n}', '{\n "b": 2\n}']),
        ('{"a":1}\n{"b":"cut\n{"c":3}\n{"d', ['{"a":1}', '{"c":3}']),
        ('{"a":1}\n{"b":\n{"c":3}\n', ['{"a":1}', '{"c":3}']),
        ('Here:\n{"a":1}\n', []),
        ("", []),
        ("[" * 100_000, []),
    ],
)
def test_documents_are_found_on_lines_and_behind_one_another(text: str, found: list[str]) -> None:
    pieces = cut(text)
    assert [piece for piece, is_json in pieces if is_json] == found
    assert "".join(piece for piece, _ in pieces) == text


@given(st.lists(st.sampled_from(['{"a":1}', "[2]", "\n", " ", "\x1e", '{"b', "text", "{", "[", '"', ","]), max_size=20))
def test_nothing_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    pieces = cut(text)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(one[1] or other[1] for one, other in pairwise(pieces))


@pytest.mark.parametrize("line", ["[1,\n", '{"a":\n', '{"a":1}\n{"b\n', "{}", '{"a', "{}[\n"])
def test_time_grows_with_the_length_not_its_square(line: str) -> None:
    def took(count: int) -> float:
        text = "{}\n" + line * count
        began = time.process_time()
        cut(text)
        return time.process_time() - began

    took(100)
    assert min(took(80_000) for _ in range(3)) < 30 * min(took(10_000) for _ in range(3)) + 0.05


@pytest.mark.parametrize(
    ("raw", "are"),
    [
        (b'data: {"a":1}\n\n', True),
        (b"\xef\xbb\xbf\n data:hi\n\n", True),
        (b": ping\r\rdata: hi\r\r", True),
        (b"event: x\nid: 1\ndata: hi\n\n", True),
        (b'some\ndata:{"a":1}', True),
        (b"kind: ConfigMap\ndata:\n  a: b\n", False),
        (b"event: the data: of it", False),
        (b'{"data":1}', False),
    ],
)
def test_events_are_known_by_their_looks(raw: bytes, are: bool) -> None:
    assert are_events(raw) == are


def test_escapes_are_read_where_some_are() -> None:
    assert unescaped("\\u0041b") == "Ab"
    assert unescaped("Ab") == "Ab"
