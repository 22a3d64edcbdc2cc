"""What a token costs: the operator's prices first, then the catalogue, and every bill in whole nano-USD.

Rounding: the parts of a bill are summed exactly (integers of 1e-24 USD), and the sum of one attempt is rounded *up* to
the next nano-USD, once.  What a part costs whose price is not named is said in CHAINS.  A price is never guessed: no
price is None, not 0; an explicit 0 is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.exchange import Usage
from gateway.settings import Config, Model, Price

if TYPE_CHECKING:  # the catalogue is imported when a model first needs it: it takes 0.2 to 0.5 s and 17 MB
    from genai_prices import types as catalogue

NANO: Final = 10**15  # units of 1e-24 USD in one nano-USD: fine enough for every price in the catalogue
PER_MILLION: Final = 10**18  # units per token, of 1 USD per million tokens

# For each part: the prices that may pay for it, nearest first.  None of them named: 0, which happens to output alone
# (embeddings have none) and to the fee per request.  Cached audio with no price of its own gets no discount.
CHAINS: Final[Mapping[str, tuple[str, ...]]] = {
    "input": ("input",),
    "output": ("output",),
    "cached_input": ("cached_input", "input"),
    "cache_write": ("cache_write", "input"),
    "cache_write_1h": ("cache_write_1h", "cache_write", "input"),
    "reasoning": ("reasoning", "output"),
    "audio_input": ("audio_input", "input"),
    "audio_cached_input": ("audio_cached_input", "audio_input", "cached_input", "input"),
    "audio_output": ("audio_output", "output"),
    "image_input": ("image_input", "input"),
    "image_cached_input": ("image_cached_input", "image_input", "cached_input", "input"),
    "image_output": ("image_output", "output"),
    "request": ("request",),
}

# genai-prices' names, all in USD per million tokens.
CATALOGUE: Final[Mapping[str, str]] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_input",
    "cache_audio_read_mtok": "audio_cached_input",
    "output_audio_mtok": "audio_output",
    "input_image_mtok": "image_input",
    "cache_image_read_mtok": "image_cached_input",
    "output_image_mtok": "image_output",
}
REQUESTS: Final = "requests_kcount"  # USD per thousand requests
PLAIN_TIERS: Final = ("default", "flex")  # asked for: it, or the default.  Others, "auto" and none may get any

REMEMBERED: Final = 4096  # rates kept; callers without a configured model can name any


class Tariff(NamedTuple):
    """What each part costs, in units of 1e-24 USD per token (`request`: per request).  The parts do not overlap."""

    input: int
    output: int
    cached_input: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int
    audio_cached_input: int
    audio_output: int
    image_input: int
    image_cached_input: int
    image_output: int
    request: int


# Tariffs by size of the call, largest first: (a, t) holds for *all* tokens of a call with more than `a` input tokens,
# cached ones included.  The last is (-1, t).
Bands = tuple[tuple[int, Tariff], ...]

_Dearest = tuple[int, tuple[int, int, int]]  # above so many input tokens: per input, per output token, per request


@dataclass(slots=True, frozen=True)
class Rate:
    """The price of one model on one day.

    contexts: bands by (service tier, batch); ("", False) is the default and always there.
    uncounted: units in which the catalogue also bills and which no usage object tells (web searches …).
    varies: the catalogue's price changes within the day; the dearest of the day is used.
    free: every part costs 0 by the operator's or the catalogue's word, and nothing else is billed.
    """

    revision: str  # source, version and day: enough to find this price again
    contexts: Mapping[tuple[str, bool], Bands]
    uncounted: tuple[str, ...] = ()
    varies: bool = False
    free: bool = field(init=False)
    _dearest: dict[tuple[str, bool, bool], tuple[_Dearest, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        billed = any(any(tariff) for bands in self.contexts.values() for _, tariff in bands)
        object.__setattr__(self, "free", not billed and not self.uncounted)

    def cost(self, usage: Usage, tier: str = "", batch: bool = False) -> int:
        """nano-USD of one attempt, rounded up.

        tier: the service tier in the *answer*, not the one asked for; an unknown one costs the default.

        Parts that claim more than the whole (read_usage refuses such) are billed as they are; the rest is then 0.
        """
        if tier == "batch":
            tier, batch = "", True
        contexts = self.contexts
        bands = (
            contexts.get((tier, batch))
            or contexts.get(("", batch))
            or contexts.get((tier, False))
            or contexts["", False]
        )
        whole = usage.input
        tariff = bands[0][1]
        if whole <= bands[0][0]:
            tariff = next(tariff for above, tariff in bands if whole > above)
        u = usage
        audio_cached = u.audio_cache_read
        image_cached = u.image_cache_read
        audio = max(u.audio_input - audio_cached, 0)
        image = max(u.image_input - image_cached, 0)
        write, write_1h = u.cache_write, u.cache_write_1h
        text = max(whole - u.cache_read - audio - image - write - write_1h, 0)
        text_cached = max(u.cache_read - audio_cached - image_cached, 0)
        reasoning, audio_out, image_out = u.reasoning, u.audio_output, u.image_output
        text_out = max(u.output - reasoning - audio_out - image_out, 0)
        total = (
            tariff.request
            + text * tariff.input
            + text_cached * tariff.cached_input
            + write * tariff.cache_write
            + write_1h * tariff.cache_write_1h
            + text_out * tariff.output
            + reasoning * tariff.reasoning
        )
        if audio or image or audio_cached or image_cached or audio_out or image_out:
            total += (
                audio * tariff.audio_input
                + audio_cached * tariff.audio_cached_input
                + audio_out * tariff.audio_output
                + image * tariff.image_input
                + image_cached * tariff.image_cached_input
                + image_out * tariff.image_output
            )
        return -(-total // NANO)

    def worst(self, input: int, output: int, tier: str = "", audio: bool = True, image: bool = True) -> int:
        """nano-USD: no less than `cost` of any usage whose parts fit within so many tokens, at any tier it may get.

        tier: the one asked for.  audio, image: sound and pictures may be among the tokens (a picture that was *made*
        always may: some models make them unasked).
        """
        per_input, per_output, request = self.dearest(input, tier, audio, image)
        return -(-(request + input * per_input + output * per_output) // NANO)

    def dearest(self, input: int, tier: str, audio: bool, image: bool) -> tuple[int, int, int]:
        """Units per input token, per output token and per request of the dearest tariff that `worst` may meet."""
        key = (tier if tier in PLAIN_TIERS else "", audio, image)
        rows = self._dearest.get(key)
        if rows is None:
            rows = self._dearest[key] = _dearest(self.contexts, *key)
        above, dearest = rows[0]
        return dearest if input > above else next(dearest for above, dearest in rows if input > above)


class Prices:
    """Finds the price of a call: config.yaml's, else the catalogue's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._models: dict[str, Model] = {}
        for name, model in config.models.items():
            for known_as in (name, *model.aliases):
                self._models.setdefault(known_as, model)
        self._rates: dict[tuple[str, str, str, date], Rate | None] = {}

    def rate(self, alias: str, provider: str, model: str, day: date) -> Rate | None:
        """The price on `day` (UTC) of `model` at `provider`, called by callers `alias`; None: no price is known.

        provider: a name in config.yaml.  A price under `models:` wins, unless every one of them starts later than
        `day`.  The first catalogue look-up imports the catalogue (0.2 to 0.5 s): call `unpriced` before serving.
        """
        key = (alias, provider, model, day)
        try:
            return self._rates[key]
        except KeyError:
            pass
        if len(self._rates) >= REMEMBERED:
            self._rates.clear()
        rate = self._rates[key] = self._configured(alias, day) or self._catalogued(provider, model, day)
        return rate

    def unpriced(self, day: date) -> list[str]:
        """One sentence, with the mend, for every configured target that has no price.  Loads what `rate` needs."""
        complaints = []
        for alias, model in self._config.models.items():
            for target in model.targets:
                if self.rate(alias, target.provider, target.model, day) is None:
                    complaints.append(
                        f"models.{alias}: no price is known for {target.model!r} at provider {target.provider!r}"
                        f"{self._doubt(target.provider)}: set models.{alias}.price (0 means free)"
                    )
        return complaints

    def _doubt(self, provider: str) -> str:
        settings = self._config.providers.get(provider)
        if settings is None or settings.catalogue is None or _catalogue_provider(settings.catalogue, "") is not None:
            return ""
        return f" (the price catalogue has no provider {settings.catalogue!r}: mend providers.{provider}.catalogue)"

    def _configured(self, alias: str, day: date) -> Rate | None:
        model = self._models.get(alias)
        if model is None or model.price is None:
            return None
        prices = model.price if isinstance(model.price, list) else [model.price]
        started = [price for price in prices if price.since is None or price.since <= day]
        if not started:
            return None
        latest = max(started, key=lambda price: price.since or date.min)
        return configured(latest, f"config:{alias}@{latest.since or day}")

    def _catalogued(self, provider: str, model: str, day: date) -> Rate | None:
        settings = self._config.providers.get(provider)
        if settings is None or not model:
            return None
        if settings.catalogue is not None:
            seller = _catalogue_provider(settings.catalogue, "")
        else:
            seller = _catalogue_provider(provider, settings.base_url)
        return None if seller is None else catalogued(seller, model, day)


def configured(price: Price, revision: str) -> Rate:
    """The rate of an operator's price, which knows no tiers: batch and every service tier cost the same."""
    named = {part: getattr(price, part) for part in CHAINS if part != "request"}
    return Rate(revision, {("", False): ((-1, _tariff(named, price.request)),)})


def catalogued(seller: catalogue.Provider, model: str, day: date) -> Rate | None:
    """The catalogue's rate of a model; None if it has none that is told in tokens."""
    from genai_prices import __version__
    from genai_prices.data_snapshot import get_snapshot

    # Not the snapshot's own look-up: it remembers every name it was ever asked for.
    info = seller.find_model(model, all_providers=get_snapshot().providers)
    if info is None:
        return None
    moments = _moments(info, day)
    contexts: dict[tuple[str, bool], Bands] = {}
    unknown: set[str] = set()
    variants = info.price_variants or () if any(info is own for own in seller.models) else ()  # not of a borrowed model
    for tier, batch, context in _contexts(variants):
        offers = [info.get_prices(moment, context) for moment in moments]
        if any(offer.input_mtok is None for offer in offers):
            return None
        bands = max(map(_bands, offers), key=_dearness)
        if contexts.get(("", batch)) != bands:  # else `cost` finds it there
            contexts[tier, batch] = bands
        unknown.update(key for key in offers[0].__dict__ if key not in CATALOGUE and key != REQUESTS)
    revision = f"genai-prices {__version__}:{seller.id}/{info.id}@{day}"
    return Rate(revision, contexts, tuple(sorted(unknown)), varies=len(moments) > 1)


def price_note(rate: Rate) -> list[str]:
    """A price for people, one line per band and context, in USD per million tokens.

    Left out: a part that costs as the whole it belongs to.
    """
    lines = []
    for (tier, batch), bands in rate.contexts.items():
        for above, tariff in reversed(bands):
            where = [tier, "batch" if batch else "", f"above {above} input tokens" if above >= 0 else ""]
            heading = ", ".join(filter(None, where)) or "default"
            lines.append(f"{heading}: {', '.join(_named_parts(tariff))}")
    if rate.uncounted:
        lines.append(f"not counted: {', '.join(rate.uncounted)}")
    if rate.varies:
        lines.append("the price changes within the day: the dearest is used")
    return lines


def _named_parts(tariff: Tariff) -> Iterable[str]:
    rates = tariff._asdict()
    for part, chain in CHAINS.items():
        if part == "request":
            if tariff.request:
                yield f"{_usd(tariff.request, PER_MILLION * 10**6)} per request"
        elif rates[part] not in {rates[name] for name in chain[1:]}:
            yield f"{part} {_usd(rates[part], PER_MILLION)}"


def _usd(units: int, unit: int) -> str:
    whole, rest = divmod(units, unit)
    digits = f"{rest:0{len(str(unit)) - 1}}".rstrip("0")
    return f"{whole}.{digits:0<2}"


def _units(usd: Decimal, unit: int) -> int:
    """Exact for every price of up to 18 decimals per million tokens; a finer one is rounded up."""
    numerator, denominator = usd.as_integer_ratio()
    return -(-numerator * unit // denominator)


def _tariff(named: Mapping[str, Decimal | None], request: Decimal | None) -> Tariff:
    units = {part: _units(usd, PER_MILLION) for part, usd in named.items() if usd is not None}
    if request is not None:
        units["request"] = _units(request, PER_MILLION * 10**6)
    return Tariff(**{part: next((units[n] for n in chain if n in units), 0) for part, chain in CHAINS.items()})


def _dearness(bands: Bands) -> tuple[int, ...]:
    return tuple(tariff.input + tariff.output for _, tariff in bands)


def _dearest(contexts: Mapping[tuple[str, bool], Bands], tier: str, audio: bool, image: bool) -> tuple[_Dearest, ...]:
    """Largest first.  Each row holds the most of its own band and of all below it, which a shorter prompt may reach."""
    reached = [bands for (named, _), bands in contexts.items() if not tier or named in ("", tier)]
    rows: list[_Dearest] = []
    inward, outward, request = 0, 0, 0
    for above, t in sorted((band for bands in reached for band in bands), key=lambda band: band[0]):
        inward = max(inward, t.input, t.cached_input, t.cache_write, t.cache_write_1h)
        outward = max(outward, t.output, t.reasoning, t.image_output)
        if audio:
            inward, outward = max(inward, t.audio_input, t.audio_cached_input), max(outward, t.audio_output)
        if image:
            inward = max(inward, t.image_input, t.image_cached_input)
        request = max(request, t.request)
        rows.append((above, (inward, outward, request)))
    return tuple(reversed(rows))


def _bands(offer: catalogue.ModelPrice) -> Bands:
    """Catalogue tiers are cliffs, as providers bill: the tier's price holds for all tokens of the call."""
    from genai_prices.types import TieredPrices

    prices = {key: price for key, price in offer.__dict__.items() if key in CATALOGUE or key == REQUESTS}
    starts = {tier.start for price in prices.values() if isinstance(price, TieredPrices) for tier in price.tiers}

    def at(key: str, above: int) -> Decimal | None:
        price = prices.get(key)
        if isinstance(price, TieredPrices):
            return next((tier.price for tier in reversed(price.tiers) if tier.start <= above), price.base)
        return price

    bands = []
    for above in (*sorted(starts, reverse=True), -1):
        per_thousand = at(REQUESTS, above)
        fee = None if per_thousand is None else per_thousand / 1000
        bands.append((above, _tariff({part: at(key, above) for key, part in CATALOGUE.items()}, fee)))
    return tuple(bands)


def _contexts(variants: Sequence[catalogue.PriceVariant]) -> Iterable[tuple[str, bool, dict[str, str]]]:
    """(service tier, batch, the catalogue's words for it) of every way a model with these variants is sold."""
    tiers = dict.fromkeys(["", *(v.when["service_tier"] for v in variants if "service_tier" in v.when)])
    batches = [False, True] if any(v.when.get("processing") == "batch" for v in variants) else [False]
    for tier in tiers:
        for batch in batches:
            context = {"service_tier": tier} if tier else {}
            yield tier, batch, context | ({"processing": "batch"} if batch else {})


def _moments(info: catalogue.ModelInfo, day: date) -> list[datetime]:
    """The moments of a day at which a price may differ: one, but for the few models with prices by the hour."""
    from genai_prices.types import TimeOfDateConstraint

    limits = [offer.constraint for offer in info.prices] if isinstance(info.prices, list) else []
    limits += [variant.constraint for variant in info.price_variants or ()]
    hours = {time(12)}
    for limit in limits:
        if isinstance(limit, TimeOfDateConstraint):
            hours |= {limit.start_time, limit.end_time}
    return [datetime.combine(day, hour.replace(tzinfo=hour.tzinfo or UTC)) for hour in hours]


def _catalogue_provider(name: str, base_url: str) -> catalogue.Provider | None:
    """The catalogue's provider by its exact id, else the one whose address this is."""
    from genai_prices.data_snapshot import get_snapshot

    providers = get_snapshot().providers
    by_name = next((provider for provider in providers if provider.id == name.lower()), None)
    if by_name is not None:
        return by_name
    return next((provider for provider in providers if re.match(provider.api_pattern, base_url)), None)
