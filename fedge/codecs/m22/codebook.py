"""Levels of the kept coordinates of one vector."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import Vector
from fedge.codecs.m22.histogram import Doubles, lloyd

Family = Literal["auto", "gennorm", "weibull", "empirical"]

_FINE_SHIFT = 17  # bins of a 64th of an octave


def design_levels(
    x: Vector, magnitudes: Doubles, tau: float, levels_bits: int, magnitude: float, family: Family
) -> npt.NDArray[np.float64]:
    """Return 2^(levels_bits - 1) ascending levels for ``magnitudes``, float64 ``[K]``, all at least ``tau``."""
    return empirical_levels(magnitudes, levels_bits, magnitude)


def empirical_levels(magnitudes: Doubles, levels_bits: int, magnitude: float) -> Doubles:
    """Return the M-weighted Lloyd levels of ``magnitudes`` themselves."""
    bins = magnitudes.astype(np.float32).view(np.uint32) >> np.uint32(_FINE_SHIFT)
    first = int(bins.min())
    counts = np.bincount((bins - np.uint32(first)).astype(np.int64))
    sums = np.bincount((bins - np.uint32(first)).astype(np.int64), magnitudes)
    used = counts > 0
    return lloyd(sums[used] / counts[used], counts[used].astype(np.float64), 1 << (levels_bits - 1), magnitude)
