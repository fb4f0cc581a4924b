"""The best quantizer of a law under the magnitude-weighted distortion of M22.

    >>> centroids, thresholds = design("gennorm", shape=1.0, magnitude=2.0, levels_bits=1)
    >>> centroids.round(12).tolist(), thresholds.tolist()
    ([-3.0, 3.0], [0.0])

Liu, Rini, Salehkalaibar, Chen, M22, https://arxiv.org/abs/2301.09269, for the distortion |x|^M (x - x̂)²; how the fixed
point is found is ours: :mod:`fedge.codecs.m22.newton`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22.families import checked_levels_bits, checked_magnitude, checked_truncation, law
from fedge.codecs.m22.gamma import Doubles
from fedge.codecs.m22.newton import solve
from fedge.codecs.m22.quantizer import Quantizer
from fedge.codecs.m22.table import first_levels


def quantizer(family: str, shape: float, magnitude: float, levels_bits: int, truncation: float = 0.0) -> Quantizer:
    """Return the best quantizer, with its closed forms; arguments and errors are those of :func:`design`."""
    s, k = law(family, shape)
    m, count = checked_magnitude(magnitude), 2 ** (checked_levels_bits(levels_bits) - 1)
    tau = checked_truncation(s, k, truncation)
    one = [np.array([v]) for v in (s, k, m, tau)]
    positive = design_many(one[0], one[1], one[2], np.array([count]), one[3])
    return Quantizer(family, float(shape), m, tau, positive[0])


def design(
    family: str, shape: float, magnitude: float, levels_bits: int, truncation: float = 0.0
) -> tuple[Doubles, Doubles]:
    """Return centroids and thresholds of the best symmetric quantizer of a law of unit scale.

    Both are float64, ascending and full: ``[2**levels_bits]`` centroids of which half are negative, and
    ``[2**levels_bits - 1]`` thresholds, the midpoints of neighbouring centroids, of which the middle one is 0.
    With a truncation τ the law is restricted to |x| >= τ; thresholds are midpoints still, the middle one 0, and
    τ itself is not among them: whoever quantizes leaves out what is smaller.

    Args:
        family: ``"gennorm"`` or ``"weibull"``.
        shape: β or c, 0.1 to 20.
        magnitude: M, any real number from 0 to 1000.
        levels_bits: R, 1 to 8.
        truncation: τ, in units of the scale.

    Raises:
        UnknownName: if no family has this name.
        CodecError: if another argument is none of the above, or |x| >= τ never happens.
    """
    best = quantizer(family, shape, magnitude, levels_bits, truncation)
    return best.centroids, best.thresholds


def design_many(
    s: Doubles, k: Doubles, magnitude: Doubles, levels: npt.NDArray[np.int64], tau: Doubles, precision: float = 1e-13
) -> Doubles:
    """Return the positive levels of many quantizers of unit scale by one Newton iteration for all, from the table.

    Args:
        s: ``[laws]``, like all others; :func:`fedge.codecs.m22.families.law` gives s and k.
        levels: how many positive levels each one has; rows of fewer than the most are filled with ``inf``.
        tau: the truncations.
        precision: the relative step at which to stop; 1e-4 leaves an error near its square.

    Returns:
        float64 ``[laws, max(levels)]``, ascending.
    """
    return solve(s, k, magnitude, tau, first_levels(s, k, magnitude, levels, tau), precision)
