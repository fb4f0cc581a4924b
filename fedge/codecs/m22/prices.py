"""What a number of kept coordinates takes, from histograms alone: where to begin, and how far to move if it was wrong.

Positions and peeled cells are priced as if they were random (``subset.expected_bits``), which is within some percent
of what updates have, mostly above; packed cells are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22.sparse import BIN_SHIFT, Ints
from fedge.codecs.m22.subset import expected_bits

Doubles = npt.NDArray[np.float64]

MOST_PEELED_BITS = 4
"""Cells of more bits of levels are packed."""
POSITIONS_BYTES, SUBSET_BYTES = 4.0, 3.5
"""What kind, count and unfilled last bytes take: of positions and signs, and of a subset of cells."""
MOST_ENTRIES = 1 << 17
"""Of a table of histograms; where they are many, of wider bins."""


def peeled_bits(reaching: Doubles) -> Doubles:
    """Return what subsets of subsets take, bits, where ``reaching`` counts what reaches each level: ``[.., levels]``.

    One value for each subset: float64 ``[.., levels - 1]``.
    """
    of = np.maximum(reaching[..., :-1], 1e-9)
    bits: Doubles = of * expected_bits(np.minimum(reaching[..., 1:] / of, 1.0))
    return bits


def cell_bits(counts: Doubles, levels_bits: int) -> float:
    """Return what cells with these ``counts`` of coordinates take, packed or peeled, whichever is less."""
    if levels_bits == 1:
        return 0.0
    packed = float(counts.sum()) * (levels_bits - 1)
    if levels_bits > MOST_PEELED_BITS:
        return packed
    reaching = np.cumsum(counts[::-1])[::-1]
    return min(packed, float(peeled_bits(reaching).sum()))


def kept_bits(size: Doubles, kept: Doubles, above: Doubles) -> Doubles:
    """Return what positions, signs and cells of ``kept`` of ``size`` coordinates take, bits, ``[vectors, n]``.

    ``size`` is float64 ``[vectors, 1]``, ``kept`` ``[vectors, n]``, and ``above`` ``[vectors, 2^(R-1) - 1]`` says how
    many reach the second level, the third, and so on.
    """
    bits = size * expected_bits(np.minimum(kept / size, 1.0)) + kept
    width = above.shape[1].bit_length()
    packed, heads = kept * width, POSITIONS_BYTES + (width > 0)
    if 0 < width < MOST_PEELED_BITS:
        of = np.maximum(kept, 1e-9)
        first = of * expected_bits(np.minimum(above[:, :1] / of, 1.0))
        rest = peeled_bits(above).sum(axis=1, keepdims=True) + 8 * SUBSET_BYTES * above.shape[1]
        packed = np.minimum(packed, first + rest)
    total: Doubles = (bits + packed + 8 * heads) * (kept >= 0.5)
    return total


class Reach:
    """How many coordinates of each vector of an update reach a magnitude, from their histograms side by side."""

    def __init__(self, bins: Sequence[Ints], counts: Sequence[Doubles]) -> None:
        """Take ``bins``, int64 ``[n]``, ascending, and ``counts`` of every vector, as ``Histogram`` has them."""
        used = [one for one in bins if one.size]
        lowest, highest = min(int(one[0]) for one in used), max(int(one[-1]) for one in used)
        self.shift = 0
        while ((highest >> self.shift) - (lowest >> self.shift) + 1) * len(bins) > MOST_ENTRIES:
            self.shift += 1
        self.lowest = lowest >> self.shift
        self.width = (highest >> self.shift) - self.lowest + 1
        self.table = np.zeros((len(bins), self.width + 1))
        for row, one, some in zip(self.table, bins, counts, strict=True):
            here = np.bincount((one >> self.shift) - self.lowest, some, self.width)
            row[:-1] = np.cumsum(here[::-1])[::-1]

    def _between(self, bits: Doubles) -> tuple[Ints, Doubles]:
        at = bits / (1 << (BIN_SHIFT + self.shift)) - self.lowest
        place = np.clip(at.astype(np.int64), 0, self.width - 1)
        return place, np.clip(at - place, 0.0, 1.0)

    def of_all(self, bits: Doubles) -> Doubles:
        """Return how many of every vector have at least such ``bits`` of magnitude, ``[n]``: ``[vectors, n]``."""
        place, share = self._between(bits)
        found: Doubles = self.table[:, place] * (1.0 - share) + self.table[:, place + 1] * share
        return found

    def of_each(self, rows: Ints, bits: Doubles) -> Doubles:
        """Return how many of each of some vectors have at least such ``bits`` of its own, ``[rows, n]`` both."""
        place, share = self._between(bits)
        here = rows[:, None]
        found: Doubles = self.table[here, place] * (1.0 - share) + self.table[here, place + 1] * share
        return found
