"""Which levels the kept coordinates of each vector of an update get.

``family`` says from what: "gennorm" or "weibull" fit that law to all of a vector's coordinates that are not zero,
"auto" takes the likelier of the two vector by vector, and the levels are the best ones for the law *above the
threshold* τ, by |g|^M (g - ĝ)² (``design.py``). The authors' code fits the survivors themselves, whose law has a hole
at zero that a generalized normal law cannot have. "empirical" asks no law: an M-weighted Lloyd quantizer of what was
kept.

All vectors of an update are looked up in the table at once (``table.py``); where a level has more than 4 bits, one
Newton iteration designs them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedge.codecs.m22.design import design_many
from fedge.codecs.m22.estimate import Fit
from fedge.codecs.m22.families import law
from fedge.codecs.m22.histogram import Doubles, lloyd
from fedge.codecs.m22.table import LARGEST_BITS, tabulated_many
from fedge.errors import CodecError

Family = Literal["auto", "gennorm", "weibull", "empirical"]
Tail = tuple[Doubles, Doubles]
"""Means and counts of the bins of what is kept, float64 ``[n]`` both, ascending."""

FITS = 1.02
"""A law's levels that lose more than this times what the data's own levels lose are not of the law: there are outliers,
or two layers in one segment. Those of the data are taken then."""
PRECISION = 1e-3
"""Newton's last relative step; levels are then right to about its square, and travel to 2^-8."""


def codebooks(
    found: Sequence[Fit] | None, tails: Sequence[Tail], tau: float, levels: Sequence[int], magnitude: float
) -> list[Doubles]:
    """Return the levels of each vector, float64 ``[levels[k]]``, ascending.

    ``tails``: how large what is kept of it is; ``tau``: the least of all that is kept; ``found``: the laws, None where
    no law is asked.
    """
    empirical = [
        lloyd(x, counts, count, magnitude) if x.size and x[-1] > 0 else np.full(count, tau)
        for (x, counts), count in zip(tails, levels, strict=True)
    ]
    if found is None:
        return empirical
    try:
        designed = _designed(found, [tau] * len(tails), levels, magnitude)
    except CodecError:  # a law so wrong that what was kept hardly ever happens in it
        return empirical
    return [
        one if _distortion(x, counts, one, magnitude) <= FITS * _distortion(x, counts, other, magnitude) else other
        for (x, counts), one, other in zip(tails, designed, empirical, strict=True)
    ]


def one_level(tail: Tail, tau: float) -> Doubles:
    """Return the mean of what is kept of a vector: a single level of which the amplitude says all else."""
    x, counts = tail
    total = float(counts.sum())
    return np.array([float((x * counts).sum()) / total if total else tau])


def _designed(found: Sequence[Fit], taus: Sequence[float], levels: Sequence[int], magnitude: float) -> list[Doubles]:
    scales = np.array([one.scale or 1.0 for one in found])
    s, k = np.array([law(one.family, one.shape) for one in found]).T
    tau = np.array(taus) / scales
    counts = np.array(levels, np.int64)
    weights = np.full(s.size, float(magnitude))
    with np.errstate(all="ignore"):
        if counts.max() <= 1 << (LARGEST_BITS - 1):
            by_bits = tabulated_many(s, k, weights, tau)
            best = [by_bits[count.bit_length() - 1][n] for n, count in enumerate(levels)]
        else:
            best = list(design_many(s, k, weights, counts, tau, PRECISION))
    designed = [best[n][:count] * scales[n] for n, count in enumerate(levels)]
    if not all(np.isfinite(one).all() and (np.diff(one) >= 0).all() for one in designed):
        raise CodecError("expected levels that are finite and ascend")
    return designed


def _distortion(x: Doubles, counts: Doubles, levels: Doubles, magnitude: float) -> float:
    """Return Σ counts·x^M (x - level)² by the nearest level, x over the largest one."""
    if x.size == 0 or x[-1] <= 0:
        return 0.0
    unit = x[-1]
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    return float(counts @ ((x / unit) ** magnitude * ((x - nearest) / unit) ** 2))
