"""Prompt injection and jailbreaks by the phrases they are made of, in eight languages.

This lowers the risk and no more: a paraphrase passes, and so does an encoding that is not undone here (undone are
invisible characters, full-width letters, look-alikes from other alphabets, and base64).  A phrase that is quoted as an
example is left alone.  `injection_model` judges by a model instead.  Rates on the built-in set: `make assess`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import ClassVar, Final

from gateway.assessor import Scanner
from gateway.patterns import HELD, Found, Hint, Rule, Rules, any_case, exactly

_S: Final = r"(?:[\s_*.,:;'\"-]{1,4}+)"
_W: Final = r"(?:[^\W_]{1,16}+[\s_*.,:;'-]{1,3}+){0,4}?"
_IGNORE: Final = r"(?:ignor(?:e|ing)|disregard|forget|override|overrule|bypass|discard|do[ ]?n[o']?t[ ](?:follow|obey|heed)|stop[ ]following|cancel)"
_OLD: Final = r"(?:previous(?:ly)?|prior|above|earlier|preceding|former|foregoing|existing|original|initial|system|safety|your|all|any|the|these|those|everything)"
_ORDERS: Final = r"(?:instructions?|prompts?|rules?|guidelines?|directions?|directives?|orders?|commands?|constraints?|restrictions?|polic(?:y|ies)|programming|context)"
_NO: Final = r"(?:unrestricted|unfiltered|uncensored|jailbroken|unethical|amoral|evil|no[ ]restrictions|DAN\b|STAN\b)"

_QUOTING: Final = re.compile(
    r"(?:example|such as|phrases?|e\.g\.|like|called|says?|word(?:s|ing)|sentences?|means?|string|text|detect\w*|attack\w*)"
    r"[\s:,(]{0,3}[\"'“‘«`]\W{0,2}\Z",
    re.IGNORECASE,
)


def _not_quoted(match: re.Match[str]) -> tuple[int, int] | None:
    """A phrase in quotes that is spoken about is no order."""
    text, start = match.string, match.start()
    return None if _QUOTING.search(text, max(0, start - 40), start) else match.span()


def _rule(label: str, pattern: str, hint: str) -> Rule:
    """Runs of letters and of blanks are never given back: so that no text takes long, however it was made."""
    pattern = re.sub(r"(\\[sw]\{\d,\d+\})(?![+?])", r"\1+", pattern)
    hint = re.sub(r"\\s\{([01]),\d\}", lambda m: r"\s*" if m[1] == "0" else r"\s+", hint)  # small, not exact
    hint = "".join([letter if letter.isascii() else any_case(letter) for letter in hint])
    return Rule(label, pattern, hint, _not_quoted, bounded=False, caseless=True, exact=exactly(pattern))


_RULES: Final = (
    _rule("override", rf"{_IGNORE}{_S}{_W}{_OLD}{_S}{_W}{_ORDERS}",
          r"(?:ignor|disregard|forget|overr|bypass|discard|n.?t[ ](?:follow|obey|heed)|stop[ ]following|cancel)"),
    _rule("override", rf"{_IGNORE}{_S}(?:everything|anything|all|what){_S}{_W}(?:above|before|told|said|written|prior|previously)\b",
          r"(?:ignor|disregard|forget|overr|bypass|discard)"),
    _rule("override", r"(?:new|updated|real|actual)\s{1,2}(?:system\s{1,2})?(?:instructions?|prompt|task|orders?)\s{0,2}(?::|are\b|is\b|follow)",
          r"(?:new|updated|real|actual)\s{1,2}(?:system\s{1,2})?(?:instruction|prompt|task|order)"),
    _rule("override", rf"(?:instructions?|rules?|guidelines?|restrictions?|filters?)\s{{1,2}}(?:above|before|given)?\s{{0,2}}(?:no\s{{1,2}}longer|do(?:es)?\s{{1,2}}n[o']t|are\s{{1,2}}(?:void|cancelled|lifted|suspended)){_S}?(?:apply|matter|count)?",
          r"(?:instruction|rule|guideline|restriction|filter)s?\s{1,2}(?:above|before|given)?\s{0,2}(?:no\s|do|are\s)"),
    _rule("override", r"ignoriere?n?\s{1,2}(?:sie\s|bitte\s|du\s){0,2}(?:alle?|die|deine|ihre|jegliche)?\s{0,2}(?:die\s|deine\s)?(?:vorherigen|bisherigen|vorigen|obigen|früheren|anderen)?\s{0,2}(?:anweisungen|instruktionen|regeln|vorgaben|befehle)",
          r"ignorier"),
    _rule("override", r"(?:vergiss|missachte|vergessen\ssie)\s{1,2}(?:alle?s?|die|deine|was)\s{1,2}(?:[\wäöüß]{1,14}\s{1,2}){0,4}(?:anweisungen|instruktionen|regeln|vorgaben|gesagt|zuvor|oben)",
          r"(?:vergiss|missachte|vergessen\ssie)"),
    _rule("override", r"(?:ignore[rz]?|oublie[rz]?|ne\stiens\spas\scompte\sde)\s{1,2}(?:toutes?\s{1,2})?(?:les|tes|vos)\s{1,2}(?:instructions?|consignes?|règles?|directives?)",
          r"(?:ignore|oublie|ne\stiens)"),
    _rule("override", r"(?:ignora|olvida|ignore|desestima|omite)r?\s{1,2}(?:todas?\s{1,2})?(?:las|tus|sus)\s{1,2}(?:instrucciones|reglas|indicaciones|órdenes)",
          r"(?:ignor|olvida|desestima|omite)"),
    _rule("override", r"(?:ignora|dimentica|trascura)\s{1,2}(?:tutte\s{1,2})?(?:le|tue)\s{1,2}(?:tue\s|istruzioni|regole|indicazioni)(?:precedenti)?",
          r"(?:ignora|dimentica|trascura)"),
    _rule("override", r"(?:ignore|esqueça|desconsidere)\s{1,2}(?:todas\s{1,2})?as\s{1,2}(?:suas\s)?(?:instruções|regras|orientações)",
          r"(?:ignore|esque|desconsidere)"),
    _rule("override", r"(?:игнорируй|забудь|не\sобращай\sвнимания\sна)(?:те)?\s{1,2}(?:\w{1,14}\s{1,2}){0,3}(?:инструкции|указания|правила)",
          r"(?:игнорируй|забудь|не\sобращай)"),
    _rule("override", r"(?:忽略|无视|忘记|忽視)[^。！\n]{0,12}(?:指令|指示|说明|规则|提示|要求|設定)", r"(?:忽略|无视|忘记|忽視)"),
    _rule("override", r"(?:以前|これまで|上記|前)の[^。\n]{0,6}(?:指示|命令|ルール)[^。\n]{0,4}(?:無視|忘れ)", r"(?:無視|忘れ)"),
    _rule("persona", rf"(?:you\s{{1,2}}are|you'?re|act|behave|respond|answer|pretend|roleplay|simulate|become|play){_S}{_W}{_NO}",
          r"(?:unrestricted|unfiltered|uncensored|jailbroken|unethical|amoral|evil|no[ ]restrictions|\bDAN\b|\bSTAN\b)"),
    _rule("persona", r"(?:do\s{1,2}anything\s{1,2}now|developer\s{1,2}mode\s{1,2}(?:enabled|on|output)|(?:enable|enter|activate|switch\s{1,2}to)\s{1,2}(?:the\s)?(?:developer|debug|god|sudo|admin|jailbreak|dan)\s{1,2}mode|jailbreak\s{1,2}(?:mode|yourself|prompt\s{1,2}enabled))",
          r"(?:anything\s{1,2}now|developer\s{1,2}mode|(?:debug|god|sudo|admin|jailbreak|dan)\s{1,2}mode|jailbreak\s{1,2})"),
    _rule("persona", r"(?:without|no|free\s{1,2}(?:of|from)|not\s{1,2}bound\s{1,2}by)\s{1,2}(?:any\s|all\s|your\s|more\s|the\s){0,2}(?:\w{1,12}\s){0,2}(?:restrictions|limitations|filters|censorship|guardrails|content\s{1,2}polic(?:y|ies)|ethical\s{1,2}(?:guidelines|constraints)|safety\s{1,2}(?:guidelines|filters|rules|measures))",
          r"(?:restriction|limitation|filter|censorship|guardrail|polic|ethical\s|safety\s)"),
    _rule("persona", r"(?:stay|remain)\s{1,2}in\s{1,2}character\s{1,2}(?:no\s{1,2}matter|even\s{1,2}if|and\s{1,2}never\s{1,2}refuse)|never\s{1,2}(?:refuse|say\s{1,2}no|decline)\s{1,2}(?:a|any|to)\b",
          r"(?:in\s{1,2}character|never\s{1,2}(?:refuse|say\s{1,2}no|decline))"),
    _rule("persona", r"(?:always\s{1,2}(?:stays?|remains?|acts?|be|is)\s{1,2}(?:\w{1,10}\s{1,2}){0,2}?in\s{1,2}character|never\s{1,2}(?:refuses?|breaks?\s{1,2}character|says?\s{1,2}no|declines?|apologi[sz]es?|warns?)\b)",
          r"(?:in\s{1,2}character|never\s{1,2}(?:refuse|break|say|decline|apologi|warn))"),
    _rule("persona", r"(?:regardless\s{1,2}of|without\s{1,2}(?:any\s)?(?:regard|concern|consideration)\s{1,2}(?:for|to)|doe?s?\s{1,2}n[o']t\s{1,2}(?:have|care\s{1,2}about|follow|consider)|(?:has|have|with)\s{1,2}no|never\s{1,2}cares?\s{1,2}about|ignor(?:es?|ing)|free\s{1,2}(?:of|from)|devoid\s{1,2}of)\s{1,2}(?:\w{1,12}[\s,/]{1,2}){0,3}?(?:ethic(?:s|al(?:ity)?)?|moral(?:s|ity|ly)?|legal(?:ity|ly)?|laws|censorship|openai'?s?\s{1,2}(?:policy|policies|rules|guidelines))\b",
          r"(?:ethic|moral|legal|laws|censorship|openai)"),
    _rule("persona", r"(?:unethical|immoral|illegal|harmful|dangerous|offensive|inhumane|amoral)(?:\s{0,2}(?:,|/|and|or)\s{0,2}(?:unethical|immoral|illegal|harmful|dangerous|offensive|inhumane|explicit|nsfw|amoral)){2}",
          r"(?:unethical|immoral|illegal|harmful|dangerous|offensive|inhumane)"),
    _rule("prompt_leak", rf"(?:reveal|show|print|repeat|output|display|leak|expose|recite|write|dump|give|tell){_S}{_W}(?:your|the|its){_S}{_W}(?:system|initial|hidden|secret|original|internal|developer|confidential|pre-?){_S}?(?:prompts?|instructions?|messages?|rules|guidelines|configuration)",
          r"(?:system|initial|hidden|secret|original|internal|developer|confidential|pre-?).{0,4}(?:prompt|instruction|message|rules|guideline|configuration)"),
    _rule("prompt_leak", r"(?:repeat|print|output|write|copy)\s{1,2}(?:\w{1,12}\s{1,2}){0,3}?(?:words|text|everything|content|lines?|all)\s{1,2}(?:\w{1,8}\s{1,2}){0,2}?(?:above|before\s{1,2}this|verbatim)",
          r"(?:above|before\s{1,2}this|verbatim)"),
    _rule("prompt_leak", r"what\s{1,2}(?:is|are|was|were)\s{1,2}your\s{1,2}(?:\w{1,10}\s){0,1}(?:system|initial|original|hidden|secret)\s{1,2}(?:prompt|instructions?|message)",
          r"your\s{1,2}(?:\w{1,10}\s){0,1}(?:system|initial|original|hidden|secret)\s{1,2}(?:prompt|instruction|message)"),
    _rule("forged_turn", r"<\|(?:im_start|im_end|system|start_header_id|end_of_turn|endoftext|channel|eot_id)\|>|\[/?INST\]|<</?SYS>>|</?(?:system|instructions?|s)>\s{0,3}(?:system|you\s|ignore|new)",
          r"(?:<\||\[/?INST\]|<<|</?(?:system|instruction|s)>)"),
    _rule("forged_turn", r"(?:^|\n|\\n)\s{0,3}(?:#{1,4}\s{0,2})?(?:system|assistant|developer)(?:\s{1,2}(?:message|prompt|override|note))?\s{0,2}:\s{0,3}(?:you\s|ignore|from\s{1,2}now|the\s{1,2}user|new\s|disregard|always\s|sure)",
          r"(?:system|assistant|developer)(?:\s{1,2}(?:message|prompt|override|note))?\s{0,2}:"),
    _rule("exfiltration", r"(?:send|forward|post|upload|exfiltrate|e-?mail|transmit|leak|append|include)\s{1,2}(?:\w{1,14}\s{1,2}){0,6}?(?:api\s?keys?|passwords?|credentials?|secrets?|conversation|chat\s{1,2}history|tokens?|environment\s{1,2}variables?|private\s{1,2}data|all\s{1,2}data)\s{1,2}(?:\w{1,14}\s{1,2}){0,4}?(?:to|at|via|in|into)\s{1,2}(?:\w{1,10}\s{1,2}){0,3}?(?:https?:|[\w.-]{1,40}@|url|link|webhook|server|image)",
          r"(?:api\s?key|password|credential|secret|conversation|history|token|environment\s|private\s|all\s{1,2}data)"),
    _rule("exfiltration", r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,200}[?&][\w-]{1,20}=(?:\{|<|\[|%7B|\$)", r"!\[[^\]\n]{0,80}\]\(http"),
    _rule("hidden_order", r"(?:do\s{1,2}not|don'?t|never|without)\s{1,2}(?:tell(?:ing)?|mention(?:ing)?|inform(?:ing)?|reveal(?:ing)?|alert(?:ing)?)\s{1,2}(?:this\s{1,2}(?:to\s{1,2})?)?(?:the\s{1,2})?(?:users?|human|anyone|them)\b",
          r"(?:tell|mention|inform|reveal|alert)"),
    _rule("hidden_order", r"(?:if\s{1,2}you\s{1,2}are|note\s{1,2}to|attention|message\s{1,2}(?:to|for)|instructions?\s{1,2}(?:to|for))\s{1,2}(?:the\s|an?\s|any\s|all\s){0,2}(?:ai|llm|language\s{1,2}model|assistant|chatbot|agent|gpt)s?\b[\s:,-]{1,3}(?:\w{1,12}\s{1,2}){0,4}?(?:you\s{1,2}must|please|must|ignore|send|recommend|rate|say|reply|respond|always|do\s{1,2}not|print|output|give)",
          r"(?:you\s{1,2}are|note\s{1,2}to|attention|(?:message|instructions?)\s{1,2}(?:to|for))\s{1,2}(?:(?:the|an?|any|all)\s{1,2})*(?:ai|llm|language\s{1,2}model|assistant|chatbot|agent|gpt)"),
    Rule("encoded", "", r"[A-Za-z0-9+/]{24}"),
)  # fmt: skip

# Letters of other alphabets that look like Latin ones, and full-width forms: each one for one, so that places stay.
_ALIKE: Final = str.maketrans(
    "аеорсухіјѕԁԛԝһқАВЕКМНОРСТУХІЈЅοαερτυικνΑΒΕΗΙΚΜΝΟΡΤΥΧΖſıK",
    "aeopcyxijsdqwhkABEKMHOPCTYXIJSoaeptuikvABEHIKMNOPTYXZsik",
) | {0xFF01 + n: 0x21 + n for n in range(94)}
_ALIKES: Final = re.compile(f"[{''.join(map(chr, _ALIKE))}]")  # they are few in most texts: faster than translate
_MARKS: Final = (("\u2019", "'"), ("\u2018", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\xa0", " "))
_CYRILLIC: Final = re.compile(r"[а-яА-Я]{4}")
_UNSEEN: Final = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{24,2048}+={0,2}")


class Injection(Scanner):
    """Score by what was found: 1 where a forged turn or an order to ignore orders stands, less for weaker signs."""

    stages: ClassVar[frozenset[str]] = frozenset({"input", "tool_results"})
    scores: ClassVar[dict[str, float]] = {
        "override": 0.95, "forged_turn": 0.9, "prompt_leak": 0.8, "persona": 0.8, "exfiltration": 0.8, "hidden_order": 0.6,
        "encoded": 0.95,
    }  # fmt: skip
    reach = 200
    folds: ClassVar[bool] = True

    def __init__(self) -> None:
        self._rules = Rules(_RULES)

    def hints(self) -> Sequence[Hint]:
        return self._rules.hints

    def doubts(self, body: bytes, hits: list[int]) -> bool:
        return bool(self._rules.closer(body, hits))

    def find(self, text: str, data: bytes) -> list[Found]:
        hits = self._rules.hits(data)
        found = self._rules.look(text, hits) if hits else []
        if len(data) != len(text):
            seen = set(found)
            found += [one for one in self._folded(text) if one not in seen]
        if self._rules.last in hits:
            found += self._decoded(text)
        return found

    def _folded(self, text: str) -> list[Found]:
        """As a reader sees it: without what cannot be seen, and with the letters that others stand for."""
        plain, places = text, None
        if not _ALIKES.search(text) or not _CYRILLIC.search(text):
            for mark, meant in _MARKS:
                plain = plain.replace(mark, meant)
            plain = _ALIKES.sub(lambda letter: chr(_ALIKE[ord(letter[0])]), plain)
        if _UNSEEN.search(plain):
            places = [at for at, letter in enumerate(plain) if not _UNSEEN.match(letter)]
            tagged = plain.translate({0xE0000 + n: chr(n) for n in range(32, 127)})  # letters written as invisible tags
            if tagged != plain:
                places = [at for at, letter in enumerate(tagged) if not _UNSEEN.match(letter)]
            plain = _UNSEEN.sub("", tagged)
        if plain == text:
            return []
        found = self._rules.find(plain, plain.encode(errors="replace"))
        if places is not None:
            found = [one._replace(start=places[one.start], end=places[one.end - 1] + 1) for one in found]
        return found

    def _decoded(self, text: str) -> list[Found]:
        found = []
        for match in _BASE64.finditer(text):
            word = match[0].rstrip("=")
            try:
                said = base64.b64decode(word + "=" * (-len(word) % 4)).decode()
            except (binascii.Error, ValueError):
                said = ""
            if said and self._rules.find(said, said.encode()):
                found.append(Found(*match.span(), "encoded", match.end() == len(text)))
        return found

    def hold(self, text: str) -> int:
        """Phrases are long: so is what waits, but for what no phrase can begin in."""
        return min(len(text), self.reach, HELD)
