"""Addresses by their hosts, however they are written; a stream does not tear them."""

from __future__ import annotations

import pytest

from bench import texts
from tests.assessed import hinted, made, places, same_in_pieces


def test_the_built_in_set_is_told_apart() -> None:
    urls = made("urls", deny=["tracker.example"], allow=["example.com"])
    for one in texts.urls():
        assert bool(places(urls, one.text)) == one.unsafe, one.text
        assert hinted(urls, one.text)
        same_in_pieces(urls, f"x {one.text} y")


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("https://a@b.example/", "misleading"),
        ("https://xn--pple-43d.example/", "misleading"),
        ("http://8.8.8.8/", "misleading"),
        ("https://sub.bad.example/x", "denied"),
        ("https://notbad.example/", ""),
        ("https://bad.example.org/", ""),
    ],
)
def test_a_host_is_judged_with_all_below_it(address: str, label: str) -> None:
    found = places(made("urls", deny=["bad.example"]), f"see {address} there")
    assert found == ([(label, address)] if label else [])
