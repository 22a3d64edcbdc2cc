"""Answers of /v1/embeddings: deterministic unit vectors, near each other where texts share words."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Iterable
from typing import Any, Final

from gateway.demo.asked import model_of, whole_of
from gateway.demo.bill import Charge
from gateway.demo.language import seed_of, tokenize
from gateway.demo.reply import Refusal, Reply, of_json

DIMENSIONS: Final = 256


def embed(words: Iterable[str], dimensions: int) -> array[float]:
    """Feature hashing: each word, however written, adds +1 or -1 at 8 places; scaled to length 1."""
    vector = [0.0] * dimensions
    for word in words:
        bits = seed_of(word.strip().lower())
        for _ in range(8):
            bits, place = divmod(bits, dimensions)
            bits = (bits * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
            vector[place] += 1.0 if bits & 0x8000000000000000 else -1.0
    norm = math.sqrt(sum(v * v for v in vector))
    if not norm:
        vector[0] = norm = 1.0
    return array("f", [v / norm for v in vector])


def embeddings(body: dict[str, Any]) -> Reply:
    """`input`: a string, strings, token numbers, or lists of token numbers."""
    model = model_of(body, embeds=True)
    asked = body.get("input")
    if not asked or not isinstance(asked, str | list):
        raise Refusal(400, "Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    alone = isinstance(asked, str) or isinstance(asked[0], int)
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refusal(400, f"Invalid 'encoding_format': {form!r}.", code="invalid_value", param="encoding_format")
    dimensions = min(whole_of(body, "dimensions") or DIMENSIONS, 4096)
    data, count = [], 0
    for index, text in enumerate([asked] if alone else asked):
        words = tokenize(text) if isinstance(text, str) else [str(number) for number in text]
        count += len(words)
        vector = embed(words, dimensions)
        value = vector.tolist() if form == "float" else base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": value})
    charge = Charge(model, "embeddings", count)
    usage = {"prompt_tokens": count, "total_tokens": count}
    reply = of_json({"object": "list", "data": data, "model": model, "usage": usage}, charge)
    reply.reusable = True
    return reply
