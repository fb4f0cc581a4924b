import pytest

from fedge.codecs import Eden
from fedge.codecs.plan import BLOCK, Run, plan, run_of

RATES = [0.05, 0.1, 0.3, 0.5, 0.99, 1, 1.001, 1.5, 2, 2.3, 3, 4, 5.9, 7.999, 8]


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("size", [0, 1, 31, 1000, 4096, 65_537, 100_000, 1_200_000, 10_000_001])
def test_a_payload_stays_within_the_budget_and_its_side_information(bits, size):
    rest = size % BLOCK
    raw = 4 * rest if rest < 32 else 0
    low_rate_floor = 4 if rest >= 32 else 0  # a tail sends at least 32 coordinates
    assert Eden(bits).size_bytes(size) <= (bits + 0.0045) * size / 8 + 16 + raw + low_rate_floor


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("size", [100_000, 131_072, 1_200_000, 10_000_000])
def test_large_vectors_cost_less_than_five_thousandths_of_a_bit_more_than_asked(bits, size):
    assert Eden(bits).size_bytes(size) <= (bits + 0.005) * size / 8 + 64


def test_fractions_are_split_between_neighbouring_widths():
    assert run_of(2.5, BLOCK) == Run(width=2, high=2048, low=2048)
    assert run_of(2.0, 1000) == Run(width=2, high=0, low=1000)
    assert run_of(8, 1000) == Run(width=8, high=0, low=1000)
    assert run_of(0.5, BLOCK) == Run(width=1, high=0, low=2048)


def test_below_one_bit_a_block_sends_at_least_32_coordinates_or_all_it_has():
    assert run_of(0.05, 100).sent == 32
    assert run_of(0.05, 32).sent == 32
    assert run_of(0.05, BLOCK).sent == 200


def test_blocks_tail_and_raw_coordinates_make_up_the_vector():
    for size in (0, 5, 31, 32, 4095, 4096, 4100, 4128, 50_000):
        shape = plan(1.0, size)
        assert shape.blocks * BLOCK + shape.tail + shape.raw == size
        assert not (shape.tail and shape.raw)
