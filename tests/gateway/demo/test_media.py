"""Sound and moderation, through the openai SDK."""

import pytest
from openai import AsyncOpenAI, NotFoundError

from gateway.demo.simulator import Simulator


async def test_speech_is_bytes_that_depend_on_the_text(openai: AsyncOpenAI, sim: Simulator) -> None:
    one, again, other = [
        await (await openai.audio.speech.create(model="sim-small", voice="alloy", input=text)).aread()
        for text in ("hello there", "hello there", "other words")
    ]
    assert one == again != other
    assert len(one) == 2048
    assert sim.bill.rows[0].nano_usd == 300  # 2 x 150,000 pico


async def test_a_transcription_counts_the_sound_it_was_sent(openai: AsyncOpenAI, sim: Simulator) -> None:
    answer = await openai.audio.transcriptions.create(model="sim-small", file=("a.wav", b"x" * 5000))
    assert answer.text
    charge = sim.bill.rows[-1].charge
    assert charge.input == 5
    assert charge.output == answer.usage.output_tokens


async def test_a_transcription_by_an_unknown_model_is_refused(openai: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError):
        await openai.audio.transcriptions.create(model="whisper-9", file=("a.wav", b"x"))


async def test_moderation_flags_harm(openai: AsyncOpenAI) -> None:
    answer = await openai.moderations.create(input=["a nice day", "I will kill it"])
    assert [result.flagged for result in answer.results] == [False, True]
    assert answer.results[1].categories.violence
