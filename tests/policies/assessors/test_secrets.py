"""Keys are found by their issuers' shapes, however a stream cuts them; words and hashes are left alone."""

from __future__ import annotations

import random

import pytest

from bench import texts
from tests.assessed import hinted, made, places, same_in_pieces

SAMPLES = texts.secrets(300)
PEM = "-----BEGIN EC PRIV" + "ATE KEY-----\n" + "Ab1+/" * 150 + "\n-----END EC PRIV" + "ATE KEY-----"


def test_most_are_found_and_little_else_is() -> None:
    secrets = made("secrets")
    found = [bool(places(secrets, one.text)) for one in SAMPLES]
    right = sum(hit and bool(one.unsafe) for hit, one in zip(found, SAMPLES, strict=True))
    assert right / sum(bool(one.unsafe) for one in SAMPLES) > 0.9
    assert right / sum(found) > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_finds_the_same(seed: int) -> None:
    secrets = made("secrets")
    for one in random.Random(seed).sample(SAMPLES, 12):
        same_in_pieces(secrets, one.text + " and more")
        assert hinted(secrets, one.text)


def test_a_private_key_is_taken_out_from_its_first_line_to_its_last() -> None:
    secrets = made("secrets")
    assert places(secrets, f"a {PEM} b") == [("private_key", PEM)]
    assert places(secrets, f"a {PEM[:400]}") == [("private_key", PEM[:400])]  # cut off: to the end
    same_in_pieces(secrets, f"a {PEM} b")


def test_a_key_longer_than_what_is_held_back_leaves_no_rest() -> None:
    token = "sk-" + "proj-" + "aB3" * 400
    same_in_pieces(made("secrets"), f"x {token} y")


@pytest.mark.parametrize(
    "text",
    [
        "the risk-assessment-of-the-desk and task-force",
        "password = os.environ['X']",
        "api_key: ${KEY}",
        "token is required here",
        "5f4dcc3b5aa765d61d8327deb882cf99",
    ],
)
def test_what_is_no_secret_passes(text: str) -> None:
    assert places(made("secrets"), text) == []
