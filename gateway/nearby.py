"""Questions that lie near one another in meaning: who makes vectors of them, and one index for each tenant.

A question is compared only with those of its own tenant that agree with it in everything but the last user message:
model, system prompt, the conversation before, tools, parameters.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol

import msgspec
from pydantic import Field, model_validator

from gateway import settings
from gateway.answers import Kept, Question, Store, Tenant
from gateway.errors import GatewayError, UpstreamError
from gateway.exchange import Exchange
from gateway.inner import Inner
from gateway.problems import wrong
from gateway.questions import Questions
from gateway.sameness import Depth, Facts, facts, may_be_same

if TYPE_CHECKING:  # an extra: imported where the configuration asks for it
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

RING: Final = 2000  # questions that agree in all but the last message: the newest are compared
CLOSEST: Final = 5  # of which the check is asked

log = logging.getLogger("gateway")


class Semantic(settings.Settings):
    """Answers to questions that are near enough: see docs/cache.md before you switch it on."""

    model: settings.Name | None = None  # an embedding model of this file; none: wordllama, of the extra `semantic`
    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.9  # cosine
    check: Depth = "words"  # what besides must be the same
    shadow: bool = True  # only report what would have been served
    questions: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000  # that are compared, of all tenants
    seconds: Annotated[float, Field(gt=0, le=60)] = 2.0  # that an embedding may take

    @model_validator(mode="after")
    def _installed(self) -> Semantic:
        needed = ("numpy",) if self.model else ("numpy", "wordllama")
        if absent := [name for name in needed if find_spec(name) is None]:
            raise wrong(f"{' and '.join(absent)} is not installed", "pip install 'tollkeeper[semantic]'")
        return self


class Embedder(Protocol):
    async def embed(self, x: Exchange, text: str) -> Vector:
        """Of length 1.  Raises GatewayError where there is none now: no budget pays for it, the provider fails."""


class Local:
    """wordllama, whose weights come with its package: nothing leaves this machine; 30 us for a short text."""

    def __init__(self) -> None:
        import wordllama

        home = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=home, disable_download=True)

    async def embed(self, x: Exchange, text: str) -> Vector:
        return self.vector(text)

    def vector(self, text: str) -> Vector:
        found: Vector = self._model.embed(text, norm=True)[0]
        return found


class _Datum(msgspec.Struct):
    embedding: list[float]


class _Embedded(msgspec.Struct):
    data: list[_Datum]


class Remote:
    """A model of config.yaml, called through the gateway: held and billed to who asks."""

    def __init__(self, inner: Inner, model: str, seconds: float) -> None:
        self._inner = inner
        self._model = model
        self._seconds = seconds
        self._decoder = msgspec.json.Decoder(_Embedded)

    async def embed(self, x: Exchange, text: str) -> Vector:
        import numpy as np

        call = {"model": self._model, "input": text, "encoding_format": "float"}
        raw = await self._inner.ask(x, "embeddings", call, why="embed", seconds=self._seconds)
        try:
            found: Vector = np.asarray(self._decoder.decode(raw).data[0].embedding, dtype=np.float32)
        except (msgspec.DecodeError, IndexError):
            raise UpstreamError("The embedding cannot be read.", code="upstream_protocol")
        length = float(np.linalg.norm(found))
        if not length or not np.isfinite(length):
            raise UpstreamError("The embedding has no direction.", code="upstream_protocol")
        return found / np.float32(length)


class Near(NamedTuple):
    """A question that was asked before.  same: the check found nothing that tells them apart."""

    key: bytes
    score: float  # cosine
    same: bool


class Asked(NamedTuple):
    """A question as it is compared."""

    context: bytes  # a digest of all but the last user message, under the tenant's secret
    facts: Facts
    vector: Any  # Vector


class _Ring:
    """Questions of one context, the newest RING of them."""

    def __init__(self, dimensions: int) -> None:
        import numpy as np

        self.rows = np.empty((8, dimensions), np.float32)
        self.keys: list[bytes] = []
        self.facts: list[Facts] = []
        self._next = 0

    def add(self, asked: Asked, key: bytes) -> int:
        """How many more there are than before."""
        import numpy as np

        if key in self.keys:
            return 0
        if len(self.keys) < RING:
            if len(self.keys) == len(self.rows):
                self.rows = np.vstack([self.rows, np.empty_like(self.rows)])[:RING]
            self.rows[len(self.keys)] = asked.vector
            self.keys.append(key)
            self.facts.append(asked.facts)
            return 1
        at = self._next = (self._next + 1) % RING
        self.rows[at], self.keys[at], self.facts[at] = asked.vector, key, asked.facts
        return 0


class Index:
    """Of all tenants, each apart.  limit: questions; the contexts that were used least recently go first."""

    def __init__(self, limit: int, threshold: float, depth: Depth) -> None:
        self._limit = limit
        self._threshold = threshold
        self._depth = depth
        self._tenants: dict[str, dict[bytes, _Ring]] = {}
        self._used: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self.size = 0

    def find(self, tenant: Tenant, asked: Asked) -> Near | None:
        """The nearest that may be the same; else the nearest of all above the threshold."""
        ring = self._tenants.get(tenant.name, {}).get(asked.context)
        if ring is None or ring.rows.shape[1] != asked.vector.shape[0]:
            return None
        self._used.move_to_end((tenant.name, asked.context))
        scores = ring.rows[: len(ring.keys)] @ asked.vector
        best: Near | None = None
        for at in scores.argsort()[::-1][:CLOSEST]:
            score = float(scores[at])
            if score < self._threshold:
                break
            near = Near(ring.keys[at], score, may_be_same(ring.facts[at], asked.facts, self._depth))
            if near.same:
                return near
            best = best or near
        return best

    def add(self, tenant: Tenant, asked: Asked, key: bytes) -> None:
        rings = self._tenants.setdefault(tenant.name, {})
        ring = rings.get(asked.context)
        if ring is None or ring.rows.shape[1] != asked.vector.shape[0]:
            self.size -= len(ring.keys) if ring is not None else 0
            ring = rings[asked.context] = _Ring(asked.vector.shape[0])
        self.size += ring.add(asked, key)
        self._used[tenant.name, asked.context] = None
        self._used.move_to_end((tenant.name, asked.context))
        while self.size > self._limit and len(self._used) > 1:
            (name, context), _ = self._used.popitem(last=False)
            self.size -= len(self._tenants[name].pop(context).keys)
            if not self._tenants[name]:
                del self._tenants[name]


class Nearby:
    """What a cache asks of all this.  told: counts what came of it, by the words of answers.NEAR."""

    def __init__(self, said: Semantic, store: Store, inner: Inner, questions: Questions, told: dict[str, int]) -> None:
        self._shadow = said.shadow
        self._store = store
        self._questions = questions
        self._told = told
        self._embedder: Embedder = Remote(inner, said.model, said.seconds) if said.model else Local()
        self.index = Index(said.questions, said.threshold, said.check)

    async def understand(self, x: Exchange, question: Question) -> Asked | None:
        """What is asked, as it is compared with others; None where it is not."""
        found = self._questions.context(x, question)
        if found is None or (turns := facts(found[1])) is None:
            return None
        try:
            return Asked(found[0], turns, await self._embedder.embed(x, found[1]))
        except GatewayError:
            self._told["failed"] += 1
            return None

    async def find(self, x: Exchange, question: Question, asked: Asked, youngest: int) -> Kept | None:
        """The answer to a question that is near, and the same as far as words show; none older than `youngest`."""
        near = self.index.find(question.tenant, asked)
        if near is None or not near.same:
            self._told["far" if near is None else "refused"] += 1
            return None
        kept, _ = await self._store.get(question._replace(key=near.key))
        if kept is None or kept.at < youngest:
            self._told["gone"] += 1
            return None
        if self._shadow:
            self._told["shadow"] += 1
            log.info("would be answered as %s was: cosine %.3f", kept.id, near.score, extra={"request_id": x.id})
            return None
        self._told["hit"] += 1
        return kept
