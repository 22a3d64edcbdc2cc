"""What every assessor that scans must hold, and short ways to ask one."""

from __future__ import annotations

import random
from typing import Any

from gateway.assessor import ScanFollower, Scanner, Verdict, build, find


def made(name: str, **said: Any) -> Any:
    kind = find(name)
    built = build(kind, kind.Settings.model_validate(said), {})
    built.name = name
    return built


def places(scanner: Scanner, text: str) -> list[tuple[str, str]]:
    """(label, what was found)."""
    return [(one.label, text[one.start : one.end]) for one in scanner.verdict(whole(scanner, text)).spans]


def whole(scanner: Scanner, text: str) -> Any:
    return ScanFollower(scanner).feed_now(text, True)


def redacted(scanner: Scanner, pieces: list[str]) -> str:
    """As a stream would be: what is settled leaves, with a mark in place of what was found."""
    follower, out, text, done, spans = ScanFollower(scanner), "", "", 0, []
    for number, piece in enumerate(pieces):
        text += piece
        spans += follower.feed_now(piece, number == len(pieces) - 1)
        while done < follower.settled:
            inside = next((one for one in spans if one.start <= done < one.end), None)
            if inside is None:
                out += text[done]
            elif inside.start == done and inside.replacement is None:
                out += f"[{inside.label}]"
            done += 1
    assert done == len(text)
    return out


def same_in_pieces(scanner: Scanner, text: str) -> None:
    """However a text is cut, the same is found in it; and what is let go is never what would have been found."""
    expected = redacted(scanner, [text])
    for cut in range(1, len(text)):
        assert redacted(scanner, [text[:cut], text[cut:]]) == expected, (cut, text)
    assert redacted(scanner, list(text)) == expected, text
    rng = random.Random(text)
    for _ in range(5):
        pieces, rest = [], text
        while rest:
            size = rng.randint(1, 12)
            pieces.append(rest[:size])
            rest = rest[size:]
        assert redacted(scanner, pieces) == expected, pieces


def hinted(scanner: Scanner, text: str) -> bool:
    """Where something is found, a hint says so: else the look at whole bodies would miss it."""
    from gateway.patterns import hinting

    hits: list[int] = []
    hinting(scanner.hints())(text.encode(), hits)
    return bool(hits) or not whole(scanner, text)


async def verdict(assessor: Any, text: str, stage: str = "output") -> Verdict:
    found: Verdict = await assessor.assess(text, stage)
    return found
