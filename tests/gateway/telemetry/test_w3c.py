"""Whose trace a request belongs to, and what is told to the next server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from gateway.exchange import Trace
from gateway.settings import Traces
from gateway.telemetry.w3c import RandomTrace, Sampler, outgoing, read_parent, read_state, response

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()
SENT = (int(TRACE, 16), int(SPAN, 16))


def sampler(clock: Callable[[], int] = time.monotonic_ns, **said: object) -> Sampler:
    return Sampler(Traces.model_validate({"otlp_endpoint": "http://127.0.0.1:4318", **said}), clock)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00",
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),  # version 00 has nothing behind its flags
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"cc-{TRACE}-{SPAN}-01more".encode(),
        f"00-{TRACE}-{SPAN}-0".encode(),
        f"00-{TRACE}-{SPAN}-0x".encode(),
        f"00-{TRACE[:-1]}-{SPAN}-01".encode(),
        f"00_{TRACE}_{SPAN}_01".encode(),
        f" 00-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        f"{PARENT.decode()},{PARENT.decode()}".encode(),
        b"\xff" * 55,
    ],
)
def test_a_traceparent_that_cannot_be_read_starts_a_new_trace_and_drops_tracestate(header: bytes) -> None:
    trace = sampler().begin(header, b"vendor=1", True)
    assert trace.parent_id == 0
    assert trace.state == ""
    assert trace.trace_id != SENT[0]
    assert 0 not in (trace.trace_id, trace.span_id)


@pytest.mark.parametrize("header", [PARENT, f"cc-{TRACE}-{SPAN}-01".encode(), f"cc-{TRACE}-{SPAN}-01-what".encode()])
def test_a_known_callers_trace_is_continued_also_of_a_higher_version(header: bytes) -> None:
    trace = sampler().begin(header, b"vendor=1,other=2", True)
    assert (trace.trace_id, trace.parent_id) == SENT
    assert trace.span_id not in (0, SENT[1])
    assert trace.state == "vendor=1,other=2"


def test_a_caller_nobody_knows_chooses_neither_trace_nor_sampling() -> None:
    trace = sampler(sample=0).begin(PARENT, b"vendor=1", False)
    assert trace.trace_id != SENT[0]
    assert (trace.parent_id, trace.sampled, trace.state) == (0, False, "")


def test_restart_leaves_the_callers_trace_behind() -> None:
    trace = sampler(inbound="restart").begin(PARENT, b"vendor=1", True)
    assert trace.trace_id != SENT[0]
    assert (trace.parent_id, trace.state) == (0, "")


def test_tracestate_without_traceparent_is_discarded() -> None:
    assert sampler().begin(None, b"vendor=1", True).state == ""


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (b"a=1,b=2", "a=1,b=2"),
        (b"a=1, b=2 ,,c@d=x y", "a=1, b=2 ,,c@d=x y"),
        (b"A=1", ""),
        (b"a=1,b", ""),
        (b"a=1\x01", ""),
        (b"a=\xc3\xa9", ""),
        (b"a=1\r\nx: y", ""),
        (",".join(f"k{n}=v" for n in range(32)).encode(), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}=v" for n in range(33)).encode(), ""),
        (b"a=" + b"1" * 200 + b",b=" + b"2" * 200 + b",c=" + b"3" * 200, "a=" + "1" * 200 + ",b=" + "2" * 200),
    ],
)
def test_tracestate_is_kept_whole_or_by_whole_members(header: bytes, kept: str) -> None:
    assert read_state(header) == kept


def test_a_tracestate_made_to_be_slow_is_read_in_under_a_millisecond() -> None:
    for evil in (b" \t" * 256 + b"\x01", b"a=" + b" " * 510 + b"\x01", b",a= b " * 85 + b"\x01"):
        began = time.perf_counter()
        read_state(evil)
        assert time.perf_counter() - began < 0.001


def test_any_bytes_are_either_read_as_ids_or_refused_never_raised() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        broken = bytearray(PARENT)
        for _ in range(draw.randrange(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        found = read_parent(bytes(broken))
        assert found is None or (found[0] and found[1])


def test_the_callers_wish_to_sample_counts_within_the_rate_only() -> None:
    now = 0
    begin = sampler(lambda: now, sample=0, per_second=5).begin
    assert sum(begin(PARENT, None, True).sampled for _ in range(100)) == 5
    now += 1_000_000_000
    assert sum(begin(PARENT, None, True).sampled for _ in range(100)) == 5


def test_no_more_than_per_second_are_sampled_of_ordinary_requests() -> None:
    now = 0
    begin = sampler(lambda: now, sample=1, per_second=20).begin
    kept = 0
    for _ in range(1000):  # 1000 requests a second, for one second
        now += 1_000_000
        kept += begin(None, None, True).sampled
    assert 39 <= kept <= 40  # a full bucket, and a second's refill


def test_the_share_is_what_was_asked_and_the_same_for_every_gateway() -> None:
    one, two = (sampler(sample=0.25, per_second=1e9).begin for _ in range(2))
    ids = [f"00-{random.getrandbits(128):032x}-{SPAN}-00".encode() for _ in range(4000)]
    chosen = [one(parent, None, True).sampled for parent in ids]
    assert 0.2 < sum(chosen) / len(chosen) < 0.3
    assert chosen == [two(parent, None, True).sampled for parent in ids]


def test_a_rate_of_zero_samples_nothing() -> None:
    begin = sampler(per_second=0).begin
    assert not any(begin(parent, None, True).sampled for parent in (None, PARENT) for _ in range(10))


def test_without_an_exporter_only_a_known_callers_flag_is_passed_on() -> None:
    begin = Sampler(Traces()).begin
    assert not begin(None, None, True).sampled
    assert begin(PARENT, None, True).sampled
    assert not begin(PARENT, None, False).sampled


def test_a_provider_is_told_the_trace_our_client_span_and_the_sampled_flag() -> None:
    assert outgoing(Trace(*SENT, 9, True), 0x1F) == f"00-{TRACE}-000000000000001f-01".encode()
    assert outgoing(Trace(*SENT, 9, False), 0x1F) == f"00-{TRACE}-000000000000001f-00".encode()
    assert response(Trace(*SENT, 9, True)) == f"00-{TRACE}-0000000000000009-01".encode()


def test_the_random_flag_is_set_on_ids_we_drew_and_passed_on_where_it_came() -> None:
    begin = sampler(per_second=0).begin
    assert outgoing(begin(None, None, True), 1).endswith(b"-02")
    assert outgoing(begin(f"00-{TRACE}-{SPAN}-02".encode(), None, True), 1).endswith(b"-02")
    assert outgoing(begin(f"00-{TRACE}-{SPAN}-00".encode(), None, True), 1).endswith(b"-00")
    assert isinstance(begin(None, None, True)._replace(sampled=True), RandomTrace)


def test_ids_are_never_zero_and_never_repeat() -> None:
    begin = sampler().begin
    traces = [begin(None, None, True) for _ in range(5000)]
    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == 5000


def test_a_trace_begins_in_under_two_microseconds(cost_of: Callable[[Callable[[], object]], float]) -> None:
    begin = sampler().begin
    costs = {
        "new": cost_of(lambda: begin(None, None, True)),
        "continued": cost_of(lambda: begin(PARENT, None, True)),
        "with state": cost_of(lambda: begin(PARENT, b"a=1,b=2", True)),
    }
    print({name: f"{cost:.2f} us" for name, cost in costs.items()})
    assert costs["new"] < 2
    assert costs["continued"] < 4  # 1.6 on an idle machine
