"""GET /v1/models and /v1/models/{id}: the models a team may use."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from gateway.dialects import Chunk
from gateway.endpoints import House, Kind, identify, name_model, open_exchange, printable, require_method
from gateway.errors import BadCall
from gateway.exchange import Exchange
from gateway.presence import Hangup
from gateway.reply import Reply

KIND: Final = Kind("models", "models", "/v1/models", "/models")


class ModelsEndpoint:
    """An ASGI application.  It answers in the provider's place: nothing is sent upstream."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        x = open_exchange(scope, self._house, KIND)
        hangup: Hangup = scope["hangup"]
        wanted = scope["path"].removeprefix("/v1/models").removeprefix("/")

        async def read(x: Exchange) -> None:
            identify(x, scope, self._house)
            require_method(x, "GET", "HEAD")
            if wanted:
                name_model(x, self._house, wanted)
                if x.caller.models is not None and x.alias not in x.caller.models:
                    said = f"The model '{printable(wanted)}' does not exist here."
                    raise BadCall(said, code="model_not_found", status=404, param="model")
            x.answer = self._answer(x, wanted)

        await self._house.pipeline.run(x, read, Reply(x, send, hangup, self._house.ping_seconds), hangup)

    async def _answer(self, x: Exchange, wanted: str) -> AsyncGenerator[Chunk, None]:
        if wanted:
            yield Chunk(raw=msgspec.json.encode(_card(wanted)), last=True)
            return
        names = self._house.pipeline.targets.names
        mine = [name for name in names if x.caller.models is None or name in x.caller.models]
        yield Chunk(raw=msgspec.json.encode({"object": "list", "data": [_card(name) for name in mine]}), last=True)


def _card(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tollkeeper"}
