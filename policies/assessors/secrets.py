"""Secrets and credentials: keys by the prefixes their issuers document, private keys, and what is assigned to a word
like `password`.

The prefixes are facts from the issuers' own documentation; the rules are written here.  A key whose issuer gives it no
shape of its own is found only where it is assigned.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Final

from gateway.assessor import STAGES, Scanner
from gateway.patterns import HELD, Found, Hint, Rule, Rules, exactly

_T: Final = r"[A-Za-z0-9_-]"
_A: Final = r"[A-Za-z0-9]"


def _digits(match: re.Match[str]) -> tuple[int, int] | None:
    """A key has digits and letters; words that hyphens join have not."""
    text = match[0]
    return match.span() if sum(map(str.isdigit, text)) >= 2 else None


_VAGUE: Final = re.compile(
    r"example|placeholder|your|change.?me|redacted|dummy|xxx|\*\*\*|\.\.\.|<|\$\{|\{\{|%\(|process\.env|os\.environ|getenv",
    re.IGNORECASE,
)


def _assigned(match: re.Match[str]) -> tuple[int, int] | None:
    """The value alone, where it looks like one that nobody would type as a word."""
    value = match["value"]
    if len(value) < 8 or _VAGUE.search(value) or match.string[match.end() : match.end() + 1] == "(":
        return None
    kinds = sum(bool(re.search(kind, value)) for kind in (r"[a-z]", r"[A-Z]", r"\d", r"[^A-Za-z0-9]"))
    if kinds < 2 or not re.search(r"\d|[^A-Za-z0-9_.-]", value) or _entropy(value) < 2.5:
        return None
    return match.span("value")


def _entropy(text: str) -> float:
    """Bits per character."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values())


def _password(match: re.Match[str]) -> tuple[int, int] | None:
    value = match["value"]
    return None if _VAGUE.search(value) or value.strip("*x") == "" else match.span("value")


def _key(label: str, prefix: str, least: int, letters: str = _T, **more: object) -> Rule:
    """A prefix, and at least so many letters behind it."""
    return Rule(label, rf"{prefix}{letters}{{{least},}}+", prefix + letters * min(least, 4), **more)  # type: ignore[arg-type]


_TELLING: Final = (
    r"(?:passwo?r?d|passwd|passphrase|pwd|secret|api[_ -]?key|access[_ -]?key|auth[_ -]?key|token|private[_ -]?key"
    r"|credentials?)[0-9A-Za-z_-]{0,16}"
)
_ASSIGNS: Final = r"[\"'`]{0,2}[ \t\r\n]{0,3}(?::=|=>|[:=]|\bis\b)[ \t\r\n]{0,3}[\"'`]{0,2}"
# The same, loosely and without counting: a hint must be small more than exact.
_ASSIGNED: Final = (
    r"(?:passwo?r?d|passwd|passphrase|pwd|secret|key|token|credentials?)[0-9A-Za-z_-]*[\"'`]*[ \t\r\n]*(?:[:=]|is)[=> \t\r\n]*"
    r"[\"'`]*" + r"[^\s\"'`,;<>(){}]" * 8
)

_ASSIGNMENT: Final = _TELLING + _ASSIGNS + r"(?P<value>[^\s\"'`,;<>(){}\x00]{8,}+)"
_BEARER: Final = r"(?:bearer|basic)\s{1,3}(?P<value>[\w.+/~-]{16,}+={0,2}+)"

_RULES: Final = (
    _key("aws_access_key", "A(?:KIA|SIA|BIA|CCA)", 16, "[A-Z0-9]"),
    _key("github_token", "gh[pousr]_", 36, _A),
    _key("github_token", "github_pat_", 22, r"\w"),
    _key("gitlab_token", "gl(?:pat|dt|rt|ptt|ft|soat|cbt|imt|agent|oas|rtr)-", 16),
    _key("slack_token", "xox[abeoprs]-", 10),
    _key("slack_token", "xapp-[0-9]-", 20),
    Rule("slack_webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/]{20,}+",
         r"hooks\.slack\.com/(?:services|workflows|triggers)/", bounded=False),
    Rule("discord_webhook", r"discord(?:app)?\.com/api/webhooks/[0-9]{15,20}/[\w-]{40,}+",
         r"discord(?:app)?\.com/api/webhooks/", bounded=False),
    _key("stripe_key", "[srp]k_(?:live|test)_", 16, _A),
    _key("stripe_webhook_secret", "whsec_", 24, _A),
    _key("anthropic_key", "sk-ant-", 20),
    _key("openai_key", "sk-(?:proj|svcacct|admin|None)-", 20),
    _key("openrouter_key", "sk-or-v1-", 32, "[0-9a-f]"),
    Rule("api_key", rf"[srp]k-{_T}{{20,}}+", rf"[srp]k-{_T}{{20}}", _digits),
    _key("google_api_key", "AIza", 35),
    _key("google_oauth_secret", "GOCSPX-", 24),
    _key("google_oauth_token", r"ya29\.", 20),
    _key("huggingface_token", "hf_", 30, _A),
    _key("groq_key", "gsk_", 40, _A),
    _key("xai_key", "xai-", 40, _A),
    _key("perplexity_key", "pplx-", 40, _A),
    _key("replicate_token", "r8_", 37, _A),
    _key("npm_token", "npm_", 36, _A),
    _key("pypi_token", "pypi-AgE", 50),
    _key("rubygems_key", "rubygems_", 48, "[0-9a-f]"),
    _key("docker_token", "dckr_[po]at_", 20),
    _key("digitalocean_token", "do[opr]_v1_", 64, "[0-9a-f]"),
    _key("shopify_token", "shp(?:at|ca|pa|ss)_", 32, "[0-9a-fA-F]"),
    Rule("sendgrid_key", r"SG\.[\w-]{16,64}\.[\w-]{16,}+", r"SG\.[0-9A-Za-z_-]"),
    Rule("mailchimp_key", r"[0-9a-f]{32}-us[0-9]{1,2}", r"-us[0-9]"),
    _key("twilio_key", "(?:SK|AC)", 32, "[0-9a-f]"),
    Rule("telegram_bot_token", r"[0-9]{8,10}:AA[\w-]{32,}+", r"[0-9]:AA[0-9A-Za-z_-]", bounded=True),
    _key("newrelic_key", "NR(?:AK|JS|AA)-", 20),
    _key("databricks_token", "dapi", 32, "[0-9a-f]"),
    _key("vault_token", "hv[sbr]\\.", 24),
    Rule("terraform_token", r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{40,}+", r"\.atlasv1\."),
    _key("postman_key", "PMAK-", 24),
    _key("linear_key", "lin_(?:api|oauth)_", 32, _A),
    _key("notion_token", "(?:ntn|secret)_", 40, _A),
    _key("atlassian_token", "AT(?:ATT3|CTT3|BB)", 24, "[A-Za-z0-9_=-]"),
    _key("square_token", "sq0(?:atp|csp|idp)-", 22),
    _key("grafana_token", "gl(?:c|sa)_", 32, r"[\w=+/]"),
    _key("sentry_token", "sntry[su]_", 40, r"[\w=+/]"),
    _key("posthog_key", "ph[xc]_", 32, _A),
    _key("supabase_key", "sb(?:p|_secret|_publishable)_", 20),
    _key("age_secret_key", "AGE-SECRET-KEY-1", 50, "[A-Z0-9]"),
    _key("tollkeeper_key", "tka?[-_]", 24),
    Rule("azure_storage_key", r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,}+=*+", r"(?:AccountKey|SharedAccessKey)=",
         bounded=False),
    Rule("json_web_token", r"(?<![\w-])eyJ[\w-]{10,}+\.(?:eyJ)?[\w-]{10,}+(?:\.[\w-]*+)?", r"eyJ[0-9A-Za-z_-][0-9A-Za-z_-]"),
    Rule("private_key", r"-----BEGIN (?:[A-Z0-9]{2,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----",
         r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY", bounded=False),
    Rule("url_password", r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'<>]{0,64}:(?P<value>[^\s:/@\"'<>]{3,100})@[\w\[]",
         r"[a-z]://[^\s:/@\"'<>]*:[^\s:/@\"'<>]*@", _password, bounded=False),
    Rule("bearer_token", _BEARER, r"(?:bearer|basic)\s+[\w.+/~-]", _assigned, caseless=True, exact=exactly(_BEARER)),
    Rule("assigned_secret", _ASSIGNMENT, _ASSIGNED, _assigned, bounded=False, caseless=True, exact=exactly(_ASSIGNMENT)),
)  # fmt: skip

_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,50}PRIVATE KEY(?: BLOCK)?-----")
_LAST_LINE: Final = 90  # characters of the longest line that ends a private key
_RUN: Final = re.compile(r"[^\s\"'`,;<>(){}\x00]*+")
_STOPS: Final = frozenset(" \t\r\n\f\v\x00\"'`,;<>(){}")
_WORD: Final = re.compile(
    r"(?:passwo?r?d|passwd|passphrase|pwd|secret|key|token|credentials?|bearer|basic)[\w-]{0,16}"
    r"[\"'`]{0,2}\s{0,3}(?:(?::=?|=>?|is?)\s{0,3}[\"'`]{0,2})?\Z",
    re.IGNORECASE,
)
_TELLS: Final = re.compile("pass|pwd|secret|key|token|credential|bearer|basic")  # in any of those: much faster
_KEY_LINE: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,50}\Z")


class Secrets(Scanner):
    """Finds them by shape.  Score 1 for a documented prefix, 0.7 for what is assigned to a telling word."""

    stages: ClassVar[frozenset[str]] = frozenset(STAGES)
    scores: ClassVar[dict[str, float]] = {
        "assigned_secret": 0.7,
        "bearer_token": 0.8,
        "url_password": 0.8,
        "api_key": 0.9,
    }

    def __init__(self) -> None:
        self._rules = Rules(_RULES)

    def hints(self) -> Sequence[Hint]:
        return self._rules.hints

    def doubts(self, body: bytes, hits: list[int]) -> bool:
        return bool(self._rules.closer(body, hits))

    def find(self, text: str, data: bytes) -> list[Found]:
        found = self._rules.find(text, data)
        covered = 0
        for at, one in enumerate(found):
            if one.label == "private_key":  # from its first line to its last, or to the end
                end = None if one.start < covered else _END.search(text, one.end)
                stop = end.end() if end else max(one.end, covered, len(text) - _LAST_LINE)
                goes_on = end is None and stop > covered
                found[at] = one._replace(end=stop, open=goes_on)
                covered = stop if end else len(text)
        return found

    def hold(self, text: str) -> int:
        """The last run of the letters of keys, and what assigns it; or a private key's first line."""
        size = len(text)
        at, least = size, max(0, size - HELD)
        while at > least and (letter := text[at - 1]) not in _STOPS and letter < "\u0100":
            at -= 1
        if at and (text[at - 1] in _STOPS):
            begin = max(least, at - 40)
            word = _WORD.search(text, begin, at) if _TELLS.search(text[begin:at].lower()) else None
            if word is not None:
                at = word.start()
            elif text[at - 1] == " " and (line := _KEY_LINE.search(text, max(least, at - 64), at)):
                at = line.start()
        return size - at

    def resume(self, label: str, text: str) -> tuple[int, bool]:
        if label == "private_key":
            end = _END.search(text)
            return (end.end(), False) if end else (max(0, len(text) - _LAST_LINE), True)
        run = _RUN.match(text)
        size = run.end() if run else 0
        return size, size == len(text)
