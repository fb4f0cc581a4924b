"""How large the coordinates of an update are, in bins of a sixteenth of an octave, and what follows from that.

Two things are decided on the histogram, before any coordinate is touched: how many levels are best for a budget
(``predict``), and an M-weighted Lloyd quantizer of a law that no family fits (``lloyd``). M. Liu, R. Rini, S.
Salehkalaibar, J. Chen, M22 (https://arxiv.org/abs/2301.09269): the distortion |g|^M (g - ĝ)², whose encoder is the
nearest level and whose level j is the mean over its cell weighted by |g|^M.

For a budget of b bits a coordinate and R bits of levels, the share q of coordinates that can be kept is the root of

    q·(R - 1 + 1) + pos(q) = b,    pos: ``subset.expected_bits``; R - 1 is replaced by the entropy of the cells

and what is lost is the energy below the threshold plus the quantizer's error above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import Vector
from fedge.codecs.m22.sparse import MAGNITUDE_MASK, lloyd_steps
from fedge.codecs.m22.subset import expected_bits

Doubles = npt.NDArray[np.float64]

BINS_SHIFT = 19  # of a float32's 31 bits of magnitude: 8 of exponent and 4 of mantissa are left
BINS = 1 << (31 - BINS_SHIFT)
WITHIN = 1 / (12 * 16**2)  # variance inside a bin, over the square of its magnitude
SAMPLE = 1 << 16
LLOYD_STEPS, ROUGH_STEPS = 12, 5


@dataclass(frozen=True)
class Histogram:
    """``counts`` of coordinates of about such ``magnitudes``, float64 ``[n]`` both, ascending, above zero.

    ``floors``: the bits of the least magnitude of each bin, uint32 ``[n]``. ``size`` counts the zeros too.
    """

    magnitudes: Doubles
    counts: Doubles
    floors: npt.NDArray[np.uint32]
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


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a number of levels would give: coordinates ``kept``, zeros among them if they are all, and the relative
    squared ``error``."""

    levels_bits: int
    kept: float
    error: float
    most: float = np.inf
    """Keeping more than this loses more, though there may be bytes for it."""


def histogram(vectors: Sequence[Vector]) -> Histogram:
    """Return the histogram of all of ``vectors``, from about 65,536 of their coordinates, evenly spread."""
    size = sum(x.size for x in vectors)
    stride = max(1, size // SAMPLE)
    sample = np.concatenate([np.empty(0, np.float32), *(x[::stride] for x in vectors)])
    bits = sample.view(np.uint32) & MAGNITUDE_MASK
    counts = np.bincount(bits[bits > 0] >> np.uint32(BINS_SHIFT), minlength=BINS).astype(np.float64)
    used = np.flatnonzero(counts)
    floors = used.astype(np.uint32) << np.uint32(BINS_SHIFT)
    middles = (floors + np.uint32(1 << (BINS_SHIFT - 1))).view(np.float32).astype(np.float64)
    return Histogram(middles, counts[used] * (size / max(sample.size, 1)), np.maximum(floors, np.uint32(1)), size)


def lloyd(magnitudes: Doubles, counts: Doubles, levels: int, magnitude: float, steps: int = LLOYD_STEPS) -> Doubles:
    """Return ``levels`` ascending levels for bins, float64 ``[n]`` both, that make Σ counts·x^M (x - level)² small.

    Begins with the point density of fine quantizers, (weighted density)^(1/3).
    """
    unit = magnitudes[-1]
    x = magnitudes / unit
    weight = counts * x**magnitude
    width = np.maximum(np.gradient(x), 1e-300) if x.size > 1 else np.ones(1)
    density = np.cbrt(weight / width) * width
    share = np.cumsum(density)
    wanted = (np.arange(levels) + 0.5) / levels * share[-1]
    found = x[np.minimum(np.searchsorted(share, wanted), x.size - 1)]
    mass, moment = (np.concatenate(([0.0], np.cumsum(part))) for part in (weight, weight * x))
    best: Doubles = lloyd_steps(x, mass, moment, found, steps) * unit
    return best


def predict(found: Histogram, budget_bits: float, levels_bits: int) -> Prediction:
    """Return how much ``budget_bits``, without side information, can keep at R = ``levels_bits``, and what is lost."""
    if found.counts.size == 0 or budget_bits <= 0:
        return Prediction(levels_bits, 0.0, 1.0)
    kept_from_above = found.from_above
    each = float(levels_bits)
    for _ in range(2 if levels_bits > 1 else 1):
        cost = found.position_bits + each * kept_from_above
        # Listing nearly all costs little again, so the cost may rise above the budget and fall below it.
        fits = np.flatnonzero(cost <= budget_bits)
        bins = int(fits[-1]) + 1 if fits.size else 0
        kept = float(kept_from_above[bins - 1]) if bins else 0.0
        share = min(1.0, budget_bits / float(cost[bins])) if bins < cost.size else 0.0
        kept += share * float(found.counts[-1 - bins]) * (0.5 if bins else share) if share else 0.0
        bins = min(bins + 1, cost.size)
        x, counts = found.magnitudes[-bins:], found.counts[-bins:]
        levels = lloyd(x, counts, 1 << (levels_bits - 1), 0.0, ROUGH_STEPS)
        cells = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        each = 1.0 + entropy_bits(np.bincount(cells, counts, levels.size).astype(np.float64))
    captured = float(counts @ (x**2 * (1.0 - WITHIN) - (x - levels[cells]) ** 2)) * kept / float(counts.sum())
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
    if found.counts.size == 0:
        return None
    x, counts = found.magnitudes, found.counts
    levels = lloyd(x, counts, 1 << (levels_bits - 1), 0.0, ROUGH_STEPS)
    cells = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    zeros = max(found.size - float(counts.sum()), 0.0)
    filled = np.bincount(cells, counts, levels.size).astype(np.float64)
    filled[0] += zeros
    if found.size * min(1.0 + entropy_bits(filled), float(levels_bits)) > budget_bits:
        return None
    error = float(counts @ ((x - levels[cells]) ** 2 + x**2 * WITHIN)) + zeros * float(levels[0]) ** 2
    return Prediction(levels_bits, float(found.size), error / found.energy)


def entropy_bits(counts: Doubles) -> float:
    """Return the entropy of cells with these counts, bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share @ np.log2(share)))
