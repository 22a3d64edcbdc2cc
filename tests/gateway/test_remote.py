"""The commands' way to the admin API: an admin key goes to one place, and an answer is read or told."""

from __future__ import annotations

import asyncio

import pytest

from gateway.remote import Refused, Remote
from tests.running import ADMIN, config, running
from tests.scripted import answering_once, plain, scripted


async def test_a_list_is_read_to_its_end() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for n in range(3):
            await gateway.made("/teams", name=f"t{n}")
        remote = Remote(gateway.url + "/", ADMIN)
        lines = await asyncio.to_thread(lambda: list(remote.lines("teams")))
        assert [line["name"] for line in lines] == ["checkout", "t0", "t1", "t2"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://["])
def test_what_cannot_be_asked_is_said_without_the_key(url: str) -> None:
    with pytest.raises(Refused, match="is the gateway running there") as raised:
        Remote(url, ADMIN).ask("GET", "teams")
    assert ADMIN not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff", "is it a Tollkeeper"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n{}", "is it a Tollkeeper"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n[]", "is it a Tollkeeper"),
        (b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n", "answered 302"),
    ],
)
def test_what_is_no_tollkeeper_is_said_and_a_redirect_is_not_followed(answer: bytes, says: str) -> None:
    with answering_once(answer) as url, pytest.raises(Refused, match=says):
        Remote(url, ADMIN).ask("GET", "teams")
