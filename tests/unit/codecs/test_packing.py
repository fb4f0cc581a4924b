import numpy as np
import pytest

from fedge.codecs.packing import TRIT, bits_of, levels_of, look_up, pack, packed_bytes, planes, unpack

COUNTS = [0, 1, 2, 7, 8, 9, 31, 100, 409, 4096]
WITH_TRITS = range(TRIT + 1, TRIT + 8)


@pytest.mark.parametrize("width", [*range(1, 9), *WITH_TRITS])
@pytest.mark.parametrize("count", COUNTS)
def test_codes_come_back_from_the_length_that_was_promised(width, count):
    codes = np.random.default_rng(width).integers(0, levels_of(width), (count, 3)).astype(np.uint8)
    packed = pack(codes, width)
    assert packed.shape == (packed_bytes(count, width), 3)
    assert np.array_equal(unpack(packed, count, width), codes)


@pytest.mark.parametrize("width", [*range(1, 9), *WITH_TRITS])
@pytest.mark.parametrize("count", COUNTS)
def test_looking_codes_up_is_unpacking_and_indexing(width, count):
    codes = np.random.default_rng(width).integers(0, levels_of(width), (count, 3)).astype(np.uint8)
    ramp = np.linspace(-2, 3, levels_of(width)).astype(np.float32)
    for table in (ramp, ramp - ramp[::-1]):
        out = np.empty((count, 3), dtype=np.float32)
        look_up(pack(codes, width), width, table, out)
        assert np.array_equal(out, table[codes])


@pytest.mark.parametrize("width", range(1, 9))
def test_packing_wastes_less_than_a_byte_per_plane_and_nothing_in_a_full_block(width):
    for count in COUNTS:
        assert 0 <= packed_bytes(count, width) - count * width / 8 < len(planes(width))
    assert packed_bytes(4096, width) == 512 * width


def test_a_plane_of_four_bits_holds_the_first_half_in_low_and_the_second_in_high_nibbles():
    assert pack(np.array([[1], [2], [3], [4]], dtype=np.uint8), 4).tolist() == [[0x31], [0x42]]


def test_seven_bits_are_planes_of_four_two_and_one_from_the_lowest_bit_up():
    assert planes(7) == [(4, 0), (2, 4), (1, 6)]
    assert pack(np.array([[0b1_10_0101]], dtype=np.uint8), 7).tolist() == [[0b0101], [0b10], [0b1]]


@pytest.mark.parametrize("width", WITH_TRITS)
def test_a_trit_takes_a_fifth_of_a_byte_and_makes_levels_three_times_as_many_as_the_bits_below_it(width):
    assert levels_of(width) == 3 * 2 ** (width - TRIT - 1)
    for count in COUNTS:
        assert 0 <= packed_bytes(count, width) - count * bits_of(width) / 8 < len(planes(width)) + 1
    assert packed_bytes(4000, width) == 4000 * bits_of(width) / 8


def test_every_byte_reads_as_five_trits_and_five_trits_come_back_from_their_byte():
    read = unpack(np.arange(256, dtype=np.uint8)[None], 5, TRIT + 1)
    assert read.max() == 2
    again = pack(read, TRIT + 1)
    assert np.array_equal(unpack(again, 5, TRIT + 1), read)
    assert len(np.unique(read, axis=1).T) == len(np.unique(again)) == 3**5


def test_the_first_of_five_trits_leads_and_bits_have_planes_of_their_own():
    assert pack(np.array([[1, 2, 0, 0, 2]], dtype=np.uint8).T, TRIT + 1).tolist() == [[81 + 54 + 2 + 8]]
    codes = np.array([[0b1_0, 0b10_1, 0, 0b1_1, 0b10_0]], dtype=np.uint8).T
    assert pack(codes, TRIT + 2).tolist() == [[0b01010], [81 + 54 + 3 + 2 + 8]]


def test_where_trits_do_not_fill_their_bytes_the_rest_are_zeros_and_are_not_read():
    codes = np.array([[2, 1, 0, 2, 2, 1]], dtype=np.uint8).T  # rows of two: 2 1, 0 2, 2 1, - -, - -
    packed = pack(codes, TRIT + 1)
    full = pack(np.array([[2, 1, 0, 2, 2, 1, 0, 0, 0, 0]], dtype=np.uint8).T, TRIT + 1)
    assert packed.tolist() == full.tolist()
    other = pack(np.array([[2, 1, 0, 2, 2, 1, 2, 2, 1, 2]], dtype=np.uint8).T, TRIT + 1)
    assert np.array_equal(unpack(other, 6, TRIT + 1), codes)
