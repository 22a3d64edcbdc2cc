"""Embeddings."""

import base64
from array import array

import pytest
from openai import AsyncOpenAI

from gateway.demo.embeddings import embed
from gateway.demo.language import tokenize
from gateway.demo.simulator import Simulator


def _near(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(embed(tokenize(one), 256), embed(tokenize(other), 256), strict=True))


def test_texts_that_share_words_are_nearer_than_texts_that_do_not() -> None:
    same = _near("what is the capital of France", "What is the capital of France")
    alike = _near("what is the capital of France", "tell me the capital of France")
    other = _near("what is the capital of France", "my cat sleeps all day long")
    assert same == pytest.approx(1, abs=1e-6)
    assert 0.4 < alike < 0.95
    assert other < 0.3


async def test_vectors_have_length_1_and_the_sdk_reads_both_encodings(openai: AsyncOpenAI) -> None:
    packed = await openai.embeddings.create(model="sim-embed", input=["one text", "another"])
    plain = await openai.embeddings.create(model="sim-embed", input=["one text", "another"], encoding_format="float")
    assert [len(d.embedding) for d in plain.data] == [256, 256]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
        assert sum(v * v for v in one.embedding) == pytest.approx(1, abs=1e-5)


async def test_input_is_billed_and_dimensions_are_honoured(sim: Simulator, openai: AsyncOpenAI) -> None:
    answer = await openai.embeddings.create(
        model="sim-embed", input=[[1, 2, 3], [4]], dimensions=32, encoding_format="float"
    )
    assert [len(d.embedding) for d in answer.data] == [32, 32]
    assert answer.usage.prompt_tokens == 4
    assert sim.bill.rows[-1].nano_usd == 80  # 4 x 20,000 pico
    raw = await openai.embeddings.with_raw_response.create(model="sim-embed", input="x", encoding_format="base64")
    packed = raw.http_response.json()["data"][0]["embedding"]
    assert len(array("f", base64.b64decode(packed))) == 256
