"""Texts that take many tokens for their length, or few bytes for their tokens."""

from __future__ import annotations

import random
import unicodedata
from typing import Final

_rng = random.Random(20)

NASTY: Final = [
    "",
    " ",
    "\x00" * 300,
    "".join(map(chr, range(1, 256))) * 3,
    "\u200b\u200d\u2060\ufeff" * 100,  # zero width
    "👩🏽‍🚀🏴󠁧󠁢󠁳󠁣󠁴󠁿👨‍👩‍👧‍👦" * 40,
    "e" + "\u0301\u0302\u0316" * 300,  # combining
    unicodedata.normalize("NFD", "Việt Nam, Tiếng Việt ") * 40,
    "漢字仮名交じり文、臺灣繁體。" * 60,
    "한국어 문장입니다. " * 60,
    "ກຂຄງຈ ಕನ್ನಡ ᚠᛇᚻ 𒀀𒁀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 " * 30,
    "\U0010ffff\ufffd\ufffe" * 100,
    "\ufdfa" * 200,
    '"\\/\b\f\n\r\t' * 100,
    "<|endoftext|><|im_start|>" * 50,
    "[1, 1, 1, {}]" * 100,
    " \n" * 400 + "\t" * 400,
    "".join(map(chr, _rng.choices([*range(1, 0xD800), *range(0xE000, 0x110000)], k=3000))),
    "".join(_rng.choices("0123456789abcdef-_ZQXJ", k=3000)),
    "The quick brown fox jumps over the lazy dog. " * 200,
]  # fmt: skip
