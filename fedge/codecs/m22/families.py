"""The two laws M22 gives the coordinates of an update: generalized normal and double Weibull.

Both are symmetric about zero, and in magnitude both are generalized gammas: at scale 1

    f(x) = k/(2 Γ(s/k))·|x|^(s-1)·exp(-|x|^k),     u = |x|^k ~ Gamma(s/k)

    gennorm   s = 1,      k = shape      β/(2 Γ(1/β))·exp(-|x|^β)
    weibull   s = shape,  k = shape      (c/2)·|x|^(c-1)·exp(-|x|^c)

so that every integral a quantizer needs is an incomplete gamma function: with a_p = (s + p)/k,

    ∫_t^t' |x|^p f_|x|(x) dx = Γ(a_p)/Γ(s/k)·(P(a_p, t'^k) - P(a_p, t^k))

The families are those of Liu, Rini, Salehkalaibar, Chen, M22, https://arxiv.org/abs/2301.09269; that one (s, k) serves
both is ours, and so is what follows from it: weighted with |x|^M, Weibull(c, M) and GenNorm(c, M + c - 1) are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fedge.codecs.m22.gamma import incomplete, ratio
from fedge.errors import CodecError
from fedge.registry import find

# (s, k) of a shape.
FAMILIES: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "gennorm": lambda shape: (1.0, shape),
    "weibull": lambda shape: (shape, shape),
}
LEAST_SHAPE, LARGEST_SHAPE = 0.1, 20.0
LARGEST_MAGNITUDE = 1000.0
LARGEST_LEVELS_BITS = 8
LEAST_SURVIVORS = 1e-200


def law(family: str, shape: float) -> tuple[float, float]:
    """Return (s, k) of a law of unit scale.

    Raises:
        UnknownName: if no family has this name.
        CodecError: if ``shape`` is not a number from 0.1 to 20.
    """
    parameters = find("family", family, FAMILIES)
    if not LEAST_SHAPE <= shape <= LARGEST_SHAPE:  # NaN is not either
        raise CodecError(f"expected a shape from {LEAST_SHAPE} to {LARGEST_SHAPE}, got {shape}")
    return parameters(float(shape))


def checked_magnitude(magnitude: float) -> float:
    """Return M as it is.

    Raises:
        CodecError: if ``magnitude`` is not a number from 0 to 1000.
    """
    if not 0 <= magnitude <= LARGEST_MAGNITUDE:
        raise CodecError(f"expected a magnitude M from 0 to {LARGEST_MAGNITUDE:.0f}, got {magnitude}")
    return float(magnitude)


def checked_levels_bits(levels_bits: int) -> int:
    """Return R as it is.

    Raises:
        CodecError: if ``levels_bits`` is not one of the integers 1 to 8.
    """
    if not (isinstance(levels_bits, int | np.integer) and 1 <= levels_bits <= LARGEST_LEVELS_BITS):
        raise CodecError(f"expected a whole number of bits from 1 to {LARGEST_LEVELS_BITS}, got {levels_bits!r}")
    return int(levels_bits)


def checked_truncation(s: float, k: float, truncation: float) -> float:
    if not 0 <= truncation < np.inf:
        raise CodecError(f"expected a truncation of 0 or more, got {truncation}")
    survivors = incomplete(np.array([s / k]), np.array([float(truncation)]) ** k)[1][0]
    if not survivors > LEAST_SURVIVORS:
        raise CodecError(f"expected a truncation that survives with {LEAST_SURVIVORS} or more, got {truncation}")
    return float(truncation)


def absolute_moment(family: str, shape: float, power: float) -> float:
    """Return E|x|^power at unit scale, for a power above -s; ``inf`` where float64 ends.

    Raises:
        CodecError: as :func:`law` does, or if the moment does not exist.
    """
    s, k = law(family, shape)
    if not (s + power > 0 and math.isfinite(power)):
        raise CodecError(f"expected a power above {-s} for E|x|^power to exist, got {power}")
    return ratio(s / k, (s + power) / k)
