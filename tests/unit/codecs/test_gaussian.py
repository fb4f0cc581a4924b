"""The numbers of the uniform quantizer, against the definitions and against the specification's table."""

import math

import numpy as np
import pytest

from fedge.codecs import block_scales, gaussian
from fedge.codecs.gaussian import COARSEST, FINEST, SPLIT, TOTAL, UNITS

# bits -> vNMSE of an ideal entropy coder, from numerical integration elsewhere
PUBLISHED = {0.1: 9.931, 0.25: 3.749, 0.5: 1.613, 1: 0.5347, 1.5: 0.2163, 2: 0.09764, 3: 0.022745, 4: 0.005591}
STEPS = np.arange(FINEST, COARSEST + 1)


@pytest.mark.parametrize(("bits", "vnmse"), PUBLISHED.items())
def test_rate_and_error_are_those_of_the_entropy_coded_gaussian(bits, vnmse):
    rate, error = gaussian.rate_of(STEPS), gaussian.error_of(STEPS)
    assert np.interp(-bits, -rate, error) == pytest.approx(vnmse, rel=0.007)


def test_rate_falls_and_error_rises_with_the_step():
    assert (np.diff(gaussian.rate_of(STEPS)) < 0).all()
    assert (np.diff(gaussian.error_of(STEPS[STEPS > SPLIT])) >= 0).all()


@pytest.mark.parametrize("step", [-5 * UNITS, -UNITS, 0, 1000, UNITS, 2 * UNITS, COARSEST])
def test_gain_and_error_are_those_of_a_quantized_gaussian(step):
    z = np.random.default_rng(1).standard_normal(4_000_000)
    s = 2 ** (step / UNITS)
    q = s * np.rint(z / s)
    gain, second = np.mean(z * q), np.mean(q * q)
    spread = np.std(z * q) / z.size**0.5 / gain
    assert gaussian.gain_of(np.array([step]), np.array([10**9]))[0] == pytest.approx(gain, rel=4 * spread)
    assert 1 + gaussian.error_of(np.array([step]))[0] == pytest.approx(second / gain**2, rel=8 * spread)


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("step", [UNITS, 4000])
def test_gain_knows_that_a_short_block_lives_on_a_sphere(size, step):
    x = np.random.default_rng(2).standard_normal((400_000, size))
    z = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    s = 2 ** (step / UNITS)
    products = np.mean(z * s * np.rint(z / s), axis=1)
    error = np.std(products) / len(products) ** 0.5
    gain = gaussian.gain_of(np.array([step]), np.array([size]))[0]
    assert gain == pytest.approx(np.mean(products), abs=4 * error + 0.6 / size**2)
    assert abs(gain - gaussian.gain_of(np.array([step]), np.array([10**9]))[0]) > 4 * error


def test_frequencies_of_every_class_are_whole_and_cover_five_sigmas():
    table = gaussian.frequencies()
    assert (table.of[:, 0] + 2 * table.of[:, 1:].sum(axis=1) == TOTAL).all()
    for klass, (row, last) in enumerate(zip(table.of, table.last, strict=True)):
        step = 2 ** ((SPLIT + gaussian.CLASS_UNITS * klass) / UNITS)
        assert (row[: last + 1] > 0).all() and not row[last + 1 :].any()
        assert last * step + step / 2 > 5


def test_every_step_has_a_class_and_sends_at_most_eight_bits_as_they_are():
    low = gaussian.low_bits(STEPS)
    assert (low[STEPS >= SPLIT] == 0).all() and low.max() == 8
    klass = gaussian.class_of(STEPS, low)
    assert klass.min() == 0 and klass.max() == gaussian.CLASSES - 1


def test_no_rounded_number_is_near_a_tie():
    """Else the last digit of a C library's exp or erfc could change what a payload decodes to."""
    grid = 2.0**30

    def margin(values):
        return np.abs(values - np.floor(values) - 0.5).min()

    s = np.exp2(np.arange(-2 * UNITS, COARSEST + 1) / UNITS)
    k = np.arange(1, 48)[:, None]
    a = (k - 0.5) * s
    density = 2 * s * np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    assert margin(density.sum(axis=0) * grid) > 1e-5
    assert margin(np.exp2(np.arange(UNITS) / UNITS) * grid) > 1e-6
    assert margin(np.frexp(block_scales._exact_units())[0] * 4096) > 1e-9
    steps = np.exp2((SPLIT + gaussian.CLASS_UNITS * np.arange(gaussian.CLASSES)) / UNITS)
    edges = [[0.5 * math.erfc((h - 0.5) * step / math.sqrt(2)) for h in range(1, 33)] for step in steps]
    assert margin(-np.diff(np.array(edges)) * TOTAL) > 1e-9
