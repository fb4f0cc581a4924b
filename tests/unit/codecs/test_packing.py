import numpy as np
import pytest

from fedge.codecs.packing import pack, packed_bytes, planes, unpack

COUNTS = [0, 1, 2, 7, 8, 9, 31, 100, 409, 4096]


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("count", COUNTS)
def test_codes_come_back_from_the_length_that_was_promised(width, count):
    codes = np.random.default_rng(width).integers(0, 2**width, (3, count)).astype(np.uint8)
    packed = pack(codes, width)
    assert packed.shape == (3, packed_bytes(count, width))
    assert np.array_equal(unpack(packed, count, width), codes)


@pytest.mark.parametrize("width", range(1, 9))
def test_packing_wastes_less_than_a_byte_per_plane_and_nothing_in_a_full_block(width):
    for count in COUNTS:
        assert 0 <= packed_bytes(count, width) - count * width / 8 < len(planes(width))
    assert packed_bytes(4096, width) == 512 * width


def test_a_plane_of_four_bits_holds_the_first_half_in_low_and_the_second_in_high_nibbles():
    assert pack(np.array([[1, 2, 3, 4]], dtype=np.uint8), 4).tolist() == [[0x31, 0x42]]


def test_seven_bits_are_planes_of_four_two_and_one_from_the_lowest_bit_up():
    assert planes(7) == [(4, 0), (2, 4), (1, 6)]
    assert pack(np.array([[0b1_10_0101]], dtype=np.uint8), 7).tolist() == [[0b0101, 0b10, 0b1]]
