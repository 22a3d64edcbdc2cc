"""Checks what no single line of config.yaml shows: names that must exist, keys that must differ, safe addresses."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path as File
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.problems import Path, nearest
from gateway.settings import Config
from gateway.source import ABSENT, Source, shown

SHORTEST_KEY: Final = 8
INSIDE: Final = (
    ".localhost",
    ".local",
    ".internal",
    ".lan",
    ".home.arpa",
    ".svc",
)  # only a private network knows these
FRAMING: Final = ("host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "trailer")
CREDENTIALS: Final = ("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization")


class References:
    """Looks at plain values, not at validated settings, so that everything wrong is found in one go."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.providers = named(source.tree, "providers")
        self.models = named(source.tree, "models")
        self.teams = named(source.tree, "teams")
        self.vendors = list(named(source.tree, "providers", deep=False))  # these names exist, even where what
        self.known = list(named(source.tree, "models", deep=False))  # stands under them is wrong
        self.aliases: dict[str, str] = {}  # alias: the model it stands for

    def check(self) -> None:
        for name in self.providers:
            self.provider(name)
        self.alias_names()
        for name in self.models:
            self.model(name)
        self.own_fallbacks()
        for name in self.teams:
            self.team(name)
        self.keys()
        self.order()
        self.replicas()
        self.pepper()
        traces = named(named(self.source.tree, "telemetry", deep=False), "traces", deep=False)
        self.headers(("telemetry", "traces", "headers"), named(traces, "headers", deep=False))

    def said(self, path: Path, word: Any) -> str:
        """A value in quotes, unless it could be a secret."""
        return "this" if path in self.source.spread or shown(word) != word else f'"{word}"'

    def exists(self, path: Path, word: Any, what: str, known: list[str]) -> None:
        if not isinstance(word, str) or word in known or word == ABSENT:
            return
        if what == "model" and word in self.aliases:
            model = self.aliases[word]
            self.source.report(path, f"{self.said(path, word)} is an alias", f"name the model itself: {model}")
            return
        told = self.said(path, word)
        if told == "this":
            self.source.report(path, f"names no {what}", f"{what}s: {', '.join(known) or 'none'}")
        else:
            self.source.report(path, f"no {what} named {told}", nearest(word, known, f"{what}s"))

    def provider(self, name: str) -> None:
        path: Path = ("providers", name)
        says = self.providers[name]
        if isinstance(url := says.get("base_url"), str):
            self.address((*path, "base_url"), url, truth(says.get("allow_http")))
        self.secret((*path, "api_key"), says.get("api_key"))
        self.headers((*path, "headers"), named(says, "headers", deep=False))
        for index, header in enumerate(listed(says, "forward_headers")):
            if isinstance(header, str) and header.lower() in (*FRAMING, *CREDENTIALS):
                mend = "delete it: a caller's key and what frames its message stay here"
                self.source.report((*path, "forward_headers", index), "this header is not forwarded", mend)
        if truth(says.get("trust_env")) and says.get("transport") != "httpx":
            self.source.report((*path, "trust_env"), "has no effect here", "add `transport: httpx`, or delete it")
        if isinstance(file := says.get("ca_file"), str) and file != ABSENT and not File(file).is_file():
            mend = "a relative path begins where tollkeeper is started"
            self.source.report((*path, "ca_file"), "there is no such file", mend)

    def headers(self, path: Path, headers: dict[str, Any]) -> None:
        for header, value in headers.items():
            if header.lower() in FRAMING or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", header):
                mend = "delete it: the gateway writes the headers that frame a message"
                self.source.report((*path, header), "this header cannot be set", mend, word=True)
            self.secret((*path, header), value)

    def address(self, path: Path, url: str, allow_http: bool) -> None:
        """A key sent in the clear is a key given away: https, except within the machine or a private network."""
        if not re.match(r"https?://[^\s?#@]+\Z", url):
            return  # settings.py says so already
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if not host or port == 0:
            self.source.report(path, "names no host, or no valid port", "write it like https://api.openai.com/v1")
        elif parts.scheme == "http" and not allow_http and not private(host):
            mend = "write https://, or set `allow_http: true` for this provider if you accept that"
            self.source.report(path, "keys and prompts would cross a public network unencrypted", mend)
        elif parts.path.rstrip("/").endswith(("/chat/completions", "/completions", "/embeddings", "/responses")):
            self.source.report(path, "names one endpoint", "end it before that, usually with /v1")

    def secret(self, path: Path, value: Any) -> None:
        """A secret travels in a header: it must not be empty, nor hold what would end the line."""
        if not isinstance(value, str):
            return
        if not value.strip():
            self.source.report(path, "is empty", "delete the line if no value is wanted")
        elif value != value.strip() or not value.isascii() or not value.isprintable():
            mend = "is there a line break at its end?" if value != value.strip() else "only printable ASCII can be sent"
            self.source.report(path, "has characters that cannot be sent in a header", mend)

    def alias_names(self) -> None:
        for model, says in self.models.items():
            for index, alias in enumerate(listed(says, "aliases")):
                path: Path = ("models", model, "aliases", index)
                if not isinstance(alias, str) or alias == ABSENT:
                    continue
                if alias in self.known:
                    self.source.report(path, f"{self.said(path, alias)} is already a model", "choose another name")
                elif alias in self.aliases:
                    taken = f"{self.said(path, alias)} is already an alias of {self.aliases[alias]}"
                    self.source.report(path, taken, "delete one of the two")
                else:
                    self.aliases[alias] = model

    def model(self, name: str) -> None:
        path: Path = ("models", name)
        for index, target in enumerate(listed(self.models[name], "targets")):
            if isinstance(target, dict):
                self.exists((*path, "targets", index, "provider"), target.get("provider"), "provider", self.vendors)
        fallbacks = listed(self.models[name], "fallbacks")
        for index, other in enumerate(fallbacks):
            self.exists((*path, "fallbacks", index), other, "model", self.known)
            if other in fallbacks[:index]:
                self.source.report((*path, "fallbacks", index), "stands in this list twice", "delete one")
        self.limited(path, self.models[name], "limits")
        dated: dict[str, int] = {}
        for index, price in enumerate(listed(self.models[name], "price")):
            since = str(price.get("since")) if isinstance(price, dict) else f"entry {index}"
            if since in dated:
                wrong = f"has the same `since` as entry {dated[since]}"
                self.source.report((*path, "price", index), wrong, "give each its own first day")
            dated.setdefault(since, index)

    def own_fallbacks(self) -> None:
        """Two models may stand in for each other: only direct fallbacks are followed.  For itself none can."""
        for name in self.models:
            for index, other in enumerate(listed(self.models[name], "fallbacks")):
                if other == name:
                    self.source.report(
                        ("models", name, "fallbacks", index), "a model cannot stand in for itself", "remove it"
                    )

    def team(self, name: str) -> None:
        path: Path = ("teams", name)
        for index, model in enumerate(listed(self.teams[name], "models")):
            self.exists((*path, "models", index), model, "model", self.known)
        self.exists((*path, "provider"), self.teams[name].get("provider"), "provider", self.vendors)
        if isinstance(self.teams[name].get("models"), list) and not self.enforced("access"):
            mend = "add `- use: access` to policies"
            self.source.report((*path, "models"), "nothing enforces this", mend, word=True)
        self.limited(path, self.teams[name], "limits")
        self.limited(path, self.teams[name], "users")
        for word in ("budgets", "user_budgets", "feature_budgets"):
            self.budgeted(path, self.teams[name], word)
        for index, key in enumerate(listed(self.teams[name], "keys")):
            self.limited((*path, "keys", index), key, "limits")
            self.budgeted((*path, "keys", index), key, "budgets")

    def limited(self, path: Path, holder: Any, word: str) -> None:
        """Limits that nobody counts are none."""
        limits = named(holder, word, deep=False).values()
        if any(limit is not None for limit in limits) and not self.enforced("rate_limit"):
            mend = "add `- use: rate_limit` to policies"
            self.source.report((*path, word), "nothing enforces this", mend, word=True)

    def budgeted(self, path: Path, holder: Any, word: str) -> None:
        if listed(holder, word) and not self.enforced("budget"):
            mend = "add `- use: budget` to policies"
            self.source.report((*path, word), "nothing enforces this", mend, word=True)

    def enforced(self, policy: str) -> bool:
        """Does one of the policies hold callers to it?  An operator's own may, and what is misspelt was told."""
        policies = self.source.tree.get("policies")
        if policies is None:
            return policy in [use.use for use in Config.model_fields["policies"].default]
        if not isinstance(policies, list) or any(said.path.startswith("policies[") for said in self.source.problems):
            return True
        used = [str(use.get("use")) for use in policies if isinstance(use, dict)]
        return policy in used or any(":" in use for use in used)

    def order(self) -> None:
        """A policy that answers itself ends the round: what must hold for its answers too stands before it."""
        uses = [use.get("use") for use in listed(self.source.tree, "policies") if isinstance(use, dict)]
        for index, use in enumerate(listed(self.source.tree, "policies")):
            if uses and isinstance(use, dict) and use.get("use") == "cache":
                model = named(use, "semantic", deep=False).get("model")
                self.exists(("policies", index, "semantic", "model"), model, "model", self.known)
        for word in ("access", "rate_limit"):
            if "cache" in uses and word in uses[uses.index("cache") :]:
                path: Path = ("policies", uses.index("cache"))
                self.source.report(
                    path, f"stands before `{word}`, which would not hold for its answers", "move it down"
                )
        if "cache" in uses and "safety" in uses[: uses.index("cache")]:
            path = ("policies", uses.index("cache"))
            self.source.report(path, "stands behind `safety`, and would keep what that has put back", "move it up")
        elif "cache" in uses and "safety" in uses:
            self.cached_and_judged(uses.index("cache"), listed(self.source.tree, "policies")[uses.index("safety")])

    def cached_and_judged(self, at: int, safety: dict[str, Any]) -> None:
        """The cache sees a call before `safety` has read it."""
        cache = listed(self.source.tree, "policies")[at]
        actions = {use.get("action", "block") for use in listed(safety, "assessors") if isinstance(use, dict)}
        semantic = cache.get("semantic")
        if isinstance(semantic, dict) and (actions - {"flag"} if semantic.get("model") else "mask" in actions):
            wrong = "looks at questions before `safety` has read them, and cannot tell their placeholders apart"
            if semantic.get("model"):
                wrong = "would send questions to its model before `safety` has read them"
            self.source.report(("policies", at, "semantic"), wrong, "leave it out")
        if safety.get("beside") is True and cache.get("coalesce", True) is not False:
            wrong = "would give others an answer that waits for those who judge its question"
            self.source.report(("policies", at), wrong, "set coalesce: false, or leave out `beside` of safety")

    def replicas(self) -> None:
        """Each would count for itself, and let its full limit pass."""
        count = named(self.source.tree, "server", deep=False).get("replicas", 1)
        if isinstance(count, int) and count > 1 and self.source.tree.get("counters", "memory://") == "memory://":
            mend = "set counters: valkey://host:6379/0, which they share"
            self.source.report(("server", "replicas"), "memory:// counts in each replica alone", mend)

    def pepper(self) -> None:
        """What one gateway would make for itself, the others would not know."""
        server, store = named(self.source.tree, "server", deep=False), self.source.tree.get("store")
        if not (isinstance(store, str) and store.startswith("postgres") and server.get("admin_key")):
            return
        if not server.get("key_pepper"):
            mend = "set 32 random characters or more: keys that are created are kept under it"
            self.source.report(("server", "key_pepper"), "gateways that share a database must share it", mend)

    def keys(self) -> None:
        """Two keys alike would make one team pay for another.  Neither is ever printed."""
        seen: dict[str, str] = {}
        if isinstance(admin := named(self.source.tree, "server", deep=False).get("admin_key"), str):
            self.key(("server", "admin_key"), admin, seen, "server.admin_key")
        for team, says in self.teams.items():
            names: set[str] = set()
            for index, entry in enumerate(listed(says, "keys")):
                path: Path = ("teams", team, "keys", index)
                if not isinstance(entry, dict):
                    continue
                if isinstance(key := entry.get("key"), str):
                    self.key((*path, "key"), key, seen, f"key {index} of team {team}")
                if isinstance(name := entry.get("name"), str):
                    if name in names:
                        self.source.report((*path, "name"), "two keys of this team have this name", "rename one")
                    names.add(name)

    def key(self, path: Path, key: str, seen: dict[str, str], where: str) -> None:
        if key == ABSENT:
            return
        self.secret(path, key)
        if key.strip() and len(key) < SHORTEST_KEY:
            mend = f"use at least {SHORTEST_KEY} characters, better 32 random ones"
            self.source.report(path, "is so short that it can be guessed", mend)
        if key in seen and key.strip():
            self.source.report(path, f"is the same as {seen[key]}", "make a new one for each")
        seen.setdefault(key, where)


def named(holder: Any, word: str, deep: bool = True) -> dict[str, Any]:
    """The mapping under `word`; empty where there is none.  deep: only the entries that are mappings themselves."""
    found = holder.get(word) if isinstance(holder, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if not deep or isinstance(value, dict)}


def listed(holder: dict[str, Any], word: str) -> list[Any]:
    found = holder.get(word)
    return found if isinstance(found, list) else []


def truth(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes", "on", "t", "y")


def private(host: str) -> bool:
    """Is this host within the machine or a private network?  A name without a dot is (Docker, Kubernetes, a LAN)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or name.endswith(INSIDE) or ".svc." in name
    return address.is_private or address.is_loopback or address.is_link_local
