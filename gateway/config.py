"""Turns config.yaml into settings: everything that is wrong is told at once, with its place and how to mend it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import secrets
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path as File
from typing import Any, Final
from urllib.parse import unquote

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from gateway.policy import Policy, Words
from gateway.problems import ConfigError, Path, Problem, nearest
from gateway.references import References
from gateway.settings import Config, PolicyUse, extras
from gateway.source import Source, shown
from gateway.vendors import CLOSED, VENDORS, fill
from gateway.wording import translate, unknown, words_of

__all__ = [
    "Config",
    "ConfigError",
    "NoPolicy",
    "Problem",
    "effective",
    "find_policy",
    "from_environment",
    "load",
    "masked",
    "passwords",
    "policy_settings",
]

# Where an address holds a password: postgresql://user:HERE@host/db?password=HERE
PASSWORDS: Final = (re.compile(r"(://[^:/@\s]*:)([^/\s]*)(@)"), re.compile(r"([?&][^=&\s]*pass[^=&\s]*=)([^&\s]*)()"))
SECRET_WORDS: Final = re.compile(r"(key|token|secret|password|passphrase|credentials?|authorization)$", re.IGNORECASE)


class NoPolicy(Exception):
    """`use:` names no policy that can be loaded.  mend: what to do about it."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


def load(path: str | File, environ: Mapping[str, str] | None = None) -> Config:
    """What the file says, with `${NAME}` from the environment and TOLLKEEPER_… variables over it.  Raises ConfigError.

    environ: the process's own where None.
    """
    source = Source(File(path).name, os.environ if environ is None else environ)
    try:
        data = File(path).read_bytes()
    except OSError as error:
        mend = "name another with --config, or start from config.example.yaml"
        raise ConfigError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}", mend)]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError([Problem(source.file, line, column, "", "not UTF-8", "save the file as UTF-8")]) from None
    source.read(text)
    source.override()
    return build(source)


def build(source: Source) -> Config:
    """Settings from plain values, checked one by one and against each other.  Raises ConfigError: all that is wrong."""
    config = None
    try:
        config = Config.model_validate(source.tree)
    except ValidationError as error:
        translate(source, error, (), Config)
    _check_policies(source)
    References(source).check()
    if source.problems or config is None:
        raise ConfigError(source.problems)
    return config


def from_environment(environ: Mapping[str, str] | None = None) -> tuple[Config, str]:
    """A configuration without a file, and what to tell the operator, once: it holds the first key.  Raises ConfigError.

    A provider for each vendor whose variable is set; a team `default`, which has that key; TOLLKEEPER_… over it all.
    """
    source = Source("environment", os.environ if environ is None else environ)
    fill(source)
    closed = [
        f"{variable} is set, but {vendor}'s own dialect is not spoken yet."
        for variable, vendor in CLOSED.items()
        if source.environ.get(variable)
    ]
    if not source.tree:
        variables = ", ".join(vendor.variable for vendor in VENDORS)
        mend = f"set one of {variables}, or OPENAI_BASE_URL for a server of your own, or write a config.yaml"
        wrong = " ".join(["no provider is configured.", *closed]).rstrip(".")
        raise ConfigError([Problem("environment", 0, 0, "", wrong, mend)])
    first = f"tk-{secrets.token_urlsafe(32)}"
    source.tree["teams"] = {
        "default": {"keys": [{"name": "first", "key": first}], "provider": next(iter(source.tree["providers"]))}
    }
    if admin_key := source.environ.get("TOLLKEEPER_ADMIN_KEY"):
        source.put(("server", "admin_key"), admin_key, "TOLLKEEPER_ADMIN_KEY")
    source.override()
    config = build(source)
    notice = [f"Providers from the environment: {', '.join(config.providers)}.", *closed]
    if first in (key.key.get_secret_value() for key in config.teams["default"].keys):
        notice += ["This key is new at each start and is shown only now:", f"  {first}"]
    return config, "\n".join(notice)


def effective(config: Config) -> str:
    """Every setting as it is in force, as YAML.  Of a secret at most the last 4 characters are shown."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes prices as they were written: 0.15, not 0.1499999."""


def _decimal(dumper: _Dumper, value: Decimal) -> yaml.ScalarNode:
    text = format(value, "f")
    return dumper.represent_scalar(f"tag:yaml.org,2002:{'float' if '.' in text else 'int'}", text)


_Dumper.add_representer(Decimal, _decimal)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # no &id001 where defaults are shared


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return f"…{secret[-4:]}" if len(secret) > 16 else "…"
    if isinstance(value, PolicyUse):
        says = _plain(policy_settings(value)) or {}
        guarded = {word: _plain(_guarded(word, said)) for word, said in says.items()}
        return {"use": value.use, "fail_open": value.fail_open, **guarded}
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
        return _plain(fields)
    if isinstance(value, dict):
        return {str(name): _plain(_guarded(str(name), inner)) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return masked(value)
    return value if isinstance(value, bool | int | float | Decimal | date | None) else str(value)


def masked(text: str) -> str:
    """An address without its passwords."""
    for pattern in PASSWORDS:
        text = pattern.sub(r"\1…\3", text)
    return text


def passwords(address: str) -> list[str]:
    """Those that stand in an address, as they are written there and as they are meant."""
    written = [found[1] for pattern in PASSWORDS for found in pattern.findall(address)]
    return list(dict.fromkeys([*written, *map(unquote, written)]))


def _guarded(name: str, value: Any) -> Any:
    """A policy of an operator's own may keep a secret as plain text: its name gives it away."""
    return SecretStr(value) if isinstance(value, str) and "…" not in value and SECRET_WORDS.search(name) else value


def find_policy(use: str) -> type[Policy[Any]]:
    """The class behind `use: rate_limit` (policies.rate_limit.RateLimit) or `use: acme.guard:Pii`.  Raises NoPolicy."""
    module_name, _, class_name = use.partition(":") if ":" in use else (f"policies.{use}", ":", _camel(use))
    if ":" not in use and use not in (known := _known_policies()):
        raise NoPolicy(f'no policy named "{shown(use)}"', nearest(use, known, "policies"))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NoPolicy(f"{module_name} cannot be imported: {error}", "install the package that holds it") from error
    except Exception as error:  # an operator's module may raise anything, and its words could hold a secret
        raise NoPolicy(f"{module_name} raised {type(error).__name__} while imported", "mend that module") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise NoPolicy(f"{module_name} has no policy {class_name}", "it must be a subclass of gateway.policy.Policy")
    return found


def policy_settings(use: PolicyUse) -> BaseModel | None:
    """What a policy's line says, as the policy's own Settings; None where the policy has none.

    Raises NoPolicy, and pydantic's ValidationError for a use that did not come from load().
    """
    model = _settings_of(find_policy(use.use))
    return model.model_validate(extras(use)) if model else None


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))


def _known_policies() -> list[str]:
    import policies  # not at the top: gateway works without any

    found = pkgutil.iter_modules(policies.__path__)
    return sorted(one.name for one in found if not (one.ispkg or one.name.startswith("_")))


def _settings_of(policy: type[Policy[Any]]) -> type[BaseModel] | None:
    model = getattr(policy, "Settings", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _check_policies(source: Source) -> None:
    uses = source.tree.get("policies")
    for index, says in enumerate(uses if isinstance(uses, list) else []):
        use = says.get("use") if isinstance(says, dict) else None
        path: Path = ("policies", index)
        if not isinstance(use, str) or not re.fullmatch(r"[a-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*", use):
            continue  # settings.py says so already
        try:
            policy = find_policy(use)
        except NoPolicy as error:
            source.report((*path, "use"), error.message, error.mend)
            continue
        if says.get("fail_open") is True and not policy.may_fail_open:
            source.report((*path, "fail_open"), f'the policy "{use}" never fails open', "leave the word out")
        own = {word: value for word, value in says.items() if word not in PolicyUse.model_fields}
        model = _settings_of(policy)
        known = [*PolicyUse.model_fields, *words_of(model)]
        if model is None or model.model_config.get("extra", "ignore") == "ignore":
            for word in [word for word in own if word not in known]:
                unknown(source, (*path, word), known)
        if model is not None:
            try:
                model.model_validate(own)
            except ValidationError as error:
                translate(source, error, path, model)
        for part in policy.words(says):
            _check_words(source, (*path, *part.place), part)


def _check_words(source: Source, path: Path, part: Words) -> None:
    """What stands in a policy's line and belongs to something that the policy loads."""
    if part.model is None:
        source.report(path, part.wrong, part.mend)
        return
    for word in [word for word in part.said if word not in part.known]:
        unknown(source, (*path, word), part.known)
    try:
        part.model.model_validate({word: value for word, value in part.said.items() if word in part.known})
    except ValidationError as error:
        translate(source, error, path, part.model)
