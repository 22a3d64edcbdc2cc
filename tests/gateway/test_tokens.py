"""Counts equal tiktoken's own, no text can stall or break the counting, and nothing touches the network."""

import asyncio
import base64
import hashlib
import lzma
import random
import socket
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path

import pytest
import tiktoken

from gateway import tokens
from gateway.tokens import by_length, count, estimate, warm

SPECIAL = ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>"]
SOURCE = Path(tokens.__file__).read_text()


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm("gpt-4o", "gpt-4")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiktoken.Encoding]:
    """tiktoken as it is installed, which checks the sha256 of the rank files that it is given."""
    cache = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        for name in ("o200k_base", "cl100k_base"):
            packed = lzma.decompress(files("gateway").joinpath("data", f"{name}.bin.xz").read_bytes())
            lines, start = [], 0
            while start < len(packed):
                end = start + 1 + packed[start]
                lines.append(base64.b64encode(packed[start + 1 : end]) + b" %d\n" % len(lines))
                start = end
            url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
            (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"".join(lines))
        return {name: tiktoken.get_encoding(name) for name in ("o200k_base", "cl100k_base")}


def ordinary_texts() -> list[str]:
    rng = random.Random(7)
    words = SOURCE.split()
    wild = "".join(chr(rng.choice([rng.randint(32, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])) for _ in range(5_000))
    return [
        "",
        "Hello, world!",
        SOURCE,
        SOURCE * 12,
        " ".join(rng.choice(words) for _ in range(3_000)),
        "今天天气很好，我们去公园散步吧。" * 50,
        "Straße, naïve, Ñandú, Ærø — 12345678 9,999.99€ don't I'LL we've\r\n\r\n\t x  \n",
        "👩‍👩‍👧‍👦🇩🇪🏳️‍🌈" * 30,
        "e\u0301\u0301\u0301" * 100,
        wild,
        '{"a": [1, 2, {"b": null}], "c": "\\u00e9\\n"}' * 40,
    ]


@pytest.mark.parametrize(("model", "name"), [("gpt-4o", "o200k_base"), ("gpt-4", "cl100k_base")])
def test_a_count_is_tiktokens_own(official: dict[str, tiktoken.Encoding], model: str, name: str) -> None:
    for text in ordinary_texts():
        assert len(text) <= tokens.COUNTED
        assert count(text, model) == len(official[name].encode_ordinary(text)), text[:50]


def test_special_tokens_in_a_text_are_ordinary_text(official: dict[str, tiktoken.Encoding]) -> None:
    for literal in SPECIAL:
        text = f"before {literal} after"
        assert count(text, "gpt-4o") == len(official["o200k_base"].encode(text, disallowed_special=()))
        assert count(literal, "gpt-4o") > 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5.4", "o200k_base"),
        ("o3", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-oss-120b", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("claude-sonnet-4-5", "o200k_base"),
        ("", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("azure/gpt-35-turbo-16k", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("text-embedding-3-large-eu", "cl100k_base"),
        ("text-davinci-003", "cl100k_base"),
    ],
)
def test_each_model_is_counted_with_its_vocabulary(
    official: dict[str, tiktoken.Encoding], model: str, name: str
) -> None:
    text = "今天天气很好，我们去公园散步吧。"  # 10 tokens or 18
    counts = {key: len(encoding.encode_ordinary(text)) for key, encoding in official.items()}
    assert counts["o200k_base"] != counts["cl100k_base"]
    assert count(text, model) == counts[name]


def hostile(size: int) -> dict[str, str]:
    rng = random.Random(3)
    block = min(size, 200_000)
    return {
        "a": "a" * size,
        "caret": "^" * size,
        "spaces": " " * size,
        "tabs": "\t" * size,
        "nbsp": "\u00a0" * size,
        "newlines": "\n" * size,
        "surrogates": "\ud800" * size,
        "mixed surrogates": "x\udfff" * (size // 2),
        "emoji": "😀" * size,
        "tags": "\U000e0041" * size,
        "specials": "<|endoftext|>" * (size // 13),
        "letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=block)) * (size // block),
        "bytes": rng.randbytes(block).decode("latin-1") * (size // block),
        "cjk": "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(block)) * (size // block),
    }


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("size", [tokens.COUNTED, 10_000_000])
def test_no_text_raises_or_takes_long(size: int) -> None:  # pitfall 44
    for kind, text in hostile(size).items():
        for model in ("gpt-4o", "gpt-4") if size == tokens.COUNTED else ("gpt-4o",):
            took = time.thread_time()
            counted = count(text, model)
            took = time.thread_time() - took
            print(f"{size:>10} {model:6} {kind:16} {counted:>10} tokens {took * 1e3:6.1f} ms")
            assert 0 < counted <= 4 * size
            assert took < 0.2, kind


@pytest.mark.parametrize("kind", ["a", "spaces", "letters", "cjk", "specials"])
def test_above_the_cap_the_samples_come_close_to_the_truth(kind: str) -> None:
    text = hostile(1_000_000)[kind]
    pieces = [text[i : i + tokens.COUNTED] for i in range(0, len(text), tokens.COUNTED)]
    truth = sum(count(piece, "gpt-4o") for piece in pieces)
    assert count(text, "gpt-4o") == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(
    ("text", "guess"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("的" * 4, 3), ("\ud800" * 8, 2), ("a" * 10_000_000, 2_500_000)],
)
def test_the_length_gives_a_token_for_every_four_bytes(text: str, guess: int) -> None:
    assert by_length(text) == guess


async def test_pieces_are_counted_as_the_one_text_they_make() -> None:
    whole = "The quick brown fox jumps over the lazy dog. " * 4
    assert await estimate(list(whole), "gpt-4o") == count(whole, "gpt-4o")
    assert await estimate([], "gpt-4o") == 0


async def test_a_short_text_is_counted_at_once_and_a_long_one_in_the_counting_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted_in: list[str] = []

    def watched(text: str, model: str) -> int:
        counted_in.append(threading.current_thread().name)
        return count(text, model)

    monkeypatch.setattr(tokens, "count", watched)
    short, long = SOURCE[:1_000], SOURCE * 5
    assert await estimate([short], "gpt-4o") == count(short, "gpt-4o")
    assert await estimate([long], "gpt-4o") == count(long, "gpt-4o")
    assert counted_in == [threading.main_thread().name, "tokens"]
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "tokens"] == [True]


async def test_the_loop_goes_on_while_ten_large_prompts_are_counted() -> None:  # pitfall 43
    prompts = [text * 5 for text in hostile(200_000).values()][:10]
    gaps: list[float] = []
    done = asyncio.Event()

    async def pulse() -> None:
        last = time.perf_counter()
        while not done.is_set():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    pulsing = asyncio.create_task(pulse())
    answers = await asyncio.gather(*(estimate([prompt], "gpt-4o") for prompt in prompts))
    done.set()
    await pulsing
    gaps.sort()
    print(f"loop gaps: median {gaps[len(gaps) // 2] * 1e3:.1f} ms, largest {gaps[-1] * 1e3:.1f} ms")
    assert min(answers) > 0
    assert gaps[len(gaps) * 99 // 100] < 0.05


async def test_when_counting_takes_too_long_the_length_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(text: str, model: str) -> int:
        release.wait(10)
        return -1

    monkeypatch.setattr(tokens, "count", stuck)
    monkeypatch.setattr(tokens, "PATIENCE", 0.05)
    text = "x" * 20_000
    try:
        started = time.perf_counter()
        assert await estimate([text], "gpt-4o") == 5_000
        assert time.perf_counter() - started < 1
        crowd = await asyncio.gather(*(estimate([text], "gpt-4o") for _ in range(tokens.WAITING + 20)))
        assert set(crowd) == {5_000}  # the queue is bounded: who finds it full is answered as well
        assert tokens._thread().full()
    finally:
        release.set()
    monkeypatch.undo()
    assert await _until_exact(text) == count(text, "gpt-4o")  # and the thread is well again


async def _until_exact(text: str) -> int:
    for _ in range(100):
        if (counted := await estimate([text], "gpt-4o")) != by_length(text):
            return counted
        await asyncio.sleep(0.01)
    return by_length(text)


async def test_a_caller_that_goes_away_leaves_the_thread_working() -> None:
    text = SOURCE * 5
    for _ in range(20):
        gone = asyncio.create_task(estimate([text], "gpt-4o"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert await _until_exact(text) == count(text, "gpt-4o")


async def test_a_short_text_does_not_wait_while_another_vocabulary_is_loaded() -> None:
    with tokens._loading:
        started = time.perf_counter()
        assert await estimate(["Hello, world!"], "gpt-4o") == 4
        assert time.perf_counter() - started < tokens.PATIENCE / 2


def test_a_first_short_count_waits_for_the_vocabulary_outside_the_loop() -> None:
    program = """
import asyncio, threading
from gateway import tokens

async def main():
    loaded_in = []
    load = tokens._load
    def watched(name):
        loaded_in.append(threading.current_thread().name)
        return load(name)
    tokens._load = watched
    first = await tokens.estimate(["Hello, world!"], "gpt-4o")
    while not tokens._loaded:
        await asyncio.sleep(0.01)
    assert first in (4, tokens.by_length("Hello, world!")), first
    assert set(loaded_in) == {"tokens"}, loaded_in
    assert await tokens.estimate(["Hello, world!"], "gpt-4o") == 4

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
