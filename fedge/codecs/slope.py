"""Rates by equal slope: one number says how finely every block of a vector, or of a whole update, is quantized.

Blocks k of n_k coordinates and variance σ_k², quantized with step s_k·σ_k, are to have the least error for their bits:

    min Σ n_k σ_k² v(s_k)   subject to   Σ n_k R(s_k) <= bits        =>        -σ_k² dv/dR (s_k) = λ for all k

(v and R of ``gaussian.py``; reverse water-filling with the curve of a real code: Cover & Thomas, Elements of
Information Theory, section 10.3.3). Fine steps have -dv/dR = s² ln 2/6, so blocks of much energy get one absolute step,
2^(slope/2048) = √(6 λ/ln 2); blocks of little energy get coarser ones, but never none: the estimate stays unbiased
block by block. With u = log2(√(6λ/ln 2)/σ_k), the step is s_k = 2^T(u), and T is shipped as a table, because both ends
must read the same step from the scales and the slope.

All quantities are integers in units of 1/2048 octave, so ``slope`` sets the rate nearly without steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedge.codecs.gaussian import COARSEST, FINEST, UNITS, Doubles, Ints, error_of, rate_of

_NODE_UNITS = UNITS // 4
_FIRST_NODE = -4 * UNITS
_AT_ONCE = 1024  # blocks times slopes that are looked at together
# T at u = -4, -3.75, .., 8.25 octaves; below, T(u) = u. A test computes them again.
# fmt: off
NODES = (
    -8192, -7681, -7169, -6657, -6146, -5635, -5124, -4613, -4104, -3595, -3087, -2581, -2078, -1578, -1082, -592,
    -110, 363, 823, 1271, 1704, 2115, 2494, 2828, 3116, 3362, 3576, 3763, 3929, 4079, 4214, 4338, 4452, 4558, 4657,
    4749, 4835, 4917, 4994, 5067, 5137, 5203, 5266, 5327, 5385, 5441, 5495, 5547, 5597, 5632,
)
# fmt: on
_LAST_NODE = _FIRST_NODE + (len(NODES) - 1) * _NODE_UNITS


@dataclass(frozen=True, slots=True)
class Levels:
    """The blocks of a vector as the slope sees them, int64 ``[blocks]``.

    ``sizes`` n_k, ``levels`` log2 σ_k as both ends know it, ``true`` log2 σ_k as only the encoder knows it: steps
    follow from the first, what they cost and give from the second.
    """

    sizes: Ints
    levels: Ints
    true: Ints

    @classmethod
    def joined(cls, parts: Sequence[Levels]) -> Levels:
        """Return the blocks of all ``parts``."""
        none = np.empty(0, np.int64)
        sizes = np.concatenate([none, *(part.sizes for part in parts)])
        levels = np.concatenate([none, *(part.levels for part in parts)])
        return cls(sizes, levels, np.concatenate([none, *(part.true for part in parts)]))

    def steps(self, slope: int | Ints) -> Ints:
        """Return the steps at ``slope`` relative to the true σ_k; a row each for slopes ``[m, 1]``."""
        return _within(steps_of(slope, self.levels) + (self.levels - self.true), FINEST, COARSEST)


def steps_of(slope: int | Ints, levels: Ints) -> Ints:
    """Return the step t of every block relative to its level, int64 from FINEST to COARSEST, for ``slope`` and the
    blocks' ``levels``, all in 1/2048 octave."""
    u = slope - levels
    steps: Ints = _steps()[_within(u, FINEST, _LAST_NODE) - FINEST]
    return steps


@functools.cache
def _steps() -> Ints:
    """T at every u from FINEST to the last node."""
    u = np.arange(FINEST, _LAST_NODE + 1)
    node = np.clip((u - _FIRST_NODE) // _NODE_UNITS, 0, len(NODES) - 2)
    part = u - _FIRST_NODE - node * _NODE_UNITS
    nodes = np.array(NODES)
    between = nodes[node] + (nodes[node + 1] - nodes[node]) * part // _NODE_UNITS
    return np.where(u < _FIRST_NODE, u, between)


def _within(x: Ints, least: int, most: int) -> Ints:
    """np.clip, which takes longer than all the rest for a few blocks."""
    within: Ints = np.minimum(np.maximum(x, least), most)
    return within


def bits_at(slope: int, blocks: Sequence[Levels]) -> float:
    """Return how many bits the codes of all ``blocks`` are expected to take."""
    return sum(float(part.sizes @ rate_of(part.steps(slope))) for part in blocks)


def error_at(slope: int, blocks: Levels) -> float:
    """Return the expected squared error of ``blocks``, in the units of x²."""
    variance = np.exp2(2 * blocks.true / UNITS)
    return float(blocks.sizes @ (variance * error_of(blocks.steps(slope))))


def price_of_bit(slope: int) -> float:
    """Return λ: how much squared error one more bit is worth."""
    return float(np.log(2) / 6 * np.exp2(2 * slope / UNITS))


def cost_of(slope: int, energy: Doubles, sizes: Ints) -> tuple[Doubles, Doubles]:
    """Return cost, error and λ times bits, and error of runs of ``energy`` float64 ``[.., runs]`` and of ``sizes``
    coordinates, each with a step of its own, summed over the last axis."""
    u = _relative(slope, energy / sizes)
    cost, error = _costs()
    price = price_of_bit(slope)
    return price * (cost[u] @ sizes), price * (error[u] @ sizes)


def parts_of(slope: int, weights: Doubles, variance: Doubles) -> tuple[Doubles, Doubles]:
    """Return v and R of runs of ``variance`` ``[n, runs]`` if an error costs ``weights`` ``[n]`` times itself."""
    u = _relative(slope, variance * weights[:, None])
    steps = _steps()[np.minimum(u, _LAST_NODE - FINEST)]
    return error_of(steps), rate_of(steps)


def _relative(slope: int, variance: Doubles) -> Ints:
    """Return where in :func:`_costs` runs of ``variance`` are."""
    level = np.log2(np.maximum(variance, 1e-300)) * (UNITS / 2)
    return _within((slope - FINEST - level).astype(np.int64), 0, _COARSEST_COST)


_COARSEST_COST = _LAST_NODE - FINEST + 16 * UNITS


@functools.cache
def _costs() -> tuple[Doubles, Doubles]:
    """Cost and error of a coordinate in units of λ, at every u from FINEST on."""
    u = np.arange(FINEST, FINEST + _COARSEST_COST + 1)
    steps = _steps()[np.minimum(u, _LAST_NODE) - FINEST]
    error = error_of(steps) * np.exp2(-2 * u / UNITS) * (6 / np.log(2))
    return error + rate_of(steps), error


def coarsest(blocks: Sequence[Levels]) -> int:
    """Return a slope at which all ``blocks`` have the coarsest step there is."""
    return max((int(part.levels.max()) for part in blocks if part.levels.size), default=0) - _FIRST_NODE * 3


def solve(bits: float, blocks: Sequence[Levels]) -> int:
    """Return the finest slope at which all ``blocks`` take at most ``bits``; the coarsest if none does."""
    joined = Levels.joined(blocks)
    low = FINEST + (int(joined.levels.min()) if joined.levels.size else 0)
    high = coarsest(blocks)
    # A few blocks take NumPy as long at one slope as at many.
    ways = min(max(_AT_ONCE // max(joined.levels.size, 1), 2), 16)
    while low < high:
        slopes = low + (high - low) * np.arange(1, ways) // ways
        fits = rate_of(joined.steps(slopes[:, None])) @ joined.sizes <= bits
        first = int(fits.argmax()) if fits.any() else slopes.size
        if first < slopes.size:
            high = int(slopes[first])
        if first > 0:
            low = int(slopes[first - 1]) + 1
    return low
