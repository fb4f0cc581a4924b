"""What decision 0005 says about the two ways to lose a part of an update, on real frames and real sums.

Vectors have the same cosine in every segment, exactly, so what a mean over some devices misses is no matter of chance:
only EDEN's error is. Seeds are fixed; tolerances are standard errors over rounds, and below 3 % where that matters.
"""

import math

import numpy as np
import pytest

from benchmarks.loss import closed_form, delivered, draw, measure_round, squared, vnmse
from fedge.aggregation import SegmentSums
from fedge.codecs import native_available, native_status
from fedge.frames import read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import decode_frame, encode_update, uplink

pytestmark = pytest.mark.skipif(not native_available(), reason=native_status())

LAYOUT = Layout.of([TensorSpec("weights", (64, 512), Kind.WEIGHT)])  # eight segments of 4096
SEGMENTS = len(LAYOUT.segments)


def mean_error(x, bits, round_number, arrives) -> float:
    """The squared error of the mean where ``arrives(device, segment)`` says what was delivered."""
    sums = SegmentSums(LAYOUT)
    for device, row in enumerate(x):
        stream = uplink(1, round_number, f"device-{device}")
        for index, data in enumerate(encode_update(LAYOUT, row, stream, "eden", bits)):
            if arrives(device, index):
                sums.add(index, decode_frame(read_frame(data), stream), 1.0)
    return squared(sums.mean() - x.mean(axis=0, dtype=np.float64))


def measured(x, bits, loss, rounds) -> dict[str, tuple[float, float]]:
    """Error and its standard error, over the mean of ||x_c||², by rule and pattern."""
    found = [measure_round(LAYOUT, x, bits, [loss], t, True) for t in range(rounds)]
    v = squared(x) / len(x)
    errors = {" ".join(key[:2]): np.array([one[key] for one in found]) / v for key in found[0]}
    return {way: (float(e.mean()), float(e.std(ddof=1)) / math.sqrt(rounds)) for way, e in errors.items()}


def expected(rule, n, loss, bits, rho) -> float:
    return closed_form(rule, n, 1 - loss, bits, 1.0, (1 + (n - 1) * rho) / n)


@pytest.mark.parametrize("rho", [1.0, 0.8, 0.0])
@pytest.mark.parametrize("bits", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 5, 9, 10])
def test_a_mean_over_k_of_n_devices_misses_only_how_much_they_differ(rho, bits, k):
    n, rounds, x = 10, 8, draw(LAYOUT, 10, rho)
    errors = [mean_error(x, bits, t, lambda device, s, t=t: (device + s + t) % n < k) for t in range(rounds)]
    standard_error = np.std(errors, ddof=1) / math.sqrt(rounds)
    sampling = (1 - rho) * SEGMENTS * (1 / k - 1 / n)
    assert standard_error < 0.02 * np.mean(errors)
    assert np.mean(errors) == pytest.approx(SEGMENTS * vnmse(bits) / k + sampling, abs=4.5 * standard_error)


def test_lost_segments_cost_identical_vectors_the_averaging_alone():
    found = measured(draw(LAYOUT, 10, 1.0), bits=4.0, loss=0.2, rounds=40)
    for pattern in ("scattered", "cut"):
        error, standard_error = found[f"segments {pattern}"]
        assert standard_error < 0.03 * error
        assert error == pytest.approx(expected("segments", 10, 0.2, 4.0, 1.0), abs=4 * standard_error)
        # Rescaling what is left of each vector costs twenty times as much.
        assert found["erasures scattered"][0] > 15 * error


def test_one_percent_at_four_bits_doubles_the_error_of_erasures_and_adds_a_fifth_to_that_of_segments():
    found = measured(draw(LAYOUT, 100, 0.8), bits=4.0, loss=0.01, rounds=12)
    without = vnmse(4.0) / 100
    assert found["erasures scattered"][0] / without == pytest.approx(2.06, abs=0.06)
    error, standard_error = found["segments scattered"]
    assert standard_error < 0.03 * error
    assert error / without == pytest.approx(1.22, abs=4 * standard_error / without)


@pytest.mark.parametrize("n", [10, 50])
def test_orthogonal_vectors_pay_for_lost_segments_what_they_pay_for_erasures_or_a_little_more(n):
    found = measured(draw(LAYOUT, n, 0.0), bits=1.0, loss=0.1, rounds=400 // n)
    erasures, (segments, standard_error) = found["erasures scattered"][0], found["segments scattered"]
    assert standard_error < 0.03 * segments
    assert segments == pytest.approx(expected("segments", n, 0.1, 1.0, 0.0), abs=4 * standard_error)
    assert erasures == pytest.approx(expected("erasures", n, 0.1, 1.0, 0.0), rel=0.03)
    assert 1.0 < expected("segments", n, 0.1, 1.0, 0.0) / expected("erasures", n, 0.1, 1.0, 0.0) < 1.04


def test_a_cut_link_delivers_each_segment_equally_often_and_loses_the_mean_that_was_asked_for():
    frames = encode_update(LAYOUT, draw(LAYOUT, 1, 1.0)[0], uplink(1, 1, "a"), "eden", 1.0)
    arrived, trials, loss = np.zeros(SEGMENTS), 4000, 0.3
    for seed in range(trials):
        for index in delivered("cut", frames, uplink(1, seed, "a").order(SEGMENTS), loss, seed):
            arrived[index] += 1
    standard_error = math.sqrt(loss * (1 - loss) / trials)  # 0.7 % of the trials
    assert np.abs(arrived / trials - (1 - loss)).max() < 4 * standard_error


def test_a_segment_that_nobody_delivered_costs_its_own_length_and_no_other_segment():
    x = draw(LAYOUT, 3, 0.5)
    error = mean_error(x, 8.0, 1, lambda device, segment: segment != 2)
    lost = squared(x.mean(axis=0, dtype=np.float64)[LAYOUT.segments[2].slice])
    assert error == pytest.approx(lost, rel=1e-3)
