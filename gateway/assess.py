"""`tollkeeper assess`: runs one assessor over texts, to see what it would say before it is switched on."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click
import msgspec

if TYPE_CHECKING:  # imported when it is needed: `--help` answers at once
    from gateway.assessor import Assessor, Verdict


class Sample(NamedTuple):
    """A text, and whether it is what the assessor looks for; None: nobody said."""

    text: str
    unsafe: bool | None = None


class Judged(NamedTuple):
    sample: Sample
    verdict: Verdict | None  # None: the assessor failed
    took: int  # ns

    def acts(self, threshold: float) -> bool:
        return self.verdict is not None and 0 < self.verdict.score >= threshold


class Rates(NamedTuple):
    """Of samples that are labelled.  None: there were none to count."""

    precision: float | None  # of what was found, the share that is unsafe
    recall: float | None  # of what is unsafe, the share that was found
    false_alarms: float | None  # of what is safe, the share that was found


@click.command()
@click.option("--assessor", "use", required=True, help="As in config.yaml: secrets, or module:Class.")
@click.option("--settings", help="Its own words, as JSON.  [default: those of --config, else its defaults]")
@click.option("--config", "config", type=click.Path(dir_okay=False), help="Take its settings from this file.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Score from which a text counts."
)
@click.option("--stage", default="input", show_default=True, help="Which texts they are: input, output, …")
@click.option("--show", is_flag=True, help="Print the places found.  They may be secrets.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def assess(use: str, settings: str | None, config: str | None, **said: Any) -> None:
    """Run an assessor over FILE, without a gateway.

    Each line of FILE is a text as a JSON string; an object with `text`, and `unsafe: true|false` where that is known;
    a chat call with `messages`; or a record with its `content`, as /admin/v1/exchanges/{id} gives it.
    """
    from pydantic import ValidationError

    from gateway.assessor import NoAssessor

    try:
        assessor = _made(use, settings, config)
    except NoAssessor as error:
        _fail(f"{error.message}; {error.mend}")
    except (ValidationError, msgspec.DecodeError, TypeError) as error:
        _fail(f"the settings of {use} do not fit: {error}")
    threshold: float = said["threshold"]
    samples = list(read(Path(said["file"]).read_text(encoding="utf-8")))
    judged = asyncio.run(judge(assessor, samples, said["stage"]))
    for number, one in enumerate(judged, 1):
        click.echo(_line(number, one, threshold, said["show"]))
    click.echo(summary(judged, threshold), err=True)


def read(lines: str) -> Iterator[Sample]:
    """Texts of a JSON Lines file; a line that is no JSON is a text as it stands."""
    for line in lines.splitlines():
        if not line.strip():
            continue
        try:
            said = msgspec.json.decode(line)
        except msgspec.DecodeError:
            yield Sample(line)
            continue
        if isinstance(said, str):
            yield Sample(said)
        elif isinstance(said, dict):
            unsafe = said.get("unsafe")
            for text in _texts(said):
                yield Sample(text, unsafe if isinstance(unsafe, bool) else None)


async def judge(assessor: Assessor, samples: Sequence[Sample], stage: str = "input") -> list[Judged]:
    """One after the other."""
    judged = []
    for sample in samples:
        began = time.perf_counter_ns()
        try:
            verdict = await assessor.assess(sample.text, stage)
        except Exception as error:
            click.echo(f"the assessor failed: {type(error).__name__}", err=True)
            verdict = None
        judged.append(Judged(sample, verdict, time.perf_counter_ns() - began))
    return judged


def rates(judged: Sequence[Judged], threshold: float) -> Rates:
    known = [one for one in judged if one.sample.unsafe is not None]
    right = sum(bool(one.sample.unsafe) and one.acts(threshold) for one in known)
    found = sum(one.acts(threshold) for one in known)
    unsafe = sum(bool(one.sample.unsafe) for one in known)
    return Rates(
        right / found if found else None,
        right / unsafe if unsafe else None,
        (found - right) / (len(known) - unsafe) if len(known) > unsafe else None,
    )


def summary(judged: Sequence[Judged], threshold: float) -> str:
    """For people."""
    found = sum(one.acts(threshold) for one in judged)
    failed = sum(one.verdict is None for one in judged)
    told = [f"{len(judged)} texts, {found} at {threshold:g} or above, {failed} failures"]
    if judged:
        times = sorted(one.took for one in judged)
        told.append(f"median {statistics.median(times) / 1000:,.1f} us, slowest {times[-1] / 1000:,.1f} us")
    named = zip(("precision", "recall", "false alarms"), rates(judged, threshold), strict=True)
    told += [f"{name} {value:.3f}" for name, value in named if value is not None]
    return ", ".join(told)


def _texts(said: dict[str, Any]) -> Iterator[str]:
    if isinstance(text := said.get("text"), str):
        yield text
    if isinstance(content := said.get("content"), dict):
        yield from (text for text in (content.get("input"), content.get("output")) if isinstance(text, str) and text)
    for message in said["messages"] if isinstance(said.get("messages"), list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (
                part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
            )


def _line(number: int, one: Judged, threshold: float, show: bool) -> str:
    verdict = one.verdict
    if verdict is None:
        return f"{number}\tfailed"
    told = f"{number}\t{'found' if one.acts(threshold) else 'passed'}\t{verdict.score:.2f}\t{verdict.explanation}"
    if show:
        places = [f"{span.label}={one.sample.text[span.start : span.end]!r}" for span in verdict.spans]
        told += "\t" + " ".join(places)
    return told


def _made(use: str, said: str | None, config: str | None) -> Assessor:
    from gateway import assessor as assessors

    kind = assessors.find(use)
    own = msgspec.json.decode(said, type=dict[str, Any]) if said is not None else _configured(use, config)
    assessor = assessors.build(kind, kind.Settings.model_validate(own), {"inner": None})
    assessor.name = use
    return assessor


def _configured(use: str, config: str | None) -> dict[str, Any]:
    """Its own words in the first line that names it."""
    if config is None:
        return {}
    from gateway import config as configs
    from gateway.problems import ConfigError
    from gateway.settings import extras

    try:
        policies = configs.load(config).policies
    except ConfigError as error:
        _fail(str(error))
    lines = [
        (extras(policy), part) for policy in policies for part in configs.find_policy(policy.use).words(extras(policy))
    ]
    for line, part in lines:
        one = line["assessors"][part.place[1]]
        if use in (one.get("use"), one.get("name")):
            return part.said
    return _fail(f"{config} names no assessor {use}")


def _fail(message: str) -> NoReturn:
    click.echo(f"tollkeeper: {message}", err=True)
    sys.exit(2)
