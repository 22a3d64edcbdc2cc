"""The far ends of a measurement: a provider that answers with fixed bytes, and a collector that takes traces.

    python -m bench.upstream PORT

POST /v1/chat/completions answers at once; a stream has CHUNKS chunks of one word, GAP_SECONDS apart, and usage where
the call asks for it.  POST /v1/traces takes OTLP.  GET /counts says how many of each there were.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Final

import msgspec
import uvloop

CHUNKS: Final = 64
GAP_SECONDS: Final = 0.02
WORD: Final = b'"content":"word "'  # once in each chunk
PROOF: Final = b"the last words."  # of an answer that is not streamed

_MESSAGE: Final = b'"role":"assistant","content":"%b","refusal":null,"annotations":[]' % (b"word " * 60 + PROOF)
_WHOLE: Final = (
    b'{"id":"chatcmpl-bench0001","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18",'
    b'"choices":[{"index":0,"message":{%b},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":68,"completion_tokens":64,"total_tokens":132,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},'
    b'"service_tier":"default","system_fingerprint":"fp_bench"}'
) % _MESSAGE
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: %b\r\nserver: upstream\r\n"
    b"openai-processing-ms: 3\r\nopenai-version: 2020-10-01\r\nx-request-id: req_bench0001\r\n"
    b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n%b\r\n\r\n"
)
_EVENT: Final = (
    b'{"id":"chatcmpl-bench0002","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini-2024-07-18",'
    b'"service_tier":"default","system_fingerprint":"fp_bench",%b}'
)
_WORD_EVENT: Final = _EVENT % (b'"choices":[{"index":0,"delta":{' + WORD + b'},"logprobs":null,"finish_reason":null}]')
_LAST_EVENT: Final = _EVENT % b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]'
_USAGE_EVENT: Final = _EVENT % b'"choices":[],"usage":{"prompt_tokens":68,"completion_tokens":64,"total_tokens":132}'


def _chunk(*events: bytes) -> bytes:
    data = b"".join(b"data: " + event + b"\n\n" for event in events)
    return b"%x\r\n%b\r\n" % (len(data), data)


def _framed(kind: bytes, body: bytes) -> bytes:
    return _HEAD % (kind, b"content-length: %d" % len(body)) + body


_ANSWER: Final = _framed(b"application/json", _WHOLE)
_TAKEN: Final = _framed(b"application/x-protobuf", b"")
_STREAM: Final = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
_WORD_CHUNK: Final = _chunk(_WORD_EVENT)
_END: Final = {
    True: _chunk(_LAST_EVENT) + _chunk(_USAGE_EVENT) + _chunk(b"[DONE]") + b"0\r\n\r\n",
    False: _chunk(_LAST_EVENT) + _chunk(b"[DONE]") + b"0\r\n\r\n",
}


class Connection(asyncio.Protocol):
    """One caller.  Its requests carry Content-Length and do not overtake each other."""

    __slots__ = ("counts", "left", "loop", "rest", "usage", "wire")

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.loop = asyncio.get_running_loop()
        self.rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's kind
        self.wire = transport

    def data_received(self, data: bytes) -> None:
        self.rest = data = self.rest + data
        ends = data.find(b"\r\n\r\n")
        if ends < 0:
            return
        head = data[:ends].lower()
        at = head.find(b"content-length:")
        length = 0 if at < 0 else int(head[at + 15 :].partition(b"\r")[0])
        if len(data) < ends + 4 + length:
            return
        self.rest = b""
        self.answer(data, data[ends + 4 :])

    def answer(self, request: bytes, body: bytes) -> None:
        if request.startswith(b"GET /counts "):
            self.wire.write(_framed(b"application/json", msgspec.json.encode(self.counts)))
        elif request.startswith(b"POST /v1/traces "):
            self.counts["trace_batches"] += 1
            self.wire.write(_TAKEN)
        elif b'"stream":true' in body or b'"stream": true' in body:
            self.counts["streams"] += 1
            self.usage = b"include_usage" in body
            self.left = CHUNKS
            self.wire.write(_STREAM)
            self.speak()
        else:
            self.counts["answers"] += 1
            self.wire.write(_ANSWER)

    def speak(self) -> None:
        if self.wire.is_closing():
            return
        self.left -= 1
        self.wire.write(_WORD_CHUNK)
        self.loop.call_later(GAP_SECONDS, self.speak if self.left else self.end)

    def end(self) -> None:
        if not self.wire.is_closing():
            self.wire.write(_END[self.usage])


async def serve(port: int) -> None:
    counts: Counter[str] = Counter()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(counts), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
