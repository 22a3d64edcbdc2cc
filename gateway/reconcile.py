"""Our figures beside a provider's own: the ledger's money beside its costs, the records' tokens beside its usage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.exports import DAY, NANO, Export, Line, What, family
from gateway.store import write_time

if TYPE_CHECKING:
    from gateway.remote import Remote

NO_MODEL: Final = "(no model)"


class Compared(NamedTuple):
    """One day, one model (empty: all together).  ours, theirs: tokens, or nano-USD."""

    day: str
    model: str
    what: What
    ours: int
    theirs: int

    @property
    def difference(self) -> int:
        return self.ours - self.theirs


class Ours(NamedTuple):
    """sums: by the names in `labels` of provider's models.  untold, estimated: attempts whose tokens are in doubt."""

    sums: dict[Line, int]
    labels: Mapping[str, str]
    untold: int = 0
    estimated: int = 0


def ask_ours(remote: Remote, theirs: Export, provider: str, targets: Sequence[Mapping[str, str]]) -> Ours:
    """What we have of the same span.  Raises Refused."""
    return _money(remote, theirs, provider, targets) if theirs.unit == "usd" else _tokens(remote, theirs, provider)


def _money(remote: Remote, theirs: Export, provider: str, targets: Sequence[Mapping[str, str]]) -> Ours:
    """From the ledger, which has our names of models: those that share a provider's model are one line."""
    ours, labels = grouped((one["model"], one["provider_model"]) for one in targets if one["provider"] == provider)
    span = {"since": _moment(theirs.start), "until": _moment(theirs.end)}
    lines = remote.ask("GET", "spend", query={"by": "day,model", "provider": provider, **span})["data"]
    sums: dict[Line, int] = {}
    for line in lines:
        day, model = line["values"]
        place: Line = day, ours.get(model) or family(model or ""), "usd"
        sums[place] = sums.get(place, 0) + line["nano_usd"]
    return Ours(sums, labels)


def _tokens(remote: Remote, theirs: Export, provider: str) -> Ours:
    """From the records, day by day: each answer takes a moment."""
    sums: dict[Line, int] = {}
    names: dict[str, str] = {}
    untold = estimated = 0
    for start in range(theirs.start - theirs.start % DAY, theirs.end, DAY):
        since, until = max(start, theirs.start), min(start + DAY, theirs.end)
        query = {"provider": provider, "since": _moment(since), "until": _moment(until)}
        for line in remote.ask("GET", "usage", query=query)["data"]:
            untold += line["untold"]
            estimated += line["estimated"]
            model = family(line["model"])
            names.setdefault(model, line["model"])
            counts: tuple[tuple[What, str], ...] = (
                ("input", "input"), ("cached input", "cache_read"), ("output", "output"),
            )  # fmt: skip
            for what, word in counts:
                place = line["day"], model, what
                sums[place] = sums.get(place, 0) + line[word]
    return Ours(sums, names, untold, estimated)


def grouped(pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Our name -> label, and family of a provider's name -> label, of models that cannot be told apart in a bill."""
    groups: list[tuple[set[str], set[str]]] = []
    for name, their_name in pairs:
        ours, theirs = {name}, {family(their_name)}
        for other in [group for group in groups if group[0] & ours or group[1] & theirs]:
            groups.remove(other)
            ours |= other[0]
            theirs |= other[1]
        groups.append((ours, theirs))
    return (
        {name: ", ".join(sorted(ours)) for ours, _ in groups for name in ours},
        {name: ", ".join(sorted(ours)) for ours, theirs in groups for name in theirs},
    )


def compare(theirs: Export, ours: Ours) -> list[Compared]:
    """Every line of either; where the export names no model, ours are put together too."""
    by_day = not any(model for _, model, _ in theirs.sums)
    labels = {**theirs.names, **ours.labels}
    sums: dict[Line, list[int]] = {}
    for place, figures in enumerate((ours.sums, theirs.sums)):
        for (day, model, what), figure in figures.items():
            label = "" if by_day else labels.get(model) or model or NO_MODEL
            sums.setdefault((day, label, what), [0, 0])[place] += figure
    return [Compared(*line, *both) for line, both in sorted(sums.items())]


def totals(lines: Iterable[Compared]) -> list[Compared]:
    sums: dict[What, list[int]] = {}
    for line in lines:
        both = sums.setdefault(line.what, [0, 0])
        both[0] += line.ours
        both[1] += line.theirs
    return [Compared("total", "", what, *both) for what, both in sums.items()]


def _moment(seconds: int) -> Any:
    return write_time(seconds * NANO)
