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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedge import seeds
from fedge.codecs.base import Part, Vector
from fedge.codecs.block_codes import energies
from fedge.codecs.m22 import payload, sparse
from fedge.codecs.m22.codebook import Family, codebooks, laws
from fedge.codecs.m22.estimate import Fit
from fedge.codecs.m22.histogram import Histogram, Prediction, histogram, predict
from fedge.codecs.m22.payload import HEAD_BYTES, MOST_LEVELS_BITS, Kept
from fedge.codecs.m22.sparse import MAGNITUDE_MASK, Ints, Words
from fedge.codecs.m22.subset import choose

Amplitude = Literal["guarded", "projection", "designed"]

ROUNDS = 5
"""Corrections of K; each comes ten times nearer to the budget."""
BIN_BITS = 16
"""Candidates are counted in at most 2^16 bins of magnitude, so that no sorting is needed to keep another number."""
SLACK = 0.002
"""A budget counts as used when no more than this of it is left."""
SURPRISE = 0.95
"""The second best R is tried where it should lose less than this of what the best one turned out to lose."""
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
    each is, int64 ``[n]``, and ``at_least`` how many are in each bin or above, int64 ``[bins + 1]``.
    """

    values: Words
    positions: Ints
    starts: Ints
    bins: Ints
    at_least: Ints

    @property
    def count(self) -> int:
        """How many there are."""
        return self.values.size

    def threshold(self, kept: int) -> int:
        """Return the bits of the least magnitude among the ``kept`` largest; of none, those above all."""
        if kept == 0:
            return int(MAGNITUDE_MASK)
        bin_of_it = int(np.flatnonzero(self.at_least >= kept)[-1])
        inside = np.sort(self.values[self.bins == bin_of_it] & MAGNITUDE_MASK)
        return int(inside[int(self.at_least[bin_of_it]) - kept])


def encode_together(parts: Sequence[Part], settings: Settings, most_bytes: int) -> list[bytes]:
    """Return the payloads of ``parts``, finite vectors of at least 32 coordinates: at most ``most_bytes`` in all."""
    vectors = [part.vector for part in parts]
    found = histogram(vectors)
    budget = 8.0 * (most_bytes - HEAD_BYTES * len(parts))
    plans = _plans(found, budget, len(parts), settings.levels_bits)
    candidates = gather(vectors, found, 1.15 * max(plan.kept for plan in plans[:2]) + 64)
    if candidates.count == 0:
        return [nothing(x.size, 0.0).to_bytes() for x in vectors]
    sums = [float(energies(x, np.array([x.size]))[0][0]) for x in vectors]
    found_laws = laws(vectors, settings.family)
    best: list[Kept] = []
    lost = np.inf
    for plan in plans[:2]:
        if best and plan.error >= SURPRISE * lost:
            break
        draft = _Draft(vectors, sums, candidates, found_laws, settings, plan.levels_bits, parts[0].seed)
        kept = draft.fit(min(max(round(plan.kept), 1), candidates.count), most_bytes)
        error = sum(one.error * energy for one, energy in zip(kept, sums, strict=True)) / (sum(sums) or 1.0)
        if error < lost:
            best, lost = kept, error
    return [kept.to_bytes() for kept in best]


def _plans(found: Histogram, budget: float, count: int, levels_bits: int | None) -> list[Prediction]:
    """Return how much each R that may be used would keep, the best first; one if R was asked for."""
    highest = min(MOST_LEVELS_BITS, int(budget / max(found.size, 1)) + 3) if levels_bits is None else levels_bits
    rates = range(1, highest + 1)
    predictions = [predict(found, budget - 8 * count * side_bytes(rate), rate) for rate in rates]
    if levels_bits is not None:
        return [next((one for one in reversed(predictions) if one.kept >= 1), predictions[0])]
    return sorted(predictions, key=lambda prediction: prediction.error)


def side_bytes(levels_bits: int) -> int:
    """Return what a payload takes beside positions and values: levels, and the heads of what follows them."""
    return 2 * (1 << (levels_bits - 1)) + 5


def gather(vectors: Sequence[Vector], found: Histogram, wanted: float) -> Candidates:
    """Return at least ``wanted`` of the largest coordinates of ``vectors``; all but zeros if there are fewer."""
    from_above = np.cumsum(found.counts[::-1])
    enough = np.flatnonzero(from_above >= wanted)
    threshold = found.floors[-1 - int(enough[0])] if enough.size else np.uint32(1)
    found_in = [sparse.largest(x.view(np.uint32), int(threshold)) for x in vectors]
    starts = np.concatenate(([0], np.cumsum([places.size for places, _ in found_in])))
    values = np.concatenate([here for _, here in found_in])
    positions = np.concatenate([places for places, _ in found_in])
    return _sorted_into_bins(values, positions, starts)


def _sorted_into_bins(values: Words, positions: Ints, starts: Ints) -> Candidates:
    magnitudes = values & MAGNITUDE_MASK
    lowest = int(magnitudes.min()) if values.size else 0
    span = int(magnitudes.max()) - lowest if values.size else 0
    bins = ((magnitudes - np.uint32(lowest)) >> np.uint32(max(0, span.bit_length() - BIN_BITS))).astype(np.int64)
    counts = np.bincount(bins)
    at_least = np.concatenate((np.cumsum(counts[::-1])[::-1], [0]))
    return Candidates(values, positions, starts, bins, at_least)


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

    def fit(self, kept: int, most_bytes: int) -> list[Kept]:
        """Return what is kept if as much is kept as fits into ``most_bytes``, beginning with ``kept`` coordinates.

        Each draft says how far K is off, by what a kept coordinate takes: first on average, then between the last two.
        Levels are those of the first draft: a few coordinates more or less do not move them.
        """
        heads, levels = HEAD_BYTES * len(self.vectors), self.codebooks(kept)
        least, most, last = 0, self.candidates.count + 1, (0, heads)
        best, tried = self.keep(0, levels), 0
        while most - least > 1 and (tried < ROUNDS or least == 0):
            found, tried = self.keep(kept, levels), tried + 1
            size = total_bytes(found)
            each = (size - last[1]) / (kept - last[0])
            each = each if each > 0 else (size - heads) / kept
            if size <= most_bytes:
                least, best = kept, found
                if most_bytes - size <= max(SLACK * most_bytes, 2 * each):
                    break
            else:
                most = kept
            last = kept, size
            # A little below what would use up all: a draft that is too long is of no use.
            guess = kept + (most_bytes - SLACK / 4 * most_bytes - size) / each
            kept = min(max(int(guess), least + 1), most - 1)
        return best

    def codebooks(self, kept: int) -> list[payload.Levels]:
        """Return the levels of each vector if ``kept`` coordinates are kept in all: fewer where few are."""
        here = [np.abs(values).astype(np.float64) for _, values in self._chosen(kept)]
        least = float(np.uint32(self.candidates.threshold(kept)).view(np.float32))
        taus = [float(one.min()) if one.size else least for one in here]
        bits = [max(1, (one.size // LEAST_PER_LEVEL).bit_length()) for one in here]
        counts = [1 << (min(self.levels_bits, affordable) - 1) for affordable in bits]
        return codebooks(self.laws, here, taus, counts, self.settings.magnitude)

    def keep(self, kept: int, levels: Sequence[payload.Levels]) -> list[Kept]:
        """Return what is kept of each vector if ``kept`` coordinates are kept in all."""
        each = zip(self.vectors, self.energies, levels, self._chosen(kept), strict=True)
        return [quantize(x.size, *here, mine, energy, self.settings.amplitude) for x, energy, mine, here in each]

    def _chosen(self, kept: int) -> list[tuple[Ints, Vector]]:
        """Return positions, int64 ``[K]``, ascending, and values, float32, of what is kept of each vector."""
        candidates = self.candidates
        threshold = candidates.threshold(kept)
        places, values = sparse.largest(candidates.values, threshold)
        too_many = places.size - kept
        if too_many > 0:
            ties = np.flatnonzero((values & MAGNITUDE_MASK) == np.uint32(threshold))
            drawn = seeds.permutation(seeds.derive(self.seed, "ties"), ties.size)[:too_many]
            places, values = np.delete(places, ties[drawn]), np.delete(values, ties[drawn])
        ends = np.searchsorted(places, candidates.starts[1:-1])
        pieces = np.split(candidates.positions[places], ends), np.split(values.view(np.float32), ends)
        return list(zip(*pieces, strict=True))


def quantize(
    size: int, positions: Ints, values: Vector, levels: payload.Levels, energy: float, amplitude: Amplitude
) -> Kept:
    """Return what is kept of a vector of Σx² = ``energy``: ``values`` at ``positions``, by ascending ``levels``."""
    if positions.size == 0:
        return nothing(size, 1.0 if energy else 0.0)
    cells, counts, sums = sparse.cells_of(values, (levels[1:] + levels[:-1]) / 2)
    unit = float(levels[-1]) or 1.0
    product, square = float(sums @ levels / unit), float(counts @ (levels / unit) ** 2) * unit
    factor = {"designed": 1.0, "guarded": product / square, "projection": energy / unit / product}[amplitude]
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
    return sum(wire_bytes(one) for one in found)


def wire_bytes(kept: Kept) -> int:
    """Return the length of one payload, without making it: side, positions, signs and cells."""
    if kept.levels_bits == 0:
        return HEAD_BYTES
    positions = choose(kept.positions, kept.size).size_bytes
    signs = (kept.positions.size + 7) // 8
    return HEAD_BYTES + 2 * kept.levels.size + positions + signs + payload.cells_bytes(kept.cells, kept.levels_bits)
