"""The example and the settings say the same, and nothing is left out."""

from __future__ import annotations

import inspect
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from asyncpg import connect_utils
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from gateway.config import load
from gateway.settings import Config, Limits, Logs, PolicyUse, Provider, Server, extras
from gateway.source import Source

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
ENVIRONMENT = {"TOLLKEEPER_ADMIN_KEY": "admin-secret", "OPENAI_API_KEY": "sk-secret", "CHECKOUT_KEY": "tk-checkout"}
# What the example fills in although the default is nothing.
SHOWN = {
    "models",
    "models.gpt-4o-mini.price",
    "models.gpt-4o-mini.price.cached_input",
    "providers.openai.api_key",
    "server.admin_key",
    "teams",
    "teams.checkout.budgets",
    "teams.checkout.keys",
}


def walk(said: Any, raw: Any, path: str, found: dict[str, list[str]]) -> None:
    if isinstance(said, BaseModel):
        for name, field in type(said).model_fields.items():
            where = f"{path}.{name}".removeprefix(".")
            if name not in raw:
                found["missing"].append(where)
                continue
            value, default = getattr(said, name), field.get_default(call_default_factory=True)
            if default is not PydanticUndefined and not isinstance(default, BaseModel) and value != default:
                found["different"].append(where)
            walk(value, raw[name], where, found)
    elif isinstance(said, dict):
        for name, value in said.items():
            walk(value, raw[name], f"{path}.{name}", found)
    elif isinstance(said, list):
        for index, value in enumerate(said):
            walk(value, raw[index], f"{path}[{index}]", found)


def compare(text: str, config: Config) -> dict[str, list[str]]:
    source = Source("example", ENVIRONMENT)
    source.read(text)
    found: dict[str, list[str]] = {"missing": [], "different": []}
    walk(config, source.tree, "", found)
    return found


def test_the_example_shows_every_setting_with_its_default() -> None:
    found = compare(EXAMPLE.read_text(), load(EXAMPLE, ENVIRONMENT))
    assert found["missing"] == []
    assert set(found["different"]) == SHOWN


def test_a_setting_that_is_left_out_or_changed_would_be_noticed(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("    pool_seconds: 5.0 ", "    # ").replace("port: 4000", "port: 4001")
    changed = tmp_path / "config.yaml"
    changed.write_text(text)
    found = compare(text, load(changed, ENVIRONMENT))
    assert found["missing"] == ["providers.openai.pool_seconds"]
    assert set(found["different"]) == SHOWN | {"server.port"}


def test_every_setting_of_the_example_has_a_line_of_why() -> None:
    bare = [
        line.strip()
        for line in EXAMPLE.read_text().splitlines()
        if line.strip() and "#" not in line and not line.strip().endswith(":")
    ]
    obvious = (
        "output: 0.60",
        "service_name: tollkeeper",
        "- name: web",
        "key: ${CHECKOUT_KEY}",
        "limits: {requests_per_minute: null, ",  # the line above says why
        "users: {requests_per_minute: null, ",
        "tokens_per_day: null",
        "cache_write",
        "reasoning",
        "audio_",
        "image_",
    )
    assert [line for line in bare if not line.startswith(obvious)] == []


def test_settings_cannot_be_changed_and_unknown_words_are_refused_without_their_value() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Server().port = 1
    with pytest.raises(ValidationError) as refused:
        Logs.model_validate({"level": "hunter2-secret"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://u:p@host/v1", "https://host/v1?key=1", "https://host/v1#a", "https://ho st/", "host"]
)
def test_a_base_url_is_an_address_and_nothing_else(url: str) -> None:
    with pytest.raises(ValidationError):
        Provider(base_url=url)


STORES = [
    "sqlite:///tollkeeper.db",
    "postgresql://host/db",
    "postgres://user:pass@host:5432/db?sslmode=require",
    "postgresql://user:p%40ss%2Fword@[::1]:5432,[::2]:5432/db",
    "postgresql://one:5432,two:5432/db?target_session_attrs=read-write",
    "postgresql:///db?host=/var/run/postgresql",
]
NO_STORES = [
    "sqlite://x.db", "mysql://host/db", "postgresql:/host", "host/db", "postgresql://ho st/db",
    # What of a password could be read as a host, a port or a path would be quoted by whoever reads it so.
    "postgresql://user:hunter2#x@host/db", "postgresql://user:hunter2/x@host/db", "postgresql://user:hunter2@x@host/db",
    "postgresql://user:hunter2?x@host/db", "postgresql://host:hunter2/db",
]  # fmt: skip


@pytest.mark.parametrize("store", STORES)
def test_a_store_is_a_file_or_a_database_that_a_library_can_read_too(store: str) -> None:
    config = Config(store=store, providers={})
    assert config.store == store
    assert store not in repr(config)
    if store.startswith("postgres"):
        read = connect_utils._parse_connect_arguments
        unsaid = dict.fromkeys(inspect.signature(read).parameters)
        sizes = {name: 1 for name in unsaid if name.startswith(("statement_", "max_"))}
        read(**unsaid | sizes | {"dsn": store})


@pytest.mark.parametrize("store", NO_STORES)
def test_a_store_that_could_be_misread_is_refused_without_its_password(store: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Config(store=store, providers={})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("amount", [0, -1, 1.5, 10**13, "many"])
def test_a_limit_is_a_whole_number_of_at_least_1(amount: Any) -> None:
    for name in Limits.model_fields:
        with pytest.raises(ValidationError):
            Limits.model_validate({name: amount})


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    provider = Provider(base_url="https://x.io", api_key=SecretStr("sk-hidden"), headers={"X": SecretStr("sk-hidden")})
    assert "sk-hidden" not in repr(provider) + str(provider)


def test_prices_are_exact_decimals(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "providers: {a: {base_url: https://a.io}}\n"
        "models: {m: {targets: [{provider: a, model: m}], price: {input: 0.123456789, output: 123456789.000000001}}}\n"
    )
    price = load(file, {}).models["m"].price
    assert not isinstance(price, list)
    assert price is not None
    assert (price.input, price.output) == (Decimal("0.123456789"), Decimal("123456789.000000001"))


def test_extras_are_what_a_policy_line_says_besides() -> None:
    assert extras(PolicyUse.model_validate({"use": "cache", "fail_open": True, "ttl": "1h"})) == {"ttl": "1h"}
