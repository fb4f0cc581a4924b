"""The exact magnitude of rank K of all coordinates of an update, and what is kept of each vector if K are.

The histogram says in which bins the K largest end; only what is in a few bins about there is sorted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedge import seeds
from fedge.codecs.base import Vector
from fedge.codecs.m22 import sparse
from fedge.codecs.m22.histogram import Histogram
from fedge.codecs.m22.sparse import BIN_SHIFT, MAGNITUDE_MASK, Bitmap, Ints, Words

Chosen = tuple[Bitmap, Vector]
"""Which coordinates of a vector are kept, and those, float32."""

ABOUT, AT_LEAST = 0.01, 64
"""How far about a rank is sorted, relative and absolute: the next one asked for is not far."""
FEW_TIES = 1 / 1000
"""Where so few of what is kept are equal to the least of it, none of those are kept rather than some drawn."""


@dataclass(slots=True)
class Ranking:
    """All ``vectors`` of an update by magnitude; ``found`` is their histogram."""

    vectors: Sequence[Vector]
    found: Histogram
    seed: int
    _sorted: Words = field(default_factory=lambda: np.empty(0, np.uint32))
    _larger: int = 0  # than any of the sorted ones

    def choose(self, kept: int) -> tuple[list[Chosen], int]:
        """Return what is kept of each vector if ``kept`` >= 1 are of all, and how many that is: rarely, a few less."""
        least, reached, ties = self._at(kept)
        if reached > kept and ties <= FEW_TIES * kept:
            least, reached = least + 1, reached - ties
        found = [sparse.select(x.view(np.uint32), least) for x in self.vectors]
        if reached > kept:
            found = self._without_ties(found, np.uint32(least), reached - kept)
        return [(bitmap, values.view(np.float32)) for bitmap, values in found], min(reached, kept)

    def _at(self, kept: int) -> tuple[int, int, int]:
        """Return the bits of the ``kept``-th largest magnitude, how many reach it, and how many are equal to it."""
        from_above = self.found.from_above
        if kept > int(from_above[-1]):
            return 0, self.found.size, 0
        if not self._larger < kept <= self._larger + self._sorted.size:
            self._sort_about(kept)
        values = self._sorted
        least = values[values.size - (kept - self._larger)]
        first, last = (int(np.searchsorted(values, least, side)) for side in ("left", "right"))
        return int(least), self._larger + values.size - first, last - first

    def _sort_about(self, kept: int) -> None:
        from_above, bins = self.found.from_above, self.found.bins
        about = ABOUT * kept + AT_LEAST
        high, low = np.searchsorted(from_above, (kept - about, min(kept + about, float(from_above[-1]))))
        self._larger = int(from_above[high - 1]) if high else 0
        least, below = max(int(bins[-1 - low]) << BIN_SHIFT, 1), int(bins[-1 - high]) + 1 << BIN_SHIFT
        room = int(from_above[low]) - self._larger
        inside = [sparse.between(x.view(np.uint32), least, below, room) for x in self.vectors]
        self._sorted = np.sort(np.concatenate(inside))

    def _without_ties(
        self, found: list[tuple[Bitmap, Words]], least: np.uint32, too_many: int
    ) -> list[tuple[Bitmap, Words]]:
        """Return ``found`` without so many of those that are exactly ``least``, drawn by the seed."""
        at_it = [(values & MAGNITUDE_MASK) == least for _, values in found]
        ties = np.flatnonzero(np.concatenate(at_it))
        keep = np.ones(sum(here.size for here in at_it), np.bool_)
        keep[ties[_scattered(seeds.derive(self.seed, "ties"), ties.size, too_many)]] = False
        kept = np.split(keep, np.cumsum([here.size for here in at_it])[:-1])
        both = zip(self.vectors, found, kept, strict=True)
        return [(_thinned(bitmap, here, x.size), values[here]) for x, (bitmap, values), here in both]


def _thinned(bitmap: Bitmap, keep: np.ndarray, size: int) -> Bitmap:
    """Return ``bitmap`` with those of its members that ``keep``, bool, says."""
    return bitmap if keep.all() else sparse.bitmap_of(sparse.places_of(bitmap, size)[keep], size)


def _scattered(seed: int, size: int, count: int) -> Ints:
    """Return ``count`` of 0 .. ``size`` - 1, evenly scattered from a place that ``seed`` draws.

    Steps of about the golden section: to shuffle millions of ties would take longer than all else.
    """
    step = next(step for step in range(max(1, round(0.618 * size)), 0, -1) if math.gcd(step, size) == 1)
    first = int(seeds.words(seed, 1)[0] % np.uint64(size))
    scattered: Ints = (first + step * np.arange(count, dtype=np.int64)) % size
    return scattered
