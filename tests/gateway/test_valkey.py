"""Connections to a Valkey give up early, and are not tried again behind the caller's back."""

from __future__ import annotations

import time

import pytest

from gateway.valkey import AWAY, connect
from tests.valkeys import valkey

pytestmark = pytest.mark.serial


async def test_valkey_and_redis_name_the_same() -> None:
    with valkey() as server:
        for url in (server.url, server.url.replace("valkey", "redis")):
            client = connect(url, 2, 5.0)
            assert await client.ping()
            await client.aclose()


async def test_a_frozen_server_is_given_up_after_the_patience() -> None:
    with valkey() as server:
        client = connect(server.url, 2, 0.2)
        await client.ping()
        server.freeze()
        began = time.perf_counter()
        with pytest.raises(AWAY):
            await client.get("x")
        assert 0.15 < time.perf_counter() - began < 0.6
        server.thaw()
        await client.aclose()
