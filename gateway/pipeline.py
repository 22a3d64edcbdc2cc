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
from typing import Any

from gateway.dialects import Chunk
from gateway.errors import BadCall, Broken, ClientGone, Denied, GatewayError, Unavailable, UpstreamError
from gateway.exchange import Attempt, Decision, Exchange
from gateway.meter import Meter
from gateway.policy import Policy
from gateway.presence import Hangup, Presence
from gateway.reply import Reply
from gateway.targets import Target, Targets
from gateway.telemetry import Observer
from gateway.upstream import Call, Cleared

log = logging.getLogger("gateway")
clock = time.perf_counter_ns

Receipts = list[tuple[Policy[Any], Any]]


class Pipeline:
    """One for the whole process; it keeps nothing of a request once the request is over."""

    def __init__(
        self, policies: Sequence[Policy[Any]], targets: Targets, meter: Meter, observers: Sequence[Observer]
    ) -> None:
        self.targets = targets
        self.meter = meter
        self.observers = observers
        self.running: set[Exchange] = set()
        self._over = asyncio.Event()  # set when the last running one is over, while somebody waits for that
        self.drains = 0
        self._admits = [p for p in policies if _overrides(p, "admit")]
        self._attempts = [p for p in policies if _overrides(p, "attempt")]
        self._screens = [p for p in policies if _overrides(p, "screen")]
        self._look = any(p.looks for p in self._screens)

    async def run(self, x: Exchange, read: Callable[[Exchange], Awaitable[None]], reply: Reply, hangup: Hangup) -> None:
        """Answers x, or refuses it; settles what policies left; tells those who watch.  Raises only cancellation."""
        receipts: Receipts = []
        self.started(x)
        try:
            await read(x)  # who is asking, and for what
            with Presence(hangup, lambda: self.grace(x)):  # raises ClientGone in here, and only in here
                await self.admit(x, receipts)
                async with aclosing(x.answer or self.call(x, reply)) as chunks:  # the provider's answer, or a policy's
                    async for chunk in chunks:
                        kept = await self.screen(x, chunk) if self._screens else chunk
                        if chunk.last:
                            self.settle(x, receipts)  # nothing is held any more when the caller sees the end
                        if kept is not None:
                            await reply.send(kept.raw, chunk.last)
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
        """Every policy, in the order of config.yaml, until one answers."""
        for policy in self._admits:
            receipt = await self.ask(x, policy, "admit", policy.admit(x))
            if receipt is not None:
                receipts.append((policy, receipt))
            if x.answer is not None:
                return

    async def clear(self, x: Exchange, attempt: Attempt, receipts: Receipts) -> Cleared:
        """The last moment before bytes leave: money is held here."""
        for policy in self._attempts:
            receipt = await self.ask(x, policy, "attempt", policy.attempt(x, attempt))
            if receipt is not None:
                receipts.append((policy, receipt))
        return Cleared(attempt)

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

    async def call(self, x: Exchange, reply: Reply) -> AsyncGenerator[Chunk, None]:
        """The answer of the first target that gives one; the next may try until a byte has reached the caller."""
        failure: UpstreamError | None = None
        for target in islice(self.route(x), x.max_attempts):
            attempt = self.begin(x, target, failure)
            receipts: Receipts = []
            last: Chunk | None = None
            sent = False
            try:
                cleared = await self.clear(x, attempt, receipts)
                async with Call(x, cleared, self._look) as (answer, reader, headers):
                    if x.reader is not None:
                        reply.adopt(answer.status, headers)
                    async for data in answer:
                        if not attempt.first_byte:
                            attempt.first_byte = clock()
                        for chunk in reader.feed(data):
                            if chunk.last:
                                last = chunk
                                break
                            if not sent:
                                sent = True
                                x.upstream += clock() - attempt.sent
                            yield chunk
                        if last is not None or reader.failure is not None:
                            break
                    else:
                        for chunk in reader.close():
                            if chunk.last:
                                last = chunk
                            else:
                                sent = True
                                yield chunk
                    if reader.failure is not None:
                        raise reader.failure
                    assert last is not None, "a reader ends with a last chunk or a failure"
                    attempt.complete = True
                if not sent:
                    x.upstream += clock() - attempt.sent
                attempt.ended = clock()
                await self.meter.measure(x, attempt, last, reader.rejected)
            except Denied as error:
                attempt.error = error
                raise failure or error  # nobody will pay for this one: the first failure is the truth
            except UpstreamError as error:
                attempt.error = failure = error
                attempt.free = error.free and not sent
                if sent or not error.retryable or x.upload is not None:
                    raise
            finally:
                self.end(x, attempt, sent)
                self.settle(x, receipts)  # this attempt's receipts, not the next one's
            if last is not None:
                yield last
                return
        raise failure or BadCall(
            f"No target serves the model '{x.model}'.", code="model_not_found", status=404, param="model"
        )

    def route(self, x: Exchange) -> Iterator[Target]:
        model = self.targets.find(x.alias) if x.alias else None
        return self.targets.order(model) if model is not None else iter((self.targets.provider(x.provider),))

    def begin(self, x: Exchange, target: Target, failure: UpstreamError | None) -> Attempt:
        why = f"fallback: {failure.code}" if failure is not None else "first"
        attempt = Attempt(target, span_id=getrandbits(64) or 1, started=clock(), why=why)
        x.attempts.append(attempt)
        return attempt

    def end(self, x: Exchange, attempt: Attempt, sent: bool) -> None:
        """An attempt is over, however it ended: what it cost is known now, or estimated."""
        if not attempt.ended:
            attempt.ended = clock()
        if attempt.complete:
            return
        if attempt.error is None:
            gone = isinstance(sys.exception(), asyncio.CancelledError | GeneratorExit | ClientGone)
            attempt.error = ClientGone("The caller hung up.") if gone else Broken("The gateway failed.")
        if not attempt.sent:
            return
        if not sent:
            x.upstream += attempt.ended - attempt.sent
        if not attempt.free:
            self.meter.estimate_now(x, attempt)

    # ── on the way back ─────────────────────────────────────────────────────────────────────────────────────────────

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
        x.error = error
        try:
            await reply.refuse(error)
        except Exception:
            log.exception("a refusal could not be sent", extra={"request_id": x.id})

    def grace(self, x: Exchange) -> float:
        """Seconds a hung-up caller's answer is still read for its usage; 0: the provider is stopped at once."""
        final = x.final
        if (
            final is None
            or not final.sent
            or final.ended
            or final.target.provider.on_hangup != "drain"
            or self.drains >= 64
        ):
            return 0
        x.draining = True
        self.drains += 1
        return final.target.provider.drain_seconds

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
        x.ended = clock()
        if x.draining:
            self.drains -= 1
        for observer in self.observers:
            try:
                observer.finished(x)
            except Exception:
                log.exception("%s broke", type(observer).__name__, extra={"request_id": x.id})
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
