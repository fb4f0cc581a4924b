"""Rates by equal slope: one number says how finely every block of a vector, or of a whole update, is quantized.

Blocks k of n_k coordinates and variance σ_k², quantized with step s_k·σ_k, are to have the least error for their bits:

    min Σ n_k σ_k² v(s_k)   subject to   Σ n_k R(s_k) <= bits        =>        -σ_k² dv/dR (s_k) = λ for all k

(v and R of ``quantizers.py``; reverse water-filling with the curve of a real code: Cover & Thomas, Elements of
Information Theory, section 10.3.3). Fine steps have -dv/dR = s² ln 2/6, so blocks of much energy get one absolute step,
2^(slope/2048) = √(6 λ/ln 2); blocks of little energy get coarser ones, but never none: the estimate stays unbiased
block by block. With u = log2(√(6λ/ln 2)/σ_k), the step is s_k = 2^T(u), and T is shipped as a table, because both ends
must read the same step from the scales and the slope.

All quantities are integers in units of 1/2048 octave, so ``slope`` sets the rate nearly without steps.

Where blocks may also be sent as directions (``spherical.py``), those are cheaper from u = 1.5 octaves on, about a bit a
coordinate: T then jumps to groups of about 16·2^(j/256) coordinates, 1.05 to .84 bits. So that alike blocks do not all
jump at one slope, and the bits between are within reach, the block at place k jumps at 1.5 + frac(k/φ)/8 octaves, φ the
golden ratio. One block alone would still not find what a bit buys, so an encoder may have all jump later, at 2.25.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedge.codecs import quantizers
from fedge.codecs.gaussian import COARSEST, FINEST, UNITS, Doubles, Ints
from fedge.codecs.quantizers import FIRST_LENGTH

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
# j at u = 1.5, 1.75, .., 7.5 octaves.
LENGTH_NODES = (
    67, 129, 169, 218, 276, 341, 400, 462, 524, 592, 652, 716, 777, 843, 909, 972, 1034, 1100, 1164, 1227, 1289, 1357,
    1420, 1484, 1536,
)  # fmt: skip
EARLY, LATE = 3 * UNITS // 2, 9 * UNITS // 4  # u at which blocks become directions
_SPREAD = UNITS // 8
_GOLDEN = 40_503  # 2^16/φ


@dataclass(frozen=True, slots=True)
class Levels:
    """The blocks of a vector as the slope sees them, int64 ``[blocks]``.

    ``sizes`` n_k, ``levels`` log2 σ_k as both ends know it, ``true`` log2 σ_k as only the encoder knows it: steps
    follow from the first, what they cost and give from the second. ``jumps``: from which u on they are sent as
    directions, if they may be. ``whole``: whether these are the blocks that will be sent, or parts of such, which need
    not be cut into groups by themselves.
    """

    sizes: Ints
    levels: Ints
    true: Ints
    jumps: Ints | None = None
    whole: bool = True

    @classmethod
    def joined(cls, parts: Sequence[Levels]) -> Levels:
        """Return the blocks of all ``parts``, which all may be sent as directions, or none."""
        none = np.empty(0, np.int64)
        sizes = np.concatenate([none, *(part.sizes for part in parts)])
        levels = np.concatenate([none, *(part.levels for part in parts)])
        true = np.concatenate([none, *(part.true for part in parts)])
        jumps = [part.jumps for part in parts if part.jumps is not None]
        whole = all(part.whole for part in parts)
        return cls(sizes, levels, true, np.concatenate(jumps) if jumps else None, whole)

    def steps(self, slope: int | Ints) -> Ints:
        """Return the steps at ``slope``, those of levels relative to the true σ_k; a row each for slopes ``[m, 1]``.

        How many groups a block is cut into does not depend on σ_k.
        """
        steps = steps_of(slope, self.levels, self.jumps)
        relative = _within(steps + (self.levels - self.true), FINEST, COARSEST)
        return relative if self.jumps is None else np.where(steps < FIRST_LENGTH, relative, steps)

    def bits(self, slope: int | Ints) -> Doubles:
        """Return what the codes of every block are expected to take at ``slope``; a row each for slopes ``[m, 1]``."""
        steps = self.steps(slope)
        if self.whole:
            return quantizers.bits_of(steps, self.sizes)
        bits: Doubles = self.sizes * quantizers.nominal()[0][steps - FINEST]
        return bits

    def error(self, slope: int) -> Doubles:
        """Return the expected relative squared error of every block at ``slope``."""
        steps = self.steps(slope)
        if self.whole:
            return quantizers.error_of(steps, self.sizes)
        error: Doubles = quantizers.nominal()[1][steps - FINEST]
        return error


def steps_of(slope: int | Ints, levels: Ints, jumps: Ints | None = None) -> Ints:
    """Return the step t of every block relative to its level (``quantizers.py``), int64, for ``slope`` and the blocks'
    ``levels``, all in 1/2048 octave. Without ``jumps``, none is sent as directions."""
    u = slope - levels
    steps: Ints = _steps()[_within(u, FINEST, _LAST_NODE) - FINEST]
    if jumps is None:
        return steps
    lengths = _length_steps()
    return np.where(u < jumps, steps, lengths[_within(u - EARLY, 0, lengths.size - 1)])


def jumps_of(places: Ints, first: int) -> Ints:
    """Return at which u the blocks at ``places`` k become directions, int64: from ``first`` on, EARLY or LATE."""
    jumps: Ints = first + ((places * _GOLDEN & 0xFFFF) * _SPREAD >> 16)
    return jumps


@functools.cache
def _steps() -> Ints:
    """T at every u from FINEST to the last node."""
    u = np.arange(FINEST, _LAST_NODE + 1)
    return np.where(u < _FIRST_NODE, u, _between(NODES, np.maximum(u - _FIRST_NODE, 0)))


@functools.cache
def _length_steps() -> Ints:
    """T at every u from that of the first length on."""
    return FIRST_LENGTH + _between(LENGTH_NODES, np.arange((len(LENGTH_NODES) - 1) * _NODE_UNITS + 1))


def _between(table: Sequence[int], u: Ints) -> Ints:
    """Return what lies at ``u`` >= 0 between nodes a quarter of an octave apart."""
    nodes, node = np.array(table), np.minimum(u // _NODE_UNITS, len(table) - 2)
    part = u - node * _NODE_UNITS
    between: Ints = nodes[node] + (nodes[node + 1] - nodes[node]) * part // _NODE_UNITS
    return between


def _within(x: Ints, least: int, most: int) -> Ints:
    """np.clip, which takes longer than all the rest for a few blocks."""
    within: Ints = np.minimum(np.maximum(x, least), most)
    return within


def bits_at(slope: int, blocks: Sequence[Levels]) -> float:
    """Return how many bits the codes of all ``blocks`` are expected to take."""
    return sum(float(part.bits(slope).sum()) for part in blocks)


def error_at(slope: int, blocks: Levels) -> float:
    """Return the expected squared error of ``blocks``, in the units of x²."""
    variance = np.exp2(2 * blocks.true / UNITS)
    return float(blocks.sizes @ (variance * blocks.error(slope)))


def price_of_bit(slope: int) -> float:
    """Return λ: how much squared error one more bit is worth."""
    return float(np.log(2) / 6 * np.exp2(2 * slope / UNITS))


def cost_of(slope: int, energy: Doubles, sizes: Ints) -> tuple[Doubles, Doubles]:
    """Return cost, error and λ times bits, and error of runs of ``energy`` float64 ``[.., runs]`` and of ``sizes``
    coordinates, each with a step of its own, or as directions, summed over the last axis."""
    u = _relative(slope, energy / sizes)
    cost, error = _costs()
    price = price_of_bit(slope)
    return price * (cost[u] @ sizes), price * (error[u] @ sizes)


def parts_of(slope: int, weights: Doubles, variance: Doubles) -> tuple[Doubles, Doubles]:
    """Return v and R of runs of ``variance`` ``[n, runs]`` if an error costs ``weights`` ``[n]`` times itself."""
    steps = _every_step()[_relative(slope, variance * weights[:, None])] - FINEST
    rate, error = quantizers.nominal()
    return error[steps], rate[steps]


def _relative(slope: int, variance: Doubles) -> Ints:
    """Return where in :func:`_costs` runs of ``variance`` are."""
    level = np.log2(np.maximum(variance, 1e-300)) * (UNITS / 2)
    return _within((slope - FINEST - level).astype(np.int64), 0, _COARSEST_COST)


_COARSEST_COST = _LAST_NODE - FINEST + 16 * UNITS


@functools.cache
def _every_step() -> Ints:
    """T at every u from FINEST to that of the coarsest cost, of blocks that may be sent as directions."""
    u = np.arange(FINEST, FINEST + _COARSEST_COST + 1)
    return steps_of(0, -u, np.full_like(u, EARLY))


@functools.cache
def _costs() -> tuple[Doubles, Doubles]:
    """Cost and error of a coordinate in units of λ, at every u from FINEST on."""
    u = np.arange(FINEST, FINEST + _COARSEST_COST + 1)
    rate, error = (of_all[_every_step() - FINEST] for of_all in quantizers.nominal())
    weighed = error * np.exp2(-2 * u / UNITS) * (6 / np.log(2))
    return weighed + rate, weighed


def coarsest(blocks: Sequence[Levels]) -> int:
    """Return a slope at which all ``blocks`` have the coarsest step there is."""
    return max((int(part.levels.max()) for part in blocks if part.levels.size), default=0) - _FIRST_NODE * 3


def solve(bits: float, blocks: Sequence[Levels]) -> int:
    """Return the finest slope at which all ``blocks`` take at most ``bits``; the coarsest if none does.

    Whole groups of a small block may take more at a coarser slope; it is one of the finest then.
    """
    joined = Levels.joined(blocks)
    low = FINEST + (int(joined.levels.min()) if joined.levels.size else 0)
    high = coarsest(blocks)
    # A few blocks take NumPy as long at one slope as at many.
    ways = min(max(_AT_ONCE // max(joined.levels.size, 1), 2), 16)
    while low < high:
        slopes = low + (high - low) * np.arange(1, ways) // ways
        fits = joined.bits(slopes[:, None]).sum(axis=1) <= bits
        first = int(fits.argmax()) if fits.any() else slopes.size
        if first < slopes.size:
            high = int(slopes[first])
        if first > 0:
            low = int(slopes[first - 1]) + 1
    return low
