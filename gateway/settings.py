"""What config.yaml may say: every setting, its type, its default.  A wrong word stops the start and names its place."""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, SecretStr, StringConstraints, Tag

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]
Usd = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=9)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@]+$")]


# What of an address of a database could be taken for something else must be written as %XX: so no part of a password is
# ever read as a host or a port, and quoted where that makes no sense.
POSTGRES: Final = (
    r"postgres(ql)?://([^:/?#@\s]*(:[^/?#@\s]*)?@)?"
    r"(\[[0-9A-Fa-f:.]+\]|[\w.%-]*)(:[0-9]+)?(,(\[[0-9A-Fa-f:.]+\]|[\w.%-]+)(:[0-9]+)?)*(/[^?#\s]*)?(\?[^#\s]*)?"
)
Store = Annotated[str, StringConstraints(pattern=rf"^(sqlite:///.+|{POSTGRES})$"), Field(repr=False)]


class Settings(BaseModel):
    """Frozen; unknown words are errors; the offending value is never echoed, for it may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(Settings):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 4000  # 0: any free port
    admin_key: SecretStr | None = None  # none: the admin plane is closed
    key_pepper: Annotated[SecretStr, Field(min_length=32)] | None = None  # none: one is made and kept beside the store
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # none: on the main port
    metrics_open: bool = True  # False: /metrics wants the admin key
    body_limit_mb: Annotated[int, Field(ge=1, le=4096)] = 50
    upload_limit_mb: Annotated[int, Field(ge=1, le=1_048_576)] = 2048  # files and forms, which pass through unheld
    receive_seconds: Seconds = 60.0  # a request's head and body must have arrived by then
    ping_seconds: Seconds | None = None  # a comment line on a stream that is silent for so long, after its first byte
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0  # on SIGTERM, what running requests get
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1  # gateways that serve the same callers


class Timeouts(Settings):
    """Four different things, in seconds."""

    connect: Seconds = 5.0  # until the connection, with TLS, stands
    first_byte: Seconds = 300.0  # from the request's last byte to the answer's first
    idle: Seconds = 120.0  # between two pieces of an answer
    total: Seconds = 1800.0  # from start to end of one attempt


class Provider(Settings):
    dialect: Literal["openai"] = "openai"
    base_url: Url
    allow_http: bool = False  # http:// beyond this machine and private networks: keys and prompts travel unencrypted
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = {}  # sent with every call, e.g. OpenAI-Organization
    forward_headers: list[str] = []  # request headers passed on to this provider besides the ordinary ones
    timeouts: Timeouts = Timeouts()
    max_connections: Annotated[int, Field(ge=1, le=65535)] = 512
    pool_seconds: Seconds = 5.0  # how long a call may wait for a free connection
    on_hangup: Literal["stop", "drain"] = "stop"  # drain: read a hung-up caller's answer to its end, for its usage
    drain_seconds: Seconds = 60.0
    propagate: Literal["none", "traceparent", "all"] = "none"  # W3C trace context sent to the provider
    transport: Literal["tollkeeper", "httpx"] = "tollkeeper"  # httpx: httpx2's own, for HTTP/2 and proxies
    failures_billed: bool = True  # may an answer of 500 or above cost something?  503 and 529 never do
    trust_env: bool = False  # httpx only: read proxies from the environment
    ca_file: str | None = None  # trust these authorities instead of the system's
    catalogue: str | None = None  # the provider's id in the price catalogue, where its name differs
    # The field in which this provider is sure to read a cap on a chat answer; auto: by its address.
    cap_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"


class Target(Settings):
    provider: Name
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1  # 0: only when the others failed


class Price(Settings):
    """USD per million tokens.  Overrides the catalogue.  What is not named costs as the part it belongs to."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None
    reasoning: Usd | None = None
    audio_input: Usd | None = None
    audio_cached_input: Usd | None = None
    audio_output: Usd | None = None
    image_input: Usd | None = None
    image_cached_input: Usd | None = None
    image_output: Usd | None = None
    request: Usd | None = None  # USD per request, on top
    since: date | None = None  # valid from this day (UTC)


def _one_or_several(value: object) -> str:
    """Which of the two a price is: so that what is wrong in it is told once."""
    return "list" if isinstance(value, list) else "one"


Prices = Annotated[
    Annotated[Price, Tag("one")] | Annotated[list[Price], Field(min_length=1), Tag("list")],
    Discriminator(_one_or_several),
]


Limit = Annotated[int, Field(ge=1, le=1_000_000_000_000)]


class Limits(Settings):
    """In no span of a minute or a day is more let through, wherever it begins.  None: no limit."""

    requests_per_minute: Limit | None = None
    requests_per_day: Limit | None = None
    tokens_per_minute: Limit | None = None  # prompt and answer; reserved before the call, corrected after it
    tokens_per_day: Limit | None = None
    concurrent: Limit | None = None  # calls running at once


Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise ValueError("no such time zone; use an IANA name such as Europe/Berlin") from None
    return name


class Budget(Settings):
    """What may be spent in each day, ISO week or month, or (total) ever.  One for each scope and period."""

    limit_usd: Annotated[Decimal, Field(ge=0, le=9_200_000_000, max_digits=19, decimal_places=9)]
    per: Literal["day", "week", "month", "total"]
    hard: bool = True  # refuses what may not fit, before it is sent; False: only counts, and warns
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"  # at whose midnight the period begins
    warn_at: list[Annotated[float, Field(gt=0, le=10)]] = [0.8, 0.95]  # parts of the limit that are told in the log


def _distinct(budgets: list[Budget]) -> list[Budget]:
    twice = [per for per, times in Counter(budget.per for budget in budgets).items() if times > 1]
    if twice:
        raise ValueError(f"two budgets per {twice[0]}: keep one of them")
    return budgets


Budgets = Annotated[list[Budget], AfterValidator(_distinct)]


class Model(Settings):
    targets: Annotated[list[Target], Field(min_length=1, max_length=64)]
    price: Prices | None = None  # a list: effective-dated
    aliases: list[Name] = []
    fallbacks: list[Name] = []  # models tried in this order once every target here has failed
    max_attempts: Annotated[int, Field(ge=1, le=16)] = 3  # over targets and fallbacks together
    limits: Limits = Limits()  # of all teams together
    # What bounds the cost of a call before it is sent, for hard budgets (gateway/bounds.py).
    output_tokens: Tokens = 4096  # the cap of a chat call that sets none of its own
    max_output_tokens: Tokens | None = None  # a call's own cap is lowered to this
    max_input_tokens: Tokens | None = None  # the provider takes no longer prompt; pictures come on top
    image_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = 50_000  # the most one picture is billed for
    max_cost_usd: Usd | None = None  # the most a call may cost of which the gateway cannot tell

    budgets: Budgets = []  # of all teams together


class Key(Settings):
    name: Name
    key: SecretStr
    limits: Limits = Limits()
    budgets: Budgets = []


class Team(Settings):
    keys: list[Key] = []
    models: list[Name] | None = None  # none: all
    provider: Name | None = None  # where calls go that name no model (files, batches …)
    content: Literal["none", "redacted", "full"] = "none"  # what of prompts and answers is stored
    limits: Limits = Limits()
    users: Limits = Limits()  # of each of its users (x-user-id); calls that name none count as one user
    budgets: Budgets = []
    user_budgets: Budgets = []  # of each of its users, likewise
    feature_budgets: Budgets = []  # of each of its features (x-feature), likewise


class PolicyUse(BaseModel):
    """One line of `policies:`.  What it says besides `use` belongs to the policy's own Settings."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    use: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    fail_open: bool | None = None  # when the policy itself breaks: let the call pass


class Traces(Settings):
    otlp_endpoint: Url | None = None  # e.g. http://127.0.0.1:4318 ; none: no traces are exported
    headers: dict[str, SecretStr] = {}
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0  # of ordinary requests; errors, slow, dear ones are always kept
    per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0  # and no more of the ordinary ones than this
    slow_seconds: Seconds = 30.0
    dear_usd: Usd = Decimal("1")
    content: Literal["none", "redacted", "full"] = "none"  # on spans; a team's own setting can only narrow it
    inbound: Literal["continue", "restart"] = "continue"  # a caller's traceparent
    service_name: str = "tollkeeper"
    resource: dict[str, str] = {}
    queue: Annotated[int, Field(ge=16, le=1_000_000)] = 4096


class Logs(Settings):
    format: Literal["json", "ecs", "text"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = True
    queue: Annotated[int, Field(ge=16, le=1_000_000)] = 65536


class Records(Settings):
    enabled: bool = True
    days: Annotated[int, Field(ge=1, le=36_500)] = 30
    queue: Annotated[int, Field(ge=16, le=1_000_000)] = 65536


class Telemetry(Settings):
    traces: Traces = Traces()
    logs: Logs = Logs()
    records: Records = Records()


class Config(Settings):
    server: Server = Server()
    store: Store = "sqlite:///tollkeeper.db"
    counters: Annotated[str, StringConstraints(pattern=r"^(memory://|(valkey|redis)s?://\S+)$")] = "memory://"
    providers: dict[Name, Provider]
    models: dict[Name, Model] = {}
    teams: dict[Name, Team] = {}
    budgets: Budgets = []  # of all teams together
    policies: list[PolicyUse] = [PolicyUse(use="access"), PolicyUse(use="rate_limit"), PolicyUse(use="budget")]
    telemetry: Telemetry = Telemetry()


def extras(use: PolicyUse) -> dict[str, Any]:
    """What a policy's line says beyond `use` and `fail_open`."""
    return dict(use.model_extra or {})


def budgeted(config: Config) -> bool:
    """Is a budget declared anywhere?"""
    teams = config.teams.values()
    return bool(
        config.budgets
        or any(model.budgets for model in config.models.values())
        or any(team.budgets or team.user_budgets or team.feature_budgets for team in teams)
        or any(key.budgets for team in teams for key in team.keys)
    )
