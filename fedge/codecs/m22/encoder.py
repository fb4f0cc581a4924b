"""From the vectors of one update to what is kept of each: threshold, levels, cells, amplitude, budget to the byte.

    1. R, the bits of a level: as asked, or what the histogram of the whole update predicts to lose least
    2. top K over all vectors together, one threshold τ; which of those that are exactly τ is drawn by the seed
    3. each vector's levels: from its law above τ (``codebook.py``), in the order of its magnitudes
    4. cells by nearest level: |g|^M multiplies the cost of all candidates alike, so M never enters here
    5. amplitude: all levels of a vector times one factor

           designed     1, as the paper has it: M > 0 makes the estimate longer
           guarded      a* = <x, x̂>/‖x̂‖²: the nearest point to x on the ray of x̂, so ‖x̂ - x‖² = (1 - cos²)·‖x‖²
           lengthened   a*·c, c = 1 + λ·(1 - cos²), λ = 0.6: for error feedback, where the mean is too short by a*
                        ‖x̂ - x‖² = (1 - cos²)·(1 + λ²·cos²·(1 - cos²))·‖x‖²: at most 9 % more than guarded, and
                        at most (1 - (1 - λ²)·cos²)·‖x‖², so still a contraction
           projection   S = ‖x‖²/<x, x̂>: <x, x̂> = ‖x‖² as with EDEN, so that means of many devices are not too short

    6. K is corrected until the bytes fit: each draft says how far off the prices were (``prices.py``)

Positions, signs and cells are exact integers; the levels come from logarithms and gamma functions of the machine, so
two machines may choose levels that differ in the last bit. What a payload decodes to is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from fedge.codecs.base import Part, Vector, check_finite
from fedge.codecs.block_codes import energies
from fedge.codecs.m22 import payload, sparse
from fedge.codecs.m22.codebook import Family, codebooks, one_level
from fedge.codecs.m22.estimate import Fit, fit_histogram
from fedge.codecs.m22.histogram import (
    Doubles,
    Histogram,
    Prediction,
    histogram,
    predict,
    predict_all,
    predict_one_level,
    together,
)
from fedge.codecs.m22.payload import MOST_LEVELS_BITS, Coded, Nothing
from fedge.codecs.m22.prices import MOST_PEELED_BITS, Reach, kept_bits
from fedge.codecs.m22.ranking import Chosen, Ranking
from fedge.codecs.m22.subset import choose_from

Amplitude = Literal["guarded", "lengthened", "projection", "designed"]
Draft = list[Coded | Nothing]

LENGTHENED = 0.6
"""λ: docs/m22.md has what was measured with 0.6 and with 1, which leaves hardly a contraction at few bits."""
MOST_DRAFTS, PRICED_DRAFTS = 24, 6
"""Most end with the first or second; where sizes are not as prices say, later ones halve what is left."""
SLACK = 0.002
"""A budget counts as used when no more than this of it is left."""
WELL_USED = 0.98
"""The last priced draft is good enough when it uses so much of the budget."""
SURELY = 1.5
"""Standard errors of a size that the first draft stays below the budget: one that is too long is of no use."""
NEAR, MOST_POINTS, FEWEST_POINTS = (0.6, 1.6), 65, 9
"""Multiples of K between which it is priced, and at how many points."""
DESIGNED_FOR = 0.9
"""Levels that are peeled are designed for the largest of what is kept, so many of it: the lowest cell is then wider and
takes fewer bits, and what more is kept for these is worth more."""
WHOLE_FOR = (1.0, 0.95, 0.9, 0.8, 0.7)
"""The same where all is kept: the first of these that fits."""
MOVED, MOST_DESIGNS = 0.05, 3
"""Levels are designed again where K has moved so much, up to so many times for one draft."""
WORTH_ALL = 0.97
"""Zeros are kept only where that takes so much off the error."""
SURPRISES = {(False, False): 0.95, (False, True): 1.05, (True, False): 1.05, (True, True): 1.3}
"""The next best plan is tried where it should lose less than this of what the best one so far turned out to lose: more
of them up to ``FEW`` coordinates, which are quick to try, and where several vectors make predictions uncertain."""
FEW, MOST_PLANS = 1 << 18, 4
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


def encode_together(parts: Sequence[Part], settings: Settings, most_bytes: int) -> list[bytes]:
    """Return the payloads of ``parts``, vectors of at least 32 coordinates: at most ``most_bytes`` in all.

    Raises:
        CodecError: a coordinate is not finite.
    """
    vectors = [part.vector for part in parts]
    each = [_histogram(x) for x in vectors]
    found = together(each)
    if found.counts.size == 0:
        return [Nothing(0.0).to_bytes() for _ in vectors]
    plans = _plans(found.coarse, 8.0 * most_bytes, len(parts), settings.levels_bits)
    sums = [float(energies(x, np.array([x.size]))[0][0]) for x in vectors]
    law = cache(lambda row: fit_histogram(each[row].medium.magnitudes, each[row].medium.counts, settings.family))
    reach = Reach([one.bins for one in each], [one.counts for one in each])
    drafts = _Drafts(each, found, reach, Ranking(vectors, found, parts[0].seed), sums, law, settings)
    best: Draft = []
    lost = np.inf
    for tried, plan in enumerate(plans):
        surprise = SURPRISES[found.size <= FEW, len(parts) > 1]
        if best and (tried >= MOST_PLANS or plan.error >= surprise * lost):
            break
        draft = drafts.fit(plan, most_bytes)
        if draft and drafts.error(draft) < lost:
            best, lost = draft, drafts.error(draft)
    return [one.to_bytes() for one in best or [Nothing(1.0 if energy else 0.0) for energy in sums]]


def _histogram(x: Vector) -> Histogram:
    found = histogram(x)
    if found is None:
        check_finite(x)
    assert found is not None
    return found


def _plans(found: Histogram, budget: float, count: int, levels_bits: int | None) -> list[Prediction]:
    """Return what R that may be used would keep, the best first; one if R was asked for.

    R by R from about the best one, as long as more of it, or less, loses less.
    """
    each = budget / max(found.size, 1)
    highest = min(MOST_LEVELS_BITS, int(each) + 3) if levels_bits is None else levels_bits

    def left(rate: int) -> float:
        return budget - 8 * count * (payload.side_bytes(rate) + HEADS_BYTES)

    @cache
    def some(rate: int) -> Prediction:
        return predict_one_level(found, left(rate)) if rate == 1 else predict(found, left(rate), rate)

    if levels_bits is not None:
        rate = next((rate for rate in range(highest, 0, -1) if some(rate).kept >= 1), 1)
        plans, first, highest = [some(rate)], rate, rate
    else:
        start = min(max(int(each) + 1, 2), highest)
        plans = [some(rate) for rate in _downhill(lambda rate: some(rate).error, start, highest)]
        first = max(1, min(int(each), highest))
    for rate in range(first, highest + 1):
        whole = predict_all(found, left(rate), rate)
        if whole is None:
            break
        plans = [plan for plan in plans if plan.kept < whole.kept or plan.levels_bits != rate]
        plans.append(replace(whole, error=whole.error / WORTH_ALL))
    return sorted(plans, key=lambda plan: plan.error)


def _downhill(error: Callable[[int], float], first: int, highest: int) -> list[int]:
    """Return 1 to ``highest`` as far as they were tried from ``first`` on, the neighbours of the least error among
    them."""
    low = high = best = first
    while True:
        if best == low > 1:
            low -= 1
        elif best == high < highest:
            high += 1
        else:
            return list(range(low, high + 1))
        best = min(range(low, high + 1), key=error)


@dataclass(frozen=True, slots=True)
class _Drafts:
    """Ways to code an update, and what of them does not depend on R and K."""

    each: Sequence[Histogram]
    found: Histogram
    reach: Reach
    ranking: Ranking
    energies: list[float]
    law: Callable[[int], Fit]
    settings: Settings

    def fit(self, plan: Prediction, most_bytes: int) -> Draft:
        """Return what is kept if as much is kept as fits into ``most_bytes``, beginning with what is planned.

        Each draft says by what factor the prices are off, and the next one keeps what these prices allow. Empty where
        nothing fits, or not all where all was planned.
        """
        if plan.kept >= self.found.size:
            return self.whole(self.found.size, plan.levels_bits, most_bytes)
        most_kept = max(1, int(min(plan.most, float(self.found.from_above[-1]))))
        if round(plan.kept) >= most_kept and (found := self.whole(most_kept, plan.levels_bits, most_bytes)):
            return found
        kept = min(max(round(plan.kept), 1), most_kept)
        levels = self.codebooks(self.aim(kept, plan.levels_bits), plan.levels_bits)
        if self.settings.magnitude == 0.0:
            kept, levels = self.priced(kept, levels, plan.levels_bits, most_kept, most_bytes)
        side, sure = _side(levels), _uncertain(kept, self.found.size)
        least, most, best, lost = 0, most_kept + 1, Draft(), np.inf
        for tried in range(MOST_DRAFTS):
            chosen, kept = self.ranking.choose(kept)
            draft = self.quantized(chosen, levels)
            size, error = _size(draft), self.error(draft)
            if size > most_bytes:
                most = kept
            elif kept <= least or error >= lost:
                break  # what more of them would lose is no less
            else:
                least, best, lost = kept, draft, error
                if most_bytes - size <= max(SLACK * most_bytes, 2.0 * size / kept, sure / 2):
                    break
                if tried + 1 >= PRICED_DRAFTS and size >= WELL_USED * most_bytes:
                    break
            if most - least <= 1:
                break
            if tried + 1 < PRICED_DRAFTS:
                grid, prices = self.prices(kept, most_kept, levels)
                off = max(size - side, 1.0) / max(float(np.interp(kept, grid, prices)), 1.0)
                kept = _affordable((most_bytes - sure / 4 - side) / off, kept, grid, prices)
            else:
                kept = (least + most) // 2
            kept = min(max(kept, least + 1), most - 1)
        return best

    def aim(self, kept: int, levels_bits: int) -> int:
        """Return for how many of what is kept its levels are designed."""
        peeled = 1 < levels_bits <= MOST_PEELED_BITS and self.settings.magnitude == 0.0
        return max(1, round(DESIGNED_FOR * kept)) if peeled else kept

    def whole(self, kept: int, levels_bits: int, most_bytes: int) -> Draft:
        """Return ``kept`` coordinates, by levels that are designed for so many of them that this fits; or nothing."""
        for share in WHOLE_FOR:
            levels = self.codebooks(round(share * kept), levels_bits)
            _, prices = self.prices(kept, kept, levels)
            if prices[-1] + _side(levels) <= most_bytes:
                draft = self.quantized(self.ranking.choose(kept)[0], levels)
                return draft if _size(draft) <= most_bytes else []
        return []

    def error(self, draft: Draft) -> float:
        """Return the squared error of a draft over the energy of the update."""
        lost = sum(one.error * energy for one, energy in zip(draft, self.energies, strict=True))
        return lost / (sum(self.energies) or 1.0)

    def priced(
        self, kept: int, levels: list[Doubles], levels_bits: int, most_kept: int, most_bytes: int
    ) -> tuple[int, list[Doubles]]:
        """Return how many coordinates should fit into ``most_bytes``, and levels for about so many.

        Where more of them need levels with which fewer fit, the levels with which most fit.
        """
        designed, most = kept, (0, levels)
        for _ in range(MOST_DESIGNS):
            asked = most_bytes - _uncertain(kept, self.found.size) - _side(levels)
            kept = min(max(_affordable(asked, kept, *self.prices(kept, most_kept, levels)), 1), most_kept)
            if abs(kept - designed) <= MOVED * designed:
                return kept, levels
            most = max(most, (kept, levels), key=lambda pair: pair[0])
            designed, levels = kept, self.codebooks(self.aim(kept, levels_bits), levels_bits)
        return most

    def prices(self, kept: int, most_kept: int, levels: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
        """Return numbers of coordinates about ``kept``, and the bytes of their positions, signs and cells."""
        points = min(max(MOST_POINTS // len(self.each), FEWEST_POINTS), MOST_POINTS)
        grid = np.unique(np.clip(kept * np.geomspace(*NEAR, points), 1.0, most_kept))
        sizes = np.array([[float(one.size)] for one in self.each])
        here = np.where(grid > self.found.from_above[-1], sizes, self.reach.of_all(self.found.bits_at(grid)))
        bits = np.zeros(grid.size)
        counts = np.array([mine.size for mine in levels])
        for count in np.unique(counts):
            rows = np.flatnonzero(counts == count)
            mine = np.stack([levels[row] for row in rows.tolist()])
            edges = ((mine[:, 1:] + mine[:, :-1]) / 2).astype(np.float32).view(np.uint32).astype(np.float64)
            bits += kept_bits(sizes[rows], here[rows], self.reach.of_each(rows, edges)).sum(axis=0)
        return grid, bits / 8

    def codebooks(self, kept: int, levels_bits: int) -> list[Doubles]:
        """Return the levels of each vector for the ``kept`` largest coordinates of all: fewer where few are."""
        bits = self.found.bits_at(np.array([float(kept)]))
        if kept > self.found.from_above[-1]:
            here = [float(one.size) for one in self.each]
        elif len(self.each) == 1:
            here = [float(kept)]
        else:
            here = self.reach.of_all(bits)[:, 0].tolist()
        affordable = [max(1, (int(some) // LEAST_PER_LEVEL).bit_length()) for some in here]
        counts = [1 << (min(levels_bits, most) - 1) for most in affordable]
        tails = [one.medium.tail(some) for one, some in zip(self.each, here, strict=True)]
        tau = float(bits.astype(np.uint32).view(np.float32)[0])
        levels = [one_level(tail, tau) for tail in tails]
        rows = [row for row, count in enumerate(counts) if count > 1 or self.settings.amplitude == "designed"]
        if rows:
            laws = [self.law(row) for row in rows] if self.settings.family != "empirical" else None
            some, many = [tails[row] for row in rows], [counts[row] for row in rows]
            for row, mine in zip(rows, codebooks(laws, some, tau, many, self.settings.magnitude), strict=True):
                levels[row] = mine
        return levels

    def quantized(self, chosen: Sequence[Chosen], levels: Sequence[Doubles]) -> Draft:
        """Return what is kept of each vector, by its levels."""
        each = zip(self.each, chosen, levels, self.energies, strict=True)
        return [quantize(one.size, here, mine, energy, self.settings.amplitude) for one, here, mine, energy in each]


def _affordable(asked: float, near: int, grid: Doubles, prices: Doubles) -> int:
    """Return how many coordinates, ``near`` some number, cost what is asked: to list nearly all costs little again."""
    dear, at = prices > asked, min(int(np.searchsorted(grid, near)), grid.size - 1)
    if dear[at]:
        cheap = np.flatnonzero(~dear[:at])
        if cheap.size == 0:
            return int(grid[0] * max(asked, 0.0) / prices[0])
        last = int(cheap[-1])
    elif dear[at:].any():
        last = at + int(np.argmax(dear[at:])) - 1
    else:
        return int(grid[-1])
    share = (asked - prices[last]) / (prices[last + 1] - prices[last])
    return int(grid[last] + share * (grid[last + 1] - grid[last]))


def _size(draft: Draft) -> int:
    return sum(one.size_bytes for one in draft)


def _side(levels: Sequence[Doubles]) -> int:
    return sum(payload.side_bytes(mine.size.bit_length()) for mine in levels)


def _uncertain(kept: int, size: int) -> float:
    """Return the bytes by which a draft may be longer than what was expected of ``kept`` random positions."""
    return SURELY * math.sqrt(max(min(kept, size - kept), 1)) / 8


def quantize(size: int, chosen: Chosen, levels: Doubles, energy: float, amplitude: Amplitude) -> Coded | Nothing:
    """Return what is kept of a vector of Σx² = ``energy``: what was ``chosen``, by ascending ``levels``."""
    bitmap, values = chosen
    if values.size == 0 or energy == 0.0:
        return Nothing(1.0 if energy else 0.0)
    cells, counts, sums = sparse.cells_of(values, (levels[1:] + levels[:-1]) / 2)
    unit = float(levels[-1]) or 1.0
    product, square = float(sums @ levels / unit), float(counts @ (levels / unit) ** 2) * unit
    factor = 1.0
    if amplitude == "projection" and product > 0.0:
        factor = energy / unit / product
    elif amplitude != "designed" and product > 0.0:
        factor = product / square
        if amplitude == "lengthened":
            factor *= 1.0 + LENGTHENED * max(1.0 - factor * product / energy * unit, 0.0)
    codes = payload.pack_levels(levels * factor)
    sent = payload.unpack_levels(codes)
    error = max(1.0 - (2.0 * float(sums @ sent) - float(counts @ sent**2)) / energy, 0.0)
    levels_bits = levels.size.bit_length()
    positions = choose_from(bitmap, values.size, size)
    return Coded(levels_bits, codes, positions, values < 0, payload.code_cells(cells, levels_bits), error)
