"""Says what the gateway understands from a configuration, or everything that is wrong with it: `tollkeeper check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as File

from gateway.config import load, masked
from gateway.problems import ConfigError
from gateway.settings import Config, Model, Target

# (config, a model's name, one of its targets) -> lines about its price, with where it comes from; none: unpriced
PriceNotes = Callable[[Config, str, Target], Sequence[str]]


def report(
    path: str | File, notes: PriceNotes | None = None, environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The exit status and the text to print: 0 and what was understood, or 2 and every problem with its place and mend.

    notes: what is known of prices; without it only config.yaml's own are told.
    """
    try:
        config = load(path, environ)
    except ConfigError as error:
        count = len(error.problems)
        return 2, f"{error}\n{count} {'problem' if count == 1 else 'problems'}."
    return 0, "\n".join(_summary(File(path).name, config, notes or _own_prices))


def _own_prices(config: Config, name: str, target: Target) -> Sequence[str]:
    price = config.models[name].price
    if price is None:
        return ()
    lines = []
    for one in price if isinstance(price, list) else [price]:
        parts = [f"{part} {usd:f}" for part, usd in one if part != "since" and usd is not None]
        since = f" from {one.since}" if one.since else ""
        lines.append(f"{', '.join(parts)} USD per million tokens{since} (this file)")
    return lines


def _summary(file: str, config: Config, notes: PriceNotes) -> Iterable[str]:
    server = config.server
    yield f"{file} is valid."
    yield f"server      {server.host}:{server.port}, admin plane {_admin(config)}"
    yield f"store       {masked(config.store)}"
    yield f"policies    {', '.join(use.use for use in config.policies) or 'none'}"
    yield f"telemetry   {_telemetry(config)}"
    yield "providers"
    for name, provider in config.providers.items():
        key = "with a key" if provider.api_key or provider.headers else "without a key"
        yield f"  {name}: {provider.dialect} at {provider.base_url}, {key}"
    yield "models" if config.models else "models      none: only calls that name no model can be served"
    for name, model in config.models.items():
        yield from _model(config, name, model, notes)
    yield "teams" if config.teams else "teams       none: every call will be refused, for no key is known"
    for name, team in config.teams.items():
        models = "all models" if team.models is None else ", ".join(team.models) or "no model"
        keys = ", ".join(key.name for key in team.keys) or "none: it cannot call"
        yield f"  {name}: {models}; keys {keys}"


def _model(config: Config, name: str, model: Model, notes: PriceNotes) -> Iterable[str]:
    yield f"  {name}" + (f" (also {', '.join(model.aliases)})" if model.aliases else "")
    total = sum(target.weight for target in model.targets)
    for target in model.targets:
        share = f"{100 * target.weight / total:.3g} %" if target.weight else "when the others have failed"
        if not total or len(model.targets) == 1:
            share = "all calls" if len(model.targets) == 1 else "in this order"
        yield f"    -> {target.provider}/{target.model}: {share}"
        priced = notes(config, name, target)
        yield from (f"         {line}" for line in priced)
        if not priced:
            yield f"         no price is known: its cost cannot be told; set models.{name}.price (0 means free)"
    if model.fallbacks:
        tries = f"at most {model.max_attempts} attempts in all"
        yield f"    then {', then '.join(model.fallbacks)}: {tries}"


def _admin(config: Config) -> str:
    server = config.server
    if server.admin_key is None:
        return "closed (no server.admin_key)"
    return f"open on port {server.admin_port}" if server.admin_port is not None else "open on the same port"


def _telemetry(config: Config) -> str:
    told = config.telemetry
    traces = f"traces to {told.traces.otlp_endpoint}" if told.traces.otlp_endpoint else "no traces"
    records = f"records for {told.records.days} days" if told.records.enabled else "no records"
    return f"{traces}, {told.logs.format} logs at {told.logs.level}, {records}"
