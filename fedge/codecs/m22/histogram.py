"""How large the coordinates of an update are, in bins of a 256th of an octave, and what follows from that.

All that depends on how magnitudes are distributed is decided here, before any coordinate is touched a second time: how
many levels are best for a budget (``predict``), the law (``estimate.py``), an M-weighted Lloyd quantizer of what no
family fits (``lloyd``), and how many bytes a number of kept coordinates takes (``prices.py``). M. Liu, R. Rini, S.
Salehkalaibar, J. Chen, M22 (https://arxiv.org/abs/2301.09269): the distortion |g|^M (g - ĝ)², whose encoder is the
nearest level and whose level j is the mean over its cell weighted by |g|^M.

For a budget of b bits a coordinate and R bits of levels, the share q of coordinates that can be kept is the root of

    q·(1 + cells) + pos(q) = b,    pos: ``subset.expected_bits``, cells: ``prices.cell_bits``

and what is lost is the energy below the threshold plus the quantizer's error above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import Vector
from fedge.codecs.m22.prices import cell_bits
from fedge.codecs.m22.sparse import BIN_SHIFT, BINS, Ints, lloyd_steps, measure
from fedge.codecs.m22.subset import expected_bits

Doubles = npt.NDArray[np.float64]

COARSE, MEDIUM = 4, 2  # bits of a bin that predictions and levels do without: a 16th and a 64th of an octave are left
WITHIN = 1 / (12 * 16**2)  # variance inside a coarse bin, over the square of its magnitude
LLOYD_STEPS, ROUGH_STEPS = 12, 5
_NOT_FINITE = 255 << 8


@dataclass(frozen=True)
class Histogram:
    """``counts`` of coordinates, float64 ``[n]``, that share the ``bins``, int64 ``[n]``, ascending, and their means.

    Zeros are in no bin, and ``size`` counts them too.
    """

    bins: Ints
    counts: Doubles
    magnitudes: Doubles
    size: int

    @cached_property
    def energy(self) -> float:
        """Σ x², from bins."""
        return float(self.counts @ self.magnitudes**2)

    @cached_property
    def from_above(self) -> Doubles:
        """How many coordinates the largest bin has, the two largest, and so on, float64 ``[n]``."""
        return np.cumsum(self.counts[::-1])

    @cached_property
    def position_bits(self) -> Doubles:
        """What it takes to say where those are, bits, float64 ``[n]``."""
        bits: Doubles = self.size * expected_bits(self.from_above / self.size)
        return bits

    @cached_property
    def coarse(self) -> Histogram:
        """The same in bins of a sixteenth of an octave."""
        return _grouped(self, COARSE)

    @cached_property
    def medium(self) -> Histogram:
        """The same in bins of a 64th of an octave, which say the density of coordinates more smoothly."""
        return _grouped(self, MEDIUM)

    def bits_at(self, kept: Doubles) -> Doubles:
        """Return the bits of magnitude that about ``kept`` coordinates reach: the inverse of ``prices.Reach``."""
        last = self.counts.size - 1
        bins = np.minimum(np.searchsorted(self.from_above, kept), last)
        inside = self.counts[last - bins]
        beyond = np.clip((self.from_above[bins] - kept) / inside, 0.0, 1.0)
        bits: Doubles = (self.bins[last - bins] + beyond) * (1 << BIN_SHIFT)
        return bits

    def tail(self, kept: float) -> tuple[Doubles, Doubles]:
        """Return means and counts of the bins of the ``kept`` largest coordinates, the last of which may be split."""
        if self.counts.size == 0:
            return self.magnitudes, self.counts
        zeros = kept - float(self.from_above[-1])
        if zeros >= 0.5:
            return np.concatenate(([0.0], self.magnitudes)), np.concatenate(([zeros], self.counts))
        bins = int(np.searchsorted(self.from_above, kept)) + 1
        x, counts = self.magnitudes[-bins:], self.counts[-bins:].copy()
        counts[0] = max(counts[0] - max(float(self.from_above[min(bins, counts.size) - 1]) - kept, 0.0), 0.0)
        return (x[1:], counts[1:]) if counts[0] == 0.0 and counts.size > 1 else (x, counts)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a number of levels would give: coordinates ``kept``, zeros among them if they are all, and the relative
    squared ``error``."""

    levels_bits: int
    kept: float
    error: float
    most: float = np.inf
    """Keeping more than this loses more, though there may be bytes for it."""


def histogram(x: Vector) -> Histogram | None:
    """Return the histogram of ``x``, float32 ``[d]``; None if a coordinate is not finite."""
    bins, counts, lows = measure(x.view(np.uint32))
    if bins.size and int(bins[-1]) >= _NOT_FINITE:
        return None
    if bins.size and bins[0] == 0:  # zeros are here, and the least of what float32 can say
        counts[0] -= x.size - int(np.count_nonzero(x))
    used = counts > 0
    bins, many = bins[used], counts[used].astype(np.float64)
    exponent = bins >> (23 - BIN_SHIFT)
    floors = (bins << BIN_SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
    units = np.ldexp(1.0, (np.maximum(exponent, 1) - 150).astype(np.int32))  # what the lowest bit is worth
    return Histogram(bins, many, floors + lows[used] / many * units, x.size)


def together(found: Sequence[Histogram]) -> Histogram:
    """Return the histogram of several vectors as one."""
    if len(found) == 1:
        return found[0]
    counts, sums = np.zeros(BINS), np.zeros(BINS)
    for one in found:
        counts[one.bins] += one.counts
        sums[one.bins] += one.counts * one.magnitudes
    used = np.flatnonzero(counts)
    return Histogram(used, counts[used], sums[used] / counts[used], sum(one.size for one in found))


def _grouped(found: Histogram, bits: int) -> Histogram:
    if found.counts.size == 0:
        return found
    bins = found.bins >> bits
    first = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.add.reduceat(found.counts, first)
    means = np.add.reduceat(found.counts * found.magnitudes, first) / counts
    return Histogram(bins[first], counts, means, found.size)


def lloyd(magnitudes: Doubles, counts: Doubles, levels: int, magnitude: float, steps: int = LLOYD_STEPS) -> Doubles:
    """Return ``levels`` ascending levels for bins, float64 ``[n]`` both, that make Σ counts·x^M (x - level)² small.

    Begins with the point density of fine quantizers, (weighted density)^(1/3).
    """
    unit = magnitudes[-1]
    x = magnitudes / unit
    weight = counts * x**magnitude if magnitude else counts
    width = np.ones(x.size)
    if x.size > 1:
        width[1:-1] = (x[2:] - x[:-2]) / 2
        width[0], width[-1] = x[1] - x[0], x[-1] - x[-2]
        np.maximum(width, 1e-300, out=width)
    density = np.cbrt(weight / width) * width
    share = np.cumsum(density)
    wanted = (np.arange(levels) + 0.5) / levels * share[-1]
    found = x[np.minimum(np.searchsorted(share, wanted), x.size - 1)]
    mass, moment = np.zeros(x.size + 1), np.zeros(x.size + 1)
    np.cumsum(weight, out=mass[1:])
    np.cumsum(weight * x, out=moment[1:])
    best: Doubles = lloyd_steps(x, mass, moment, found, steps) * unit
    return best


def _cells(x: Doubles, counts: Doubles, levels_bits: int) -> tuple[Doubles, Doubles, Doubles]:
    """Return levels for bins, the level of each bin, and how many coordinates each level has."""
    levels = lloyd(x, counts, 1 << (levels_bits - 1), 0.0, ROUGH_STEPS)
    cells = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    return levels, levels[cells], np.bincount(cells, counts, levels.size).astype(np.float64)


def predict(found: Histogram, budget_bits: float, levels_bits: int) -> Prediction:
    """Return how much ``budget_bits``, without side information, can keep at R = ``levels_bits``, and what is lost."""
    if found.counts.size == 0 or budget_bits <= 0:
        return Prediction(levels_bits, 0.0, 1.0)
    kept_from_above = found.from_above
    each = float(levels_bits)
    for _ in range(3 if levels_bits > 1 else 1):
        cost = found.position_bits + each * kept_from_above
        # Listing nearly all costs little again, so the cost may rise above the budget and fall below it.
        fits = np.flatnonzero(cost <= budget_bits)
        bins = int(fits[-1]) + 1 if fits.size else 0
        kept = float(kept_from_above[bins - 1]) if bins else 0.0
        if bins < cost.size:  # a part of the next bin
            least = float(cost[bins - 1]) if bins else 0.0
            kept += float(found.counts[-1 - bins]) * min(1.0, (budget_bits - least) / (float(cost[bins]) - least))
        x, counts = found.tail(kept)
        _, at, filled = _cells(x, counts, levels_bits)
        each = 1.0 + cell_bits(filled, levels_bits) / float(counts.sum())
    captured = float(counts @ (x**2 * (1.0 - WITHIN) - (x - at) ** 2))
    return Prediction(levels_bits, kept, 1.0 - captured / found.energy)


def predict_one_level(found: Histogram, budget_bits: float) -> Prediction:
    """Return what R = 1 would keep and lose: K magnitudes at their mean m capture K·m², most where K is right.

    Of light tails that is all, of heavy ones fewer than there would be bytes for.
    """
    if found.counts.size == 0 or budget_bits <= 0:
        return Prediction(1, 0.0, 1.0)
    kept = found.from_above
    fits = found.position_bits + kept <= budget_bits
    sums = np.cumsum((found.counts * found.magnitudes)[::-1])
    captured = np.where(fits, sums**2 / kept, 0.0)
    best = int(np.argmax(captured))
    if captured[best] == 0.0 or best + 1 == kept.size or not fits[best + 1]:
        return predict(found, budget_bits, 1)  # the budget is the bound, somewhere in this bin
    return Prediction(1, float(kept[best]), 1.0 - float(captured[best]) / found.energy, float(kept[best]))


def predict_all(found: Histogram, budget_bits: float, levels_bits: int) -> Prediction | None:
    """Return what is lost if all coordinates are kept at R = ``levels_bits``, zeros too; None if that is too much.

    Nothing says then where they are. A zero costs the square of the lowest level, which is little where zeros are few.
    """
    if found.counts.size == 0 or found.size > budget_bits:
        return None
    x, counts = found.magnitudes, found.counts
    levels, at, filled = _cells(x, counts, levels_bits)
    zeros = max(found.size - float(counts.sum()), 0.0)
    filled[0] += zeros
    if found.size + cell_bits(filled, levels_bits) > budget_bits:
        return None
    error = float(counts @ ((x - at) ** 2 + x**2 * WITHIN)) + zeros * float(levels[0]) ** 2
    return Prediction(levels_bits, float(found.size), error / found.energy)
