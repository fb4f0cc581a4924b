"""Blocks that are rotated in whole numbers, beside what whole.py's text says of them.

The extension, where there is one, makes the payloads here; test_native_twin.py holds it and NumPy together.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest

from fedge import seeds
from fedge.codecs import Eden, whole
from fedge.codecs.centroids import DISTORTION
from fedge.codecs.packing import pack, unpack
from fedge.codecs.plan import WHOLE, plan
from fedge.codecs.rotation import BLOCK
from tests.support.vectors import mean_error_ratios, squared

SEED = 11
HEAD = 5  # bytes of a payload of one block before its codes: the version, and a scale
WIDTHS = [1, 2, 3, 4]
NORMAL = NormalDist()
# As in whole.py's text: bits of the index, the highest of the place first.
D_1, D_2, CODES = (
    [11, 10, 9, 8, 7, 6, 5, 4, 2, 3, 1, 0],
    [11, 10, 9, 8, 7, 2, 1, 0, 3, 6, 5, 4],
    [3, 6, 5, 11, 10, 9, 8, 7, 4, 2, 1, 0],
)


def places(order: list[int]) -> np.ndarray:
    """Where each index lies, int ``[4096]``."""
    index = np.arange(BLOCK)
    return sum((index >> bit & 1) << (11 - k) for k, bit in enumerate(order))


def signs(number: int, order: list[int]) -> np.ndarray:
    """The signs of a set by index, straight from its words: ``[4096]`` of ±1."""
    base = int(seeds.words(SEED, 1)[0]) + 64 * number * seeds.GAMMA
    words = [int(word) for word in seeds.words(base, 64)]
    lanes = np.array([word >> 16 * part & 0xFFFF for word in words for part in range(4)])
    place = places(order)
    return 1 - 2 * (lanes[place & 255] >> (place >> 8) & 1)


def hadamard(x: np.ndarray) -> np.ndarray:
    for bit in range(12):
        pairs = x.reshape(-1, 2, 1 << bit)
        x = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
    return x


def levels_by_index(codes: np.ndarray, width: int) -> np.ndarray:
    """What codes in the order of a payload stand for, int64 ``[4096]``."""
    positive = whole.LEVELS[width - 1]
    level = np.array([*(-value for value in positive[::-1]), *positive])
    return level[codes[places(CODES)]]


def test_the_shares_of_energy_are_what_levels_and_thresholds_hold_of_a_normal_distribution():
    for width in WIDTHS:
        levels = whole.LEVELS[width - 1]
        unit = BLOCK**0.5 * whole.ONE / whole.NORM
        edges = [0.0, *(unit * threshold for threshold in whole.THRESHOLDS[width - 1]), math.inf]
        cells = list(zip(levels, edges[:-1], edges[1:], strict=True))
        first = sum(2 * level * (NORMAL.pdf(low) - NORMAL.pdf(min(high, 40))) for level, low, high in cells)
        second = sum(2 * level**2 * (NORMAL.cdf(min(high, 40)) - NORMAL.cdf(low)) for level, low, high in cells)
        gain = whole.GAINS[width - 1]
        assert gain == pytest.approx(first**2 / second, rel=1e-12)
        best = DISTORTION[width - 1] / (1 - DISTORTION[width - 1])
        assert best * (1 - 1e-12) <= 1 / gain - 1 <= best * 1.0012
        assert len({threshold // 16 for threshold in whole.THRESHOLDS[width - 1]}) == len(levels) - 1  # a cell has one
        assert second**0.5 <= whole.ONE  # so that sums over a block have eight times their root mean square of room
        assert Eden(width).error(Eden(width).encode(np.ones(BLOCK), 1), BLOCK) == pytest.approx(1 / gain - 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_block_decodes_to_what_the_formula_gives_of_any_codes(width):
    rng = np.random.default_rng(width)
    codes = rng.integers(0, 1 << width, (BLOCK, 1), dtype=np.uint8)
    scale = np.float32(0.37)
    data = bytes([WHOLE]) + scale.tobytes() + pack(codes, width).tobytes()
    u = signs(1, D_2) * hadamard(levels_by_index(codes[:, 0], width))
    assert np.abs(u).max() < 1 << 15
    expected = signs(0, D_1) * hadamard(u)
    assert np.array_equal(Eden(width).decode(data, BLOCK, SEED), (expected * whole.UNIT).astype(np.float32) * scale)


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_and_scale_are_those_of_the_exact_rotation(width):
    x = np.random.default_rng(5).standard_t(4, BLOCK).astype(np.float32)
    data = Eden(width).encode(x, SEED)
    codes = unpack(np.frombuffer(data, np.uint8, offset=HEAD)[:, None], BLOCK, width)[:, 0]
    found = levels_by_index(codes, width)
    y = hadamard(signs(1, D_2) * hadamard(signs(0, D_1) * x.astype(float)))
    y *= whole.NORM / np.linalg.norm(y)
    magnitude = np.minimum(np.abs(y) / whole.ONE, 255)
    step = np.searchsorted(whole.THRESHOLDS[width - 1], magnitude, side="right")
    exact = np.array(whole.LEVELS[width - 1])[step] * np.sign(y)
    assert (found == exact).mean() > 0.98  # the others are near a threshold, or near zero
    assert np.abs(y)[np.sign(found) != np.sign(y)].max(initial=0) < 80
    norm = np.linalg.norm(x.astype(float))
    scale = 64 * norm * whole.NORM * whole.NOISE / (y @ found)
    assert 32 * np.frombuffer(data, "<f4", 1, 1)[0] == pytest.approx(scale, rel=1e-3)


def row(d):
    x = np.zeros(d)
    x[128:192] = np.random.default_rng(0).standard_normal(64)
    return x


def column(d):
    x = np.zeros(d)
    x[3::64] = np.random.default_rng(1).standard_normal(len(x[3::64]))
    return x


def one_above_the_other(d):
    """Two coordinates that meet in the first stages, where no number of others blurs what is rounded."""
    x = np.zeros(d)
    x[[5, 69]] = 2 / 3, 1 / 3
    return x


def four_alike(d):
    """All energy in numbers whose first sums are as large as they can be."""
    x = np.zeros(d)
    x[[0, 64, 128, 192]] = 1
    return x


def all_alike(d):
    return np.full(d, 0.37)


def two_alike(d):
    """Two coordinates that leave two magnitudes before the second signs, where one rounding could shorten all."""
    x = np.zeros(d)
    x[[0, 256]] = 1
    return x


@pytest.mark.parametrize("make", [row, column, one_above_the_other, four_alike, all_alike])
@pytest.mark.parametrize("bits", [1, 4])
def test_vectors_made_for_this_rotation_are_no_worse_than_others_and_average_out(make, bits):
    x, codec = make(BLOCK).astype(np.float32), Eden(bits)
    trials = 400
    errors = [squared(codec.decode(codec.encode(x, seed), BLOCK, seed) - x) for seed in range(trials)]
    assert np.mean(errors) / squared(x) == pytest.approx(1 / whole.GAINS[bits - 1] - 1, rel=0.015)
    for n, ratio in mean_error_ratios(codec, x, devices=4000).items():
        assert ratio == pytest.approx(1, abs=0.05), n


@pytest.mark.parametrize("make", [two_alike, one_above_the_other, column, all_alike])
def test_what_is_rounded_on_the_way_makes_no_estimate_longer_or_shorter(make):
    x, codec = make(BLOCK).astype(np.float32), Eden(4)
    found = [codec.decode(codec.encode(x, seed), BLOCK, seed) @ x.astype(float) / squared(x) for seed in range(4000)]
    assert np.mean(found) == pytest.approx(1, abs=4e-5)  # five standard errors, at most; a shared rounding made 1e-4


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_magnitude_of_a_block_changes_its_scale_and_no_code(bits):
    x, codec = np.random.default_rng(2).standard_normal(BLOCK).astype(np.float32), Eden(bits)
    data = codec.encode(x, 3)
    for power in (-100, -40, -1, 1, 50, 110):  # the ends are encoded another way, in which squares fit into float32
        other = codec.encode(np.ldexp(x, power), 3)
        assert other[HEAD:] == data[HEAD:]
        assert np.frombuffer(other, "<f4", 1, 1) == np.ldexp(np.frombuffer(data, "<f4", 1, 1), power)


def test_a_payload_has_the_shape_of_version_1_and_its_tail_too():
    size = 2 * BLOCK + 100
    shape = plan(2.0, size)
    assert (shape.version, shape.size_bytes) == (WHOLE, plan(2.0, size, 1).size_bytes)
    assert (shape.full_run, shape.tail_runs) == (plan(2.0, size, 1).full_run, plan(2.0, size, 1).tail_runs)
