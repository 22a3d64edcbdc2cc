"""Answers of the endpoints that carry sound, and of moderation, by the simulated provider."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from gateway.demo.asked import model_of, text_of
from gateway.demo.bill import Charge
from gateway.demo.files import Upload
from gateway.demo.language import compose, seed_of, tokenize
from gateway.demo.reply import IDENT, Refusal, Reply, Step, of_bytes, of_json

_HARMFUL: Final = {
    "violence": ("kill", "murder", "attack"),
    "hate": ("hate",),
    "self-harm": ("suicide",),
    "sexual": ("sexual",),
}


def speech(body: dict[str, Any]) -> Reply:
    """Noise that depends on the text, 1 KiB a token, in chunks.  Billed for its input."""
    model = model_of(body)
    text = body.get("input")
    if not isinstance(text, str) or not text:
        raise Refusal(400, "Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    tokens = tokenize(text)
    steps = [Step(hashlib.shake_128(f"{at} {token}".encode()).digest(1024)) for at, token in enumerate(tokens)]
    return Reply(steps, content_type="audio/mpeg", charge=Charge(model, "speech", len(tokens)))


def transcription(upload: Upload) -> Reply:
    """Made-up words; input is a token per KiB of sound."""
    sound = upload.files.get("file")
    upload.close()
    model = model_of(dict(upload.fields))
    if sound is None or not upload.complete:
        raise Refusal(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
    tokens, _ = compose(seed_of(model, sound.filename, str(sound.size)))
    charge = Charge(model, "transcriptions", -(-sound.size // 1024), 0, len(tokens))
    text = "".join(tokens)
    if upload.fields.get("response_format") == "text":
        return of_bytes(text.encode() + b"\n", "text/plain; charset=utf-8", charge)
    usage = {
        "type": "tokens",
        "input_tokens": charge.input,
        "input_token_details": {"audio_tokens": charge.input, "text_tokens": 0},
        "output_tokens": charge.output,
        "total_tokens": charge.input + charge.output,
    }
    return of_json({"text": text, "usage": usage}, charge)


def moderations(body: dict[str, Any]) -> Reply:
    """Flags a few words.  Billed like nothing (sim-free) where no model is named, else for its input."""
    model = model_of({"model": body.get("model") or "sim-free"})
    asked = body.get("input")
    if not asked or not isinstance(asked, str | list):
        raise Refusal(400, "Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    texts = asked if isinstance(asked, list) and isinstance(asked[0], str) else [text_of(asked)]
    results = []
    for text in texts:
        found = {kind: any(word in text.lower() for word in words) for kind, words in _HARMFUL.items()}
        results.append(
            {
                "flagged": any(found.values()),
                "categories": found,
                "category_scores": {kind: 0.95 if hit else 0.01 for kind, hit in found.items()},
                "category_applied_input_types": {kind: ["text"] if hit else [] for kind, hit in found.items()},
            }
        )
    charge = Charge(model, "moderations", sum(len(tokenize(text)) for text in texts))
    return of_json({"id": f"modr-{IDENT}", "model": model, "results": results}, charge)
