"""Tells people what happened to one request: asked, decided, tried, answered, paid, and how long each took."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, TextIO
from urllib.parse import quote

import httpx2
import msgspec

from gateway.store import AttemptRecord, Record, usd

LABEL: Final = 10  # columns for the word at the start of a line
LEAST_WIDTH: Final = 60

# The phases of an attempt, as they are drawn: until the request left, until the answer's head came, until its first
# chunk came, until its end.
PHASES: Final = (("-", "connect"), (".", "wait"), (":", "first byte"), ("=", "stream"))

NEXT: Final[Mapping[str, str]] = {
    "invalid_json": "mend the JSON of the request body",
    "invalid_request": "mend the field that the message names",
    "invalid_type": "mend the type of the field that the message names",
    "duplicate_field": "send each field of the request body once",
    "body_too_large": "send less, or raise server.body_limit_mb",
    "body_incomplete": "look at the network between the caller and the gateway, or raise server.receive_seconds",
    "unsupported_media_type": "send the content-type that the message names",
    "unsupported_encoding": "send the body without that content-encoding",
    "method_not_allowed": "use the method that the message names",
    "not_found": "check the path",
    "model_not_found": "add the model under models: in config.yaml, or ask for one that GET /v1/models lists",
    "provider_required": "name a model, or set the team's provider: in config.yaml",
    "missing_api_key": "send the key as `Authorization: Bearer ...`",
    "invalid_api_key": "check the key, and whether it was revoked",
    "several_api_keys": "send the key once",
    "admin_only": "use the admin key (server.admin_key)",
    "not_allowed": "ask somebody whose admin token has the role or the team for it",
    "already_exists": "take another name, or change what is there",
    "declared_in_config": "change it in config.yaml, which wins over the admin API",
    "already_revoked": "create a new key; one that was revoked stays so",
    "below_committed": "set a higher limit, or say force: then nothing more is admitted",
    "in_use": "delete or revoke first what the message names",
    "model_not_allowed": "add the model to the team's models: in config.yaml",
    "policy_failed": "look in the gateway's log for this request's id; fail_open: true lets calls pass meanwhile",
    "budget_exhausted": "lower the call's max_completion_tokens, raise the budget, or wait for its next period",
    "budget_contended": "ask again; the budget is nearly used up and other calls hold what is left",
    "budget_frozen": "ask who stopped the budget",
    "budget_unavailable": "ask again; look whether the ledger's database answers",
    "model_unpriced": "leave out what the message names, or set the model's price: or max_cost_usd: in config.yaml",
    "rate_limited": "ask again after Retry-After, or raise the team's limits: in config.yaml",
    "idempotency_in_flight": "ask again: the call that came first is under way, and you get its answer",
    "idempotency_mismatch": "use a new Idempotency-Key for another body",
    "blocked_by_safety": "look at what was judged, above, for the assessor that refused",
    "upstream_refused": "mend the request as the provider's words say; a retry cannot help",
    "upstream_rate_limited": "ask again later, add a target or a fallback, or raise the quota at the provider",
    "upstream_auth": "check the provider's api_key: in config.yaml",
    "upstream_error": "ask again; if it stays, add a fallback and look at the provider's status page",
    "upstream_unavailable": "check base_url and the network to the provider, or add a fallback",
    "upstream_timeout": "raise the provider's timeouts: in config.yaml, or add a fallback",
    "upstream_protocol": "check that base_url speaks the configured dialect",
    "upstream_broke_off": "ask again; the part that was received may have been billed",
    "upstream_too_large": "ask for a shorter answer",
    "overloaded": "ask again after Retry-After, or raise the provider's max_connections",
    "shutting_down": "ask again; another instance, or the restarted one, will answer",
    "client_gone": "nothing here: the caller hung up; check the caller's own time-out",
    "internal_error": "look in the gateway's log for this request's id, and report it",
}

_DULL, _RED, _GREEN, _BOLD = "2", "31", "32", "1"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class CannotExplain(Exception):
    """The record cannot be had; the message says why and what to do."""


def waterfall(record: Record, width: int = 100, colour: bool = False) -> str:
    """The whole story as lines of text, bars within `width` columns (60 at least).  Ends with a newline.

    colour: with ANSI colours; see colourful.
    """
    page = _Page(record, max(width, LEAST_WIDTH), colour)
    page.title()
    page.asked()
    page.decided()
    page.judged()
    page.tried()
    page.answered()
    page.took()
    page.failed()
    page.said()
    return "\n".join(page.lines) + "\n"


def colourful(stream: TextIO) -> bool:
    """Only a terminal gets colours, and only where NO_COLOR (no-color.org) is unset or empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def fetch(url: str, key: str, id: str) -> Record:
    """The record of a request from a running gateway's admin API.  Raises CannotExplain.  Blocks up to 10 seconds."""
    where = f"{url.rstrip('/')}/admin/v1/exchanges/{quote(id, safe='')}"
    try:
        # Not followed: a redirect would carry the admin key elsewhere.
        answer = httpx2.get(where, headers={"authorization": f"Bearer {key}"}, timeout=10.0, follow_redirects=False)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise CannotExplain(f"{url} cannot be asked ({type(error).__name__}): is the gateway running there?") from error
    if answer.status_code == 404:
        raise CannotExplain(f"{url} has no record of {id}: too old, of another gateway, or records are switched off")
    if answer.status_code in (401, 403):
        raise CannotExplain(f"{url} does not take this admin key: give server.admin_key of that gateway")
    if answer.status_code != 200:
        raise CannotExplain(f"{url} answered {answer.status_code}; look in its log")
    try:
        return msgspec.json.decode(answer.content, type=Record)
    except msgspec.DecodeError as error:
        raise CannotExplain(f"{url} answered with something else than a record: is it a Tollkeeper?") from error


class _Page:
    """Lines in the making."""

    def __init__(self, record: Record, width: int, colour: bool) -> None:
        self.record = record
        self.lines: list[str] = []
        self._width = width
        self._colour = colour

    def title(self) -> None:
        r = self.record
        outcome = self._paint(str(r.status), _RED if r.error else _GREEN)
        self.lines.append(f"{self._paint(_clean(r.id), _BOLD)}  {_clean(r.method)} {_clean(r.path)}  {outcome}")
        facts = [r.at, f"trace {_clean(r.trace_id)}"]
        if r.cache:
            facts.append(f"cache {_clean(r.cache)}" + (f", saved ${usd(r.saved_nano)}" if r.saved_nano else ""))
        self.lines.append("  ".join(facts))
        self.lines.append("")

    def asked(self) -> None:
        r = self.record
        self._line("asked", f"by team {_name(r.team)} with key {_name(r.key)} from {_name(r.client)}")
        how = "streamed" if r.stream else "in one piece"
        self._line("", f"{_clean(r.endpoint)}: model {_name(r.model)}, {how}")
        told = [
            (word, value) for word, value in (("session", r.session), ("user", r.user), ("feature", r.feature)) if value
        ]
        if r.tags:
            told.append(("tags", ", ".join(r.tags)))
        if told:
            self._line("", ", ".join(f"{word} {_clean(value)}" for word, value in told))

    def decided(self) -> None:
        label = "decided"
        for d in self.record.decisions:
            bad = d.outcome.startswith(("denied", "failed"))
            outcome = self._paint(f"{_clean(d.outcome):<28}", _RED if bad else "")
            self._line(label, f"{_clean(d.hook):<8} {_clean(d.policy):<16} {outcome} {d.took_us:>12,.3f} us")
            label = ""
        if label:
            self._line(label, "nothing: no policy was asked")

    def judged(self) -> None:
        label = "judged"
        for one in self.record.assessments:
            bad = one.verdict in ("blocked", "failed", "failed_open")
            verdict = self._paint(f"{one.verdict:<12}", _RED if bad else "")
            said = _clean(one.explanation or one.error)
            self._line(label, f"{_clean(one.stage):<16} {_clean(one.assessor):<16} {verdict} {one.score:4.2f}  {said}")
            label = ""

    def tried(self) -> None:
        attempts = self.record.attempts
        if not attempts:
            answered = self.record.error is None
            self._line("tried", "no provider: " + ("a policy answered" if answered else "refused before one was asked"))
            return
        legend = "  ".join(f"{mark} {name}" for mark, name in PHASES)
        self._line("tried", self._paint(f"0 to {_time(self.record.timings.total_us)}   {legend}", _DULL))
        for number, attempt in enumerate(attempts, 1):
            self._attempt(number, attempt)

    def _attempt(self, number: int, a: AttemptRecord) -> None:
        outcome = f"{a.error.code}" if a.error else ("complete" if a.complete else "incomplete")
        status = str(a.status) if a.status else "no answer"
        painted = self._paint(f"{status} {_clean(outcome)}", _RED if a.error else _GREEN)
        self._line(
            str(number).rjust(LABEL - 2),
            f"{_name(a.provider)}/{_name(a.model)}  ({_clean(a.why) or 'first'})  {painted}",
        )
        self._line("", f"|{bar(a, self.record.timings.total_us, self._width - LABEL - 2)}|")
        phases = [f"{name} {_time(took)}" for name, took in _phases(a)]
        if a.started_us is not None:
            phases.insert(0, f"begun at {_time(a.started_us)}")
        self._line("", ", ".join(phases) or "never begun")
        self._line("", _bill(a))
        if a.error is not None:
            self._line("", f"error: {_clean(a.error.message)}")
        served = [_clean(a.response_model)] if a.response_model not in ("", a.model) else []
        names = [
            ("served as", served),
            ("finish", a.finish),
            ("response", [a.response_id]),
            ("provider's id", [a.provider_request_id]),
        ]
        if told := [f"{word} {_clean(', '.join(values))}" for word, values in names if any(values)]:
            self._line("", ", ".join(told))

    def answered(self) -> None:
        r = self.record
        whole = "complete" if r.error is None else "not complete"
        self._line("answered", f"{r.status}, {whole}, {r.sent_bytes:,} bytes")
        t = r.tokens
        guess = ", estimated" if t.estimated else ""
        parts = [
            f"{n:,} {word}" for n, word in ((t.cache_read, "from cache"), (t.cache_write, "written to cache")) if n
        ]
        asked = f"{t.input:,} in" + (f" ({', '.join(parts)})" if parts else "")
        answered = f"{t.output:,} out" + (f" ({t.reasoning:,} reasoning)" if t.reasoning else "")
        self._line("tokens", f"{asked}, {answered}{guess}")
        paid = (
            "unknown: an attempt above has no price or no usage"
            if r.cost_nano is None
            else f"${r.cost_usd} ({r.cost_nano:,} nano-USD)"
        )
        self._line("paid", paid)

    def took(self) -> None:
        t = self.record.timings
        first = f", first byte out after {_time(t.first_byte_us)}" if t.first_byte_us is not None else ""
        self._line("took", f"{_time(t.total_us)} in all{first}")
        self._line(
            "", f"until then {_time(t.upstream_us)} waiting for providers, {_time(t.overhead_us)} in the gateway"
        )

    def failed(self) -> None:
        error = self.record.error
        if error is None:
            return
        self._line("error", self._paint(_clean(error.code), _RED) + f": {_clean(error.message)}")
        self._line("next", NEXT.get(error.code, "look in the gateway's log for this request's id"))

    def said(self) -> None:
        content = self.record.content
        if content is not None:
            self._line("input", _clean(content.input))
            self._line("output", _clean(content.output))

    def _line(self, label: str, text: str) -> None:
        self.lines.append(f"{self._paint(f'{label:<{LABEL}}', _BOLD)}{text}".rstrip())

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code and text.strip() else text


def bar(attempt: AttemptRecord, total_us: int, columns: int) -> str:
    """The attempt's phases on an axis of `columns` that stands for the whole request; spaces where it did not run."""
    points = [attempt.started_us, attempt.sent_us, attempt.headers_us, attempt.first_byte_us, attempt.ended_us]
    cells = [" "] * columns
    span = max(total_us, attempt.ended_us or 0, 1)
    last = None
    for index, point in enumerate(points):
        if point is None:
            continue
        if last is not None and point > last:
            first = min(last * columns // span, columns - 1)
            end = max(point * columns // span, first + 1)  # a phase that took any time is seen, however short it was
            cells[first:end] = PHASES[index - 1][0] * (min(end, columns) - first)
        last = point
    return "".join(cells)


def _phases(attempt: AttemptRecord) -> list[tuple[str, int]]:
    """How long each phase took in microseconds; a phase that did not happen counts to the one after it."""
    points = [attempt.started_us, attempt.sent_us, attempt.headers_us, attempt.first_byte_us, attempt.ended_us]
    told: list[tuple[str, int]] = []
    last = points[0]
    for (_, name), point in zip(PHASES, points[1:], strict=True):
        if point is not None and last is not None:
            told.append((name, point - last))
            last = point
    return told


def _bill(attempt: AttemptRecord) -> str:
    if attempt.usage is None:
        if attempt.cost_nano is None:
            return "billed, but no usage is known"
        return "certainly not billed" if attempt.free else "no usage, nothing to pay"
    u = attempt.usage
    guess = " estimated" if u.estimated else ""
    tokens = f"{u.input:,} tokens in, {u.output:,} out{guess}"
    if attempt.cost_nano is None:
        return f"{tokens}; no price is known"
    by = f" by price {_clean(attempt.price_revision)}" if attempt.price_revision else ""
    return f"{tokens}; ${attempt.cost_usd}{by}"


def _time(us: int) -> str:
    """Microseconds for people, none of them lost: 812 us, 12.345 ms, 3.000123 s."""
    if abs(us) < 1000:
        return f"{us} us"
    return f"{us / 1000:.3f} ms" if abs(us) < 1_000_000 else f"{us / 1_000_000:.6f} s"


def _name(text: str) -> str:
    return _clean(text) or "(none)"


def _clean(text: str) -> str:
    """Without control characters: a caller's words must not move the cursor of the operator's terminal."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)
