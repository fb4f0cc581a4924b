"""Lloyd-Max quantizers of N(0, 1): their design, and the NumPy quantizer that uses the shipped tables.

With thresholds t_j halfway between centroids c_j, the centroids satisfy  c_j = E[z | t_j < z < t_{j+1}].  Then
E[z Q(z)] = E[Q(z)^2] = 1 - D,  D = E (z - Q(z))^2, and an unbiased code of rate w has vNMSE D/(1 - D)
(Vargaftik et al., EDEN, ICML 2022, https://arxiv.org/abs/2108.08842).

A code is the number of its level counted from below. It is found from the magnitude alone: m = number of positive
thresholds below |z|, code = ⌊L/2⌋ + m, mirrored to L - 1 - code where the sign bit of z is set. Widths are those of
``packing.py``; of three levels, the middle one is zero.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedge.codecs.centroids import CENTROIDS, CENTROIDS_WITH_TRIT, DISTORTION, DISTORTION_WITH_TRIT
from fedge.codecs.packing import TRIT, levels_of

MAX_WIDTH = TRIT  # of bits alone
WIDTHS = range(1, TRIT + 8)
_CENTROIDS = CENTROIDS + CENTROIDS_WITH_TRIT
_DISTORTION = DISTORTION + DISTORTION_WITH_TRIT
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def _moments(low: float, high: float, about: float) -> tuple[float, float]:
    """Return the integrals of phi and of (x - ``about``)·phi over [``low``, ``high``]."""
    if math.isinf(high):
        tail = 0.5 * math.erfc(low / math.sqrt(2))
        return tail, NormalDist().pdf(low) - about * tail
    half = (high - low) / 2
    x = low + half * (_NODES + 1)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return half * float(_WEIGHTS @ density), half * float(_WEIGHTS @ ((x - about) * density))


def design(levels: int) -> npt.NDArray[np.float64]:
    """Return the Lloyd-Max centroids of N(0, 1) that are not negative, float64, ascending; an odd number of
    ``levels`` has one at zero.

    Newton's method on c_j - E[z | cell j] = 0, whose Jacobian is tridiagonal, from the asymptotically right start
    c_j = √3·Φ^-1((j + 1/2)/L). Cell moments are Gauss-Legendre integrals about the centroid: no cancellation.
    """
    half, odd = levels // 2, levels % 2
    normal = NormalDist()
    c = np.array([math.sqrt(3) * normal.inv_cdf((half + odd + j + 0.5) / levels) for j in range(half)])
    for _ in range(30):
        edges = np.concatenate(([odd * c[0] / 2], (c[1:] + c[:-1]) / 2, [math.inf]))
        mass, shift = np.array([_moments(edges[j], edges[j + 1], c[j]) for j in range(half)]).T
        mean = c + shift / mass
        density = np.array([normal.pdf(t) for t in edges[:-1]] + [0.0])
        by_low = (mean - edges[:-1]) * density[:-1] / mass  # d mean_j / d t_j
        by_high = (np.where(np.isinf(edges[1:]), mean, edges[1:]) - mean) * density[1:] / mass
        by_low[0] *= odd  # the threshold 0 stays, and so does the centroid 0
        jacobian = np.diag(1 - (by_low + by_high) / 2) - np.diag(by_low[1:] / 2, -1) - np.diag(by_high[:-1] / 2, 1)
        step = np.linalg.solve(jacobian, -shift / mass)
        c = c - step
        if np.abs(step).max() < 1e-15:
            break
    return np.concatenate(([0.0] * odd, c))


def distortion(centroids: npt.NDArray[np.float64]) -> float:
    """Return D = E (z - Q(z))^2 of the symmetric quantizer with these ``centroids``, as :func:`design` gives them."""
    edges = np.concatenate(([0.0], (centroids[1:] + centroids[:-1]) / 2, [math.inf]))
    total = 0.0
    for low, high, c in zip(edges[:-1], edges[1:], centroids, strict=True):
        mass, mean = _moments(low, high, 0.0)
        second = mass + (low * NormalDist().pdf(low) - (0 if math.isinf(high) else high * NormalDist().pdf(high)))
        total += 2 * (second - 2 * c * mean + c * c * mass)
    return total


def gain(width: int) -> float:
    """Return E[z Q(z)] = 1 - D."""
    return 1.0 - _DISTORTION[width - 1]


def _half_thresholds(width: int) -> npt.NDArray[np.float32]:
    """Positive thresholds and a final +inf, float32, one for each centroid that is not negative."""
    c = np.array(_CENTROIDS[width - 1])
    return np.append((c[1:] + c[:-1]) / 2, np.inf).astype(np.float32)


def _levels(width: int) -> npt.NDArray[np.float32]:
    """All centroids by code, float32 ``[levels_of(width)]``."""
    row = np.array(_CENTROIDS[width - 1])
    return np.concatenate((-row[levels_of(width) % 2 :][::-1], row)).astype(np.float32)


THRESHOLDS = tuple(_half_thresholds(width) for width in WIDTHS)
LEVELS = tuple(_levels(width) for width in WIDTHS)
# What the C extension reads: centroids that are not negative of every width, then as many thresholds, 446 float32 each.
TABLES = np.concatenate([*(level[level.size // 2 :] for level in LEVELS), *THRESHOLDS])


def _grid(width: int) -> tuple[np.float32, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Cells so narrow that none holds two thresholds: cells per unit, thresholds below each, threshold inside."""
    t = THRESHOLDS[width - 1][:-1]
    per_unit = np.float32(1.02 / np.diff(t, prepend=0.0).min())
    cell = (t * per_unit).astype(np.int64)
    below = np.searchsorted(cell, np.arange(cell[-1] + 2), side="left").astype(np.uint8)
    inside = np.full(below.size, np.inf, dtype=np.float32)
    inside[cell] = t
    return per_unit, below, inside


# Comparing with every threshold is faster up to a dozen.
_GRIDS = {width: _grid(width) for width in WIDTHS if levels_of(width) > 24}


def quantize(z: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.uint8]:
    """Return the code of every entry of ``z``, uint8, same shape. Multiplying by a power of the grid is exact or
    not, but monotone, so the grid finds the same level as comparing with every threshold."""
    levels = levels_of(width)
    if levels == 2:
        return np.logical_not(np.signbit(z)).view(np.uint8)
    code = np.full(z.shape, levels // 2, dtype=np.uint8)
    magnitude = np.abs(z)
    if width in _GRIDS:
        per_unit, below, inside = _GRIDS[width]
        cell = np.minimum(magnitude * per_unit, np.float32(below.size - 1)).astype(np.intp)
        code += below.take(cell)
        code += magnitude > inside.take(cell)
    else:
        above = np.empty(z.shape, dtype=np.bool_)
        for t in THRESHOLDS[width - 1][:-1]:
            code += np.greater(magnitude, t, out=above)
    mirrored = np.negative(np.signbit(z).view(np.uint8))  # all bits set where z is negative
    code ^= mirrored  # 255 - code ..
    mirrored &= np.uint8(levels & 255)
    code += mirrored  # .. + levels = levels - 1 - code modulo 256
    return code
