"""What a caller asked of the simulated provider: the fields that all its endpoints read, checked."""

from __future__ import annotations

from typing import Any, Final

from gateway.demo.bill import PRICES
from gateway.demo.language import seed_of, tokenize
from gateway.demo.reply import Refusal

CACHE_FROM: Final = 1024  # tokens of a prompt from which its prefix is cached …
CACHE_STEP: Final = 128  # … in steps of
PREFIXES: Final = 100_000  # prefixes remembered


def model_of(body: dict[str, Any], embeds: bool = False) -> str:
    """The model, which exists and is of the right kind."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "you must provide a model parameter", param="model")
    if model not in PRICES:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refusal(404, message, code="model_not_found")
    if embeds != (model == "sim-embed") and model != "sim-free":
        kind = "an embedding" if embeds else "a chat"
        raise Refusal(404, f"This is not {kind} model and thus not supported in this endpoint.", param="model")
    return model


def whole_of(body: dict[str, Any], *names: str, least: int = 1) -> int | None:
    """The first of these fields that is given: a whole number."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise Refusal(400, f"Invalid '{name}': expected an integer >= {least}.", code="invalid_value", param=name)
        return value
    return None


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some carry text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    return ""


def images_in(content: Any) -> int:
    """Parts that are no text: each counts 85 tokens."""
    return sum(isinstance(p, dict) and "text" not in p for p in content) if isinstance(content, list) else 0


class Prefixes:
    """Prompts seen before, by their prefixes: what the simulated provider's prompt cache holds."""

    def __init__(self) -> None:
        self._seen: dict[int, None] = {}

    def look(self, model: str, text: str, count: int) -> tuple[int, bool]:
        """Tokens of the prompt that were seen before, and whether a repetition would find no more.  Remembers it."""
        if count < CACHE_FROM:
            return 0, True
        tokens = tokenize(text)
        cached, link = 0, seed_of(model)
        fresh = False
        for at in range(CACHE_STEP, len(tokens) + 1, CACHE_STEP):
            link = seed_of(str(link), *tokens[at - CACHE_STEP : at])
            if at < CACHE_FROM:
                continue
            if link in self._seen and not fresh:
                cached = at
            else:
                fresh = True
                self._seen[link] = None
        while len(self._seen) > PREFIXES:
            del self._seen[next(iter(self._seen))]
        return cached, not fresh

    def clear(self) -> None:
        self._seen.clear()
