"""Who is calling: three headers, one key, and nothing learned from a refusal."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from gateway.credentials import API_KEY, Pepper, make
from gateway.errors import Unidentified
from gateway.exchange import Caller
from gateway.keys import Keys, Known
from gateway.settings import Key, Team

ONE, TWO = "tk-one", "tk-two"
KEYS = Keys(
    {
        "checkout": Team(
            keys=[Key(name="web", key=SecretStr(ONE)), Key(name="batch", key=SecretStr(TWO))],
            models=["m"],
            content="full",
        ),
        "search": Team(keys=[Key(name="web", key=SecretStr("tk-three"))]),
    }
)

Headers = list[tuple[bytes, bytes]]


def identify(*headers: tuple[bytes, bytes]) -> tuple[str, str]:
    caller = KEYS.identify(dict(headers), list(headers))
    return caller.team, caller.key


@pytest.mark.parametrize(
    "header", [(b"authorization", b"Bearer tk-two"), (b"x-api-key", b"tk-two"), (b"api-key", b"tk-two")]
)
def test_a_key_is_known_in_each_of_three_headers(header: tuple[bytes, bytes]) -> None:
    assert identify((b"host", b"h"), header) == ("checkout", "batch")


@pytest.mark.parametrize("value", [b"bearer tk-one", b"BEARER tk-one", b"Bearer   tk-one ", b"Bearer tk-one"])
def test_the_scheme_is_read_as_http_says(value: bytes) -> None:
    assert identify((b"authorization", value)) == ("checkout", "web")


def test_a_caller_carries_what_its_team_may() -> None:
    caller = KEYS.identify({b"x-api-key": ONE.encode()}, [(b"x-api-key", ONE.encode())])
    assert (caller.models, caller.content) == (frozenset({"m"}), "full")
    assert ONE not in repr(caller)
    assert ONE not in repr(vars(KEYS))


REFUSED: list[tuple[Headers, str, int]] = [
    ([], "missing_api_key", 401),
    ([(b"authorization", b"")], "missing_api_key", 401),
    ([(b"authorization", b"Bearer")], "missing_api_key", 401),
    ([(b"authorization", b"tk-one")], "missing_api_key", 401),
    ([(b"authorization", b"Basic tk-one")], "missing_api_key", 401),
    ([(b"authorization", b"Bearer tk-on")], "invalid_api_key", 401),
    ([(b"authorization", b"Bearer tk-one tk-one")], "invalid_api_key", 401),
    ([(b"x-api-key", b"Bearer tk-one")], "invalid_api_key", 401),
    ([(b"x-api-key", b"")], "invalid_api_key", 401),
    ([(b"x-api-key", b"TK-ONE")], "invalid_api_key", 401),
    ([(b"x-api-key", b"\xff\x00")], "invalid_api_key", 401),
    ([(b"x-api-key", b"x" * 60_000)], "invalid_api_key", 401),
    ([(b"x-api-key", b"tk-one"), (b"api-key", b"tk-one")], "several_api_keys", 400),
    ([(b"authorization", b"Bearer tk-one"), (b"x-api-key", b"tk-one")], "several_api_keys", 400),
    ([(b"authorization", b"Bearer tk-one"), (b"authorization", b"Bearer tk-one")], "several_api_keys", 400),
    ([(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer tk-one")], "several_api_keys", 400),
    ([(b"x-api-key", b"tk-one"), (b"x-api-key", b"tk-two"), (b"a", b"b")], "several_api_keys", 400),
]


@pytest.mark.parametrize(("headers", "code", "status"), REFUSED)
def test_no_key_a_wrong_one_and_several_are_told_apart(headers: Headers, code: str, status: int) -> None:
    with pytest.raises(Unidentified) as caught:
        KEYS.identify(dict(headers), headers)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert "tk-" not in caught.value.message


def test_some_other_header_given_twice_does_no_harm() -> None:
    assert identify((b"x-a", b"1"), (b"x-a", b"2"), (b"x-api-key", b"tk-one")) == ("checkout", "web")


PEPPER = Pepper(b"p" * 32)
CREATED = make(API_KEY)


def created(known: Known) -> Keys:
    keys = Keys({"checkout": Team(keys=[Key(name="web", key=SecretStr(ONE))])}, PEPPER)
    keys.created = {PEPPER.key(CREATED.encode()): known}
    return keys


def ask(keys: Keys, key: str) -> Caller:
    return keys.identify({b"x-api-key": key.encode()}, [(b"x-api-key", key.encode())])


def test_keys_that_were_created_live_beside_those_that_are_declared() -> None:
    keys = created(Known(Caller("search", "app")))
    assert (ask(keys, CREATED).team, ask(keys, ONE).team) == ("search", "checkout")
    keys.created = {}
    with pytest.raises(Unidentified, match="not known here"):
        ask(keys, CREATED)


@pytest.mark.parametrize(
    ("until", "why", "says"),
    [
        (1, "", "This API key has expired."),
        (2**62, "was revoked", "This API key was revoked."),
        (1, "was revoked", "This API key has expired."),
        (None, "belongs to a team that is switched off", "switched off"),
    ],
)
def test_who_holds_a_key_that_is_refused_is_told_why(until: int | None, why: str, says: str) -> None:
    with pytest.raises(Unidentified, match=says) as caught:
        ask(created(Known(Caller("search", "app"), until, why)), CREATED)
    assert (caught.value.code, CREATED in caught.value.message) == ("invalid_api_key", False)
    with pytest.raises(Unidentified, match="mistyped"):
        ask(created(Known(Caller("search", "app"))), CREATED[:-1])
