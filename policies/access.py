"""Whether a team, and the key it calls with, may use the model that is asked for."""

from __future__ import annotations

from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy


class Access(Policy[None]):
    """Refuses a model that the caller's team or key is not allowed; acts only where one of them lists its models."""

    async def admit(self, x: Exchange) -> None:
        allowed = x.caller.models
        if allowed is None or not x.alias or x.alias in allowed:
            return
        who = f"key '{x.caller.key}' of team '{x.caller.team}'" if x.caller.narrowed else f"team '{x.caller.team}'"
        raise Denied(
            f"The {who} may not use the model '{x.model}'. Ask your platform team to allow it.",
            param="model",
        )
