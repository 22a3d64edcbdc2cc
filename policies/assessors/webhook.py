"""An assessor of your own behind HTTP: it is sent the text as JSON and answers with a verdict.

Request: `{"text", "stage", "team", "request_id"}`.  Answer, status 200: `{"score": 0…1, "confidence": 0…1,
"label": "…", "spans": [{"start", "end", "label"}]}`, places in characters; all but the score may be left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import httpx2
import msgspec
from pydantic import Field, SecretStr

from gateway import settings
from gateway.assessor import Assessor, Verdict
from gateway.exchange import Exchange
from gateway.patterns import Found
from gateway.transport import Limits, Transport

_LARGEST: Final = 1_000_000  # bytes of an answer
_Label = Annotated[str, msgspec.Meta(pattern=r"^[\w .:/-]{1,64}$")]  # a word, not the text again
_Part = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Place(msgspec.Struct):
    start: Annotated[int, msgspec.Meta(ge=0)]
    end: Annotated[int, msgspec.Meta(ge=0)]
    label: _Label = "found"


class _Answer(msgspec.Struct):
    score: _Part
    confidence: _Part = 1.0
    label: _Label | None = None
    spans: list[_Place] = []


_answer = msgspec.json.Decoder(_Answer)


class Webhook(Assessor):
    """Any other status, a redirect, or an answer of another shape is a failure, and `on_error` decides."""

    type: ClassVar[str] = "service"
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output", "tool_arguments", "tool_results"})

    class Settings(settings.Settings):
        url: settings.Url
        headers: dict[str, SecretStr] = Field(default_factory=dict)
        connections: Annotated[int, Field(ge=1, le=1000)] = 32
        seconds: settings.Seconds = 5.0

    def __init__(self, said: Settings) -> None:
        self._url = said.url
        self._headers = {name: value.get_secret_value() for name, value in said.headers.items()}
        seconds = said.seconds
        self._limits = Limits(said.connections, seconds, seconds, seconds, seconds, seconds)
        self._client: httpx2.AsyncClient | None = None

    async def assess(self, text: str, stage: str) -> Verdict:
        return await self.asked(None, text, stage)

    async def asked(self, x: Exchange | None, text: str, stage: str) -> Verdict:
        if self._client is None:  # made in the loop that uses it
            self._client = httpx2.AsyncClient(transport=Transport(self._limits), headers=self._headers)
        body = {"text": text, "stage": stage, "team": x.caller.team if x else "", "request_id": x.id if x else ""}
        async with self._client.stream("POST", self._url, json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}")
            raw = b""
            async for piece in response.aiter_bytes():
                raw += piece
                if len(raw) > _LARGEST:
                    raise ValueError("the answer is too large")
        said = _answer.decode(raw)
        size = len(text)
        spans = [
            Found(min(one.start, size), min(one.end, size), one.label) for one in said.spans if one.start < one.end
        ]
        return Verdict(said.score, said.confidence, said.label or "", spans)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
