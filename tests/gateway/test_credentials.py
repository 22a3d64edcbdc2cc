"""Keys that cannot be guessed, are known again without being kept, and are told from typing errors."""

from __future__ import annotations

import random
import re
import stat
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.credentials import ADMIN_TOKEN, API_KEY, Pepper, hint, kept_pepper, make, mistyped, new_id


def test_a_key_is_long_random_and_recognisable() -> None:
    keys = {make(API_KEY) for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"tk_[0-9A-Za-z]{49}", key) for key in keys)
    assert {character for key in keys for character in key[3:46]} == set(string.ascii_letters + string.digits)
    assert not any(mistyped(key.encode()) for key in keys)
    assert make(ADMIN_TOKEN).startswith("tka_")
    assert hint("tk_abcdefgh") == "efgh"
    assert re.fullmatch(r"team_[0-9a-f]{20}", new_id("team"))


def test_a_typing_error_is_told() -> None:
    rng = random.Random(7)
    for _ in range(500):
        key = make(API_KEY)
        at = rng.randrange(3, len(key))
        wrong = key[:at] + rng.choice([c for c in string.ascii_letters if c != key[at]]) + key[at + 1 :]
        assert mistyped(wrong.encode())
        assert mistyped(key[:at].encode())
    assert not mistyped(b"sk-somebody-else's")
    assert not mistyped(b"")


def test_digests_of_keys_and_tokens_and_of_two_peppers_have_nothing_in_common() -> None:
    one, other = Pepper(b"a" * 32), Pepper(b"b" * 32)
    digests = [one.key(b"k"), one.token(b"k"), other.key(b"k"), other.token(b"k"), one.key(b"l")]
    assert len(set(digests)) == 5
    assert {len(digest) for digest in digests} == {32}
    assert one.mark == Pepper(b"a" * 32).mark != other.mark


def test_the_pepper_is_made_once_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "tollkeeper.pepper"
    with ThreadPoolExecutor(16) as threads:
        peppers = set(threads.map(lambda _: kept_pepper(path), range(64)))
    assert len(peppers) == 1
    assert len(peppers.pop()) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_empty_file_is_no_pepper(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("\n")
    with pytest.raises(ValueError, match="holds no pepper"):
        kept_pepper(tmp_path / "pepper")
