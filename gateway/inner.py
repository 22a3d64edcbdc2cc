"""Calls that the gateway makes itself, for a call under way: an embedding, a judgement; held, billed and told as any.

An inner call is an Exchange of its own with its outer call's caller, user, feature and session, and a child in its
trace.  It takes the whole way through the pipeline but for what was decided already: policies are not asked to admit
it (but those that only count it), nor to screen its answer, so that no policy meets its own calls; each attempt is
held and charged as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import Any, Final

import msgspec
from starlette.types import Message

from gateway import body as bodies
from gateway.dialects import Dialect
from gateway.endpoints import Kind
from gateway.errors import BadCall, ClientGone, GatewayError, UpstreamError
from gateway.exchange import Exchange, Trace
from gateway.pipeline import Pipeline
from gateway.presence import Hangup
from gateway.reply import Reply

_HEADERS: Final = {b"content-type": b"application/json"}
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True, frozen=True)
class Form:
    """How one family of calls is written and read, as its endpoint does."""

    kind: Kind
    call: type[msgspec.Struct]
    understand: Callable[[Exchange, Any], None]


class Inner:
    """Offered to policies as `inner`.  pipeline: set once it is built, which is after the policies."""

    pipeline: Pipeline

    def __init__(self, dialect: Dialect, forms: Mapping[str, Form]) -> None:
        """forms: by endpoint, as in `chat` and `embeddings`."""
        self._dialect = dialect
        self._forms = {name: (form, msgspec.json.Decoder(form.call)) for name, form in forms.items()}

    async def ask(
        self, outer: Exchange, endpoint: str, call: Mapping[str, object], *, why: str, seconds: float
    ) -> bytes:
        """The answer's JSON.  call: as a caller would write it, not streamed; its model is one of config.yaml.

        why: one word for the record: embed, assess.  seconds: the most it may take, with everything.
        Raises GatewayError: Denied where no budget pays for it, UpstreamError where the provider fails or is too slow.
        """
        form, decoder = self._forms[endpoint]
        x = self._exchange(outer, form.kind, why)
        hangup = Hangup(lambda: None)
        reply = _Heard(x, hangup)

        async def read(x: Exchange) -> None:
            x.body = _encode(call)
            x.call, x.fields = await bodies.read(x.body, decoder)
            x.model = x.call.model
            model = self.pipeline.targets.find(x.model)
            if model is None:
                raise BadCall(f"No model is named '{x.model}'.", code="model_not_found", status=404, param="model")
            x.alias, x.max_attempts = model.name, model.max_attempts
            form.understand(x, x.call)

        deadline = asyncio.get_running_loop().call_later(seconds, hangup.fire)
        try:
            await self.pipeline.run(x, read, reply, hangup)
        finally:
            deadline.cancel()
        if isinstance(x.error, ClientGone):
            raise UpstreamError(f"The gateway's own call took over {seconds:g} s.", code="upstream_timeout", status=504)
        if x.error is not None:
            raise x.error
        return b"".join(reply.heard)

    def _exchange(self, outer: Exchange, kind: Kind, why: str) -> Exchange:
        now, trace = time.time_ns(), outer.trace
        return Exchange(
            id=f"req_{(now // 1_000_000) << 80 | getrandbits(80):032x}",
            endpoint=kind.endpoint,
            operation=kind.operation,
            method="POST",
            path=f"{why} for {outer.id}",
            route=kind.route,
            started=time.perf_counter_ns(),
            started_at=now,
            trace=Trace(trace.trace_id, trace.span_id, getrandbits(64) or 1, trace.sampled, trace.state),
            caller=outer.caller,
            dialect=self._dialect,
            upstream_path=kind.upstream_path,
            headers=_HEADERS,
            session=outer.session,
            user=outer.user,
            feature=outer.feature,
            inner=why,
        )


class _Heard(Reply):
    """Keeps the answer for who asked; nothing leaves for a caller."""

    __slots__ = ("heard",)

    def __init__(self, x: Exchange, hangup: Hangup) -> None:
        super().__init__(x, _nowhere, hangup)
        self.heard: list[bytes] = []

    async def send(self, raw: bytes, last: bool) -> None:
        x = self._x
        if not self.started:
            self.started = True
            x.status, x.first_byte = self.status, time.perf_counter_ns()
        self.heard.append(raw)

    async def refuse(self, error: GatewayError) -> None:
        x = self._x
        if error.code == "shutting_down":  # cancelled from outside: the outer call ended
            x.error = ClientGone("The call that this one was made for is over.")
        if not self.started:
            x.status = error.status


async def _nowhere(message: Message) -> None:
    raise AssertionError("an inner call answers nobody")
