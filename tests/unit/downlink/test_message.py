import struct

import numpy as np
import pytest

from fedge.downlink.message import (
    HEADER_BYTES,
    Kind,
    StateId,
    checksum,
    next_of,
    origin,
    public_base,
    read_message,
    write_message,
)
from fedge.errors import FrameError
from fedge.frames import Frame
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec("w", (4,), TensorKind.WEIGHT)])
SAID, BASE = StateId("11" * 8), StateId("22" * 8)
FRAMES = [Frame(0, i, 4, 32.0, bytes(16)).to_bytes() for i in range(2)]


def message(kind=Kind.FULL, **changes):
    given = {"round_number": 7, "alpha": 0.5, "said": SAID, "known": BASE, "frames": FRAMES}
    return write_message(kind, **{**given, **changes})


def test_a_message_is_read_as_it_was_written():
    read = read_message(message())
    assert (read.kind, read.round, read.alpha, read.said, read.base) == (Kind.FULL, 7, 0.5, SAID, BASE)
    assert list(read.frames) == FRAMES
    assert read.next == next_of(message())


def test_the_layout_is_the_documented_one():
    head = struct.unpack("<BBHIf8s8s8s", message()[:HEADER_BYTES])
    assert head[:5] == (1, 2, 2, 7, 0.5)
    assert [part.hex() for part in head[5:]] == [SAID, BASE, next_of(message())]
    assert message()[HEADER_BYTES:] == b"".join(FRAMES)


@pytest.mark.parametrize("kind", Kind)
def test_a_message_with_one_bit_changed_is_refused(kind):
    data = message(kind)
    for position in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[position // 8] ^= 1 << position % 8
        with pytest.raises(FrameError):
            read_message(bytes(spoiled))


def test_messages_that_differ_lead_to_states_of_different_names():
    other = Frame(0, 1, 4, 32.0, b"\1" + bytes(15)).to_bytes()
    changes = [
        {},
        {"round_number": 8},
        {"alpha": 0.25},
        {"said": BASE},
        {"known": SAID},
        {"frames": [FRAMES[0], other]},
    ]
    names = {next_of(message(**change)) for change in changes} | {next_of(message(Kind.DELTA))}
    assert len(names) == 7


@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 30])
def test_a_message_cut_short_is_refused(length):
    with pytest.raises(FrameError, match="expected a message"):
        read_message(message()[:length])


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_an_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(FrameError, match="alpha"):
        read_message(message(alpha=alpha))


def test_a_copy_leads_where_it_says():
    copy = read_message(message(Kind.COPY))
    assert copy.next == next_of(message(Kind.COPY)) == BASE


def test_bases_are_named_by_layout_and_numbers():
    other = Layout.of([TensorSpec("v", (4,), TensorKind.WEIGHT)])
    zeros = np.zeros(4, np.float32)
    assert origin(LAYOUT).id == public_base(LAYOUT, zeros).id
    assert len({origin(LAYOUT).id, origin(other).id, public_base(LAYOUT, zeros + 1).id}) == 3


def test_the_checksum_sees_the_last_bit_of_a_number():
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    y = x.copy()
    y[3] = np.nextafter(y[3], np.float32(2))
    assert checksum(x) == checksum(x.copy()) != checksum(y)
