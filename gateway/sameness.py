"""Whether two questions may have the same answer, as far as words show: the check that nearness in meaning needs.

Embeddings put "turn it on" beside "turn it off", and "delete it" beside "do not delete it".  So what a question turns
on must be equal: numbers, names, negations, words that have an opposite, what is asked for, who does what to whom.

    facts   those, in their order; other words may differ
    words   and besides every word, in its order, but articles, the s of a plural, politeness, and a few synonyms

Words are English's; of other languages the negations are known, and every word counts as it is written.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal, NamedTuple

Depth = Literal["words", "facts"]

LONGEST: Final = 4000  # characters: beyond, no two questions are held to be the same

# Names of files, addresses and code keep their signs; numbers keep their points; words keep their apostrophes.  All
# else is a sign, but what parts sentences: also marks of a script that writes its vowels so, and breaks of a line.
_TOKEN: Final = re.compile(
    r"https?://\S+|[\w.+-]{1,64}@[\w-]+\.[\w.]+|"
    r"(?<!\w)\.\d+|[+-]?\d[\d.,:/-]*\d|[+-]?\d|"
    r"[^\W\d_]+(?:'[^\W\d_]+)*(?:[\w.:/#-]*[\w#])?|[\w]+|[<>=+*/^]+|\n[ \t]*|"
    r"(?P<parts>(?<=[\w)\]'\"])[.?!](?=\s+[^\W\d_a-z]|\s*$)(?<![\d)]!)(?<!\b\w!))|[^\w\s]"
)
_THOUSANDS: Final = re.compile(r"(?<![\w(\[{,])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?=[\s?!%]|\.?$)")
_ENGLISH: Final = re.compile(r"\b(?:the|what|how|who|why|which|where|when|does|do|is|are|of|my|with)\b", re.IGNORECASE)
_ARTICLE: Final = re.compile(
    r"(?<![\w(*+/=-])(?<![*+/=-] )(?:an?|the)\s+(?=[^\W\d_]{2,})"
    r"(?!(?:few|little|in|of|on|to|for|means?|and|or|is|as|at|by)\b)", re.IGNORECASE
)  # fmt: skip
_QUOTED: Final = re.compile(r"[\"`]([^\"`]+)[\"`]")
_ONE_SIGN: Final = str.maketrans("’‘“”«»„–−", '\'\'"""""--')
_WANTED: Final = "explain|describe|tell|give|show|write|list|summari[sz]e|translate|recommend|suggest|define|provide"
_BEGIN: Final = r"(?:^|(?<=[.!?,;:] ))(?:please )?"
# Said for politeness, or in two ways: each as it is said instead.
_FRAMES: Final = tuple(
    (re.compile(frame, re.IGNORECASE), instead)
    for frame, instead in (
        (r"(?<!\w)'([^']*)'(?!\w)", r'"\1"'),
        (r"\bwhats\b", "what is"),
        (r"\b(what|who|where|when|why|how|it|that|there|here|he|she)'s\b", r"\1 is"),
        (r"'(?:re|m)\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"\bwon't\b", "will not"),
        (r"\bcan(?:'t|not)\b", "can not"),
        (r"n't\b", " not"),
        (r"^(?:hi|hello|hey)(?: there)?\b[,.!]? ?", ""),
        (r"[,.!?]? (?:thanks|thank you|please)(?=[.!?]*$)", ""),
        (_BEGIN + r"(?:can|could|would|will) you (?=(?:please|" + _WANTED + r")\b)(?:please )?", ""),
        (_BEGIN + r"(?:(?:tell|give|show|help) me|let me know)\b ?", ""),
        (_BEGIN + r"(write|find|recommend|suggest) me\b", r"\1"),
        (r"^(?:please )?(explain\b.*) to me\b(?=\W*$)", r"\1"),
        (r"\bhow (?:(?:can|could|do) I|does one)\b", "how to"),
    )
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS: Final = _words(
    "not no never none nobody nothing nowhere neither nor without except unless cannot against hardly barely only "
    "excluding exclude avoid stop prevent lack lacking fail unable impossible false wrong instead rather but "
    "nicht kein keine keinen keiner nie niemals ohne außer ne pas jamais sans aucun rien nunca jamás sin ningún nada "
    "dont cant wont isnt arent doesnt didnt wasnt couldnt shouldnt wouldnt "
    "non mai senza niet geen nooit zonder inte aldrig utan não nem sem nie bez не нет без никогда"
)
# Each word's opposite is near it in meaning, and an answer for one is wrong for the other.
_POLAR: Final = _words(
    "on off in out up down over under before after above below more less most least max min maximum minimum increase "
    "decrease raise lower rise fall grow shrink enable disable enabled disabled allow deny block permit forbid open "
    "close opened closed start begin end finish add remove delete create destroy insert drop push pull upload download "
    "import export encrypt decrypt encode decode lock unlock buy sell bought sold borrow lend send receive give take "
    "win lose first last next previous former latter left right top bottom front back north south east west hot cold "
    "warm cool big small large little long short tall high low fast slow early late old new young good bad best worst "
    "better worse true false yes always sometimes often rarely all any some every each both either half double single "
    "multiple safe unsafe safely legal illegal valid invalid public private internal external input output inbound "
    "outbound sender recipient source target client server parent child buyer seller employer employee teacher student "
    "husband wife mother father sister brother man woman male female men women boy girl day night am pm today tomorrow "
    "yesterday morning evening summer winter past future present success failure pass fail accept reject approve "
    "approved rejected positive negative plus minus gain loss profit credit debit income expense asset liability cause "
    "effect prevent treat cure active inactive activate deactivate install uninstall subscribe unsubscribe connect "
    "disconnect attach detach show hide visible hidden expand collapse ascending descending asc desc read write "
    "readable writable upgrade downgrade forward backward horizontal vertical local remote online offline alive dead "
    "life death love hate like dislike with without include exclude inclusive exclusive can should must may might will "
    "would could shall need want optional required mandatory voluntary "
    "just exactly about very per from to into onto by for since until"
)
_ASKS: Final = {
    **dict.fromkeys(("who", "whom"), "who"),
    "whose": "whose",
    **{word: word for word in _words("what how when where why which if whether vs versus or")},
    **{word: word for word in _words("many much far often tall deep wide expensive cost price")},
}
_NUMBERS: Final = dict(
    pair.split("=")
    for pair in _words(
        "zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10 eleven=11 twelve=12 thirteen=13 "
        "fourteen=14 fifteen=15 sixteen=16 seventeen=17 eighteen=18 nineteen=19 twenty=20 thirty=30 forty=40 fifty=50 "
        "sixty=60 seventy=70 eighty=80 ninety=90 hundred=100 thousand=1000 million=1000000 billion=1000000000 dozen=12 "
        "first=1th second=2th third=3th fourth=4th fifth=5th sixth=6th seventh=7th eighth=8th ninth=9th tenth=10th "
        "once=1x twice=2x double=2x thrice=3x half=0.5 percent=% percentage=% usd=$ dollar=$ dollars=$ eur=€ euro=€ "
        "euros=€"
    )
)
_TENSES: Final = {**dict.fromkeys(("was", "were", "had", "did"), "past"), "will": "future"}
# Who is meant, and whether somebody is, has or does something.
_WHO: Final = {
    word: group.split()[0]
    for group in (
        "I me my mine myself i", "you your yours yourself yourselves", "he him his himself", "she her hers herself",
        "we us our ours ourselves", "they them their theirs themselves", "is are am be been being", "has have having",
        "does do doing done", "this these", "that those", "here", "there",
    )
    for word in group.split()
}  # fmt: skip
_SAME: Final = {
    word: group.split()[0]
    for group in (
        "delete erase", "buy purchase", "car automobile", "phone telephone", "email e-mail", "doctor physician",
        "largest biggest", "smallest littlest",
    )
    for word in group.split()
}  # fmt: skip
_NO_PLURAL: Final = _words(
    "news customs goods means arms glasses physics economics mathematics politics series species"
)


class Facts(NamedTuple):
    """What a question turns on; each in its order."""

    turns: tuple[str, ...]  # numbers, names, signs, negations, words with an opposite, who is meant, what is asked for
    words: tuple[str, ...]  # all of them


def facts(text: str) -> Facts | None:
    """None where the text is too long to be compared."""
    if len(text) > LONGEST:
        return None
    text = unicodedata.normalize("NFC", text).strip().translate(_ONE_SIGN)
    for frame, instead in _FRAMES:
        text = frame.sub(instead, text)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    if english := _ENGLISH.search(text) is not None:
        text = _ARTICLE.sub("", text)
    turns: list[str] = [f"quoted {quoted}" for quoted in _QUOTED.findall(text)]
    words: list[str] = []
    start = True
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "parts":
            turn, word = _read(found.group(), start, english)
            if turn:
                turns.append(turn)
            words.append(word)
        start = text[found.end() : found.end() + 1] in ("", ".", "!", "?", "\n") or found.group()[0] == "\n"
        start = start or found.lastgroup == "parts"
    return Facts(tuple(turns), tuple(words))


def _read(token: str, start: bool, english: bool) -> tuple[str, str]:
    """What a token turns on (it may be nothing), and what it means as a word.  start: of a sentence."""
    lower = token.lower()
    if (number := _NUMBERS.get(lower)) is not None:
        return f"{'number' if number[0].isdigit() else 'sign'} {number}", number
    if any(c.isdigit() for c in token):
        return f"number {token}", token
    if lower in _NEGATIONS:
        return f"not {lower}", lower
    if lower in _TENSES:
        return f"tense {_TENSES[lower]}", lower
    if lower in _ASKS:
        return f"asks {_ASKS[lower]}", _ASKS[lower]
    if (who := _WHO.get(lower)) is not None and (len(token) == 1 or not token.isupper()):  # `us` is not the US
        return f"who {who}", who if who == "does" else token if len(token) == 1 else lower
    if not any(c.isalpha() for c in token):
        return f"sign {token}", token
    if _is_name(token, start):  # as it is written: Mb is not MB
        return f"name {token.removesuffix(chr(39) + 's')}", token
    word = _stem(lower) if english else lower
    return f"polar {word}" if lower in _POLAR else "", word


def _is_name(word: str, start: bool) -> bool:
    """A capital in the middle of a sentence, capitals or signs within a word."""
    if re.search(r"[./@#:_]", word) or (len(word) > 1 and word[1:] != word[1:].lower()):
        return True
    return word[0].isupper() and not start


def _stem(word: str) -> str:
    """Without the s of a plural; a few words have another in their place."""
    if word.endswith("'s"):
        return word
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui'" and word not in _NO_PLURAL:
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        else:
            word = word[:-2] if word.endswith(("xes", "ches", "shes", "sses", "zzes")) else word[:-1]
    return _SAME.get(word, word)


def may_be_same(one: Facts, other: Facts, depth: Depth) -> bool:
    if one.turns != other.turns:
        return False
    return depth == "facts" or one.words == other.words
