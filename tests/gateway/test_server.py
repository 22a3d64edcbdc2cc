"""The front door: what HTTP itself can be made to carry, written byte by byte."""

from __future__ import annotations

import asyncio
import time
from itertools import product
from typing import Any

import pytest
import uvicorn
import uvloop

from gateway import server
from tests.hostile.wire import CALL, Answer, Heartbeat, answers, chunked, connected, listen, request, statuses, tell
from tests.running import KEY, Running, config, running
from tests.scripted import Asked, Scripted, event, plain, scripted

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
N = len(CALL)
LENGTH = b"content-length: %d" % N
CHUNKED = b"transfer-encoding: chunked"


def post(*headers: bytes, body: bytes = CALL, version: bytes = b"HTTP/1.1") -> bytes:
    """A chat call with just these headers beside its host and key."""
    first = b"POST /v1/chat/completions " + version
    return b"\r\n".join([first, b"host: h", b"authorization: Bearer " + KEY.encode(), *headers]) + b"\r\n\r\n" + body


def lengths() -> dict[str, bytes]:
    """Content-Length and Transfer-Encoding that two servers could read differently."""
    inner = b"GET /v1/models HTTP/1.1\r\nhost: h\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    bad_lengths = [b"+%d", b"-%d", b"0x%d", b"%d,%d", b"%d %d", b"%d.0", b"%de2", b"%d;", b"'%d'", b"%d" + b"9" * 30]
    bad_lengths = [value % ((N,) * value.count(b"%d")) for value in bad_lengths] + [b"", b"\xef\xbc\x95"]
    cases = {f"content-length {value!r}": post(b"content-length: " + value) for value in bad_lengths}
    for one, two in product([N, 0, 5], [N, 0, 7]):
        cases[f"lengths {one} and {two}"] = post(b"content-length: %d" % one, b"Content-Length: %d" % two)
    bad_codings = [
        b"xchunked",
        b"chunked, identity",
        b"chunked, chunked",
        b"identity, chunked",
        b"gzip, chunked",
        b"gzip",
    ]
    bad_codings += [
        b"identity",
        b"cow",
        b"chunked;q=1",
        b"\x0bchunked",
        b"chunked\x0b",
        b"chunked\x00",
        b'"chunked"',
        b"",
    ]
    bad_codings += [b"chunkedx", b"chunk ed", b",chunked", b"chunked,", b"c\xc4\xa5unked"]
    for value, sent in product(bad_codings, [CALL, chunked(CALL)]):
        cases[f"coding {value!r} on {sent[:4]!r}"] = post(b"transfer-encoding: " + value, body=sent + inner)
    for name in (b"transfer-encoding", b"Transfer-Encoding", b"TRANSFER-ENCODING"):
        cases[f"{name!r} then length"] = post(name + b": chunked", LENGTH, body=chunked(CALL) + inner)
        cases[f"length then {name!r}"] = post(LENGTH, name + b": chunked", body=chunked(CALL) + inner)
        cases[f"{name!r} twice"] = post(name + b": chunked", name + b": chunked", body=chunked(CALL) + inner)
    for name in (
        b"transfer-encoding ",
        b" transfer-encoding",
        b"transfer\x00encoding",
        b"transfer-encoding\t",
        b"\ttransfer-encoding",
    ):
        cases[f"name {name!r}"] = post(name + b": chunked", body=chunked(CALL) + inner)
        cases[f"name {name!r} with length"] = post(LENGTH, name + b": chunked", body=CALL + inner)
    cases["folded coding"] = post(b"transfer-encoding:\r\n chunked", body=chunked(CALL) + inner)
    cases["coding on HTTP/1.0"] = post(CHUNKED, body=chunked(CALL), version=b"HTTP/1.0")
    return cases


def chunk_faults() -> dict[str, bytes]:
    size = b"%x" % N
    good = size + b"\r\n" + CALL + b"\r\n0\r\n\r\n"
    bodies = {
        "no hex": b"zz\r\n" + CALL + b"\r\n0\r\n\r\n",
        "0x": b"0x" + good,
        "plus": b"+" + good,
        "minus": b"-" + good,
        "empty size": b"\r\n" + CALL + b"\r\n0\r\n\r\n",
        "space before": b" " + good,
        "overflow": b"f" * 17 + b"\r\n" + CALL + b"\r\n0\r\n\r\n",
        "wraps around": b"1" + b"0" * 16 + size + b"\r\n" + CALL + b"\r\n0\r\n\r\n",
        "two bytes after the data": size + b"\r\n" + CALL + b"XX0\r\n\r\n",
        "one byte too many": size + b"\r\n" + CALL + b"X\r\n0\r\n\r\n",
        "bare LF after the size": size + b"\n" + CALL + b"\r\n0\r\n\r\n",
        "bare LF after the data": size + b"\r\n" + CALL + b"\n0\r\n\r\n",
        "bare CR": size + b"\r" + CALL + b"\r\n0\r\n\r\n",
        "LF in an extension": size + b";a\nb\r\n" + CALL + b"\r\n0\r\n\r\n",
        "huge extension": size + b";" + b"a" * 3_000_000 + b"\r\n" + CALL + b"\r\n0\r\n\r\n",
        "huge trailer": size + b"\r\n" + CALL + b"\r\n0\r\nx-a: " + b"a" * 3_000_000 + b"\r\n\r\n",
        "many trailers": size + b"\r\n" + CALL + b"\r\n0\r\n" + b"x-a: bbbbbbbb\r\n" * 20_000 + b"\r\n",
    }
    return {name: post(CHUNKED, body=body) for name, body in bodies.items()}


def heads() -> dict[str, bytes]:
    good = request()
    return {
        "bare LF everywhere": good.replace(b"\r\n", b"\n"),
        "one bare LF": good.replace(b"host: h\r\n", b"host: h\n"),
        "bare LF at the end": good.replace(b"\r\n\r\n", b"\r\n\n"),
        "folded": request(CALL, b"x-a: b\r\n c"),
        "space before the colon": request(CALL, b"x-a : b"),
        "no colon": request(CALL, b"x-a"),
        "no name": request(CALL, b": b"),
        "NUL in a value": request(CALL, b"x-a: b\0c"),
        "NUL in a name": request(CALL, b"x\0a: b"),
        "CR in a value": request(CALL, b"x-a: b\rc"),
        "control in a value": request(CALL, b"x-a: b\x01c"),
        "no host": good.replace(b"host: h\r\n", b""),
        "two hosts": request(CALL, b"host: h"),
        "two different hosts": request(CALL, b"host: evil"),
        "HTTP/0.9": good.replace(b"HTTP/1.1", b"HTTP/0.9"),
        "HTTP/1.2": good.replace(b"HTTP/1.1", b"HTTP/1.2"),
        "HTTP/2.0": good.replace(b"HTTP/1.1", b"HTTP/2.0"),
        "http/1.1": good.replace(b"HTTP/1.1", b"http/1.1"),
        "no version": b"GET /v1/models\r\n\r\n",
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "NULs": b"\0" * 64,
        "tab": good.replace(b"POST /", b"POST\t/"),
        "raw UTF-8 in the path": request(path="/v1/chät".encode()),
        "space in the path": request(path=b"/v1/chat completions"),
        "CONNECT": b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n",
        "CONNECT to a path": request(method=b"CONNECT"),
    }


HOSTS = [
    b"h/?x",
    b"h/health?",
    b"h#",
    b"h:80@evil",
    b"user@h",
    b"h h",
    b"h,evil",
    b"h:port",
    b"h:123456",
    b"[::1",
    b"<h>",
]
HOSTS += [b"h\\evil", b"\xff", b"h;a", b"h%00"]
METHODS = [
    b"HANDLER",
    b"GET\0",
    b"post",
    b"Post",
    b"__class__",
    b"A" * 1_000_000,
    b"GET,POST",
    b"POST\x7f",
    "PÖST".encode(),
]


async def refused(gateway: Running, up: Scripted, cases: dict[str, bytes], status: int = 400) -> None:
    """Each case gets this status and nothing after it; nothing reaches the provider; the loop is never held up."""
    async with Heartbeat() as beat:
        for name, data in cases.items():
            try:
                found = await tell(gateway.url, data, whole=1.5)
            except Exception as error:
                raise AssertionError(f"{name}: {error!r}") from error
            assert statuses(found) == [status], (name, found)
            assert found[0].error["message"], name
            assert not up.asked, name
    assert beat.worst < 0.1


@pytest.mark.serial
async def test_requests_that_two_servers_could_read_differently_are_refused_and_never_sent_on() -> None:
    cases = lengths() | chunk_faults()
    large = {name: cases.pop(name) for name in ("huge extension", "huge trailer", "many trailers")}
    assert len(cases) >= 60
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await refused(gateway, up, cases)
        await refused(gateway, up, large, 431)
        assert (await gateway.chat()).status_code == 200


async def test_heads_that_are_not_http_are_refused() -> None:
    cases = heads() | {f"host {host!r}": request().replace(b"host: h", b"host: " + host) for host in HOSTS}
    cases |= {f"method {method[:9]!r}": request(method=method) for method in METHODS}
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await refused(gateway, up, cases)


async def test_heads_over_the_limits_are_refused_while_they_come() -> None:
    endless = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-a: " + b"a" * 3_000_000  # its end never comes
    heads = {
        "endless header": endless,
        "1 MB header": request(CALL, b"x-a: " + b"a" * 1_000_000),
        "1 MB name": request(CALL, b"x" * 1_000_000 + b": a"),
        "1000 headers": request(CALL, *[b"x-%d: a" % i for i in range(1000)]),
    }
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        await refused(gateway, up, heads, 431)
        await refused(gateway, up, {"64 KB URL": request(path=b"/v1/" + b"a" * 65_536)}, 414)
        await refused(gateway, up, {"64 KB query": request(path=b"/v1/models?" + b"a" * 65_536)}, 414)


async def test_a_trailer_names_no_caller_and_no_label() -> None:
    call = chunked(CALL)[:-2]
    said = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n"
    key = b"authorization: Bearer " + KEY.encode() + b"\r\n"
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        nobody = await tell(gateway.url, said + b"\r\n" + call + key + b"\r\n")
        assert statuses(nobody) == [401]
        assert not up.asked
        known = await tell(
            gateway.url, said + key + b"\r\n" + call + b"x-user-id: root\r\ncontent-encoding: gzip\r\n\r\n"
        )
        x = await gateway.finished(2)
    assert statuses(known) == [200]
    assert x.user == ""


async def test_an_offer_of_another_protocol_is_declined_and_the_call_answered() -> None:
    h2c = [b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"]
    websocket = [
        b"connection: upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: eA==",
    ]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for offer in (h2c, websocket):
            assert statuses(await tell(gateway.url, request(CALL, *offer))) == [200]
            assert statuses(await tell(gateway.url, request(b"", *offer, method=b"GET", path=b"/v1/models"))) == [200]
        sliced = [bytes([byte]) for byte in request(CALL, *h2c)]
        assert statuses(await tell(gateway.url, *sliced)) == [200]
        assert [asked.body for asked in up.asked] == [up.asked[0].body] * 3
        assert "upgrade" not in up.asked[0].headers
        async with connected(gateway.url) as (reader, writer):  # the connection is good for more
            for _ in range(3):
                writer.write(request(CALL, *h2c))
                assert statuses(answers(await listen(reader))) == [200]
        many = await tell(gateway.url, request(b"", *h2c, method=b"GET", path=b"/v1/models") * 1000)
    assert statuses(many) == [400]


async def test_older_http_absolute_urls_and_expectations_are_answered() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        old = await tell(gateway.url, request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert statuses(old) == [200]
        assert old[0].headers["connection"] == "close"
        for path in (b"http://evil/v1/chat/completions", b"http://evil:80@h/v1/chat/completions"):
            assert statuses(await tell(gateway.url, request(path=path))) == [200]
            unknown = request(path=path, key="wrong")
            assert statuses(await tell(gateway.url, unknown)) == [401]  # the path that is served decides, not the host
        async with connected(gateway.url) as (reader, writer):
            head, _, body = request(CALL, b"expect: 100-continue").partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert statuses(answers(await listen(reader))) == [100]
            writer.write(body)
            assert statuses(answers(await listen(reader))) == [200]
        expecting = request(CALL, b"expect: 100-continue", key="wrong").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert statuses(await tell(gateway.url, expecting)) == [401]  # the body is not asked for
        assert len(up.asked) == 4


async def test_pipelined_calls_are_answered_in_their_order() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        wrong, models = request(key="wrong"), request(b"", method=b"GET", path=b"/v1/models")
        found = await tell(gateway.url, request() + models + wrong + request(CALL, b"connection: close"))
        assert statuses(found) == [200, 200, 401, 200]
        assert b'"list"' in found[1].body
        assert len(up.asked) == 2
        cut = request() + request(b"", b"connection: close", method=b"GET", path=b"/v1/models")
        for at in range(1, len(cut), 29):
            assert statuses(await tell(gateway.url, cut[:at], cut[at:])) == [200, 200], at


async def hang(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "half"}))
    await asked.wire.gone()


STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


@pytest.mark.parametrize("queued", [0, 2])
async def test_junk_behind_a_running_stream_ends_it_and_is_not_written_into_it(queued: int) -> None:
    async with scripted(hang) as up, running(config(up.url)) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(request(STREAM) + request() * queued)
        first = await reader.readuntil(b"half")
        writer.write(b"\0\0\0\0")
        rest = await reader.read()
        x = await gateway.finished()
        assert len(up.asked) == 1
    assert first.count(b"HTTP/1.1") == 1
    assert b"HTTP/1.1" not in rest
    assert x.error is not None
    assert x.error.code == "client_gone"


async def test_a_pipelining_caller_who_hangs_up_stops_the_call_that_runs() -> None:
    async with scripted(hang) as up, running(config(up.url)) as gateway:
        async with connected(gateway.url) as (reader, writer):
            writer.write(request(STREAM) + request() + request())
            await reader.readuntil(b"half")
            writer.transport.abort()
        began = time.monotonic()
        x = await gateway.finished()
        while not up.asked[0].closed_at:
            await asyncio.sleep(0.005)
        assert up.asked[0].closed_at - began < 1
        assert len(up.asked) == 1
    assert x.error is not None
    assert x.error.code == "client_gone"


async def test_a_half_closed_caller_counts_as_one_who_hung_up() -> None:
    async with scripted(hang) as up, running(config(up.url)) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(request(STREAM))
        await reader.readuntil(b"half")
        writer.write_eof()
        x = await gateway.finished()
    assert x.error is not None
    assert x.error.code == "client_gone"


async def last_word(reader: asyncio.StreamReader) -> list[Answer]:
    """What comes until the gateway closes."""
    return answers(await asyncio.wait_for(reader.read(), 8))


async def test_slow_heads_and_bodies_are_told_so_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.3)
    starts = {
        "half a head": request()[:40],
        "half a body": request(CALL + b" ", b"content-length: %d" % (N + 9)),
        "half a chunk": post(CHUNKED, body=chunked(CALL)[:20]),
        "nothing": b"",
        "line ends only": b"\r\n\r\n",
    }

    async with scripted(plain) as up, running(config(up.url, server={"receive_seconds": 0.3})) as gateway:

        async def timed(name: str) -> tuple[list[Answer], float]:
            began = time.monotonic()
            async with connected(gateway.url) as (reader, writer):
                writer.write(starts[name])
                found = await last_word(reader)
            return found, time.monotonic() - began

        results = dict(zip(starts, await asyncio.gather(*map(timed, starts)), strict=True))
        assert not up.asked
    for name, (found, took) in results.items():
        assert took < 5, name
        if name in ("nothing", "line ends only"):
            assert found == [], name
        else:
            assert statuses(found) == [408], name
            assert found[0].error["code"] == "body_incomplete", name


async def test_a_call_answered_early_may_still_send_for_a_while_and_is_not_answered_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.3)
    rests = {LENGTH + b"0": b"x" * 100, CHUNKED: b"ff\r\n" + b"x" * 100, CHUNKED + b"\r\nx-a: b": b"zz\r\n"}
    async with scripted(plain) as up, running(config(up.url)) as gateway:

        async def one(header: bytes) -> list[int]:
            async with connected(gateway.url) as (reader, writer):
                writer.write(request(b"", header, key="wrong"))
                await asyncio.sleep(0.05)
                writer.write(rests[header])
                return statuses(await last_word(reader))

        assert await asyncio.gather(*map(one, rests)) == [[401]] * len(rests)
        assert not up.asked


async def test_line_ends_between_calls_keep_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made = uvicorn.Config.__init__

    def impatient(self: uvicorn.Config, *args: Any, **said: Any) -> None:
        made(self, *args, **said | {"timeout_keep_alive": 1})

    monkeypatch.setattr(uvicorn.Config, "__init__", impatient)
    async with scripted(plain) as up, running(config(up.url)) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(request())
        assert statuses(answers(await listen(reader))) == [200]
        writer.write(b"\r\n")
        assert await asyncio.wait_for(reader.read(), 4) == b""
