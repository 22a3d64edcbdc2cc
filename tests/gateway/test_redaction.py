"""What is obvious is taken out, what only looks like it stays, and no text makes it slow."""

import time

import pytest

from gateway.redaction import Redactor, redact


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to ann.b+c@mail.example.org.", "write to [email_1]."),
        ("123456789@qq.com", "[email_1]"),
        ("<ann@example.org>,bob@example.org", "<[email_1]>,[email_2]"),
        (r'{"a":"\nann@example.org"}', r'{"a":"\n[email_1]"}'),
        (r'{"a":"ann\u0040example.org"}', r'{"a":"[email_1]"}'),
        ("call +49 (170) 123-4567 now", "call [phone_1] now"),
        ("call (555) 123-4567, 555.123.4567", "call [phone_1], [phone_1]"),
        ("card 4111 1111 1111 1111 12/27", "card [card_1] 12/27"),
        ("4111111111111111", "[card_1]"),
        ("3782-822463-10005", "[card_1]"),
        (r"\n4111 1111 1111 1111", r"\n[card_1]"),
        ('{"number":5555555555554444}', '{"number":[card_1]}'),
        ("1 2 3 4111 1111 1111 1111", "1 2 3 [card_1]"),
        ("key sk-proj-abcdefghijklmnop_1", "key [secret_1]"),
        ("OPENAI_API_KEY=sk-ant-api03-abcdefghijklmnop", "OPENAI_API_KEY=[secret_1]"),
        ("ghp_abcdefghijklmnopqrst1234 AKIAIOSFODNN7EXAMPLE", "[secret_1] [secret_2]"),
        ("KEY=tk_0123456789abcdefghijABCDEFGHIJ, tka_0123456789abcdefghijABCDEFGHIJ", "KEY=[secret_1], [secret_2]"),
        ("Bearer eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "Bearer [secret_1]"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb", "a\n[secret_1]\nb"),
        ("key=-----BEGIN PRIVATE KEY-----MIIE and no end", "key=[secret_1]"),
    ],
)
def test_an_obvious_value_is_replaced(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on 2026-11-21 02:00 and 2026-11-21",
        "task-management-system-design risk-averse",
        "4111 1111 1111 1112",
        "550e8400-e29b-41d4-a716-446655440000",
        "3.14159265358979 and 192.168.0.1",
        "@decorator def f(x): return x @ y",
        r'{"text":"tab\tquote\"back\\slash é \u00e9 \u0022"}',
        "1 2 3 4 5 6",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert redact(text) == text


def test_the_same_value_has_the_same_placeholder_in_all_texts_of_one_redactor() -> None:
    redactor = Redactor()
    assert redactor.redact("a@example.org b@example.org a@example.org") == "[email_1] [email_2] [email_1]"
    assert redactor.redact("b@example.org, c@example.org") == "[email_2], [email_3]"


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1 ",
        "eyJ",
        "eyJaaaaaaaa.",
        "a@",
        "x@a.",
        "4111 ",
        "111 ",
        "sk-",
        "@",
        "\\",
        "+1 ",
        "(1",
        "a.",
        "1.",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY----------END PRIVATE KEY-----",
        "A",
        "ghp_",
        "xoxb-",
        "\\u0040",
    ],
)
def test_twice_the_text_takes_about_twice_the_time(unit: str) -> None:
    def took(size: int) -> float:
        text = unit * (size // len(unit))
        times = []
        for _ in range(3):
            began = time.thread_time()
            redact(text)
            times.append(time.thread_time() - began)
        return min(times)

    small, large = took(8_000), took(64_000)  # a quadratic scan would take 64 times as long, not 8
    assert large < 24 * small + 0.005
