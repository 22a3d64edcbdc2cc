"""Answers that were given before: how a question is known again, what is kept of an answer, and what a store is.

A question is known by an HMAC under its tenant's secret, so that no two tenants can have one key, whatever they ask.
An entry says under which generations it was made: of all entries, of a team, of a key, of a model.  To empty one of
them begins another generation; what was made before is no longer valid, wherever it lies.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.body import Fields

Generations = tuple[int, int, int, int]  # of: all, the model, the team, the key

OVERHEAD: Final = 700  # bytes of memory that an entry takes beside its answer
STRIPPED: Final = 64 * 1024  # bytes of a body up to which blanks are taken out: beyond, only their absence differs
_TENANTS: Final = 10_000  # whose secrets are kept: users' names are the callers' own
_SEAL: Final = 32  # bytes of a MAC, or of a digest of what is asked
_BLANKS: Final = re.compile(rb'("(?:[^"\\]++|\\.)*+")|[ \t\r\n]++')
_encode = msgspec.json.Encoder().encode


class Tenant:
    """Within whom answers are shared.  secret: keys its questions and seals its entries; never leaves the process."""

    __slots__ = ("_blank", "name", "secret")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self.secret = secret
        self._blank = hmac.new(secret, digestmod="sha256")

    def mac(self, data: bytes) -> bytes:
        """HMAC-SHA256.  By a copy: hmac.digest lets go of the interpreter's lock, and gets it back when others like."""
        made = self._blank.copy()
        made.update(data)
        return made.digest()


class Question(NamedTuple):
    """What is looked up, and for whom."""

    tenant: Tenant
    key: bytes  # 32
    team: str  # of the caller,
    caller: str  # and the name of its key
    model: str


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An answer.  Times are ns since the epoch."""

    body: bytes  # as it is when it is not streamed
    at: int  # when it was given
    until: int  # not served from then on
    cost: int | None  # nano-USD that it cost; None: not known
    team: str  # for whom it was made first
    caller: str
    made: Generations  # with those of the model that was asked
    asked: bytes = b""  # a digest of what was asked, where the key does not hold that
    id: str = ""  # of the request that it answered first
    model: str = ""  # that was asked, where the key does not hold that; empty: that of the question
    rules: bytes = b""  # a digest of the policies that it was answered under, where the key does not hold that

    def origin(self, question: Question) -> tuple[str, str, str]:
        """Whose generations it was made under: a team, a key, a model."""
        return self.team, self.caller, self.model or question.model


class Found(NamedTuple):
    """kept: None where there is nothing that may be served.  now: None where the store cannot be asked."""

    kept: Kept | None
    now: Generations | None


class Store(Protocol):
    """Never raises, never makes a request wait for long: what cannot be asked or written is a miss.

    shared: other gateways use it too.
    """

    shared: bool
    defects: int  # entries that were altered, or put in another's place: each is an alarm
    lost: int  # entries that could not be written

    @property
    def entries(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes of memory held in this process."""

    async def get(self, question: Question) -> Found: ...

    def put(self, question: Question, kept: Kept) -> None:
        """Never awaits.  Replaces what is there."""

    async def claim(self, question: Question, asked: bytes) -> bytes | None:
        """Takes the right to answer this question, until `release`.  Not None: what its holder asked, who has it.

        asked: a digest, 32 bytes.  Of all gateways that share the store one gets it; while the store cannot be asked,
        one of the calls of each gateway.  A holder that is gone loses it.
        """

    def release(self, question: Question) -> None:
        """By who has claimed it.  Never awaits.  What was put before is found by whoever claims it next."""

    async def forget(self, what: str) -> bool:
        """Begins another generation of `what` (see `mark`).  False: the store cannot be asked now."""

    async def aclose(self) -> None: ...


ALL: Final = "all"
NOTED: Final = "answers of "  # the log of changes says so before the mark of what was forgotten
NEAR: Final = ("hit", "shadow", "refused", "far", "gone", "failed")


def mark(kind: str, *names: str) -> str:
    """What can be forgotten: ("team", name), ("key", team, name), ("model", name).  Names have no blanks."""
    return " ".join((kind, *names))


def marks(team: str, caller: str, model: str) -> tuple[str, str, str, str]:
    """In the order of Generations."""
    return ALL, mark("model", model), mark("team", team), mark("key", team, caller)


class Tenants:
    """The secret of each, made of one."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._known: dict[str, Tenant] = {}

    def __getitem__(self, name: str) -> Tenant:
        tenant = self._known.get(name)
        if tenant is None:
            if len(self._known) >= _TENANTS:
                self._known.clear()
            secret = hmac.digest(
                self._root, b"tollkeeper answers of " + name.encode("utf-8", "surrogatepass"), "sha256"
            )
            tenant = self._known[name] = Tenant(name, secret)
        return tenant


def canonical(fields: Fields, without: Collection[str]) -> bytes:
    """A body's fields in the order of their names, each as it was written but for blanks between its parts.

    The order inside a field stays: that of a schema's properties shapes the answer.  Equal bytes are equal questions.
    """
    data = _encode({name: fields[name] for name in sorted(fields) if name not in without})
    # Taking blanks out costs more than all the rest, so it is done where they are likely: as json.dumps writes them.
    if len(data) > STRIPPED or (b'": ' not in data and b"\n" not in data):
        return data
    return _BLANKS.sub(rb"\1", data)


def seal(question: Question, kept: Kept) -> bytes:
    """An entry as it lies in a store that others can write to: bound to its tenant and its key."""
    body = _pack(kept)
    return question.tenant.mac(b"entry" + question.key + body) + body


def unseal(question: Question, data: bytes) -> Kept | None:
    """None where it is not what this tenant put there."""
    body = data[_SEAL:]
    if not hmac.compare_digest(question.tenant.mac(b"entry" + question.key + body), data[:_SEAL]):
        return None
    try:
        return _unpack(body)
    except msgspec.DecodeError:
        return None  # sealed by another version


def seal_claim(question: Question, owner: bytes, asked: bytes) -> bytes:
    """A claim as it lies in such a store.  owner: another for each gateway."""
    body = asked + owner
    return question.tenant.mac(b"claim" + question.key + body) + body


def claimed(question: Question, data: bytes) -> bytes | None:
    """What the holder of a claim asked; None where it is not what one of this tenant put there."""
    body = data[_SEAL:]
    if not hmac.compare_digest(question.tenant.mac(b"claim" + question.key + body), data[:_SEAL]):
        return None
    return body[:_SEAL]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Kept).decode


class Answers:
    """The stores of this process, for who fills, watches or empties them."""

    def __init__(self, make: Callable[[str, int], Store]) -> None:
        """make: a store at an address, holding so many bytes at most in this process."""
        self._make = make
        self.stores: list[Store] = []
        self.near = dict.fromkeys(NEAR, 0)  # what came of looking for questions that are near

    def open(self, url: str, limit: int) -> Store:
        store = self._make(url, limit)
        self.stores.append(store)
        return store

    async def forget(self, what: str) -> bool:
        """False: a store could not be asked; ask again."""
        return all([await store.forget(what) for store in self.stores])

    async def hear(self, noted: str) -> None:
        """Of something that was forgotten at one of the gateways: a store that they share knows of it already."""
        for store in self.stores:
            if not store.shared:
                await store.forget(noted.removeprefix(NOTED))

    async def aclose(self) -> None:
        for store in self.stores:
            await store.aclose()
