"""Tokens and money of each attempt: what the provider said, else what we count."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Final

from gateway import tokens
from gateway.dialects import Chunk
from gateway.exchange import Attempt, Exchange, Usage
from gateway.prices import Prices, Rate

_DAY: Final = 86_400 * 10**9  # ns
_EXACT: Final = 100_000  # characters counted exactly where nothing may be awaited


class Meter:
    """Sets an attempt's usage and cost, once.  A cost of None means: billed, but no price or no usage is known."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._day = -1
        self._date = date.min

    async def measure(self, x: Exchange, attempt: Attempt, last: Chunk, rejected: str) -> None:
        """After a complete answer.  Usage that the provider left out, or that makes no sense, is counted here."""
        usage = last.usage
        attempt.rejected = rejected
        if usage is None and x.texts is not None:
            model = attempt.target.model
            usage = Usage(
                input=await tokens.estimate(x.texts(), model),
                output=await tokens.estimate(attempt.answer.text, model) if attempt.answer.text else 0,
                estimated=True,
            )
        if x.caller.content != "none":
            x.output = attempt.answer.text if x.stream else [last.raw.decode(errors="replace")]
        self._charge(x, attempt, usage)

    def estimate_now(self, x: Exchange, attempt: Attempt) -> None:
        """After an answer that broke off: the provider may bill all it read and what it wrote until then."""
        if x.texts is None:
            self._charge(x, attempt, None)
            return
        model = attempt.target.model
        usage = Usage(_count("".join(x.texts()), model), _count("".join(attempt.answer.text), model), estimated=True)
        if x.caller.content != "none":
            x.output = attempt.answer.text
        self._charge(x, attempt, usage)

    def _charge(self, x: Exchange, attempt: Attempt, usage: Usage | None) -> None:
        attempt.usage = usage
        rate = self.rate(x, attempt)
        if rate is None or usage is None:
            # A call that names no model (files, lists) has nothing to pay; one that does has, and we cannot say what.
            attempt.cost = None if x.alias else 0
            return
        attempt.cost = rate.cost(usage, attempt.answer.tier)
        attempt.price = rate.revision

    def rate(self, x: Exchange, attempt: Attempt) -> Rate | None:
        """The price of an attempt, on the day its request came."""
        day = x.started_at // _DAY
        if day != self._day:
            self._day, self._date = day, datetime.fromtimestamp(day * 86_400, UTC).date()
        target = attempt.target
        return self._prices.rate(target.alias, target.provider.name, target.model, self._date)


def _count(text: str, model: str) -> int:
    """Exact where the vocabulary is at hand and the text is short enough for the event loop; else by length."""
    if not text:
        return 0
    if len(text) <= _EXACT and tokens.ready(model):
        return tokens.count(text, model)
    return tokens.by_length(text)
