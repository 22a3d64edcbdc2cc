"""Rows and statements alone, without a database; what becomes of them in one is in the contract suite."""

from __future__ import annotations

import msgspec
import pytest

from gateway.store import Content, Fault, Query
from gateway.store.rows import COLUMNS, FAILED, contents, page, record, row, select
from tests.recorded import START
from tests.recorded import record as made


def test_a_row_has_a_value_for_each_column_and_the_rest_as_one_blob() -> None:
    columns = [name.strip() for name in COLUMNS.split(",")]
    packed = row(made(1, session="s", error=Fault("broken", "words")))
    assert len(packed) == len(columns) + 1
    told = dict(zip(columns, packed, strict=False))
    assert (told["at"], told["session"], told['"user"'], told["code"]) == (START + 1, "s", None, "broken")
    assert isinstance(packed[-1], bytes)


def test_what_was_packed_is_unpacked_alike() -> None:
    one = made(1, error=Fault("broken", "words"), content=Content("a", "b"))
    assert record([*row(one), "a", "b"]) == one
    assert record([*row(one), None, None]) == msgspec.structs.replace(one, content=None)


def test_content_is_told_only_where_it_is_kept_and_only_what_can_be_written() -> None:
    one = made(1, content=Content("a\ud800", "\x00"))
    assert contents([made(0), one]) == [(one.id, "a\ufffd", "\x00")]


def test_values_are_numbered_in_the_order_they_are_given() -> None:
    everything = Query(
        team="t", teams=frozenset("xy"), model="m", code="c", session="s", user="u", status=(400, 499), since=1,
        until=2, limit=10, cursor="MS4y",
    )  # fmt: skip
    sql, values = select(everything, "there.exchange")
    assert values == ["t", "m", "c", "s", "u", "x", "y", 400, 499, 1, 2, 1, 2, 11]
    assert [f"${number}" for number in range(1, 15)] == [
        word for word in sql.replace(",", " ").replace("(", " ").replace(")", " ").split() if word[0] == "$"
    ]
    assert " FROM there.exchange WHERE " in sql
    assert FAILED in sql


def test_a_page_has_a_cursor_only_where_there_is_more() -> None:
    rows = [(*row(made(n))[:17], n) for n in (3, 2, 1)]
    assert page(rows, 3).next_cursor is None
    short = page(rows, 2)
    assert [line.id for line in short.data] == [made(3).id, made(2).id]
    assert select(Query(cursor=short.next_cursor), "exchange")[1][:2] == [START + 2, 2]


@pytest.mark.parametrize("cursor", ["", "MQ", "LTEuMQ"])
def test_a_cursor_of_another_list_is_a_value_error(cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        select(Query(cursor=cursor), "exchange")
