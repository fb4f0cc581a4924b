"""What EDEN promises about its error, over many seeds.

The native kernels run these; the NumPy twin makes the same bytes (test_native_twin.py), only too slowly for this.
Means are in float64. Seeds are fixed, so a test that passes keeps passing; the standard errors below say how far
from its bound chance alone brings each figure.
"""

import math
import tracemalloc

import numpy as np
import pytest

from fedge import seeds
from fedge.codecs import Eden, native_available, native_status, twin
from fedge.codecs.centroids import DISTORTION, DISTORTION_WITH_TRIT
from fedge.codecs.eden import block_order
from fedge.codecs.plan import WIDTHS_ALONE, plan
from fedge.codecs.rotation import BLOCK
from tests.support.vectors import errors, lognormal, mean_error_ratios, normal, sparse, spike, squared, two_peaks

pytestmark = pytest.mark.skipif(not native_available(), reason=native_status())


def expected_vnmse(bits: float, received: float = 1.0) -> float:
    """(1 + A)/p - 1, A = D/(1 - D), D linear between 1, 1.6, 2, 2.6, .. bits, p the fraction of coordinates that
    count."""
    at = dict(enumerate(DISTORTION, 1)) | {1.6 + k: d for k, d in enumerate(DISTORTION_WITH_TRIT)}
    d = np.interp(bits, sorted(at), [at[rate] for rate in sorted(at)])
    return 1 / (1 - d) / (min(bits, 1.0) * received) - 1


@pytest.mark.parametrize(("d", "trials"), [(1000, 2000), (65_537, 30), (1_200_000, 3)])
@pytest.mark.parametrize("make", [normal, lognormal, sparse])
@pytest.mark.parametrize("bits", [0.1, 0.5, 1, 1.3, 1.5, 1.6, 2, 2.3, 2.6, 3, 3.4, 4, 8])
def test_the_error_is_the_theorems_constant_whatever_the_vector(bits, make, d, trials):
    found = errors(Eden(bits), make(d), trials * (4 if bits in (0.1, 8) else 1))
    assert found.mean() == pytest.approx(expected_vnmse(bits), rel=0.01)  # standard errors: 0.1 to 0.4 %


@pytest.mark.parametrize("make", [two_peaks, spike, sparse, lognormal])
@pytest.mark.parametrize("bits", [1, 1.6, 2, 4])
@pytest.mark.parametrize("d", [8_900, 3_000])
def test_errors_of_a_thousand_devices_average_out(bits, make, d):
    for n, ratio in mean_error_ratios(Eden(bits), make(d), devices=3000).items():
        assert ratio == pytest.approx(1, abs=0.05), n  # standard error at most 1.5 %


@pytest.mark.parametrize("d", [33, 65, 129, 513, 1000, 1023, 2049, 4095, 4097])
@pytest.mark.parametrize("bits", [0.5, 1, 1.6, 2.4, 4])
def test_tails_just_above_and_below_a_power_of_two_are_unbiased_too(bits, d):
    for make in (two_peaks, spike):
        codec, x, trials = Eden(bits), make(d), 600
        total, single = np.zeros(d), 0.0
        for seed in range(trials):
            x_hat = codec.decode(codec.encode(x, seed), d, seed)
            single += squared(x_hat - x) / trials
            total += x_hat
        assert trials * squared(total / trials - x) / single == pytest.approx(1, abs=5 * math.sqrt(2 / d))


@pytest.mark.parametrize("bits", [1, 1.6, 2.0, 2.5, 4])
@pytest.mark.parametrize("loss", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("pattern", ["independent", "burst", "stride"])
def test_loss_costs_what_the_theorem_says_whatever_its_pattern(bits, loss, pattern):
    d, trials, codec = 20_000, 60, Eden(bits)
    x, lost = lognormal(d), round(loss * d)
    total = 0.0
    for seed in range(trials):
        received = np.ones(d, dtype=bool)
        if pattern == "independent":
            received[seeds.permutation(seed, d)[:lost]] = False
        elif pattern == "burst":
            received[(seed * 7919 + np.arange(lost)) % d] = False
        else:
            received[(seed + np.arange(lost) * round(1 / loss)) % d] = False
        x_hat = codec.decode(codec.encode(x, seed), d, seed, received)
        total += squared(x_hat - x) / squared(x) / trials
    assert total == pytest.approx(expected_vnmse(bits, 1 - loss), rel=0.03)


def test_a_burst_hits_every_block_alike():
    d = 5 * BLOCK + 700
    received = np.ones(d, dtype=bool)
    received[1000:4000] = False
    lost = ~block_order(received, plan(1.0, d))
    per_block = [int(lost[start : start + BLOCK].sum()) for start in range(0, d, BLOCK)]
    assert sum(per_block) == 3000 and max(per_block) - min(per_block) <= 2


def test_every_place_in_transmission_order_is_one_place_in_block_order():
    d = 3 * BLOCK + 50
    seen = np.zeros(d, dtype=int)
    for place in range(0, d, 97):
        received = np.zeros(d, dtype=bool)
        received[place] = True
        (index,) = np.flatnonzero(block_order(received, plan(1.0, d)))
        block, position = divmod(int(index), BLOCK)
        before = sum(min(position, n) for n in (BLOCK, BLOCK, BLOCK, 50))
        reach = 4 if position < 50 else 3
        first = int(seeds.words(0, position + 1)[position]) % reach
        assert place == before + (block - first) % reach
        seen[index] += 1
    assert seen.max() == 1


def test_two_halves_of_a_block_take_their_places_in_transmission_order_too():
    d = 2 * BLOCK + 9  # one full block, then 2053 and 2052 coordinates
    expected = []
    for position, start in enumerate(seeds.words(0, BLOCK)):
        blocks = [first for first, size in ((0, BLOCK), (BLOCK, 2053), (BLOCK + 2053, 2052)) if position < size]
        turn = int(start) % len(blocks)
        expected += [first + position for first in blocks[turn:] + blocks[:turn]]
    assert sorted(expected) == list(range(d))
    received = np.random.default_rng(0).random(d) < 0.5
    found = block_order(received, plan(1.5, d))
    assert np.array_equal(found[expected], received)


def test_blocks_have_their_own_scales_so_quiet_ones_keep_their_relative_error():
    x = normal(3 * BLOCK)
    x[BLOCK : 2 * BLOCK] *= 1e-6
    x[2 * BLOCK :] = 0
    x_hat = Eden(4).decode(Eden(4).encode(x, 1), x.size, 1)
    quiet = slice(BLOCK, 2 * BLOCK)
    assert squared((x_hat - x)[quiet]) / squared(x[quiet]) == pytest.approx(expected_vnmse(4), rel=0.3)
    assert not x_hat[2 * BLOCK :].any()


def test_rounding_a_scale_to_16_bits_adds_no_bias_and_less_than_a_hundredth_of_a_percent():
    x = np.concatenate([normal(BLOCK), normal(BLOCK) / 3, normal(BLOCK) / 70]).astype(np.float32)
    norms, trials = np.zeros((300, 3)), 300
    for seed in range(trials):
        x_hat = Eden(8).decode(Eden(8).encode(x, seed), x.size, seed).astype(np.float64)
        norms[seed] = (x_hat * x).reshape(3, BLOCK).sum(axis=1) / (x.astype(float) ** 2).reshape(3, BLOCK).sum(axis=1)
    assert np.abs(norms - 1).max() < 5e-4
    standard_error = norms.std(axis=0) / math.sqrt(trials) + 1e-8
    assert (np.abs(norms.mean(axis=0) - 1) < 4 * standard_error + 1e-6).all()


def test_folding_in_many_uploads_takes_the_memory_of_a_few():
    d, codec = 200_000, Eden(4)
    data, mean = codec.encode(normal(d), seed=1), np.zeros(d)

    def peak_of(uploads: int) -> int:
        tracemalloc.start()
        for _ in range(uploads):
            np.add(mean, codec.decode(data, d, seed=1), out=mean)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = peak_of(2)
    assert peak_of(100) < few + 100_000 and few < 4 * 4 * d


@pytest.mark.parametrize("bits", [1, 1.5, 2.3, 3.6, 4])
def test_payloads_of_version_1_are_read_at_every_rate_with_the_error_of_two_widths(bits):
    d, codec = 20_000, Eden(bits)
    x, width = lognormal(d), int(bits)
    mixed = (1 + width - bits) * DISTORTION[width - 1] + (bits - width) * DISTORTION[width]
    found = 0.0
    for seed in range(40):
        data = twin.encode(x, plan(bits, d, WIDTHS_ALONE), seed)
        found += squared(codec.decode(data, d, seed) - x) / squared(x) / 40
    assert found == pytest.approx(mixed / (1 - mixed), rel=0.01)
    assert codec.error(data, d) == pytest.approx(mixed / (1 - mixed), rel=0.005)
