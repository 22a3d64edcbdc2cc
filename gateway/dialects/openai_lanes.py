"""Which strings of an answer's events go on in the next one, and which parts of a list a reader joins.

An event of OpenAI's and of Anthropic's says in `delta` (or a choice's `text`) what goes on.  Of any other shape it is
taken that each field may: what stands at the same place in the next event follows on from it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.dialects import LOGPROBS, NAME, Part, Place

# Fields that identify or enumerate.
NAMES: Final = frozenset(
    "id object model type role finish_reason stop_reason created system_fingerprint service_tier index status call_id "  # noqa: SIM905
    "item_id tool_call_id tool_use_id previous_response_id response_id encoding_format detail format media_type "
    "reasoning_effort verbosity safety_identifier prompt_cache_key tool_choice truncation event_id container_id".split()
)
# In a field `delta`, what is whole in itself; all else there goes on in the next event.
WHOLE: Final = NAMES | {"name", "server_label"}
_GROUP: Final = ("output_index", "index", "item_id", "content_index", "summary_index")
# Names that end so are of what is whole: identifiers, times, versions, reasons.
_LABEL: Final = re.compile(r"(?:^|_)(?:id|at|name|reason|version|time|timestamp|date|created)$|[a-z](?:I[dD]|At|Name|"
                           r"Reason|Version|Time|Timestamp|Date|Created)$")  # fmt: skip
_STAMP: Final = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]{5,18}(?:Z|[+-]\d\d:?\d\d)?|[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}"
)
# Fields in whose lists, and in lists around them, one text may stand in parts …
_SPOKEN: Final = frozenset(
    "text content parts thinking reasoning refusal output output_text message response completion generated_text "  # noqa: SIM905
    "delta value".split()
)
# … but for lists of texts of which a reader chooses one.
_ALTERNATIVES: Final = frozenset(
    {"choices", "candidates", "generations", "completions", "results", "predictions", "outputs", "data"}
)


def group_of(event: dict[str, Any]) -> Place:
    """What tells the texts of events of one type apart."""
    marks = (event.get(name, 0) for name in _GROUP)
    return tuple(mark if isinstance(mark, int | str) else 0 for mark in marks)


def growing(part: Part, root: Any, depth: int, lane: Place, marks: Place = ()) -> Part:
    """Unless it is whole by its name, a part of a text that goes on in the next event.

    depth: of root in its place.  lane: what the names of its lane begin with: a choice, or the type of an event; marks:
    what tells it from others that events of this type tell, which a reader may join.
    """
    last = part.place[-1]
    if part.kind == "media" or last == NAME or (last in WHOLE and len(part.place) > 1):
        return part
    text = part.kind != "tool_arguments" and last != LOGPROBS
    steps, joined = _steps(part.place[depth:], root, text)
    run = (*lane, *steps) if joined or (marks and text) else None
    return Part(part.place, part.text, part.kind, (*lane, *marks, *steps), () if marks else lane, run)


def placed(part: Part, root: Any) -> Part:
    """Unless it is whole by its name or its looks, a part that what stands at the same place follows on from."""
    last = next((step for step in reversed(part.place) if isinstance(step, str)), "")
    if part.kind == "media" or part.place[-1:] == (NAME,) or last in WHOLE or last == LOGPROBS:
        return part
    if _LABEL.search(last) or _STAMP.fullmatch(part.text):
        return part
    steps, _ = _steps(part.place, root, part.kind != "tool_arguments" and (last in _SPOKEN or not last))
    return Part(part.place, part.text, part.kind, run=steps)


def tokens(logprobs: Any) -> str:
    """The text that log-probabilities repeat: {content: [{token}]}, [{token}] or {tokens: [token]}."""
    lists = logprobs.values() if isinstance(logprobs, dict) else [logprobs]
    return "".join(
        text
        for each in lists
        if isinstance(each, list)
        for one in each
        if isinstance(text := one.get("token") if isinstance(one, dict) else one, str)
    )


def _steps(place: Place, root: Any, spoken: bool) -> tuple[Place, bool]:
    """A place by what items call themselves, without the places in lists whose items a reader joins; are there any?"""
    steps: list[str | int] = []
    joined = False
    for at, step in enumerate(place):
        inner = root[step]
        if isinstance(step, str):
            steps.append(step)
        elif spoken and not (at and place[at - 1] in _ALTERNATIVES):
            joined = True
        else:
            index = inner.get("index") if isinstance(inner, dict) else None
            steps.append(index if isinstance(index, int) else step)
        root = inner
    if joined and steps[-1:] == ["text"]:
        steps.pop()  # a list of parts says what a string in its place would
    return tuple(steps), joined
