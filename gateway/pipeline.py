"""The life of a request, top to bottom: read, admit, call, screen, deliver, settle, tell."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from random import getrandbits
from typing import Any, Final

from gateway.dialects import Chunk, Reader
from gateway.errors import BadCall, Broken, ClientGone, Denied, GatewayError, Unavailable, UpstreamError
from gateway.exchange import Attempt, Decision, Exchange
from gateway.meter import Meter
from gateway.policy import Policy
from gateway.presence import Hangup, Presence
from gateway.providers import Answer
from gateway.reply import Reply
from gateway.targets import Target, Targets
from gateway.telemetry import Observer
from gateway.upstream import Call, Cleared

log = logging.getLogger("gateway")
clock = time.perf_counter_ns

Receipts = list[tuple[Policy[Any], Any]]
MOST_DRAINS: Final = 64  # answers read to their end at once that nobody waits for


class Pipeline:
    """One for the whole process; it keeps nothing of a request once the request is over."""

    def __init__(
        self, policies: Sequence[Policy[Any]], targets: Targets, meter: Meter, observers: Sequence[Observer]
    ) -> None:
        self.policies = policies
        self.targets = targets
        self.meter = meter
        self.observers = observers
        self.running: set[Exchange] = set()
        self._over = asyncio.Event()  # set when the last running one is over, while somebody waits for that
        self.drains = 0
        self._admits = [p for p in policies if _overrides(p, "admit")]
        self._inner = [p for p in self._admits if p.counts_inner]
        self._attempts = [p for p in policies if _overrides(p, "attempt")]
        self._screens = [p for p in policies if _overrides(p, "screen")]
        self._look = any(p.looks for p in self._screens)
        self._patient = [p for p in policies if _overrides(p, "patience")]

    async def run(self, x: Exchange, read: Callable[[Exchange], Awaitable[None]], reply: Reply, hangup: Hangup) -> None:
        """Answers x, or refuses it; settles what policies left; tells those who watch.  Raises only cancellation."""
        receipts: Receipts = []
        self.started(x)
        try:
            await read(x)  # who is asking, and for what
            with Presence(hangup, lambda: self.grace(x)) as x.presence:  # raises ClientGone in here, and only in here
                await self.admit(x, receipts)
                if x.answer is None:
                    await self.call(x, reply, receipts)
                else:  # a policy answers in the provider's place
                    async with aclosing(x.answer) as chunks:
                        async for chunk in chunks:
                            await self.deliver(x, chunk, reply, receipts)
        except GatewayError as error:
            await self.refuse(x, reply, error)
        except asyncio.CancelledError:
            await self.refuse(
                x, reply, Unavailable("The gateway is shutting down. Retry.", code="shutting_down", retry_after=1)
            )
            raise
        except Exception:
            log.exception("request failed by a defect of ours", extra={"request_id": x.id})
            await self.refuse(x, reply, Broken("The gateway failed. Give the request id to your platform team."))
        finally:
            self.settle(x, receipts)
            self.finished(x)

    # ── decide ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, x: Exchange, receipts: Receipts) -> None:
        """Every policy, in the order of config.yaml, until one answers; of an inner call, those that count it."""
        for policy in self._inner if x.inner else self._admits:
            receipt = await self.ask(x, policy, "admit", policy.admit(x))
            if receipt is not None:
                receipts.append((policy, receipt))
            if x.answer is not None:
                return

    async def clear(self, x: Exchange, attempt: Attempt, receipts: Receipts, failure: UpstreamError | None) -> Cleared:
        """The last moment before bytes leave: money is held here.  failure: of the attempt before."""
        try:
            for policy in self._attempts:
                receipt = await self.ask(x, policy, "attempt", policy.attempt(x, attempt))
                if receipt is not None:
                    receipts.append((policy, receipt))
        except Denied as error:
            attempt.error = error
            raise failure or error  # nobody will pay for this one: the first failure is the truth
        return Cleared(attempt, receipts)

    async def ask(self, x: Exchange, policy: Policy[Any], hook: str, answer: Awaitable[Any]) -> Any:
        """One policy's answer, with its time noted.  A policy that breaks refuses the call, unless it may fail open."""
        began = clock()
        outcome = "passed"
        try:
            receipt = await answer
            outcome = "answered" if x.answer is not None else "held" if receipt is not None else "passed"
            return receipt
        except GatewayError as error:
            outcome = f"denied:{error.code}"
            raise
        except Exception:
            log.exception("policy %s broke in %s", policy.name, hook, extra={"request_id": x.id})
            outcome = "failed_open" if policy.fail_open else "failed"
            if not policy.fail_open:
                raise Denied(
                    f"The policy '{policy.name}' failed, so the call is refused.", code="policy_failed", status=503
                )
            return None
        finally:
            x.decisions.append(Decision(policy.name, hook, outcome, clock() - began))

    # ── call ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(self, x: Exchange, reply: Reply, held: Receipts) -> None:
        """The answer of the first target that gives one; the next may try until something was handed on."""
        failure: UpstreamError | None = None
        for target in islice(self.route(x), x.max_attempts):
            attempt = self.begin(x, target, failure)
            receipts: Receipts = []
            last: Chunk | None = None
            try:
                cleared = await self.clear(x, attempt, receipts, failure)
                async with Call(x, cleared, self._look) as (answer, reader, headers):
                    if x.reader is not None:
                        reply.adopt(answer.status, headers)
                    last = await self.read(x, attempt, answer, reader, reply)
                    attempt.complete = True
                attempt.ended = clock()
                if not attempt.delivered:
                    x.upstream += attempt.ended - attempt.sent
                await self.meter.measure(x, attempt, last, reader.rejected)
            except UpstreamError as error:
                if attempt.error is not None:
                    raise  # a policy's refusal, in the words of the failure before
                attempt.error = failure = error
                attempt.free = error.free and not attempt.delivered
                if attempt.delivered or not error.retryable or x.upload is not None:
                    raise
            finally:
                self.end(x, attempt)
                self.settle(x, receipts)  # this attempt's receipts, not the next one's
            if last is not None:
                await self.deliver(x, last, reply, held)
                return
        raise failure or BadCall(f"No target serves '{x.model}'.", code="model_not_found", status=404, param="model")

    async def read(self, x: Exchange, attempt: Attempt, answer: Answer, reader: Reader, reply: Reply) -> Chunk:
        """Hands an answer on as it comes, but for its last chunk, which waits until the attempt is settled."""
        async for data in self.pieces(x, answer, reply) if self._patient and x.stream else answer:
            if not attempt.first_byte:
                attempt.first_byte = clock()
            for chunk in reader.feed(data):
                if chunk.last:
                    return chunk
                if not attempt.delivered:
                    attempt.delivered = True
                    x.upstream += clock() - attempt.sent
                await self.deliver(x, chunk, reply)
            if reader.failure is not None:
                raise reader.failure
        for chunk in reader.close():
            if chunk.last:
                return chunk
            attempt.delivered = True
            await self.deliver(x, chunk, reply)
        assert reader.failure is not None, "a reader ends with a last chunk or a failure"
        raise reader.failure

    async def pieces(self, x: Exchange, answer: Answer, reply: Reply) -> AsyncGenerator[bytes, None]:
        """An answer as it comes.  While nothing does, policies that hold something back are asked again."""
        coming: asyncio.Future[bytes] | None = None
        pieces = aiter(answer)
        try:
            while True:
                waits = [wait for policy in self._patient if (wait := policy.patience(x)) is not None]
                if coming is None and not waits:
                    yield await anext(pieces)
                    continue
                coming = coming or asyncio.ensure_future(anext(pieces))
                await asyncio.wait({coming}, timeout=min(waits, default=None))
                if not coming.done():
                    await self.deliver(x, Chunk(text=""), reply)
                    continue
                piece, coming = coming.result(), None
                yield piece
        except StopAsyncIteration:
            return
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait({coming})

    def route(self, x: Exchange) -> Iterator[Target]:
        model = self.targets.find(x.alias) if x.alias else None
        return self.targets.order(model) if model is not None else iter((self.targets.provider(x.provider),))

    def begin(self, x: Exchange, target: Target, failure: UpstreamError | None) -> Attempt:
        why = f"fallback: {failure.code}" if failure is not None else "first"
        attempt = Attempt(target, span_id=getrandbits(64) or 1, started=clock(), why=why)
        x.attempts.append(attempt)
        return attempt

    def end(self, x: Exchange, attempt: Attempt) -> None:
        """An attempt is over, however it ended: what it cost is known now, or estimated."""
        if not attempt.ended:
            attempt.ended = clock()
        if attempt.complete:
            if attempt.usage is None and x.texts is not None:  # the caller hung up while it was counted
                self.meter.estimate_now(x, attempt)
            return
        if attempt.error is None:
            cause = sys.exception()
            if isinstance(cause, GatewayError):
                attempt.error = cause
            else:
                gone = isinstance(cause, asyncio.CancelledError)
                attempt.error = ClientGone("The caller hung up.") if gone else Broken("The gateway failed.")
        if not attempt.sent:
            return
        if not attempt.delivered:
            x.upstream += attempt.ended - attempt.sent
        if not attempt.free:
            self.meter.estimate_now(x, attempt)

    # ── on the way back ─────────────────────────────────────────────────────────────────────────────────────────────

    async def deliver(self, x: Exchange, chunk: Chunk, reply: Reply, held: Receipts | None = None) -> None:
        """One chunk to the caller, past those who look at it.  held: what is settled before the last one leaves."""
        kept = await self.screen(x, chunk) if self._screens and not x.inner else chunk
        if chunk.last and held:
            self.settle(x, held)  # nothing is held any more when the caller sees the end
        if kept is not None:
            await reply.send(kept.raw, chunk.last)

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk | None:
        kept: Chunk | None = chunk
        for policy in self._screens:
            if kept is None:
                return None
            try:
                kept = await policy.screen(x, kept)
            except GatewayError as error:
                x.decisions.append(Decision(policy.name, "screen", f"denied:{error.code}", 0))
                raise
        return kept

    async def refuse(self, x: Exchange, reply: Reply, error: GatewayError) -> None:
        """Tells the caller.  A send that fails changes nothing of what must follow."""
        if isinstance(error, UpstreamError) and any(policy.veils(x) for policy in self._screens):
            for attempt in x.attempts:
                if isinstance(attempt.error, UpstreamError):
                    attempt.error = attempt.error.veiled()
            error = error.veiled()
        x.error, x.saved = error, None
        try:
            await reply.refuse(error)
        except Exception:
            log.exception("a refusal could not be sent", extra={"request_id": x.id})

    def grace(self, x: Exchange) -> float:
        """Seconds a hung-up caller's answer is still read, for its usage or for others; 0: the provider is stopped."""
        final = x.final
        if final is None or not final.sent or final.ended:
            return 0
        provider = final.target.provider
        if not x.awaited and (provider.on_hangup != "drain" or self.drains - x.draining >= MOST_DRAINS):
            return 0
        self.drains += not x.draining
        x.draining = True
        return provider.timeouts.total if x.awaited else provider.drain_seconds

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, x: Exchange, receipts: Receipts) -> None:
        """Every receipt, in reverse, exactly once: it leaves the list before its policy is told."""
        while receipts:
            policy, receipt = receipts.pop()
            try:
                policy.settle(x, receipt)
            except Exception:
                log.exception("policy %s broke in settle", policy.name, extra={"request_id": x.id})
                x.decisions.append(Decision(policy.name, "settle", "failed", 0))

    def started(self, x: Exchange) -> None:
        self.running.add(x)
        for observer in self.observers:
            try:
                observer.started(x)
            except Exception:
                log.exception("%s broke", type(observer).__name__, extra={"request_id": x.id})

    def finished(self, x: Exchange) -> None:
        x.ended, x.presence = clock(), None
        if x.draining:
            self.drains -= 1
        for observer in self.observers:
            try:
                observer.finished(x)
            except Exception:
                log.exception("%s broke", type(observer).__name__, extra={"request_id": x.id})
        if not x.kept and x.caller.content == "none":
            x.forget()  # thousands of finished exchanges may wait for their records
        self.running.discard(x)
        if not self.running:
            self._over.set()

    async def idle(self) -> None:
        """Returns when nothing is running."""
        while self.running:
            self._over.clear()
            await self._over.wait()


def _overrides(policy: Policy[Any], hook: str) -> bool:
    return getattr(type(policy), hook) is not getattr(Policy, hook)
