"""The pool: who waits, who is served, how connections are made and how long they are kept."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from math import inf

import httpx2
import pytest

from gateway.pool import Origin, Pool
from gateway.transport import Limits, Transport
from tests.gateway.transport_provider import HEAD, LOOPS, OK, Provider, Visit, answers, ask, call, once, settled

__all__ = ["LOOPS"]


@pytest.fixture
async def single() -> AsyncIterator[Transport]:
    async with Transport(Limits(max_connections=1)) as made:
        yield made


@pytest.fixture
def blackhole() -> Iterator[tuple[str, int]]:
    """An address that lets every attempt to connect hang: its queue is full."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()
        for filler in fillers:
            filler.close()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int], after: float = 0.0) -> None:
    """A name server of the test's own."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        if host != "localhost":  # an address: uvloop asks before it connects
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        await asyncio.sleep(after)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_who_waits_longest_is_served_first(single):
    served: list[int] = []

    async def wait(number: int) -> None:
        await ask(single, provider.url)
        served.append(number)

    async with Provider(answers(OK, after=0.005)) as provider:
        tasks = [asyncio.create_task(wait(number)) for number in range(20)]
        await asyncio.sleep(0.002)
        assert single.waiting == 19
        await asyncio.gather(*tasks)
        assert served == list(range(20))
        assert (single.active, single.idle, single.waiting, len(provider.visits)) == (0, 1, 0, 1)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """Of one place."""
    async with Provider(answers(OK)) as provider:
        made = Pool(Origin("http", "127.0.0.1", provider.port), Limits(max_connections=1), None)
        yield made
        made.close()


@pytest.mark.parametrize("kept", [True, False], ids=["a kept connection", "a free place"])
async def test_a_place_handed_to_a_waiter_that_is_cancelled_in_that_moment_goes_to_the_next(pool, kept):
    connection = await pool.take(inf)
    gone, heir = (asyncio.create_task(pool.take(inf)) for _ in range(2))
    await asyncio.sleep(0)
    assert pool.waiting == 2
    if kept:
        pool.put(connection)
    else:
        connection.drop()
    assert pool.waiting == 1  # it is `gone` that was served, but has not run since
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert ((await asyncio.wait_for(heir, 1)) is connection) is kept
    assert (pool.open, pool.waiting) == (1, 0)


async def test_a_connection_that_ends_between_hand_over_and_use_is_replaced(pool):
    connection = await pool.take(inf)
    waiter = asyncio.create_task(pool.take(inf))
    await asyncio.sleep(0)
    pool.put(connection)
    connection.drop()
    replaced = await asyncio.wait_for(waiter, 1)
    assert replaced is not connection
    assert (replaced.closed, pool.open) == (False, 1)


@pytest.mark.parametrize("kept", [True, False], ids=["a kept connection", "a free place"])
async def test_both_a_hand_over_undone_and_a_connection_ended_free_the_place_once(pool, kept):
    connection = await pool.take(inf)
    waiter = asyncio.create_task(pool.take(inf))
    await asyncio.sleep(0)
    if kept:
        pool.put(connection)
    connection.drop()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert (pool.open, len(pool.idle), pool.waiting) == (0, 0, 0)


async def test_who_needs_a_fresh_connection_does_not_wait_for_a_kept_one(pool):
    connection = await pool.take(inf)
    pool.put(connection)
    fresh = await asyncio.wait_for(pool.take(inf, fresh=True), 1)
    assert fresh is not connection
    assert (connection.closed, pool.open) == (True, 1)


async def test_an_unused_connection_is_closed_when_its_time_is_up():
    async with Provider(answers(OK)) as provider, Transport(Limits(keepalive=0.2)) as transport:
        await ask(transport, provider.url)
        assert (transport.idle, provider.open) == (1, 1)
        await asyncio.sleep(0.1)
        assert transport.idle == 1
        assert await settled(lambda: transport.idle == provider.open == 0, 0.2)
        await ask(transport, provider.url)
        assert len(provider.visits) == 2


async def test_an_unused_connection_that_the_provider_closes_frees_its_place(single):
    async with Provider(once(OK)) as provider:
        await ask(single, provider.url)
        assert await settled(lambda: single.idle == 0)
        assert await ask(single, provider.url) == b"ok"


async def test_an_address_that_does_not_answer_costs_a_quarter_of_a_second(single, blackhole, monkeypatch):
    async with Provider(answers(OK)) as provider:
        resolves_to(monkeypatch, blackhole, ("127.0.0.1", provider.port))
        started = time.perf_counter()
        assert await ask(single, provider.url) == b"ok"
        assert 0.24 <= time.perf_counter() - started <= 0.35


async def test_an_address_that_refuses_costs_nothing(single, monkeypatch):
    async with Provider(answers(OK)) as provider:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            address = closed.getsockname()
        resolves_to(monkeypatch, address, ("127.0.0.1", provider.port))
        started = time.perf_counter()
        assert await ask(single, provider.url) == b"ok"
        assert time.perf_counter() - started < 0.1


async def test_connecting_is_bounded_and_says_what_failed(blackhole, monkeypatch):
    async with Transport(Limits(max_connections=1, connect=0.3)) as transport:
        for url, kind, least, most in (
            (f"http://{blackhole[0]}:{blackhole[1]}/", httpx2.ConnectTimeout, 0.29, 0.33),
            ("http://127.0.0.1:1/", httpx2.ConnectError, 0, 0.1),
            ("http://nowhere.invalid/", httpx2.ConnectError, 0, 0.33),
            (f"http://{'x' * 64}.example/", httpx2.ConnectError, 0, 0.33),
        ):
            started = time.perf_counter()
            with pytest.raises(kind, match="no connection to"):
                await call(transport, url)
            assert least <= time.perf_counter() - started <= most, url
        resolves_to(monkeypatch, ("127.0.0.1", 1), after=9)  # a name server that does not answer
        with pytest.raises(httpx2.ConnectTimeout, match=r"within 0.3 s \(connect\)"):
            await call(transport, "http://localhost/")
        assert transport.active == 0


async def test_a_tls_handshake_that_hangs_counts_as_connecting():
    async def mute(visit: Visit) -> None:
        await visit.gone()

    async with Provider(mute) as provider, Transport(Limits(connect=0.3)) as transport:
        with pytest.raises(httpx2.ConnectTimeout):
            await call(transport, provider.url.replace("http:", "https:"))
        assert await settled(lambda: provider.open == 0, 0.2)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cancelling_while_connecting_leaves_nothing_open(blackhole, scheme):
    async def mute(visit: Visit) -> None:
        await visit.gone()

    async with Provider(mute) as provider, Transport(Limits(max_connections=1)) as transport:
        hang = f"http://{blackhole[0]}:{blackhole[1]}/" if scheme == "http" else f"https://localhost:{provider.port}/"
        task = asyncio.create_task(call(transport, hang))
        await asyncio.sleep(0.05)
        assert transport.active == 1
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.active == 0
        assert await settled(lambda: provider.open == 0, 0.2)
        assert await settled(lambda: not [t for t in asyncio.all_tasks() if "coro=<_open()" in repr(t)], 0.2)


async def test_a_connection_that_stands_only_after_the_close_is_closed_too(monkeypatch):
    async with Provider(answers(OK)) as provider:
        resolves_to(monkeypatch, ("127.0.0.1", provider.port), after=0.05)
        transport = Transport()
        task = asyncio.create_task(call(transport, provider.url))
        await asyncio.sleep(0.02)
        await transport.aclose()
        with pytest.raises(httpx2.ConnectError):
            await task
        assert transport.active == 0
        assert await settled(lambda: len(provider.visits) == 1 and provider.open == 0)


async def test_closing_fails_those_who_read_wait_or_connect_and_frees_all(blackhole):
    async def reading(url: str) -> None:
        async for _ in (await call(transport, url)).stream:
            pass

    async with Provider(answers(HEAD)) as provider:
        transport = Transport(Limits(max_connections=1))
        hang = f"http://{blackhole[0]}:{blackhole[1]}/"
        tasks = [asyncio.create_task(task) for task in (reading(provider.url), call(transport, provider.url))]
        await asyncio.sleep(0.05)
        await transport.aclose()
        outcome = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in outcome] == [httpx2.ReadError, httpx2.ConnectError]
        assert (transport.active, transport.idle, transport.waiting) == (0, 0, 0)
        assert await settled(lambda: provider.open == 0)
        with pytest.raises(httpx2.ConnectError, match="closed"):
            await call(transport, provider.url)
        with pytest.raises(httpx2.ConnectError, match="closed"):
            await call(transport, hang)
