"""Which strings of an answer's events go on in the next one, and which parts of a list a reader joins.

An event of OpenAI's and of Anthropic's says in `delta` (or a choice's `text`) what goes on.  Of any other shape it is
taken that each field may: what stands at the same place in the next event follows on from it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.dialects import LOGPROBS, NAME, TOOL_TEXT, Part, Place

# Fields that identify or enumerate.
NAMES: Final = frozenset(
    "id object model type role finish_reason stop_reason created system_fingerprint service_tier index status call_id "  # noqa: SIM905
    "item_id tool_call_id tool_use_id previous_response_id response_id encoding_format detail format media_type "
    "reasoning_effort verbosity safety_identifier prompt_cache_key tool_choice truncation event_id container_id".split()
)
# In a field `delta`, what is whole in itself; all else there goes on in the next event.
WHOLE: Final = NAMES | {"name", "server_label"}
_GROUP: Final = ("output_index", "index", "item_id", "content_index", "summary_index")
_OTHERS: Final = ("id", "messageId", "toolCallId")  # of a text, or of one event: of all that say so
# The end of an event's type, without which it is that of its text.
_STEP: Final = re.compile(r"[-_.](?:start|started|begin|added|created|delta)$", re.IGNORECASE)
# Whole parts and items of the Responses API, by their types: how events go on with their fields.
_GOES_ON: Final = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
    "summary_text": ("text", "response.reasoning_summary_text"),
    "function_call": ("arguments", "response.function_call_arguments"),
    "mcp_call": ("arguments", "response.mcp_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
    "code_interpreter_call": ("code", "response.code_interpreter_call_code"),
}
_MOST_ITEMS: Final = 8  # of an event that is a list: its places, each of which may be a text's
# Names that end so are of what is whole: identifiers, times, versions, reasons.
_LABEL: Final = re.compile(r"(?:^|_)(?:id|at|name|reason|version|time|timestamp|date|created)$|[a-z](?:I[dD]|At|Name|"
                           r"Reason|Version|Time|Timestamp|Date|Created)$")  # fmt: skip
_STAMP: Final = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]{5,18}(?:Z|[+-]\d\d:?\d\d)?|[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}"
)
# Fields in whose lists, and in lists around them, one text may stand in parts …
SPOKEN: Final = frozenset(
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
    return tuple(mark if isinstance(mark, str) else index(mark, 0) for mark in marks)


def index(said: Any, otherwise: int) -> int:
    """A number in a list, as clients read it; `otherwise` where it is none."""
    if isinstance(said, float) and said.is_integer():
        return int(said)
    return said if isinstance(said, int) else otherwise


def continued(part: Part, event: dict[str, Any], type_: str) -> Part:
    """A part of what goes on in the next event of a text, in an event of that type that says so in `delta`."""
    family, marks = _STEP.sub("", type_), group_of(event)
    grown = growing(part, event, 0, (family,), marks)
    others = [mark for name in _OTHERS if isinstance(mark := event.get(name), str)]
    if not others or grown.lane is None:
        return grown
    # Whether they are of the text or of the event: it is judged as both.
    run = grown.run if grown.run is not None else grown.lane
    return grown._replace(lane=(*others, *grown.lane), run=run)


def opening(part: Part, event: dict[str, Any], type_: str) -> Part:
    """A part of an event that begins what deltas go on with, as one of theirs; of any other as it is."""
    place = part.place
    if part.kind == "media" or part.group or place[-1] == NAME or not type_.endswith(("_start", ".added")):
        return part
    if type_ == "content_block_start" and place[0] == "content_block":
        return _begun(part, event, "content_block", place[1:])
    if type_ == "message_start" and place[:2] == ("message", "content") and len(place) > 3:
        return _begun(part, event | {"index": place[2]}, "content_block", place[3:])
    if place[0] not in ("part", "item"):
        return part
    holder: Any = event[place[0]]
    if not isinstance(holder, dict):
        return part
    marks = dict(event)
    if place[0] == "item" and isinstance(holder.get("id"), str):
        marks["item_id"] = holder["id"]
    if len(place) == 4 and place[1] in ("content", "summary"):
        holder = holder[place[1]][place[2]]
        marks["content_index" if place[1] == "content" else "summary_index"] = place[2]
    said = holder.get("type") if isinstance(holder, dict) else None
    field, family = _GOES_ON.get(said, ("", "")) if isinstance(said, str) else ("", "")
    return _begun(part, marks, family, ()) if place[-1] == field else part


def _begun(part: Part, event: dict[str, Any], family: str, steps: Place) -> Part:
    """As what stands in `delta` of the events that go on with it."""
    if steps and steps[-1] in WHOLE:
        return part
    lane = (family, *group_of(event), "delta", *steps)
    kind = called(family) or part.kind
    run = (family, "delta", *steps) if _is_said(kind) else None
    return part._replace(kind=kind, lane=lane, run=run)


def called(event: str) -> str:
    """The kind of what goes on in an event of a type, where that is what a tool is called with."""
    return "tool_arguments" if "arguments" in event else TOOL_TEXT if "_call" in event else ""


def _is_said(kind: str) -> bool:
    return kind not in ("tool_arguments", TOOL_TEXT)


def message(part: Part, choice: dict[str, Any], group: Place) -> Part:
    """A part of a choice's `message`: it goes on with what was said in `delta`, or says all of that again."""
    grown = growing(part, choice["message"], 3, (*group, "delta"))
    return part if grown.lane is None else grown._replace(group=group, run=grown.lane)


def item(part: Part, event: list[Any]) -> Part:
    """A part of an event that is a list: ["kind", "text"] says the same at each place, or all of them are one text."""
    one = placed(part, event)
    alone = len(part.place) == 1 and len(event) <= _MOST_ITEMS
    return one._replace(lane=("item", *part.place)) if alone and one.run is not None else one


def growing(part: Part, root: Any, depth: int, lane: Place, marks: Place = ()) -> Part:
    """Unless it is whole by its name, a part of a text that goes on in the next event.

    depth: of root in its place.  lane: what the names of its lane begin with: a choice, or the type of an event; marks:
    what tells it from others that events of this type tell, which a reader may join.
    """
    last = part.place[-1]
    if part.kind == "media" or part.group or last == NAME or (last in WHOLE and len(part.place) > 1):
        return part
    text = _is_said(part.kind) and last != LOGPROBS
    steps, joined = _steps(part.place[depth:], root, text)
    run = (*lane, *steps) if joined or (marks and text) else None
    return Part(part.place, part.text, part.kind, (*lane, *marks, *steps), () if marks else lane, run)


def placed(part: Part, root: Any) -> Part:
    """Unless it is whole by its name or its looks, a part that what stands at the same place follows on from."""
    last = next((step for step in reversed(part.place) if isinstance(step, str)), "")
    if part.kind == "media" or part.group or part.place[-1:] == (NAME,) or last in WHOLE or last == LOGPROBS:
        return part
    if _LABEL.search(last) or _STAMP.fullmatch(part.text):
        return part
    steps, _ = _steps(part.place, root, _is_said(part.kind) and (last in SPOKEN or not last))
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
            steps.append(index(inner.get("index"), step) if isinstance(inner, dict) else step)
        root = inner
    if joined and steps[-1:] == ["text"]:
        steps.pop()  # a list of parts says what a string in its place would
    return tuple(steps), joined
