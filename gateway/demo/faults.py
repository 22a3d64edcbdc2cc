"""Faults that the simulated provider commits when asked to, by the header `x-sim-fault` or at a rate.

A comma list of `name`, `name=ARG` or `name=ARG;option;option=ARG`; JSON and quoted text may hold commas.  K counts the
events of a stream (the first is the role's); an answer that is not streamed breaks in its middle for any K above 0.

    status=429;retry-after=7      refused with that status; `;html` or `;empty` for a body that is not OpenAI's
    redirect=URL                  307
    early=413                     refused before the body is read
    ttft=S                        silent for S seconds, head included
    stall=K:S                     silent for S seconds after K events, head sent
    reset=K  eof=K                RST or clean close after K events; reset=0: before the head
    error-event=K  malformed=K    an error, or broken JSON, inside the stream after K events
    no-usage  usage=JSON          the usage is left out, or replaced on the wire (not on the bill)
    cumulative-usage              the usage so far in every event
    no-done                       the stream ends without [DONE]
    crlf  multi-line  pings       other legal ways to write events
    huge=BYTES                    that much padding in one event, or in one field
    gzip                          content-encoding: gzip
    slow-body=S                   the body spread over S seconds (default 1), in ten parts
    slice=N                       N bytes per write
    chunk-garbage  wrong-length   a broken chunk size; a content-length 10 bytes too long, then closed
    close                         Connection: close
    headers=JSON                  more headers; a list of values sends the header more than once
    interim                       103 before the answer
    pace=P                        as --pace, for this answer
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec

from gateway.demo.pace import Pace
from gateway.demo.reply import Identity, Refusal, Reply, Step, encode, kind_of, of_bytes, of_json, stamped

Faults = dict[str, str]

STATUSES: Final = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)

_PAD: Final = b"x" * 65536


def read(text: str) -> Faults:
    """The faults of a header.  Raises Refusal on a name that does not exist."""
    faults: Faults = {}
    depth, quoted, start = 0, False, 0
    for at, sign in enumerate(text + ","):
        if sign == '"' and text[at - 1 : at] != "\\":
            quoted = not quoted
        elif not quoted and sign in "{[":
            depth += 1
        elif not quoted and sign in "}]":
            depth -= 1
        elif sign == "," and ((not quoted and depth <= 0) or at == len(text)):
            name, _, argument = text[start:at].strip().partition("=")
            start = at + 1
            if not name:
                continue
            if name not in NAMES:
                raise Refusal(400, f"x-sim-fault: `{name}` is none of {', '.join(NAMES)}", param="x-sim-fault")
            faults[name] = argument
    return faults


def refusal(faults: Faults) -> Reply | None:
    """The answer of a request that is refused outright."""
    if "redirect" in faults:
        return Reply([], status=307, length=0, headers=[("location", faults["redirect"])])
    word = faults.get("status") or faults.get("early")
    if word is None:
        return None
    number, *options = word.split(";")
    try:
        status = int(number)
    except ValueError as problem:
        raise _unreadable("status", problem) from problem
    if status not in STATUSES:
        raise Refusal(400, f"x-sim-fault: status {status} is none of {STATUSES}", param="x-sim-fault")
    chosen = dict(option.partition("=")[::2] for option in options)
    if "html" in chosen:
        reply = of_bytes(b"<html><head><title>%d</title></head><body>simulated</body></html>" % status, "text/html")
    elif "empty" in chosen:
        reply = of_bytes(b"")
    else:
        codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
        error = {"message": f"Simulated {status}.", "type": kind_of(status), "param": None, "code": codes.get(status)}
        reply = of_json({"error": error})
    reply.status = status
    wait = chosen.get("retry-after", "1" if status == 429 else None)
    if wait is not None:
        reply.headers.append(("retry-after", wait))
    return reply


def spoil(reply: Reply, faults: Faults, identity: Identity) -> Reply:
    """The same answer with these faults; the one given stays as it is.  Raises Refusal on an argument it cannot read.

    The placeholders are filled in first: a fault may cut or pack them.
    """
    steps = [step._replace(data=stamped(step.data, identity)) for step in reply.steps]
    spoiled = replace(reply, steps=steps, headers=list(reply.headers), reusable=False)
    for name, commit in _COMMIT.items():
        if name in faults:
            try:
                commit(spoiled, faults[name])
            except (ValueError, msgspec.DecodeError) as problem:
                raise _unreadable(name, problem) from problem
    return spoiled


def _unreadable(name: str, error: Exception) -> Refusal:
    return Refusal(400, f"x-sim-fault: the argument of `{name}` cannot be read: {error}", param="x-sim-fault")


def _steps(reply: Reply) -> list[Step]:
    assert isinstance(reply.steps, list)
    return reply.steps


def _at(reply: Reply, argument: str) -> int:
    """Where in the steps `K` is; an answer in one piece is cut in its middle."""
    steps = _steps(reply)
    place = int(argument or 0)
    if not reply.streamed and place and len(steps) == 1:
        step, middle = steps[0], len(steps[0].data) // 2
        steps[:] = [Step(step.data[:middle]), Step(step.data[middle:], step.tokens)]
        return 1
    return min(place, len(steps))


def _ttft(reply: Reply, argument: str) -> None:
    first = _steps(reply)[0]
    _steps(reply)[0] = first._replace(delay=first.delay + float(argument))


def _stall(reply: Reply, argument: str) -> None:
    place, _, seconds = argument.partition(":")
    at = _at(reply, place)
    steps = _steps(reply)
    if at == 0:
        steps.insert(0, Step(b""))
        at = 1
    if at < len(steps):
        steps[at] = steps[at]._replace(delay=float(seconds))


def _break(end: str) -> Callable[[Reply, str], None]:
    def commit(reply: Reply, argument: str) -> None:
        at = _at(reply, argument)
        _steps(reply)[at:] = [Step(b"", delay=0.01 if at else 0.0, end=end)]
        reply.unbilled = end

    return commit


def _error_event(reply: Reply, argument: str) -> None:
    if reply.streamed:
        error = {"message": "The server had an error while processing your request.", "param": None}
        if reply.charge is not None and reply.charge.endpoint == "responses":
            data = b"event: error\ndata: %b\n\n" % encode({"type": "error", "code": "server_error", **error})
        else:
            data = b"data: %b\n\n" % encode({"error": {**error, "type": "server_error", "code": "server_error"}})
        _steps(reply)[_at(reply, argument) :] = [Step(data)]
        reply.unbilled = "error-event"


def _malformed(reply: Reply, argument: str) -> None:
    steps = _steps(reply)
    if reply.streamed:
        steps.insert(_at(reply, argument), Step(b'data: {"id":"chatcmpl-\n\n'))
    else:
        data = b"".join(step.data for step in steps)
        data = data[: len(data) // 2]
        steps[:] = [steps[-1]._replace(data=data)]
        reply.length = len(data)
    reply.unbilled = "malformed"


def _edit(reply: Reply, change: Callable[[dict[str, Any], int], bool]) -> None:
    """Change the JSON of every event, or of the body.  `change` gets the tokens so far; False: leave the event out."""
    kept, so_far = [], 0
    for step in _steps(reply):
        so_far += step.tokens
        head, mark, data = step.data.rpartition(b"data: ") if reply.streamed else (b"", b"", step.data)
        if not data.startswith(b"{"):
            kept.append(step)
            continue
        value = msgspec.json.decode(data)
        if change(value, so_far):
            kept.append(step._replace(data=head + mark + encode(value) + (b"\n\n" if reply.streamed else b"")))
    reply.steps = kept
    _measure(reply)


def _measure(reply: Reply) -> None:
    if reply.length is not None:
        reply.length = sum(len(step.data) for step in _steps(reply))


def _holder(value: dict[str, Any]) -> dict[str, Any]:
    """Where the usage stands: in the answer, or in the response inside an event."""
    inner = value.get("response")
    return inner if isinstance(inner, dict) else value


def _no_usage(reply: Reply, _argument: str) -> None:
    def change(value: dict[str, Any], _so_far: int) -> bool:
        usage = _holder(value).pop("usage", None)
        return not (usage and value.get("choices") == [])

    _edit(reply, change)


def _usage(reply: Reply, argument: str) -> None:
    literal = msgspec.json.decode(argument)

    def change(value: dict[str, Any], _so_far: int) -> bool:
        if _holder(value).get("usage") is not None:
            _holder(value)["usage"] = literal
        return True

    _edit(reply, change)


def _cumulative(reply: Reply, _argument: str) -> None:
    charge = reply.charge
    if charge is None or not reply.streamed:
        return

    def change(value: dict[str, Any], so_far: int) -> bool:
        if value.get("usage") is None:
            output = charge.part(so_far).output
            total = charge.input + output
            value["usage"] = {"prompt_tokens": charge.input, "completion_tokens": output, "total_tokens": total}
        return True

    _edit(reply, change)


def _no_done(reply: Reply, _argument: str) -> None:
    reply.steps = [step for step in _steps(reply) if step.data != b"data: [DONE]\n\n"]


def _rewrite(write: Callable[[bytes], bytes]) -> Callable[[Reply, str], None]:
    def commit(reply: Reply, _argument: str) -> None:
        if reply.streamed:
            reply.steps = [step._replace(data=write(step.data)) if step.data else step for step in _steps(reply)]

    return commit


def _huge(reply: Reply, argument: str) -> None:
    """Pad in front of the closing brace (a stream's second event); the padding's blocks share their memory."""
    steps = _steps(reply)
    at = min(1, len(steps) - 1) if reply.streamed else 0
    size = int(argument)
    step = steps[at]
    data = step.data.rstrip(b"\r\n")
    tail = step.data[len(data) :]
    if not data.endswith(b"}"):
        return
    blocks = [Step(_PAD)] * (size // len(_PAD)) + [Step(_PAD[: size % len(_PAD)])]
    steps[at : at + 1] = [Step(data[:-1] + b',"padding":"', 0, step.delay), *blocks, Step(b'"}' + tail, step.tokens)]
    _measure(reply)


def _gzip(reply: Reply, _argument: str) -> None:
    press = zlib.compressobj(wbits=31)
    steps = _steps(reply)
    for at, step in enumerate(steps):
        if step.data:
            steps[at] = step._replace(data=press.compress(step.data) + press.flush(zlib.Z_SYNC_FLUSH))
    if not (steps and steps[-1].end):
        steps.append(Step(press.flush(zlib.Z_FINISH)))
    reply.headers.append(("content-encoding", "gzip"))
    _measure(reply)


def _slow(reply: Reply, argument: str) -> None:
    data = b"".join(step.data for step in _steps(reply))
    tokens, end = sum(step.tokens for step in _steps(reply)), _steps(reply)[-1].end
    wait, size = float(argument or 1) / 10, max(1, -(-len(data) // 10))
    pieces: Iterable[Step] = (Step(data[at : at + size], 0, wait) for at in range(0, len(data), size))
    reply.steps = [*pieces, Step(b"", tokens, 0.0, end)]


def _wrong_length(reply: Reply, _argument: str) -> None:
    reply.length = sum(len(step.data) for step in _steps(reply)) + 10
    _steps(reply).append(Step(b"", end="eof"))
    reply.unbilled = "wrong-length"


def _garbage(reply: Reply, _argument: str) -> None:
    reply.length, reply.garbage, reply.unbilled = None, True, "chunk-garbage"


def _headers(reply: Reply, argument: str) -> None:
    for name, value in msgspec.json.decode(argument).items():
        reply.headers.extend((name, str(v)) for v in (value if isinstance(value, list) else [value]))


def _flag(field: str, value: Any) -> Callable[[Reply, str], None]:
    return lambda reply, _argument: setattr(reply, field, value)


def _pace(reply: Reply, argument: str) -> None:
    reply.pace = Pace.read(argument)


def _slice(reply: Reply, argument: str) -> None:
    reply.slice = max(1, int(argument or 1))


def _multi_line(data: bytes) -> bytes:
    head, comma, rest = data.partition(b",")
    return head + comma + b"\ndata: " + rest if comma else data


# In the order they are committed: what an event says, where it breaks, how it is written, how it is sent.
_COMMIT: Final[dict[str, Callable[[Reply, str], None]]] = {
    "no-usage": _no_usage,
    "usage": _usage,
    "cumulative-usage": _cumulative,
    "no-done": _no_done,
    "malformed": _malformed,
    "error-event": _error_event,
    "reset": _break("reset"),
    "eof": _break("eof"),
    "ttft": _ttft,
    "stall": _stall,
    "multi-line": _rewrite(_multi_line),
    "pings": _rewrite(lambda data: b": ping\n\n" + data),
    "crlf": _rewrite(lambda data: data.replace(b"\n", b"\r\n")),
    "huge": _huge,
    "gzip": _gzip,
    "slow-body": _slow,
    "wrong-length": _wrong_length,
    "chunk-garbage": _garbage,
    "headers": _headers,
    "close": _flag("close", True),
    "interim": _flag("interim", b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"),
    "slice": _slice,
    "pace": _pace,
}

NAMES: Final = ("status", "redirect", "early", *_COMMIT)
