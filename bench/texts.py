"""Texts that are what an assessor looks for, and texts that are not, for `make assess`.  All are made here.

They were written by those who wrote the assessors: read precision and recall as "does what it says", not as a promise.
Rates on public sets that nobody here wrote stand in docs/safety.md.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gateway.assess import Sample, read

HERE: Final = Path(__file__).parent
_HEX: Final = "0123456789abcdef"
_ANY: Final = string.ascii_letters + string.digits
_AROUND: Final = (
    "use {} please", "export KEY={}\nrun", '{{"key": "{}"}}', "curl -H 'x-api-key: {}' https://api.example.com",
    "Der Schlüssel lautet {}.", "client = Client('{}')", "| name | {} |", "see {}, then go on", "({})", "<b>{}</b>",
)  # fmt: skip


def secrets(count: int = 400) -> list[Sample]:
    rng = random.Random(1)
    word: Callable[..., str] = lambda size, letters=_ANY: "".join(rng.choice(letters) for _ in range(size))  # noqa: E731
    made: list[Callable[[], str]] = [
        lambda: "AK" + "IA" + word(16, string.ascii_uppercase + "234567"),
        lambda: "gh" + "p_" + word(36),
        lambda: "gl" + "pat-" + word(20),
        lambda: "sk" + "-ant-api03-" + word(90),
        lambda: "sk" + "-proj-" + word(60),
        lambda: "sk" + "_live_" + word(24),
        lambda: "AI" + "za" + word(35),
        lambda: "xo" + "xb-" + "-".join((word(11, string.digits), word(12, string.digits), word(24))),
        lambda: "hf" + "_" + word(34),
        lambda: "np" + "m_" + word(36),
        lambda: "ey" + "J" + word(30) + ".ey" + "J" + word(60) + "." + word(43),
        lambda: "S" + "G." + word(22) + "." + word(43),
        lambda: f"postgres://app:{word(14)}@db.internal:5432/app",
        lambda: f"password = '{word(5)}!{word(6)}'",
        lambda: f"client_secret: {word(32)}",
        lambda: word(40, _HEX),  # no shape of its own: found only where it is assigned
    ]
    safe: list[Callable[[], str]] = [
        lambda: word(40, _HEX),
        lambda: "-".join((word(8, _HEX), word(4, _HEX), word(4, _HEX), word(4, _HEX), word(12, _HEX))),
        lambda: "sha256:" + word(64, _HEX),
        lambda: "data/image/" + word(60) + ".png",
        lambda: "password = os.environ['DB_PASSWORD']",
        lambda: "api_key: ${API_KEY}",
        lambda: "token = get_token(user, request)",
        lambda: "the-risk-assessment-of-the-desk-and-task-force",
        lambda: "secret: please-change-me",
        lambda: "password must have twelve characters or more",
        lambda: "tokens=4096, max_tokens=1024",
        lambda: "https://example.com/path/" + word(20),
        lambda: "AKIA is how such keys begin",
        lambda: " ".join(word(rng.randint(2, 9), string.ascii_lowercase) for _ in range(12)),
    ]
    return _mixed(rng, made, safe, count)


def personal_data(count: int = 400) -> list[Sample]:
    rng = random.Random(2)
    number: Callable[[int], str] = lambda size: "".join(rng.choice(string.digits) for _ in range(size))  # noqa: E731
    name: Callable[[], str] = lambda: "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 9)))  # noqa: E731
    made: list[Callable[[], str]] = [
        lambda: f"{name()}.{name()}@{name()}.example.org",
        lambda: _checked(rng, "4", 16),
        lambda: " ".join(_parts(_checked(rng, "5", 16), 4)),
        lambda: f"+{rng.randint(1, 99)} {number(3)} {number(7)}",
        lambda: f"({rng.randint(200, 999)}) {rng.randint(200, 999)}-{number(4)}",
        lambda: f"0{rng.randint(30, 89)} {rng.randint(1000000, 9999999)}",
        lambda: _iban(rng, "DE", 18),
        lambda: " ".join(_parts(_iban(rng, "FR", 23), 4)),
        lambda: f"{rng.randint(100, 600)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        lambda: f"AB {rng.randint(10, 99)} {rng.randint(10, 99)} {rng.randint(10, 99)} C",
        lambda: f"{(dni := rng.randint(10**7, 10**8 - 1))}{'TRWAGMYFPDXBNJZSQVHLCKE'[dni % 23]}",
        lambda: f"{rng.choice((8, 23, 52, 104))}.{rng.randint(1, 254)}.{rng.randint(1, 254)}.{rng.randint(1, 254)}",
    ]
    safe: list[Callable[[], str]] = [
        lambda: f"order {number(10)}",
        lambda: f"{rng.randint(2000, 2030)}-{rng.randint(10, 12)}-{rng.randint(10, 28)}",
        lambda: f"version {rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}",
        lambda: f"EUR {rng.randint(1, 999)},{number(3)}.{number(2)}",
        lambda: f"ISBN 978-3-{number(2)}-{number(6)}-{number(1)}",
        lambda: "4111 1111 1111 1112",
        lambda: "DE89 3704 0044 0532 0130 01",
        lambda: f"pages {number(3)}-{number(3)} of {number(4)}",
        lambda: f"@{name()} said so",
        lambda: f"{name()} at {name()} dot com",
        lambda: f"192.168.{rng.randint(0, 254)}.{rng.randint(0, 254)}",
        lambda: f"{number(2)}:{number(2)}:{number(2)} GMT",
        lambda: f"matrix {number(1)} {number(1)} {number(1)} {number(1)} {number(1)} {number(1)}",
        lambda: f"id {number(20)}",
    ]
    return _mixed(rng, made, safe, count)


def injection() -> list[Sample]:
    return list(read((HERE / "injection.jsonl").read_text(encoding="utf-8")))


def words() -> list[Sample]:
    unsafe = [
        "about Project Kestrel",
        "PROJECT\n KESTREL!",
        "die Ölpreisabsprache",
        "关于内部机密的问题",
        "(kestrel-9)",
    ]
    safe = ["a kestrel project", "projects kestrels", "kestrel", "Ölpreis", "机密", "kestrel-91"]
    return [*(Sample(text, True) for text in unsafe), *(Sample(text, False) for text in safe)]


def urls() -> list[Sample]:
    unsafe = [
        "see https://tracker.example/x", "http://a.tracker.example:80/?q=1", "![x](https://evil.example/?d=1)", "www.evil.example",
        "https://docs.example.com@evil.example/", "HTTPS://TRACKER.EXAMPLE", "javascript:alert(1)", "https://8.8.8.8/x",
    ]  # fmt: skip
    safe = [
        "https://docs.example.com/a?b=c", "read docs.example.com", "no link at all", "https://example.com",
        "http://www.example.com.", "the scheme https:// alone", "a: b", "tracker, example",
    ]  # fmt: skip
    return [*(Sample(text, True) for text in unsafe), *(Sample(text, False) for text in safe)]


def language() -> list[Sample]:
    """Labelled for `allow: [en]`."""
    texts = {
        "en": "The weather was good for most of the week, but on Friday it rained and we had to stay at home with a book.",
        "de": "Das Wetter war fast die ganze Woche gut, aber am Freitag hat es geregnet und wir mussten zu Hause bleiben.",
        "fr": "Le temps était beau presque toute la semaine, mais vendredi il a plu et nous avons dû rester à la maison.",
        "es": "El tiempo fue bueno casi toda la semana, pero el viernes llovió y tuvimos que quedarnos en la casa con un libro.",
        "it": "Il tempo è stato bello per quasi tutta la settimana, ma venerdì ha piovuto e siamo rimasti a casa con un libro.",
        "pt": "O tempo esteve bom quase toda a semana, mas na sexta-feira choveu e tivemos que ficar em casa com um livro.",
        "nl": "Het weer was bijna de hele week goed, maar op vrijdag regende het en moesten we thuis blijven met een boek.",
        "pl": "Pogoda była dobra prawie przez cały tydzień, ale w piątek padało i musieliśmy zostać w domu z książką, a to nie było miłe.",
        "sv": "Vädret var bra nästan hela veckan, men på fredagen regnade det och vi fick stanna hemma med en bok som jag har.",
        "tr": "Hava neredeyse bütün hafta güzeldi ama cuma günü yağmur yağdı ve bu yüzden bir kitap ile evde kaldık, çok iyi.",
        "ru": "Погода была хорошей почти всю неделю, но в пятницу пошёл дождь, и мы остались дома с книгой, а не на улице.",
        "zh": "这个星期的天气几乎一直很好，但是星期五下雨了，我们只好待在家里看书。",
        "ja": "今週はほとんどずっと天気が良かったですが、金曜日は雨が降ったので家で本を読みました。",
        "ar": "كان الطقس جيدا طوال الأسبوع تقريبا، لكن يوم الجمعة هطل المطر وبقينا في البيت مع كتاب.",
    }  # fmt: skip
    more = ["Please write a function that adds two numbers and returns the sum of them to the caller as an int.",
            "I would like to know what the best way is to get from here to the airport by train in the morning."]  # fmt: skip
    found = [Sample(text, name != "en") for name, text in texts.items()]
    return [*found, *(Sample(text, False) for text in more)]


def length() -> list[Sample]:
    unsafe = ["x y z. " * 400, "I am sorry. " * 40, "na" * 300, "the end\n" * 60]
    safe = [
        "A short answer.",
        "one two three four five six seven eight nine ten. " * 3,
        "-" * 300,
        "1, 2, 3, 4, 5, 6, 7, 8",
    ]
    return [*(Sample(text, True) for text in unsafe), *(Sample(text, False) for text in safe)]


def toxicity() -> list[Sample]:
    unsafe = (
        "You are a complete idiot and nobody likes you.", "Shut up, you worthless piece of trash.",
        "What a stupid bitch she is.", "Go to hell, you bastard.", "He is a fucking moron.",
        "I hate you, you disgusting pig.", "Only a retard would write code like that.", "Kill yourself, loser.",
        "You dumb asshole, learn to read.", "They are all scum and should rot.", "You pathetic little coward.",
        "People like you do not deserve to live.", "Screw you and your whole damn family.",
        "Your mother should be ashamed of such an ugly, useless child.",
    )  # fmt: skip
    safe = (
        "The train to Vienna leaves at nine from platform four.", "I disagree with the second paragraph.",
        "How do I kill a process that does not answer?", "The knight drew his bastard sword.",
        "The report is poor and must be written again.", "She was angry about the late delivery.",
        "Cut the onions and beat the eggs until stiff.", "The patient was admitted with acute pain.",
        "Dick Francis wrote forty novels about horse races.", "Scunthorpe lies in Lincolnshire.",
        "The dam broke and the valley was flooded.", "Your last answer was wrong; please try again.",
        "The dog is a bitch of four years.", "Hell is described in the first part of the poem.",
        "We execute the query and abort the transaction.", "It is a shame that the shop closed.",
    )  # fmt: skip
    return [*(Sample(text, True) for text in unsafe), *(Sample(text, False) for text in safe)]


def names() -> list[Sample]:
    unsafe = (
        "I am Ada Lovelace, and I have a question.", "Please forward it to Miguel Hernández in Madrid.",
        "Dr. Susan Calvin signed the report.", "Yesterday Angela Merkel met Emmanuel Macron.",
        "My landlord, John Whitaker, keeps the deposit.", "The parcel is for Priya Natarajan.",
    )  # fmt: skip
    safe = (
        "The meeting is on Tuesday.", "Restart the server and look at the log.", "Water boils at 100 degrees.",
        "How many legs has a spider?", "The invoice is overdue by ten days.", "Sort the list by its second column.",
    )  # fmt: skip
    return [*(Sample(text, True) for text in unsafe), *(Sample(text, False) for text in safe)]


def json_schema() -> list[Sample]:
    """Labelled for a schema that wants {"name": string, "age": integer >= 0}."""
    safe: list[Any] = [{"name": "a", "age": 1}, {"age": 0, "name": ""}]
    unsafe: list[Any] = [
        {"name": "a"},
        {"name": 1, "age": 1},
        {"name": "a", "age": -1},
        [],
        "text",
        {"name": "a", "age": 1.5},
    ]
    texts = [Sample(json.dumps(one), False) for one in safe] + [Sample(json.dumps(one), True) for one in unsafe]
    return [*texts, Sample('```json\n{"name": "a", "age": 2}\n```', False), Sample('{"name": "a", "age": 2', True)]


def _mixed(
    rng: random.Random, made: list[Callable[[], str]], safe: list[Callable[[], str]], count: int
) -> list[Sample]:
    found = []
    for number in range(count):
        unsafe = number % 2 == 0
        text = rng.choice(made if unsafe else safe)()
        found.append(Sample(rng.choice(_AROUND).format(text), unsafe))
    return found


def _parts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _checked(rng: random.Random, first: str, size: int) -> str:
    """With its check digit (ISO/IEC 7812-1)."""
    digits = first + "".join(rng.choice(string.digits) for _ in range(size - 2))
    total = sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _iban(rng: random.Random, country: str, size: int) -> str:
    account = "".join(rng.choice(string.digits) for _ in range(size))
    number = int("".join(str(int(letter, 36)) for letter in account + country + "00"))
    return f"{country}{98 - number % 97:02d}{account}"
