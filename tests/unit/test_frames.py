import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import FrameError
from fedge.frames import HEADER_BYTES, Frame, FrameReader, as_wire_bits, read_frame, read_header

FRAME = Frame(codec=1, segment=3, count=1000, bits=as_wire_bits(1.3), payload=b"payload")


def test_a_frame_read_back_is_the_one_written():
    assert read_frame(FRAME.to_bytes()) == FRAME


@given(st.integers(0, 26), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position, change):
    data = bytearray(FRAME.to_bytes())
    data[position] ^= change
    with pytest.raises(FrameError):
        read_frame(bytes(data))


@pytest.mark.parametrize("length", range(len(FRAME.to_bytes())))
def test_a_truncated_frame_is_refused_with_what_was_expected(length):
    with pytest.raises(FrameError, match="expected"):
        read_frame(FRAME.to_bytes()[:length])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(1, 64))
def test_a_stream_cut_anywhere_gives_the_same_frames(sizes, piece):
    frames = [Frame(0, i, size + 1, 32.0, bytes(size)).to_bytes() for i, size in enumerate(sizes)]
    stream, reader = b"".join(frames), FrameReader()
    found = [frame for i in range(0, len(stream), piece) for frame in reader.feed(stream[i : i + piece])]
    assert found == frames
    assert reader.pending_bytes == 0


def test_a_stream_that_ends_inside_a_frame_has_delivered_the_whole_ones():
    first, second = FRAME.to_bytes(), FRAME.to_bytes()
    reader = FrameReader()
    assert list(reader.feed(first + second[:-1])) == [first]
    assert reader.pending_bytes == len(second) - 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [(0, 9, "version 1, got 9"), (4, b"\0\0\0\0", "coordinates"), (12, b"\xff\xff\xff\x7f", "payload bytes")],
)
def test_a_header_that_would_cost_memory_is_refused_before_its_payload(field, value, message):
    data = bytearray(FRAME.to_bytes()[:HEADER_BYTES])
    data[field : field + (1 if isinstance(value, int) else len(value))] = (
        bytes([value]) if isinstance(value, int) else value
    )
    with pytest.raises(FrameError, match=message):
        read_header(bytes(data))


@pytest.mark.parametrize("bits", [np.nan, np.inf, 0.0, -1.0, 33.0])
def test_bits_that_are_no_rate_are_refused(bits):
    with pytest.raises(FrameError, match="bits per coordinate"):
        read_frame(Frame(1, 0, 10, bits, b"").to_bytes())


def test_the_frames_before_a_bad_header_are_not_lost_with_it():
    found, reader = [], FrameReader()
    with pytest.raises(FrameError, match="version"):
        for frame in reader.feed(FRAME.to_bytes() + b"\x09" * 40):
            found.append(frame)
    assert found == [FRAME.to_bytes()]
