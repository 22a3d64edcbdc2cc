"""Numbers count by their check digits, whatever stands between them; dates, prices and versions do not."""

from __future__ import annotations

import random

import pytest

from bench import texts
from tests.assessed import hinted, made, places, same_in_pieces

SAMPLES = texts.personal_data(300)
KNOWN = {
    "email": ["a.b+c@example.co.uk", "ünïcode@exämple.org"],
    "phone": ["+49 30 901820", "(555) 123-4567", "030 1234567"],
    "card": ["4111 1111 1111 1111", "5500000000000004", "3782-822463-10005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 19", "NL91ABNA0417164300"],
    "us_ssn": ["123-45-6789"],
    "uk_nino": ["AB 12 34 56 C", "AB123456C"],
    "fr_nir": ["2 55 08 14 168 025 38"],
    "es_dni": ["12345678Z", "X1234567L"],
    "it_cf": ["RSSMRA85T10A562S"],
    "br_cpf": ["529.982.247-25"],
    "ip": ["8.8.8.8", "2001:4860:4860::8888"],
}
NEAR = {
    "de_tax_id": "Steuer-ID 86095742719",
    "nl_bsn": "BSN 111222333",
    "pl_pesel": "PESEL 44051401359",
    "us_ssn": "SSN 123456789",
}


@pytest.mark.parametrize(("label", "text"), [(label, text) for label, texts in KNOWN.items() for text in texts])
def test_each_kind_is_found_as_it_is_written(label: str, text: str) -> None:
    data = made("personal_data")
    assert places(data, f"it is {text}, he said") == [(label, text)]
    assert places(made("personal_data", kinds=[label]), text) == [(label, text)]
    assert places(made("personal_data", kinds=["email" if label != "email" else "ip"]), text) == []
    same_in_pieces(data, f"it is {text}, he said")


@pytest.mark.parametrize(("label", "text"), NEAR.items())
def test_a_number_that_could_be_any_counts_behind_its_word_only(label: str, text: str) -> None:
    data = made("personal_data")
    assert [one for one, _ in places(data, text)] == [label]
    assert places(data, f"order {text.split()[-1]}") == []
    same_in_pieces(data, f"x {text} y")


def test_most_are_found_and_little_else_is() -> None:
    data = made("personal_data")
    found = [bool(places(data, one.text)) for one in SAMPLES]
    right = sum(hit and bool(one.unsafe) for hit, one in zip(found, SAMPLES, strict=True))
    assert right / sum(bool(one.unsafe) for one in SAMPLES) > 0.97
    assert right / sum(found) > 0.94
    for one in random.Random(1).sample(SAMPLES, 40):
        assert hinted(data, one.text), one.text
        same_in_pieces(data, one.text)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "2024-05-06", "1,234.56", "v1.2.3.4", "192.168.1.1", "12:30:45",
        "978-3-16-148410-0", "order 1234567890", "1 2 3 4 5 6 7 8 9 10 11 12", "@handle", "a@b", "000-12-3456",
    ],
)  # fmt: skip
def test_what_is_none_passes(text: str) -> None:
    assert places(made("personal_data"), text) == []


def test_a_body_is_in_doubt_where_a_number_may_stand_behind_its_word_in_the_message_before() -> None:
    data = made("personal_data")
    assert data.doubts(b'[{"content":"Your SSN, please?"},{"content":"546480206"}]', [data._rules.last])
    assert not data.doubts(
        b'[{"content":"order 4711000815 of 2024-07-18, card 4111 1111 1111 1112"}]', [data._rules.last]
    )


def test_letters_that_are_alike_in_another_case_break_nothing() -> None:
    assert places(made("personal_data"), "DE89 3704 \u212a044 0532 0130 00, \u212aS123456C, 1234567\u017f") == []


BEHIND = ("order A12 ", "pay with card2 ", "Q3-", "H2/", "step1. ", "IBAN DE89 3704 0044 0532 0130 00 ")


@pytest.mark.parametrize("before", BEHIND)
def test_a_number_behind_a_word_that_ends_in_a_digit_is_found(before: str) -> None:
    text = f"{before}4111 1111 1111 1111"
    assert "4111 1111 1111 1111" in [text[one.start : one.end] for one in made("personal_data").scan(text)]


def test_what_belongs_to_a_word_is_not_a_number() -> None:
    assert not made("personal_data").scan("serial X4111111111111111 and a4111-1111-1111-1111")
