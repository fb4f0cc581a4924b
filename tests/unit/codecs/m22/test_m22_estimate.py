import dataclasses
import math

import numpy as np
import pytest

from fedge.codecs.m22.estimate import _fit_gennorm, _fit_weibull, _logs, fit
from fedge.codecs.m22.families import law
from fedge.errors import CodecError, UnknownName


def draws(family, shape, size, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    s, k = law(family, shape)
    return (scale * rng.gamma(s / k, size=size) ** (1 / k) * rng.choice([-1, 1], size)).astype(np.float32)


# Relative standard deviations of a shape estimated from 1,000 and 10,000 numbers, measured independently of this code.
@pytest.mark.parametrize(
    ("family", "shape", "likeliest", "spread"),
    [
        ("gennorm", 0.4, False, (0.104, 0.040)),
        ("gennorm", 0.4, True, (0.044, 0.014)),
        ("gennorm", 0.8, False, (0.055, 0.023)),
        ("gennorm", 0.8, True, (0.047, 0.019)),
        ("gennorm", 1.5, False, (0.067, 0.024)),
        ("gennorm", 1.5, True, (0.067, 0.024)),
        ("weibull", 0.6, False, (0.031, 0.012)),
        ("weibull", 0.6, True, (0.022, 0.007)),
    ],
)
def test_shapes_are_as_exact_as_they_can_be(family, shape, likeliest, spread):
    for size, expected in zip((1_000, 10_000), spread, strict=True):
        found = [fit(draws(family, shape, size, i), family, likeliest=likeliest, sample=None).shape for i in range(60)]
        error = np.array(found) / shape - 1
        # The deviation of 60 has a standard error of 1/√120; heavy tails make it more: 4 of 1.5 times that.
        assert error.std() < expected * (1 + 4 * 1.5 / math.sqrt(120))
        # The moment ratio at β = 0.4 is biased by the square of its spread.
        assert abs(error.mean()) < 4 * expected / math.sqrt(60) + 3 * expected**2


@pytest.mark.parametrize(("family", "make"), [("gennorm", _fit_gennorm), ("weibull", _fit_weibull)])
def test_no_other_shape_or_scale_is_likelier(family, make):
    x = draws("gennorm", 0.7, 5_000, seed=4)
    best, logs = fit(x, family, likeliest=True), _logs(x, None)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert make(logs, best.shape * factor).log_likelihood < best.log_likelihood


def test_the_log_likelihood_is_that_of_the_density():
    x = draws("weibull", 0.7, 3_000, seed=1, scale=0.01).astype(np.float64)
    for family, power, norm in (("weibull", None, 0.5), ("gennorm", 0.0, None)):
        found = fit(x, family, sample=None)
        y, k = np.abs(x) / found.scale, found.shape
        power = k - 1 if power is None else power
        norm = k / 2 if norm else k / 2 / math.gamma(1 / k)
        density = norm * y**power * np.exp(-(y**k)) / found.scale
        assert found.log_likelihood == pytest.approx(np.log(density).sum(), rel=1e-5)


@pytest.mark.parametrize("likeliest", [False, True])
def test_the_family_that_numbers_come_from_is_likelier(likeliest):
    for family, shape in (("gennorm", 0.6), ("gennorm", 2.0), ("weibull", 0.6), ("weibull", 1.5)):
        found = fit(draws(family, shape, 20_000, seed=3, scale=0.02), likeliest=likeliest)
        assert found.family == family
        assert (found.shape, found.scale) == pytest.approx((shape, 0.02), rel=0.08)


def test_zeros_do_not_count():
    x = draws("gennorm", 0.8, 4_000, seed=2)
    assert fit(np.stack((x, np.zeros_like(x))), sample=None) == fit(x, sample=None)


def test_a_sample_is_strided_and_says_how_many_it_has():
    x = draws("gennorm", 0.8, 100_000, seed=2)
    assert fit(x, sample=1_000) == fit(x[::100], sample=None)
    assert fit(x, sample=1_000).count == 1_000


def test_a_sample_of_zeros_alone_is_not_taken_for_the_whole():
    x = np.zeros(1_000, np.float32)
    x[77] = 3.0
    assert (fit(x, sample=10).count, fit(x, sample=10).scale) == (1, pytest.approx(3.0, rel=0.3))


def test_a_scale_moves_with_the_numbers_and_a_shape_does_not():
    x = draws("weibull", 0.7, 4_000, seed=5).astype(np.float64)
    for likeliest in (False, True):
        one, other = fit(x, likeliest=likeliest), fit(x * 2.0**-80, likeliest=likeliest)
        assert (other.shape, other.scale * 2.0**80) == pytest.approx((one.shape, one.scale), rel=1e-5)


@pytest.mark.parametrize("likeliest", [False, True])
def test_a_few_numbers_next_to_zero_do_not_decide(likeliest):
    x = draws("weibull", 1.2, 10_000, seed=6)
    clean = fit(x[300:], sample=None, likeliest=likeliest)
    x[:300] = 1e-30
    assert fit(x, sample=None, likeliest=likeliest) == clean


@pytest.mark.parametrize(
    "x",
    [
        [3.0],
        [-2.0] * 1_000,
        [1e38] * 3,
        [1e-45, 3e-45, 0.0],
        [0.0, 1e38, 1e-45],
        [5e-324, 1e308],
        [1.7e308] * 9,
        [1e-3] * 999 + [1e30],
    ],
)
@pytest.mark.parametrize("family", ["auto", "gennorm", "weibull"])
@pytest.mark.parametrize("likeliest", [False, True])
def test_whatever_the_numbers_the_fit_is_finite(x, family, likeliest):
    found = fit(np.array(x), family, likeliest=likeliest)
    assert 0.149 < found.shape < 10.001 and 0 < found.scale < np.inf and np.isfinite(found.log_likelihood)


def test_nothing_but_zeros_has_no_scale():
    for x in (np.zeros(5), np.zeros(0), np.zeros((2, 0), np.float32)):
        assert dataclasses.astuple(fit(x))[1:] == (1.0, 0.0, 0.0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(CodecError, match=f"^expected finite numbers, got {bad} among 3$"):
        fit(np.array([1.0, bad, 2.0]), sample=1)


def test_a_mistyped_family_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'gennorm'"):
        fit(np.ones(3), "genorm")
