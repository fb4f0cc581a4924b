"""Lloyd-Max quantizers of N(0, 1): their design, and the NumPy quantizer that uses the shipped tables.

With thresholds t_j halfway between centroids c_j, the centroids satisfy  c_j = E[z | t_j < z < t_{j+1}].  Then
E[z Q(z)] = E[Q(z)^2] = 1 - D,  D = E (z - Q(z))^2, and an unbiased code of rate w has vNMSE D/(1 - D)
(Vargaftik et al., EDEN, ICML 2022, https://arxiv.org/abs/2108.08842).

A code of w bits is the number of its level counted from below. It is found from the magnitude alone: m = number of
positive thresholds below |z|, code = L/2 + m, mirrored to L - 1 - code where the sign bit of z is set.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedge.codecs.centroids import CENTROIDS, DISTORTION

MAX_WIDTH = 8
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
    """Return the positive half of the ``levels`` (even) Lloyd-Max centroids of N(0, 1), float64, ascending.

    Newton's method on c_j - E[z | cell j] = 0, whose Jacobian is tridiagonal, from the asymptotically right start
    c_j = √3·Φ^-1((j + 1/2)/L). Cell moments are Gauss-Legendre integrals about the centroid: no cancellation.
    """
    half = levels // 2
    normal = NormalDist()
    c = np.array([math.sqrt(3) * normal.inv_cdf((half + j + 0.5) / levels) for j in range(half)])
    for _ in range(30):
        edges = np.concatenate(([0.0], (c[1:] + c[:-1]) / 2, [math.inf]))
        mass, shift = np.array([_moments(edges[j], edges[j + 1], c[j]) for j in range(half)]).T
        mean = c + shift / mass
        density = np.array([normal.pdf(t) for t in edges[:-1]] + [0.0])
        by_low = (mean - edges[:-1]) * density[:-1] / mass  # d mean_j / d t_j
        by_high = (np.where(np.isinf(edges[1:]), mean, edges[1:]) - mean) * density[1:] / mass
        by_low[0] = 0.0  # the threshold 0 stays
        jacobian = np.diag(1 - (by_low + by_high) / 2) - np.diag(by_low[1:] / 2, -1) - np.diag(by_high[:-1] / 2, 1)
        step = np.linalg.solve(jacobian, -shift / mass)
        c = c - step
        if np.abs(step).max() < 1e-15:
            break
    return c


def distortion(centroids: npt.NDArray[np.float64]) -> float:
    """Return D = E (z - Q(z))^2 of the symmetric quantizer with these positive ``centroids``."""
    edges = np.concatenate(([0.0], (centroids[1:] + centroids[:-1]) / 2, [math.inf]))
    total = 0.0
    for low, high, c in zip(edges[:-1], edges[1:], centroids, strict=True):
        mass, mean = _moments(low, high, 0.0)
        second = mass + (low * NormalDist().pdf(low) - (0 if math.isinf(high) else high * NormalDist().pdf(high)))
        total += 2 * (second - 2 * c * mean + c * c * mass)
    return total


def gain(width: int) -> float:
    """Return E[z Q(z)] = 1 - D at ``width`` bits."""
    return 1.0 - DISTORTION[width - 1]


def _half_thresholds(width: int) -> npt.NDArray[np.float32]:
    """Positive thresholds and a final +inf, float32 ``[2^(width-1)]``."""
    c = np.array(CENTROIDS[width - 1])
    return np.append((c[1:] + c[:-1]) / 2, np.inf).astype(np.float32)


THRESHOLDS = tuple(_half_thresholds(width) for width in range(1, MAX_WIDTH + 1))
LEVELS = tuple(np.concatenate((-np.array(row)[::-1], np.array(row))).astype(np.float32) for row in CENTROIDS)
# What the C extension reads: positive centroids of widths 1..8, then positive thresholds, 255 float32 each.
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


_GRIDS = {width: _grid(width) for width in range(4, MAX_WIDTH + 1)}


def quantize(z: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.uint8]:
    """Return the code of every entry of ``z``, uint8, same shape. Multiplying by a power of the grid is exact or
    not, but monotone, so the grid finds the same level as comparing with every threshold."""
    magnitude = np.abs(z)
    if width in _GRIDS:
        per_unit, below, inside = _GRIDS[width]
        cell = np.minimum(magnitude * per_unit, np.float32(below.size - 1)).astype(np.intp)
        m = below.take(cell)
        m += magnitude > inside.take(cell)
    else:
        m = np.zeros(z.shape, dtype=np.uint8)
        for t in THRESHOLDS[width - 1][:-1]:
            m += magnitude > t
    m += np.uint8(1 << (width - 1))
    m ^= np.where(np.signbit(z), np.uint8((1 << width) - 1), np.uint8(0))
    return m
