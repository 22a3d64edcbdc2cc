"""What a policy is: four hooks and one promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from gateway.dialects import Chunk
from gateway.exchange import Attempt, Exchange

Receipt = TypeVar("Receipt")


class Words(NamedTuple):
    """A part of a policy's line in config.yaml whose words belong to something that the policy loads."""

    place: tuple[str | int, ...]  # below the policy's line
    said: dict[str, Any]
    model: type[BaseModel] | None = None  # what those words must be; None: see wrong
    known: tuple[str, ...] = ()  # all words that may stand there
    wrong: str = ""  # what is wrong in any case,
    mend: str = ""  # and how to mend it


class Policy(Generic[Receipt]):
    """Whatever `admit` or `attempt` returns comes back to `settle`, once, whatever happens in between.

    Override what you need: a hook that is not overridden costs nothing.
    """

    name = ""  # set by the loader to the name under which config.yaml uses it
    fail_open = False  # when the policy itself breaks: refuse the call (False), or let it pass
    may_fail_open = True  # may config.yaml say so?  not where money would be spent that nobody holds
    counts_inner = False  # is it asked to admit what the gateway asks itself, for other policies?
    looks = True  # does `screen` read chunk.text?  when no policy does, answers are forwarded as they came

    @staticmethod
    def words(said: dict[str, Any]) -> Iterator[Words]:
        """Parts of its line that its own Settings cannot check.  said: the line as it was written."""
        return iter(())

    async def aclose(self) -> None:
        """The gateway ends; nothing runs any more."""

    async def admit(self, x: Exchange) -> Receipt | None:
        """Once, before anything else.  Raise Denied to refuse; set x.answer to answer in the provider's place."""
        return None

    async def attempt(self, x: Exchange, attempt: Attempt) -> Receipt | None:
        """Before each try at a target: the last moment before bytes leave for a provider."""
        return None

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk | None:
        """On the way back, once per chunk.  Return another to change it, None to hold it back, raise Denied to stop."""
        return chunk

    def patience(self, x: Exchange) -> float | None:
        """Seconds after which `screen` is asked again, with an empty chunk, if nothing comes; None: it need not be."""
        return None

    def veils(self, x: Exchange) -> bool:
        """Must a provider's own words, by which it refuses a call, be kept from this caller?"""
        return False

    def settle(self, x: Exchange, receipt: Receipt) -> None:
        """When the request, or the attempt, is over.  Reports; never awaits, so that nothing can interrupt it."""
