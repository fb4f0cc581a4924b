"""What M22 is compared with at equal bytes: compressors of the literature, every bit of theirs counted.

Each takes a vector, a budget and a seed, and gives what the receiver has and the bytes that it took:

    >>> x_hat, size_bytes = BASELINES["stc"](x, budget_bytes=600, seed=1)

The sparse ones keep the K coordinates of largest magnitude, K as large as the budget allows and is of use:

    payload = positions (``fedge.codecs.m22.subset``, as M22's) | R · K bits of values | side information

    stc            R = 1   sign · mean magnitude of what is kept        F. Sattler et al., https://arxiv.org/abs/1903.02891
    topk-fp8       R = 8   floats 1-5-2, ±(1 + f/4)·2^(e - 15), nearest; the largest is scaled to the largest float
    topk-fp4       R = 4   floats 1-2-1, {0, .5, 1, 1.5, 2, 3}, scaled for least squared error
    topk-uniform   R free  2^R levels evenly from the least to the largest value
    tinyscript     R free  2^R levels of a double Weibull law fitted to what is kept, M = 0, nearest level: as the
                           authors of M22 run it (F. Fu et al., Don't Waste Your Bits!, ICML 2020, rounds at random)

R, where it is free, is the one of 1 to 6 that loses least. STC keeps fewer than fit where that loses less: one level
for all coordinates is a poor one. ``cuts`` are where the tensors of x begin: what is fitted is fitted tensor by tensor
and paid for tensor by tensor. The others:

    qsgd           ‖x‖·sign·ξ/s, ξ = s|x|/‖x‖ rounded at random without bias, s as large as fits. Elias' ω code of gaps
                   and levels, or all d codes of 2s + 1 values, whichever allows the larger s.
                   D. Alistarh et al., https://arxiv.org/abs/1610.02132
    sketch         5 rows of float32 counters, median, the K largest. It is linear: the mean of the sketches of many
                   devices, drawn from the same seed, is the sketch of their mean. https://arxiv.org/abs/2007.07682
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import Vector
from fedge.codecs.m22 import subset
from fedge.codecs.m22.design import design

Values = npt.NDArray[np.float64]
Coder = Callable[[Values], Values]
"""What the receiver has of the kept values of one tensor."""

MOST_BITS, ROWS, KEPT_PER_COLUMN = 6, 5, 0.02
_SHAPE_STEP = 0.02
SHARES = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25)
HEAD_BYTES = 1
"""R, or which of two codes it is."""


class Baseline(Protocol):
    """A compressor."""

    def __call__(self, x: Vector, budget_bytes: int, seed: int) -> tuple[Vector, int]: ...


class Ranked:
    """The coordinates of a vector by magnitude, and what it costs to name the largest."""

    def __init__(self, x: Vector) -> None:
        self.x, self.order = x.astype(np.float64), np.argsort(-np.abs(x), kind="stable")
        self._grid = np.unique(np.geomspace(1, x.size, 512).astype(np.int64))
        self._bits = x.size * subset.expected_bits(self._grid / x.size)

    def positions(self, kept: int) -> npt.NDArray[np.int64]:
        """Return the positions of the ``kept`` largest, ascending."""
        return np.sort(self.order[:kept])

    def size_bytes(self, kept: int, levels_bits: int) -> int:
        """Return what positions and values take."""
        return subset.choose(self.positions(kept), self.x.size).size_bytes + (kept * levels_bits + 7) // 8

    def expected_kept(self, budget_bytes: int, levels_bits: int) -> list[int]:
        """Return about how many can be kept, positions named; and all of them, if they fit without."""
        too_many = np.flatnonzero(self._bits + levels_bits * self._grid > 8 * budget_bytes)
        fits = int(self._grid[max(int(too_many[0]) - 1, 0)]) if too_many.size else self.x.size
        every = [self.x.size] if self.x.size * levels_bits <= 8 * (budget_bytes - 1) else []
        return [fits, *every] if fits < self.x.size else every

    def kept(self, budget_bytes: int, levels_bits: int, guess: int) -> int:
        """Return the most that can be kept near ``guess``, or up to a part in a thousand fewer."""
        if guess == self.x.size:
            return guess
        least, most = 0, self.x.size
        while most - least > max(1, guess // 1000):
            size = self.size_bytes(guess, levels_bits)
            least, most = (guess, most) if size <= budget_bytes else (least, guess)
            guess = round(guess * budget_bytes / size)
            guess = guess if least < guess < most else (least + most) // 2
        return least


def sparse(
    coders: Mapping[int, Coder], side_bytes: int, x: Vector, budget_bytes: int, seed: int, cuts: Sequence[int] = ()
) -> tuple[Vector, int]:
    """Keep the largest coordinates of ``x`` and code each tensor's by the best of ``coders``, R to coder."""
    ranked, parts = Ranked(x), len(cuts) + 1
    budget = budget_bytes - HEAD_BYTES - side_bytes * parts

    def decoded(kept: int, levels_bits: int) -> Vector:
        positions = ranked.positions(kept)
        pieces = np.split(ranked.x[positions], np.searchsorted(positions, cuts))
        x_hat = np.zeros(x.size, np.float32)
        x_hat[positions] = np.concatenate([coders[levels_bits](piece) if piece.size else piece for piece in pieces])
        return x_hat

    def error(kept: int, levels_bits: int) -> float:
        return float(((decoded(kept, levels_bits) - ranked.x) ** 2).sum())

    levels_bits, kept, least = 0, 0, math.inf
    for bits in coders:  # the error falls with R and rises again
        counts = [round(share * ranked.expected_kept(budget, bits)[0]) for share in (SHARES if bits == 1 else (1,))]
        found = [(error(count, bits), count) for count in {*counts, *ranked.expected_kept(budget, bits)}]
        if min(found)[0] >= least:
            break
        (least, kept), levels_bits = min(found), bits
    kept = ranked.kept(budget, levels_bits, max(kept, 1)) if kept in ranked.expected_kept(budget, levels_bits) else kept
    used = HEAD_BYTES + (side_bytes * parts + ranked.size_bytes(kept, levels_bits) if kept else 0)
    return decoded(kept, levels_bits), used


def mean_magnitude(values: Values) -> Values:
    """Return the signs of ``values`` times their mean magnitude, a float32."""
    return np.where(values < 0, -1.0, 1.0) * float(np.float32(np.abs(values).mean()))


def nearest(values: Values, levels: Values) -> Values:
    """Return the nearest of ascending ``levels`` to each value."""
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]


def _signed(positive: Values) -> Values:
    return np.concatenate((-positive[::-1], [0.0], positive))


_exponents = np.arange(1, 31)[:, None] - 15.0
FP8 = _signed(np.concatenate((np.arange(1, 4) / 4 * 2.0**-14, ((1 + np.arange(4) / 4) * 2.0**_exponents).ravel())))
FP4 = _signed(np.array([0.5, 1, 1.5, 2, 3]))


def as_fp8(values: Values) -> Values:
    """Return ``values`` as floats 1-5-2, scaled so that the largest is the largest of them."""
    scale = float(np.float32(np.abs(values).max() / FP8[-1])) or 1.0
    return nearest(values / scale, FP8) * scale


def as_fp4(values: Values) -> Values:
    """Return ``values`` as floats 1-2-1 at the best of 40 scales, tried on 1,000 of them."""
    sample = values[:: max(1, values.size // 1000)]
    scales = np.abs(values).max() / np.geomspace(0.5, 24, 40)
    errors = [float(((nearest(sample / scale, FP4) * scale - sample) ** 2).sum()) for scale in scales if scale > 0]
    scale = float(np.float32(scales[int(np.argmin(errors))])) if errors else 1.0
    return nearest(values / scale, FP4) * scale


def uniform(levels_bits: int, values: Values) -> Values:
    """Return the nearest of 2^R levels from the least value to the largest, both float32."""
    low, high = float(np.float32(values.min())), float(np.float32(values.max()))
    step = (high - low) / (2**levels_bits - 1) or 1.0
    return low + step * np.clip(np.rint((values - low) / step), 0, 2**levels_bits - 1)


def weibull_levels(levels_bits: int, values: Values) -> Values:
    """Return the nearest of the 2^R levels of least squared error of a double Weibull law fitted to ``values``."""
    magnitudes = np.abs(values)
    shape, scale = fit_weibull(magnitudes[:: max(1, values.size // 4096)])
    levels = scale * _unit_levels(levels_bits, round(math.log(shape) / _SHAPE_STEP))
    return np.where(values < 0, -1.0, 1.0) * nearest(magnitudes, levels)


@cache
def _unit_levels(levels_bits: int, step: int) -> Values:
    """Return the positive levels of a law of unit scale; shapes in steps of 2 %, which costs 0.1 % of the error."""
    centroids, _ = design("weibull", math.exp(step * _SHAPE_STEP), 0.0, levels_bits)
    return centroids[centroids.size // 2 :]


def fit_weibull(magnitudes: Values) -> tuple[float, float]:
    """Return shape, 0.2 to 19, and scale of most likelihood of ``magnitudes`` above 0: Newton from log-moments."""
    positive = magnitudes[magnitudes > 0]
    if positive.size == 0:
        return 1.0, 0.0
    unit = float(positive.max())
    logs = np.log(positive / unit)
    shape = min(max(math.pi / math.sqrt(6.0 * float(logs.var()) + 1e-12), 0.2), 19.0)
    for _ in range(20):
        powers = np.exp(shape * logs)
        first, second = float((powers * logs).sum() / powers.sum()), float((powers * logs**2).sum() / powers.sum())
        step = (first - 1 / shape - float(logs.mean())) / (second - first**2 + 1 / shape**2)
        shape = min(max(shape - min(max(step, -0.4 * shape), 0.4 * shape), 0.2), 19.0)
        if abs(step) < 1e-6 * shape:
            break
    return float(np.float32(shape)), float(np.float32(unit * float(np.exp(shape * logs).mean()) ** (1 / shape)))


def qsgd(x: Vector, budget_bytes: int, seed: int) -> tuple[Vector, int]:
    """QSGD; nothing is sent where not even s = 1 fits."""
    norm = float(np.float32(np.linalg.norm(x.astype(np.float64))))
    head, draws = HEAD_BYTES + 4 + 4, np.random.default_rng(seed).random(x.size)
    if norm == 0.0:
        return np.zeros_like(x), head
    ratio = np.abs(x.astype(np.float64)) / norm

    def codes(s: int) -> npt.NDArray[np.int64]:
        return np.floor(s * ratio + draws).astype(np.int64)

    def elias_bytes(s: int) -> int:
        found = codes(s)
        positions = np.flatnonzero(found)
        bits = omega_bits(np.diff(positions, prepend=-1)).sum() + omega_bits(found[positions]).sum() + positions.size
        return head + (int(bits) + 7) // 8

    steps = np.unique(np.geomspace(1, 1 << 16, 200).astype(np.int64))
    low, high = -1, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if elias_bytes(int(steps[middle])) <= budget_bytes else (low, middle)
    sparse_s = int(steps[low]) if low >= 0 else 0
    dense_s = min(int((2.0 ** (8 * max(budget_bytes - head, 0) / x.size) - 1) / 2), 1 << 16)
    s = max(sparse_s, dense_s)
    if s == 0:
        return np.zeros_like(x), HEAD_BYTES
    used = head + math.ceil(x.size * math.log2(2 * s + 1) / 8) if dense_s > sparse_s else elias_bytes(s)
    return (np.sign(x) * norm * codes(s) / s).astype(np.float32), used


def omega_bits(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the lengths of Elias' ω codes of ``numbers`` >= 1."""
    left, bits = numbers.astype(np.int64), np.ones(numbers.shape, np.int64)
    while (left > 1).any():
        length = np.frexp(np.maximum(left, 1).astype(np.float64))[1].astype(np.int64)
        bits += np.where(left > 1, length, 0)
        left = np.where(left > 1, length - 1, left)
    return bits


def sketch(x: Vector, budget_bytes: int, seed: int) -> tuple[Vector, int]:
    """Count sketch of ``x``, which may be a mean of vectors: the sketch of each takes the bytes that are returned."""
    columns = budget_bytes // (4 * ROWS)
    rng = np.random.default_rng(seed)
    where = rng.integers(0, columns, (ROWS, x.size))
    signs = 2.0 * rng.integers(0, 2, (ROWS, x.size)) - 1.0
    rows = zip(signs, where, strict=True)
    table = [np.bincount(at, sign * x, columns).astype(np.float32) for sign, at in rows]
    guesses = np.median([sign * row[at] for sign, at, row in zip(signs, where, table, strict=True)], axis=0)
    kept = np.argsort(-np.abs(guesses), kind="stable")[: max(1, int(KEPT_PER_COLUMN * columns))]
    x_hat = np.zeros_like(x)
    x_hat[kept] = guesses[kept]
    return x_hat, 4 * ROWS * columns


def baselines(cuts: Sequence[int] = ()) -> Mapping[str, Baseline]:
    """Return the baselines by name, for vectors whose tensors after the first begin at ``cuts``."""
    free = range(1, MOST_BITS + 1)
    table: Mapping[str, tuple[Mapping[int, Coder], int]] = {
        "stc": ({1: mean_magnitude}, 4),
        "topk-fp8": ({8: as_fp8}, 4),
        "topk-fp4": ({4: as_fp4}, 4),
        "topk-uniform": ({bits: partial(uniform, bits) for bits in free}, 8),
        "tinyscript": ({bits: partial(weibull_levels, bits) for bits in free}, 8),
    }
    kept = {name: partial(sparse, coders, side, cuts=cuts) for name, (coders, side) in table.items()}
    return {**kept, "qsgd": qsgd, "sketch": sketch}


BASELINES = baselines()
