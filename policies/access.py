"""Whether a team may use the model it asks for."""

from __future__ import annotations

from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy


class Access(Policy[None]):
    """Refuses a model that the caller's team is not allowed; acts only where the team lists its models."""

    async def admit(self, x: Exchange) -> None:
        allowed = x.caller.models
        if allowed is None or not x.alias or x.alias in allowed:
            return
        raise Denied(
            f"The team '{x.caller.team}' may not use the model '{x.model}'. Ask your platform team to allow it.",
            param="model",
        )
