"""Answers before they are written."""

from gateway.demo.reply import IDENT, STAMP, Reply, Step, framed, of_bytes, sliced, stamped

IDENTITY = (b"i" * 24, b"1234567890")


def test_an_answer_in_one_piece_has_a_length_and_is_one_write() -> None:
    steps = list(framed(of_bytes(b"{}")))
    assert len(steps) == 1
    head, _, body = steps[0].data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 2" in head
    assert body == b"{}"


def test_an_answer_in_steps_is_chunked_and_ends() -> None:
    data = b"".join(step.data for step in framed(Reply([Step(b"one"), Step(b""), Step(b"three")])))
    assert data.partition(b"\r\n\r\n")[2] == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"


def test_a_caller_that_knows_no_chunks_gets_an_answer_that_ends_with_the_connection() -> None:
    data = b"".join(step.data for step in framed(Reply([Step(b"one"), Step(b"two")]), http10=True))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert body == b"onetwo"


def test_a_reset_before_anything_else_sends_no_head() -> None:
    assert [step.data for step in framed(Reply([Step(b"", end="reset")]))] == [b""]


def test_placeholders_are_filled_in_and_keep_their_length() -> None:
    data = f'{{"id":"{IDENT}","created":{STAMP}}}'.encode()
    assert stamped(data, IDENTITY) == b'{"id":"' + b"i" * 24 + b'","created":1234567890}'
    assert len(stamped(data, IDENTITY)) == len(data)


def test_digits_of_a_file_that_look_like_the_placeholder_stay() -> None:
    assert stamped(str(STAMP).encode(), IDENTITY) == str(STAMP).encode()


def test_slices_are_the_same_bytes_tokens_and_delay() -> None:
    steps = [Step(b"abcdefg", 1, 0.5), Step(b"xy", 2)]
    cut = list(sliced(steps, 3))
    assert [s.data for s in cut] == [b"abc", b"def", b"g", b"xy"]
    assert [s.tokens for s in cut] == [0, 0, 1, 2]
    assert [s.delay for s in cut] == [0.5, 0, 0, 0]
    assert all(s.alone for s in cut)
