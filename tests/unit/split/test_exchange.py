"""Frames of a split step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import CodecError
from fedge.split.exchange import MOST_STEPS, Answer, Batch, Hello, Over, Refusal, read_exchange

FRAMES = (
    Hello(0),
    Hello(7, b"12345678", b"shared"),
    Batch(3, b"activations", b"labels"),
    Batch(MOST_STEPS, b"", b""),
    Answer(3, 0.5, b"gradient", b"shared"),
    Answer(0, 0.0, b""),
    Refusal(4, "no batch: ∞"),
    Over(0, "the round is over"),
)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{type(frame).__name__}-{frame.step}")
def test_a_frame_is_read_as_it_was_written(frame):
    assert read_exchange(frame.to_bytes()) == frame


def test_the_layout_is_as_documented():
    assert Batch(258, b"abc", b"de").to_bytes() == b"\x01\x02\x02\x01\x00\x00\x03\x00\x00\x00abcde"
    assert Answer(1, 1.0, b"g", b"s").to_bytes() == b"\x01\x03\x01\x00\x00\x00\x00\x00\x80\x3f\x01\x00\x00\x00gs"


def test_a_digest_names_step_activations_and_labels():
    known = Batch(1, b"ab", b"c").digest
    others = (Batch(2, b"ab", b"c"), Batch(1, b"a", b"bc"), Batch(1, b"ab", b"d"))
    assert known == Batch(1, b"ab", b"c").digest not in {other.digest for other in others}


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", "expected a split frame of 6 bytes or more, got 0"),
        (b"\x02\x02\x00\x00\x00\x00", "got kind 2 of version 2"),
        (b"\x01\x09\x00\x00\x00\x00", "got kind 9 of version 1"),
        (b"\x01\x02\xff\xff\xff\xff\x00\x00\x00\x00", "expected a step of 0"),
        (Batch(0, b"abc", b"").to_bytes()[:-1], "expected 7 bytes or more behind the head"),
        (Answer(0, 0.0, b"abc").to_bytes()[:-1], "expected 11 bytes or more behind the head"),
        (Hello(0).to_bytes()[:-1], "expected 8 bytes or more"),
    ],
)
def test_what_is_no_frame_is_refused(data, expected):
    with pytest.raises(CodecError, match=expected):
        read_exchange(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_that_is_written_the_same_or_are_refused(data):
    try:
        frame = read_exchange(data)
    except CodecError:
        return
    if not isinstance(frame, Refusal | Over | Answer):  # not all bytes are text, and not every NaN comes back
        assert frame.to_bytes() == data
