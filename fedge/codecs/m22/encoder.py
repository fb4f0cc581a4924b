"""From the vectors of one update to what is kept of each: threshold, levels, cells, amplitude, budget to the byte.

    1. R, the bits of a level: as asked, or what the histogram of the whole update predicts to lose least
    2. top K over all vectors together, one threshold τ; which of those that are exactly τ is drawn by the seed
    3. each vector's levels: from its law above τ (``codebook.py``), in the order of its magnitudes
    4. cells by nearest level: |g|^M multiplies the cost of all candidates alike, so M never enters here
    5. amplitude: all levels of a vector times one factor

           designed     1, as the paper has it: M > 0 makes the estimate longer
           guarded      a* = <x, x̂>/‖x̂‖²: the nearest point to x on the ray of x̂, so ‖x̂ - x‖² = (1 - cos²)·‖x‖²
           projection   S = ‖x‖²/<x, x̂>: <x, x̂> = ‖x‖² as with EDEN, so that means of many devices are not too short

    6. K is corrected until the bytes fit: each round measures what a kept coordinate takes

Positions, signs and cells are exact integers; the levels come from logarithms and gamma functions of the machine, so
two machines may choose levels that differ in the last bit. What a payload decodes to is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs.base import Part, Vector
from fedge.codecs.block_codes import energies
from fedge.codecs.m22 import payload, sparse
from fedge.codecs.m22.codebook import Family, codebooks, laws
from fedge.codecs.m22.estimate import Fit
from fedge.codecs.m22.histogram import Histogram, Prediction, histogram, predict, predict_all, predict_one_level
from fedge.codecs.m22.payload import MOST_LEVELS_BITS, Kept
from fedge.codecs.m22.sparse import MAGNITUDE_MASK, Ints, Words
from fedge.codecs.m22.subset import choose

Amplitude = Literal["guarded", "projection", "designed"]

ROUNDS = 5
"""Corrections of K at most; each comes about ten times nearer to the budget."""
BIN_BITS = 16
"""Candidates are counted in at most 2^16 bins of magnitude, so that no sorting is needed to keep another number."""
MOST_CUTS = 24
WELL_USED = 0.98
"""A draft that had to be cut to fit is good enough when it uses so much of the budget."""
SLACK = 0.002
"""A budget counts as used when no more than this of it is left."""
WORTH_ALL = 0.97
"""Zeros are kept only where that takes so much off the error."""
SURPRISE, CLOSE, FEW, MOST_PLANS = 0.95, 1.05, 1 << 18, 4
"""The next best plan is tried where it should lose less than this of what the best one so far turned out to lose: the
second number up to so many coordinates, which are quick to try, and whose segments make predictions uncertain."""
HEADS_BYTES = 5
"""What positions and cells take beside gaps and codes: kinds and counts."""
LEAST_PER_LEVEL = 4
"""Kept coordinates that pay for one level."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose: ``M22``'s fields."""

    magnitude: float
    levels_bits: int | None
    family: Family
    amplitude: Amplitude


@dataclass(frozen=True, slots=True)
class Candidates:
    """Coordinates that may be kept, of all vectors one after the other: ``values``, float32 as uint32 ``[n]``.

    Those of vector k begin at ``starts[k]``; ``positions`` int64 ``[n]`` count from its first. ``bins`` say how large
    each is, uint16 ``[n]``, and ``below`` how many are in lower bins than each, int64 ``[bins + 1]``.
    """

    values: Words
    positions: Ints
    starts: Ints
    bins: npt.NDArray[np.uint16]
    below: Ints

    @property
    def count(self) -> int:
        """How many there are."""
        return self.values.size

    def threshold(self, kept: int) -> int:
        """Return the bits of the least magnitude among the ``kept`` largest; of none, those above all."""
        if kept == 0:
            return int(MAGNITUDE_MASK)
        rank = self.count - kept  # from below
        bin_of_it = int(np.searchsorted(self.below, rank, "right")) - 1
        inside = np.sort(self.values[self.bins == np.uint16(bin_of_it)] & MAGNITUDE_MASK)
        return int(inside[rank - int(self.below[bin_of_it])])


def encode_together(parts: Sequence[Part], settings: Settings, most_bytes: int) -> list[bytes]:
    """Return the payloads of ``parts``, finite vectors of at least 32 coordinates: at most ``most_bytes`` in all."""
    vectors = [part.vector for part in parts]
    found = histogram(vectors)
    budget = 8.0 * most_bytes
    plans = _plans(found, budget, len(parts), settings.levels_bits)
    if found.counts.size == 0 and not any(x.any() for x in vectors):
        return [nothing(x.size, 0.0).to_bytes() for x in vectors]
    sums = [float(energies(x, np.array([x.size]))[0][0]) for x in vectors]
    found_laws = laws(vectors, settings.family)
    best: list[Kept] = []
    lost = np.inf
    for plan in plans[:MOST_PLANS]:
        if best and plan.error >= (CLOSE if found.size <= FEW else SURPRISE) * lost:
            break
        candidates = gather(vectors, found, plan.kept)
        draft = _Draft(vectors, sums, candidates, found_laws, settings, plan.levels_bits, parts[0].seed)
        most = int(min(plan.most, candidates.count))
        kept = draft.fit(min(max(round(plan.kept), 1), most), most, most_bytes)
        error = sum(one.error * energy for one, energy in zip(kept, sums, strict=True)) / (sum(sums) or 1.0)
        if error < lost:
            best, lost = kept, error
    return [kept.to_bytes() for kept in best]


def _plans(found: Histogram, budget: float, count: int, levels_bits: int | None) -> list[Prediction]:
    """Return how much each R that may be used would keep, the best first; one if R was asked for."""
    highest = min(MOST_LEVELS_BITS, int(budget / max(found.size, 1)) + 3) if levels_bits is None else levels_bits
    rates = range(1, highest + 1)
    budgets = {rate: budget - 8 * count * (payload.side_bytes(rate) + HEADS_BYTES) for rate in rates}
    some = [predict_one_level(found, budgets[1]), *(predict(found, budgets[rate], rate) for rate in rates[1:])]
    everything = [plan for rate in rates if (plan := predict_all(found, budgets[rate], rate))]
    if levels_bits is not None:
        affordable = next((plan for plan in reversed(some) if plan.kept >= 1), some[0])
        some, everything = [affordable], [plan for plan in everything if plan.levels_bits == affordable.levels_bits]
    ranked = sorted([*everything, *some], key=lambda plan: plan.error * (WORTH_ALL if plan in some else 1.0))
    return list({plan.levels_bits: plan for plan in reversed(ranked)}.values())[::-1]


def gather(vectors: Sequence[Vector], found: Histogram, kept: float) -> Candidates:
    """Return enough of the largest coordinates of ``vectors`` to keep about ``kept``; zeros only to keep all."""
    enough = int(np.searchsorted(found.from_above, 1.15 * kept + 64))
    threshold = found.floors[-1 - enough] if enough < found.floors.size else np.uint32(1)
    threshold = np.uint32(0) if kept > found.size - 1 else threshold
    found_in = [sparse.largest(x.view(np.uint32), int(threshold)) for x in vectors]
    starts = np.concatenate(([0], np.cumsum([places.size for places, _ in found_in])))
    positions, values = found_in[0] if len(found_in) == 1 else map(np.concatenate, zip(*found_in, strict=True))
    return _sorted_into_bins(values, positions, starts)


def _sorted_into_bins(values: Words, positions: Ints, starts: Ints) -> Candidates:
    bins, counts = sparse.bins_of(values, BIN_BITS)
    below = np.concatenate(([0], np.cumsum(counts)))
    return Candidates(values, positions, starts, bins, below)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One way to code an update: R, and what of it does not depend on how much is kept."""

    vectors: Sequence[Vector]
    energies: list[float]
    candidates: Candidates
    laws: list[Fit] | None
    settings: Settings
    levels_bits: int
    seed: int

    def fit(self, kept: int, most_kept: int, most_bytes: int) -> list[Kept]:
        """Return what is kept if as much is kept as fits into ``most_bytes``, beginning with ``kept`` coordinates.

        At most ``most_kept`` are.

        Each draft says how far K is off, by what a kept coordinate takes: first on average, then between the last two.
        Levels are those of the first draft, and cells are not found anew: a few coordinates more or less do not move
        levels, and are all of the lowest cell.
        """
        chosen = self.choose(kept)
        levels = self.codebooks(kept, chosen)
        found = self.quantized(chosen, levels)
        size = float(total_bytes(found))
        heads = sum(map(payload.side_bytes, (mine.size.bit_length() for mine in levels)))
        cells = [one.coded_cells for one in found]
        each = max(size - heads, 1.0) / kept
        least, most = 0, most_kept + 1
        for _ in range(ROUNDS):
            if size <= most_bytes:
                least = kept
                if most_bytes - size <= max(SLACK * most_bytes, 2 * each):
                    break
            else:
                most = kept
            if most - least <= 1:
                break
            before = kept, size
            # A little below what would use up all: a draft that is too long is of no use.
            kept = kept + int((most_bytes - SLACK / 4 * most_bytes - size) / each)
            kept = min(max(kept, least + 1), most - 1)
            chosen, found = self.choose(kept), []
            size = heads + self.places_bytes(chosen)
            size += sum(mine.size_at(places.size) for mine, (places, _) in zip(cells, chosen, strict=True))
            slope = (size - before[1]) / (kept - before[0]) if kept != before[0] else 0.0
            each = slope if slope > 0 else max(size - heads, 1.0) / kept
        found = found or self.quantized(chosen, levels)
        return self._cut_to_fit(kept, kept + 1, found, levels, each, most_bytes)

    def _cut_to_fit(
        self,
        kept: int,
        most_kept: int,
        found: list[Kept],
        levels: Sequence[payload.Levels],
        each: float,
        most_bytes: int,
    ) -> list[Kept]:
        """Return ``found``, of ``kept`` coordinates, or with as few less as make it fit."""
        size, least, best = total_bytes(found), 0, list[Kept]()
        for tried in range(MOST_CUTS):
            if size <= most_bytes:
                least, best = kept, found
                if size >= WELL_USED * most_bytes or most_kept - least <= 1:
                    return best
            else:
                most_kept = kept
            if best or tried >= MOST_CUTS // 2:
                kept_next = (least + most_kept) // 2
            else:  # a little more than is too much, since a draft that is too long is of no use
                kept_next = kept - math.ceil((size - (1.0 - SLACK / 4) * most_bytes) / each)
            before = kept, size
            kept = min(max(kept_next, least + 1), most_kept - 1)
            if kept in (least, before[0]):
                break
            found = self.quantized(self.choose(kept), levels)
            size = total_bytes(found)
            slope = (before[1] - size) / (before[0] - kept)
            each = slope if slope > 0 else each
        return best or self.quantized(self.choose(0), levels)

    def codebooks(self, kept: int, chosen: Sequence[tuple[Ints, Vector]]) -> list[payload.Levels]:
        """Return the levels of each vector if ``kept`` coordinates are kept in all: fewer where few are."""
        here = [np.abs(values) for _, values in chosen]
        least = float(np.uint32(self.candidates.threshold(kept)).view(np.float32))
        taus = [float(one.min()) if one.size else least for one in here]
        bits = [max(1, (one.size // LEAST_PER_LEVEL).bit_length()) for one in here]
        counts = [1 << (min(self.levels_bits, affordable) - 1) for affordable in bits]
        return codebooks(self.laws, here, taus, counts, self.settings.magnitude)

    def quantized(self, chosen: Sequence[tuple[Ints, Vector]], levels: Sequence[payload.Levels]) -> list[Kept]:
        """Return what is kept of each vector, by its levels."""
        each = zip(self.vectors, self.energies, levels, chosen, strict=True)
        return [quantize(x.size, *here, mine, energy, self.settings.amplitude) for x, energy, mine, here in each]

    def places_bytes(self, chosen: Sequence[tuple[Ints, Vector]]) -> int:
        """Return what positions and signs take."""
        both = zip(self.vectors, chosen, strict=True)
        return sum(choose(places, x.size).size_bytes + (places.size + 7) // 8 for x, (places, _) in both)

    def choose(self, kept: int) -> list[tuple[Ints, Vector]]:
        """Return positions, int64 ``[K]``, ascending, and values, float32, of what is kept of each vector."""
        candidates = self.candidates
        threshold, bounds = candidates.threshold(kept), pairwise(candidates.starts.tolist())
        found = [
            sparse.largest(candidates.values[start:stop], threshold, candidates.positions[start:stop])
            for start, stop in bounds
        ]
        too_many = sum(places.size for places, _ in found) - kept
        if too_many > 0:
            found = self._without_ties(found, np.uint32(threshold), too_many)
        return [(places, values.view(np.float32)) for places, values in found]

    def _without_ties(
        self, found: Sequence[tuple[Ints, Words]], threshold: np.uint32, too_many: int
    ) -> list[tuple[Ints, Words]]:
        """Return ``found`` without so many of those that are exactly at the threshold, drawn by the seed."""
        at_it = [(values & MAGNITUDE_MASK) == threshold for _, values in found]
        ties = np.flatnonzero(np.concatenate(at_it))
        keep = np.ones(sum(here.size for here in at_it), np.bool_)
        keep[ties[_scattered(seeds.derive(self.seed, "ties"), ties.size, too_many)]] = False
        kept = np.split(keep, np.cumsum([here.size for here in at_it])[:-1])
        return [(places[here], values[here]) for (places, values), here in zip(found, kept, strict=True)]


def _scattered(seed: int, size: int, count: int) -> Ints:
    """Return ``count`` of 0 .. ``size`` - 1, evenly scattered from a place that ``seed`` draws.

    Steps of about the golden section: to shuffle millions of ties would take longer than all else.
    """
    step = next(step for step in range(max(1, round(0.618 * size)), 0, -1) if math.gcd(step, size) == 1)
    first = int(seeds.words(seed, 1)[0] % np.uint64(size))
    scattered: Ints = (first + step * np.arange(count, dtype=np.int64)) % size
    return scattered


def quantize(
    size: int, positions: Ints, values: Vector, levels: payload.Levels, energy: float, amplitude: Amplitude
) -> Kept:
    """Return what is kept of a vector of Σx² = ``energy``: ``values`` at ``positions``, by ascending ``levels``."""
    if positions.size == 0 or energy == 0.0:
        return nothing(size, 1.0 if energy else 0.0)
    cells, counts, sums = sparse.cells_of(values, (levels[1:] + levels[:-1]) / 2)
    unit = float(levels[-1]) or 1.0
    product, square = float(sums @ levels / unit), float(counts @ (levels / unit) ** 2) * unit
    factor = 1.0
    if amplitude != "designed" and product > 0.0:
        factor = product / square if amplitude == "guarded" else energy / unit / product
    codes = payload.pack_levels(levels * factor)
    sent = payload.unpack_levels(codes)
    error = 1.0 - (2.0 * float(sums @ sent) - float(counts @ sent**2)) / energy
    return Kept(size, levels.size.bit_length(), codes, positions, values < 0, cells, max(error, 0.0))


def nothing(size: int, error: float) -> Kept:
    """Return a vector of which nothing is kept."""
    none = np.empty(0, np.int64)
    return Kept(size, 0, none.astype(np.uint16), none, none.astype(np.bool_), none.astype(np.uint8), error)


def total_bytes(found: Sequence[Kept]) -> int:
    """Return the length of all payloads."""
    return sum(one.size_bytes for one in found)
