"""Files."""

from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, omit

from gateway.demo.files import Upload
from gateway.demo.simulator import Simulator

FORM = (
    b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\ncontent-type: text/plain\r\n\r\n'
    b"one\r\n--A\r\n--\r\n-B-\r\n"
    b"\r\n--B--\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_form_is_read_however_it_was_cut(size: int) -> None:
    upload = Upload("multipart/form-data; boundary=B")
    for at in range(0, len(FORM), size):
        upload.feed(FORM[at : at + size])
    part = upload.files["file"]
    content = b"".join(step.data for step in part.blocks())
    upload.close()
    assert upload.complete
    assert upload.fields == {"purpose": "batch"}
    assert part.filename == "a.txt"
    assert content == b"one\r\n--A\r\n--\r\n-B-\r\n"
    assert part.size == len(content)


def test_a_form_that_breaks_off_is_not_complete() -> None:
    upload = Upload("multipart/form-data; boundary=B")
    upload.feed(FORM[:-6])
    upload.close()
    assert not upload.complete


async def test_a_file_is_kept_told_returned_and_deleted(openai: AsyncOpenAI) -> None:
    content = bytes(range(256)) * 1000
    made = await openai.files.create(file=("data.jsonl", content), purpose="batch")
    assert (made.bytes, made.filename, made.purpose) == (len(content), "data.jsonl", "batch")
    assert [f.id async for f in openai.files.list()] == [made.id]
    assert (await openai.files.retrieve(made.id)).id == made.id
    assert (await openai.files.content(made.id)).content == content
    assert (await openai.files.delete(made.id)).deleted
    with pytest.raises(NotFoundError):
        await openai.files.content(made.id)


async def test_a_form_without_a_purpose_is_refused(openai: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="purpose"):
        await openai.files.create(file=("a", b"x"), purpose=omit)


async def test_50_megabytes_are_taken_in_chunks_without_a_length(sim: Simulator, connect: Any) -> None:
    block = b"y" * 1_000_000
    head, tail = FORM[: FORM.index(b"one")], b"\r\n--B--\r\n"
    async with connect(sim) as wire:
        wire.writer.write(
            b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
            b"content-type: multipart/form-data; boundary=B\r\n\r\n"
        )
        for piece in [head, *[block] * 50, tail]:
            wire.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await wire.writer.drain()
        wire.writer.write(b"0\r\n\r\n")
        _, body = await wire.answer()
    assert b'"bytes":50000000' in body
