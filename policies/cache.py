"""Answers a call that was answered before, within one tenant; calls that ask the same at once share one answer.

Kept is what is whole, ended by itself, and may be said again: no error, nothing blocked, cut at a length or broken off;
no answer of a fallback model; no tool call but of tools that are listed; nothing drawn at a temperature above 0, unless
that is allowed.  A call that gives no temperature is drawn at the provider's own, which is above 0.

Of calls under way that ask the same the first leads, and pays.  The others follow: they get every chunk of its answer,
and are charged nothing.  A leader that hangs up is followed to the end.  A provider's refusal is everybody's; where the
leader itself was refused (its budget, its limits) or was gone before the first byte, the next one leads, and pays.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints, model_validator

from gateway import settings
from gateway.answers import Answers, Generations, Kept, Question, Tenants
from gateway.body import LARGE
from gateway.dialects import Chunk
from gateway.errors import Denied, GatewayError, UpstreamError
from gateway.exchange import Exchange
from gateway.flights import Flight, Follower, Room
from gateway.inner import Inner
from gateway.nearby import Asked, Nearby, Semantic
from gateway.policy import Policy
from gateway.problems import wrong
from gateway.questions import Questions, as_one, besides
from gateway.repeats import Claim, Repeats
from gateway.roster import Teams
from gateway.settings import Name
from gateway.targets import Targets

clock = time.perf_counter_ns

_SHORT: Final = 128 * 1024  # bytes of a stream that are gathered on the event loop: a millisecond or two
_PACED: Final = 0.05  # seconds between two pieces of a paced replay
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ENDED: Final = frozenset({"stop", "tool_calls", "function_call"})  # finish reasons of an answer that ended by itself
_ENDPOINTS: Final = frozenset({"chat", "completions", "embeddings"})
_ZERO: Final = frozenset({b"0", b"0.0", b"-0.0", b"0.00"})


def _span(value: object) -> object:
    """90s, 15m, 1h, 7d; or seconds."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdecimal():
        return int(value[:-1]) * _UNITS[value[-1]]
    return value


Span = Annotated[float, BeforeValidator(_span), Field(gt=0, le=31_536_000)]
Place = Annotated[str, StringConstraints(pattern=r"^(memory://|(valkey|redis)s?://\S+)$")]


@dataclass(slots=True, eq=False)
class _Seat:
    """One exchange's part.  strips: its caller did not ask for the usage that its stream tells."""

    claim: Claim | None = None
    body: bytes | None = None  # the answer it was served, whole
    question: Question | None = None
    now: Generations | None = None
    meant: Asked | None = None  # its question, as it is compared
    flight: Flight | None = None  # that it leads
    follower: Follower | None = None
    strips: bool = False
    alone: bool = False  # nobody may follow


class Cache(Policy[_Seat]):
    """Stands behind `access` and `rate_limit`, which hold for what is answered from it too."""

    looks = False

    class Settings(settings.Settings):
        store: Place = "memory://"  # or valkey://host:6379/0, which several gateways share
        secret: Annotated[SecretStr, Field(min_length=32)] | None = None  # seals what lies in a shared store
        memory_mb: Annotated[int, Field(ge=1, le=1_048_576)] = 256
        answer_kb: Annotated[int, Field(ge=1, le=65_536)] = 1024  # a longer answer is not kept
        ttl: Span = 3600.0
        share: Literal["team", "key", "user"] = "team"  # within whom an answer may be given again
        groups: tuple[Annotated[tuple[Name, ...], Field(min_length=2)], ...] = ()  # teams that share theirs
        teams: tuple[Name, ...] | None = None  # none: all
        temperature: Literal["zero", "any"] = "zero"
        tools: tuple[str, ...] = ()  # whose calls may be given again; "*": all
        coalesce: bool = True
        replay_words_per_second: Annotated[float, Field(gt=0, le=10_000)] | None = None  # none: at once
        idempotency_ttl: Span = 86_400.0
        semantic: Semantic | None = None  # none: off

        @model_validator(mode="after")
        def _fits(self) -> Cache.Settings:
            if self.store != "memory://" and self.secret is None:
                raise wrong("a shared store needs `secret`", "set 32 random characters or more, the same everywhere")
            if self.groups and self.share != "team":
                raise wrong("`groups` share between teams, `share` within less than one", "take one of the two")
            named = [team for group in self.groups for team in group]
            if len(set(named)) != len(named):
                raise wrong("`groups` name a team twice", "name it in one of them")
            return self

    def __init__(
        self,
        said: Settings | None = None,
        *,
        answers: Answers,
        config: settings.Config,
        teams: Teams,
        targets: Targets,
        inner: Inner,
    ) -> None:
        said = self._said = said or self.Settings()
        tenants = Tenants(said.secret.get_secret_value().encode() if said.secret else secrets.token_bytes(32))
        self._store = answers.open(said.store, said.memory_mb * 1_048_576)
        self._questions = Questions(config, targets, tenants, said.share, said.groups, teams)
        self._repeats = Repeats(self._store, tenants, said.idempotency_ttl, self._questions.rules, said.share == "user")
        self._teams = None if said.teams is None else frozenset(said.teams)
        self._tools = frozenset(said.tools)
        self._ttl = int(said.ttl * 1e9)
        self._longest = said.answer_kb * 1024
        self._room = Room()
        near = said.semantic
        self._nearby = Nearby(near, self._store, inner, self._questions, answers.near) if near is not None else None
        self._flights: dict[bytes, list[_Seat]] = {}  # those under way, by what is asked; the oldest first
        self._leading: dict[Exchange, _Seat] = {}

    # ── before the call ─────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, x: Exchange) -> _Seat | None:
        if x.endpoint not in _ENDPOINTS:
            return None
        why, youngest = self._wish(x)
        claim = None
        if (word := x.headers.get(b"idempotency-key")) is not None:
            found = await self._repeats.claim(x, word, keep=why != "no-store")
            if isinstance(found, Kept):
                x.reply_headers.append((b"idempotent-replayed", b"true"))
                self._serve(x, found.body, "hit", found)
                return None
            claim = found
        seat = None
        try:
            seat = self._pass_by(x, why, claim) if why else await self._look_up(x, youngest, claim)
        finally:
            if claim is not None and seat is None:
                self._repeats.release(claim, None, None)
        return seat

    def _wish(self, x: Exchange) -> tuple[str, int]:
        """Why this call is not for the cache, empty where it is; and since when an answer must be (ns, the epoch)."""
        youngest = 0
        if (said := x.headers.get(b"cache-control")) is not None:
            for directive in said.lower().split(b","):
                word, _, value = directive.partition(b"=")
                word, value = word.strip(), value.strip(b' \t"')
                if word == b"no-store":
                    return "no-store", 0
                if word in (b"no-cache", b"max-age"):  # an age that makes no sense is 0: RFC 9111, 4.2.1
                    seconds = int(value[:12]) if word == b"max-age" and value.isdigit() else 0
                    youngest = max(youngest, time.time_ns() - seconds * 1_000_000_000)
        fields = x.fields
        if self._teams is not None and x.caller.team not in self._teams:
            return "team", 0
        if self._said.temperature == "zero" and x.endpoint != "embeddings":
            temperature = fields.get("temperature")
            if temperature is None or bytes(temperature) not in _ZERO:
                return "temperature", 0
        if "store" in fields and bytes(fields["store"]) == b"false":
            return "store", 0
        if "audio" in fields or "modalities" in fields:
            return "modalities", 0
        if self._said.share == "user" and not x.user:
            return "user", 0
        return "", youngest

    def _pass_by(self, x: Exchange, why: str, claim: Claim | None) -> _Seat | None:
        x.cache = "bypass"
        x.reply_headers.append((b"x-tollkeeper-cache-reason", why.encode()))
        return None if claim is None else self._lead(x, _Seat(claim), alone=True)

    async def _look_up(self, x: Exchange, youngest: int, claim: Claim | None) -> _Seat | None:
        long = len(x.body) > LARGE
        question = await asyncio.to_thread(self._questions.of, x) if long else self._questions.of(x)
        meant, looked, alone = None, self._nearby is None or long, False
        while True:
            kept, now = await self._store.get(question)
            if kept is not None and kept.at >= youngest and self._serve(x, kept.body, "hit", kept):
                return None if claim is None else _Seat(claim, kept.body)
            flight = await self._under_way(question, now) if question.key in self._flights else None
            if alone or flight is None or not _shared(flight) or flight.leader.started_at < youngest:
                if self._nearby is not None and not looked:  # which may take a while: others may have come meanwhile
                    looked, meant = True, await self._nearby.understand(x, question)
                    near = await self._nearby.find(x, question, meant, youngest) if meant is not None else None
                    if near is not None and self._serve(x, near.body, "semantic", near):
                        return None if claim is None else _Seat(claim, near.body)
                    continue
                x.cache = "miss"
                return self._lead(x, _Seat(claim, None, question, now, meant), alone or flight is not None)
            # Where there was an answer or a refusal, but none that others may have, none need wait for the next.
            of_its_own = besides(x) != besides(flight.leader)
            if (seat := await self._follow(x, flight, claim)) is not None:
                return seat
            alone = flight.complete or not _shared(flight) or (of_its_own and isinstance(flight.error, UpstreamError))

    async def _under_way(self, question: Question, now: Generations | None) -> Flight | None:
        """The flight that may be joined: one that began before its team, key or model was forgotten is not."""
        leads = next((seat for seat in reversed(self._flights.get(question.key, ())) if not seat.alone), None)
        if leads is None or leads.question is None:
            return None
        if (leads.question.team, leads.question.caller) != (question.team, question.caller):
            _, now = await self._store.get(leads.question)
        return leads.flight if now is None or now == leads.now else None

    def _lead(self, x: Exchange, seat: _Seat, alone: bool) -> _Seat:
        seat.flight = Flight(x, self._room)
        seat.alone = alone or not self._said.coalesce
        if seat.question is not None:
            self._flights.setdefault(seat.question.key, []).append(seat)
        if x.stream and not x.wants_usage:
            x.wants_usage = seat.strips = True  # what is kept tells its usage
        self._leading[x] = seat
        return seat

    async def _follow(self, x: Exchange, flight: Flight, claim: Claim | None) -> _Seat | None:
        """None: the leader was refused, or was gone, before its first byte."""
        follower, began, seat = flight.join(), clock(), None
        alike = as_one(x, flight.leader)
        try:
            if x.stream and flight.leader.stream:
                if await follower.begun() and _shared(flight):
                    seat = _Seat(claim, follower=follower)
                    x.cache, x.answer = "coalesced", self._share(x, seat, follower)
            elif (
                await follower.ended()
                and flight.body is not None
                and _shared(flight)
                and self._serve(x, flight.body, "coalesced")
            ):
                seat = _Seat(claim, flight.body, follower=follower)
                x.saved = flight.cost
        except UpstreamError:
            if alike and _shared(flight):
                raise
        finally:
            x.upstream += clock() - began
            if seat is None:
                follower.leave()
        return seat

    # ── the answer ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self, x: Exchange, body: bytes, word: str, kept: Kept | None = None) -> bool:
        """False, and nothing is served, where the caller wants a stream and none can be made of it."""
        if x.stream:
            chunks = x.dialect.replay(body, x.wants_usage, self._said.replay_words_per_second is not None)
            if chunks is None:
                return False
            x.answer = self._replay(x, chunks)
        else:
            x.answer = _whole(body)
        x.cache = word
        if kept is not None:
            x.saved = kept.cost
            x.reply_headers.append((b"age", b"%d" % max(0, (time.time_ns() - kept.at) // 1_000_000_000)))
        if x.caller.content != "none":
            x.output = [body.decode(errors="replace")]
        return True

    async def _replay(self, x: Exchange, chunks: Iterator[Chunk]) -> AsyncGenerator[Chunk, None]:
        pace = self._said.replay_words_per_second
        if x.caller.content != "none":
            x.output = []
        while part := list(islice(chunks, 64 if pace is None else max(1, round(pace * _PACED)))):
            for chunk in part:
                if x.caller.content != "none" and chunk.text:
                    x.output.append(chunk.text)
                yield chunk
            if pace is not None and not part[-1].last:
                await asyncio.sleep(len(part) / pace)

    async def _share(self, x: Exchange, seat: _Seat, follower: Follower) -> AsyncGenerator[Chunk, None]:
        async for chunk in follower.chunks():
            if chunk.last:
                leads = follower.flight.leader.final
                if x.caller.content != "none" and leads is not None:
                    x.output = list(leads.answer.text)
                x.saved = follower.flight.cost
                if seat.claim is not None and await follower.ended():
                    seat.body = follower.flight.body
                if not x.wants_usage:
                    chunk = _stripped(x, chunk)
            yield chunk

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk | None:
        seat = self._leading.get(x)
        if seat is None or seat.flight is None:
            return chunk
        if chunk.last:
            seat.flight.cost = x.cost
        if chunk.raw or chunk.last:
            seat.flight.add(chunk)
        return _stripped(x, chunk) if seat.strips and chunk.last else chunk

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, x: Exchange, seat: _Seat) -> None:
        flight = seat.flight
        if flight is None:
            if seat.follower is not None:
                seat.follower.leave()
            if seat.claim is not None:
                self._repeats.release(seat.claim, seat.body if x.error is None else None, x.saved)
            return
        del self._leading[x]
        raw = flight.raw() if flight.complete and x.error is None else None
        if raw is None or not x.stream:
            self._land(x, seat, flight, x.error, lambda: raw)
        elif len(raw) <= _SHORT:
            self._land(x, seat, flight, x.error, partial(x.dialect.gather, raw))
        else:  # who asks the same meanwhile still follows; what its caller does from now on changes nothing
            if seat.claim is not None:
                self._repeats.ending(seat.claim)
            gathered = asyncio.get_running_loop().run_in_executor(None, x.dialect.gather, raw)
            gathered.add_done_callback(lambda done: self._land(x, seat, flight, None, done.result))

    def _land(
        self, x: Exchange, seat: _Seat, flight: Flight, error: GatewayError | None, told: Callable[[], bytes | None]
    ) -> None:
        """told: the answer as it is when it is not streamed, or None.  Whatever it raises, the flight lands."""
        body = None
        others = self._leaves(seat)
        try:
            body = flight.body = told()
            if seat.question is not None and seat.now is not None and body is not None and self._may_keep(x, body):
                at = time.time_ns()
                caller = x.caller
                kept = Kept(body, at, at + self._ttl, flight.cost, caller.team, caller.key, seat.now, id=x.id)
                self._store.put(seat.question, kept)
                for other in others:
                    if other.flight is not None and other.flight.leader.started_at < x.started_at:
                        other.now = None  # it is kept no more: this one asked anew
                if seat.meant is not None and self._nearby is not None:
                    self._nearby.index.add(seat.question.tenant, seat.meant, seat.question.key)
        finally:
            refused = x.final.error if x.final is not None else None
            flight.land(refused if isinstance(refused, Denied) else error)  # what it could not pay is its own affair
            if seat.claim is not None:
                self._repeats.release(seat.claim, body, flight.cost)

    def _leaves(self, seat: _Seat) -> list[_Seat]:
        """It is under way no more.  Those that ask the same, and are."""
        if seat.question is None:
            return []
        others = self._flights[seat.question.key]
        others.remove(seat)
        if not others:
            del self._flights[seat.question.key]
        return others

    def _may_keep(self, x: Exchange, body: bytes) -> bool:
        final = x.final
        if final is None or not final.complete or final.target.alias != x.alias or len(body) > self._longest:
            return False
        found = x.dialect.look(body)
        if x.endpoint == "embeddings":
            return found is not None and found.vectors > 0
        if found is None or not found.finish or not _ENDED.issuperset(found.finish):
            return False
        return "*" in self._tools or self._tools.issuperset(found.tools)


def _shared(flight: Flight) -> bool:
    """May others have its answer?  Not one that was let go, or was cut short for want of the leader's money."""
    final = flight.leader.final
    return flight.kept and not (final is not None and final.lowered)


def _stripped(x: Exchange, last: Chunk) -> Chunk:
    """The end of a stream, for a caller who did not ask for its usage."""
    return Chunk(x.dialect.without_usage(last.raw), last.text, last.usage, True)


async def _whole(body: bytes) -> AsyncGenerator[Chunk, None]:
    yield Chunk(body, last=True)
