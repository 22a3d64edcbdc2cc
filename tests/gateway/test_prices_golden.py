"""Golden bills: what providers report, what it costs, and the arithmetic beside it, to the nano-dollar."""

from typing import Any

import pytest

from gateway.exchange import Usage
from gateway.prices import configured
from gateway.settings import Price
from gateway.usage import read_usage

# Prices in USD per million tokens.
MINI = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
GPT_4O = {"input": "2.50", "cached_input": "1.25", "output": "10"}
SONNET = {"input": "3", "cached_input": "0.30", "cache_write": "3.75", "cache_write_1h": "6", "output": "15"}
GEMINI = {"input": "1.25", "cached_input": "0.625", "output": "10"}
AUDIO = {"input": "4", "cached_input": "0.4", "output": "16", "audio_input": "32", "audio_output": "64"}
REALTIME = AUDIO | {"audio_cached_input": "0.4", "image_input": "5", "image_cached_input": "0.5"}
IMAGE = {"input": "5", "cached_input": "1.25", "output": "10", "image_input": "10", "image_output": "40"}
PLAIN = {"input": "2", "output": "8"}
SONAR = {"input": "2", "output": "8", "reasoning": "3", "request": "0.005"}
FREE = {"input": "0", "output": "0"}
FINE = {"input": "0.000000001", "output": "0.000000001"}


def openai(prompt: int, completion: int, **parts: int) -> dict[str, Any]:
    """A Chat usage object; parts: cached, audio, image, write (of the prompt), reasoning, audio_out, image_out."""
    words = {"cached": "cached_tokens", "audio": "audio_tokens", "image": "image_tokens", "write": "cache_write_tokens"}
    outer = {"reasoning": "reasoning_tokens", "audio_out": "audio_tokens", "image_out": "image_tokens"}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {words[k]: v for k, v in parts.items() if k in words},
        "completion_tokens_details": {outer[k]: v for k, v in parts.items() if k in outer},
    }


def anthropic(input: int, output: int, read: int = 0, write: int = 0, write_1h: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": input,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": write + write_1h,
        "cache_creation": {"ephemeral_5m_input_tokens": write, "ephemeral_1h_input_tokens": write_1h},
    }


# (usage as a provider writes it, price, nano-USD).  1 USD per million tokens is 1,000 nano-USD per token.
GOLDEN: list[tuple[dict[str, Any], dict[str, str], int]] = [
    # pitfall 6, verbatim: cached tokens are not charged twice
    (openai(1_000_000, 0, cached=900_000), GPT_4O, 1_375_000_000),  # 100k*2.50 + 900k*1.25 = $1.375000
    (
        {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "cache_read_input_tokens": 0, "output_tokens": 550},
        SONNET,
        54_399_000,  # 3*3 + 12,304*3.75 + 550*15 = 9 + 46,140 + 8,250 micro = $0.054399
    ),
    (openai(262_960, 1_744, cached=257_955), GEMINI, 184_918_125),  # 5,005*1.25 + 257,955*.625 + 1,744*10 micro
    # pitfall 13: nothing was used
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, GPT_4O, 0),
    # pitfall 14: Gemini's thoughts are output; OpenAI's reasoning is inside the completion already
    ({"prompt_tokens": 15, "completion_tokens": 359, "total_tokens": 1_035}, GEMINI, 10_218_750),  # 15*1.25 + 1,020*10
    (openai(0, 533, reasoning=382), GPT_4O, 5_330_000),  # 533*10
    (openai(100, 20), GPT_4O, 450_000),  # 100*2.50 + 20*10, once, however often the stream repeated it
    # pitfall 15: 5-minute and 1-hour writes have separate prices
    (anthropic(0, 0, write=1_000_000), SONNET, 3_750_000_000),
    (anthropic(0, 0, write_1h=1_000_000), SONNET, 6_000_000_000),
    (anthropic(10, 5, read=1_000, write=200, write_1h=300), SONNET, 2_955_000),  # 30 + 300 + 750 + 1,800 + 75
    (anthropic(2_095, 503, read=180_000), SONNET, 67_830_000),  # 6,285 + 54,000 + 7,545
    # the everyday ones
    (openai(1, 0), MINI, 150),
    (openai(0, 1), MINI, 600),
    (openai(1, 0, cached=1), MINI, 75),
    (openai(1_000_000, 1_000_000), MINI, 750_000_000),
    (openai(1_117, 46, cached=1_024), MINI, 118_350),  # 93*150 + 1,024*75 + 46*600 = 13,950 + 76,800 + 27,600
    (openai(2_006, 300, cached=1_920), GPT_4O, 5_615_000),  # 86*2,500 + 1,920*1,250 + 300*10,000
    (openai(8_191, 0), {"input": "0.02", "output": "0"}, 163_820),  # an embedding: 8,191*20
    (openai(1, 0), {"input": "0.02", "output": "0"}, 20),
    (openai(128_000, 16_384), GPT_4O, 483_840_000),  # 320,000 + 163,840 micro
    (openai(1_000_000_000, 1_000_000_000), GPT_4O, 12_500_000_000_000),  # the largest that is believed: $12,500
    # a part without a price of its own costs as what it belongs to
    (openai(1_000, 0, cached=400), PLAIN, 2_000_000),  # cached -> input
    (anthropic(100, 0, write=400), PLAIN, 1_000_000),  # written -> input
    (anthropic(100, 0, write_1h=400), PLAIN, 1_000_000),  # written for an hour -> written -> input
    (anthropic(100, 0, write_1h=400), PLAIN | {"cache_write": "2.5"}, 1_200_000),  # 200,000 + 400*2,500
    (openai(0, 1_000, reasoning=900), PLAIN, 8_000_000),  # reasoning -> output
    (openai(1_000, 0, audio=600), PLAIN, 2_000_000),  # audio -> input
    (openai(1_000, 0, image=600), PLAIN, 2_000_000),  # images -> input
    (openai(0, 1_000, audio_out=600), PLAIN, 8_000_000),  # audio out -> output
    (openai(0, 1_000, image_out=600), PLAIN, 8_000_000),  # images out -> output
    (openai(100, 0, cached=100, audio=100), AUDIO, 3_200_000),  # cached audio -> audio: no discount is invented
    (openai(100, 0, cached=100, audio=100), GPT_4O, 125_000),  # cached audio, audio unpriced -> cached input
    # audio and images
    (openai(100, 0, audio=60), AUDIO, 2_080_000),  # 40*4,000 + 60*32,000
    (openai(0, 100, audio_out=75), AUDIO, 5_200_000),  # 25*16,000 + 75*64,000
    (openai(300, 90, cached=200, audio=180, audio_out=70), REALTIME, 8_080_000),  # 80 of the audio must be cached:
    #   text 0; text cached 120*400 = 48,000; audio 100*32,000; audio cached 80*400 = 32,000; 20*16,000 + 70*64,000
    (openai(100, 0, image=40), REALTIME, 440_000),  # 60*4,000 + 40*5,000
    (openai(100, 0, cached=100, image=40), REALTIME, 44_000),  # text cached 60*400 + image cached 40*500
    (openai(50, 272, image=40, image_out=272), IMAGE, 11_330_000),  # 10*5,000 + 40*10,000 + 272*40,000
    (openai(0, 300, image_out=272), IMAGE, 11_160_000),  # 28*10,000 + 272*40,000
    # reasoning with a price of its own, and a fee per request
    (openai(1_000, 500, reasoning=400), SONAR, 9_000_000),  # 2,000,000 + 100*8,000 + 400*3,000 + 5,000,000
    (openai(0, 0), SONAR, 5_000_000),
    # an explicit 0 is free
    (openai(1_000_000, 1_000_000), FREE, 0),
    (openai(1_000, 0, cached=1_000), {"input": "2", "cached_input": "0", "output": "8"}, 0),
    # rounding: exact to the last of it, then up, once for the sum
    (openai(1, 0), FINE, 1),  # 0.000001 nano -> 1
    (openai(999_999, 1), FINE, 1),  # exactly 1 nano
    (openai(1_000_000, 1), FINE, 2),  # 1.000001 nano -> 2
    (openai(1, 1), {"input": "0.0004", "output": "0.0005"}, 1),  # 0.4 + 0.5 nano: rounded together, not 1 + 1
    (openai(3, 0), {"input": "0.0375", "output": "0"}, 113),  # 112.5 nano -> 113
    (openai(2, 0), {"input": "0.0375", "output": "0"}, 75),  # 75 nano, exactly
]


@pytest.mark.parametrize(("raw", "price", "nano"), GOLDEN)
def test_the_bill_is_what_arithmetic_says(raw: dict[str, Any], price: dict[str, str], nano: int) -> None:
    usage = read_usage(raw)
    assert usage is not None
    assert configured(Price.model_validate(price), "test").cost(usage) == nano


def test_the_golden_table_is_large_enough() -> None:
    assert len(GOLDEN) >= 40


def test_usage_whose_parts_exceed_the_whole_is_billed_by_its_parts() -> None:
    rate = configured(Price.model_validate(GPT_4O), "test")
    assert rate.cost(Usage(10, 5, cache_read=12, reasoning=8)) == 12 * 1_250 + 8 * 10_000
