import math

import numpy as np
import pytest

from fedge.codecs.m22.families import absolute_moment, law
from fedge.errors import CodecError


def test_moments_are_those_of_the_densities():
    x = np.linspace(0, 60, 600_001)
    densities = {
        "gennorm": lambda b: b / math.gamma(1 / b) * np.exp(-(x**b)),
        "weibull": lambda c: c * x ** (c - 1) * np.exp(-(x**c)),
    }
    for family, density in densities.items():
        for shape in (1.0, 1.3, 2.0, 4.0):
            for power in (0.0, 1.0, 2.5):
                exact = np.trapezoid(x**power * density(shape), x)
                assert absolute_moment(family, shape, power) == pytest.approx(exact, rel=1e-5)


def test_laplace_is_both():
    assert law("gennorm", 1.0) == law("weibull", 1.0)


def test_a_moment_that_does_not_exist_is_refused():
    with pytest.raises(CodecError, match=r"expected a power above -0.5 for E\|x\|\^power to exist, got -0.5"):
        absolute_moment("weibull", 0.5, -0.5)
