"""What of a matrix a few products of a column and a row say, sent before the rest.

Gradients of a layer are sums of products δ h', and so an update's matrix X, m rows of L coordinates, is often nearly of
low rank (Vogels et al., PowerSGD, NeurIPS 2019, https://arxiv.org/abs/1905.13727, builds on it). m + L numbers then
carry what m·L coordinates would:

    X = P + rest,    P = Σ_k a_k u_k',  |u_k| = 1,    X_hat = P_hat + EDEN(X - P_hat)

P_hat is what both ends decode, so the rest is known exactly where it is encoded, and X_hat is as unbiased as EDEN of
the rest is, whatever P_hat: it need be good, not exact.

u_k is the leading direction of X'X that is left, a_k = X u_k, s_k = |a_k|. What is coded are blocks, rotated, quantized
and range coded as every block is (``block_codes.py``): the a of all k for a *run* of rows of like class
(``grouping.py``), row by row, and s_k u_k for every k. An error in either is as large in P, and costs w times that in
the end, w the relative error of the rest. So all want the absolute step of the rest over √w (``slope.py``), and

    rank u8 | slope i16 | top f32 | c u8 per block        σ = top · 2^(-c/32),  step T(slope - log2(σ/top))

is what travels beside the codes. Decoded a are shrunk by 1/(1 + v), and so is what the direction of u loses: P is to be
near, and not unbiased. As many components are taken as make cost, error and bits at the price of error, least.

Products are formed from multiples of one unit that float64 adds exactly, in whatever order a BLAS does.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from fedge.codecs import quantizers, slope
from fedge.codecs.base import LARGEST, Vector
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks, energies
from fedge.codecs.gaussian import UNITS, Doubles, Ints
from fedge.codecs.grouping import TAIL_SETS, Chunks
from fedge.codecs.plan import SMALLEST_ROTATED
from fedge.codecs.rotation import BLOCK
from fedge.codecs.slope import Levels
from fedge.errors import CodecError

HIGHEST_RANK = 32
NARROWEST, WIDEST = 32, 256  # matrices that are looked at: columns
FEWEST_ROWS, MOST_ROWS = 16, 4096
SHORTEST_RUN = 16  # rows
SMALLEST_RUN = 64  # coordinates
STEPS = 32  # of c an octave
_HEAD = struct.Struct("<Bhf")
_ROUNDS = 6  # of the power iteration
_AHEAD = 4  # components more than pay are looked at
_RUNS = 5  # about
_SAMPLE = 512  # rows that directions are found from
_FINE = 2.0**20
_FRACTIONS = np.array([math.sqrt(math.sqrt(math.sqrt(math.sqrt(math.sqrt(2.0**-k))))) for k in range(STEPS)])


@dataclass(frozen=True, slots=True)
class Shape:
    """The matrix in a vector: ``rows`` whole chunks of ``columns`` coordinates, the first of them at ``start``."""

    rows: int
    columns: int
    start: int

    @property
    def where(self) -> slice:
        """Where in the vector it lies."""
        return slice(self.start, self.start + self.rows * self.columns)

    @property
    def lines(self) -> slice:
        """Which of the vector's chunks are its rows."""
        first = int(self.start > 0)
        return slice(first, first + self.rows)


def shape_of(chunks: Chunks, size: int) -> Shape | None:
    """Return the matrix in a vector of ``size`` coordinates; None if it is not one that factors are sent of."""
    shape = Shape(max(size - chunks.phase, 0) // chunks.length, chunks.length, chunks.phase)
    fits = NARROWEST <= shape.columns <= WIDEST and FEWEST_ROWS <= shape.rows <= MOST_ROWS
    return shape if fits else None


@dataclass(frozen=True, slots=True)
class Form:
    """How the numbers of ``rank`` components are cut into blocks: ``order`` is that of rows, int64 ``[rows]``, ``runs``
    how many of them are together."""

    shape: Shape
    rank: int
    order: Ints
    runs: tuple[int, ...]

    @classmethod
    def of(cls, shape: Shape, rank: int, classes: Ints) -> Form:
        """Return the form for chunks of ``classes``, int64 ``[chunks]``."""
        inside = classes[shape.lines]
        least = max(SHORTEST_RUN, -(-SMALLEST_RUN // rank))
        runs, waiting = list[int](), 0
        for count in np.bincount(inside).tolist():
            waiting += count
            if waiting >= least:
                runs, waiting = [*runs, waiting], 0
        if waiting or not runs:
            runs = [*runs[:-1], sum(runs[-1:]) + waiting]
        most = (BLOCK - 1) // rank
        parts = ((run, -(-run // most)) for run in runs)
        even = tuple(run // n + (k < run % n) for run, n in parts for k in range(n))
        return cls(shape, rank, np.argsort(inside, kind="stable"), even)

    @property
    def sizes(self) -> Ints:
        """How many coordinates each block has."""
        return np.array([*(self.rank * run for run in self.runs), *[self.shape.columns] * self.rank], np.int64)

    @property
    def size(self) -> int:
        """How many coordinates there are in all."""
        return self.rank * (self.shape.rows + self.shape.columns)

    def join(self, a: Doubles, b: Doubles) -> Vector:
        """Return ``a`` ``[rank, rows]`` and ``b`` ``[rank, columns]`` in sending order, float32."""
        with np.errstate(over="ignore"):  # such factors are refused by their scale
            return np.concatenate([a.T[self.order].ravel(), b.ravel()]).astype(np.float32)

    def part(self, joined: Vector) -> tuple[Vector, Vector]:
        """Return a and b again."""
        a = np.empty((self.shape.rows, self.rank), np.float32)
        a[self.order] = joined[: self.rank * self.shape.rows].reshape(a.shape)
        return a.T, joined[self.rank * self.shape.rows :].reshape(self.rank, self.shape.columns)


@dataclass(frozen=True, slots=True)
class Factors:
    """What travels of P beside its codes: ``top`` and ``c``, int64 ``[blocks]``, of the scales, ``relative`` the slope
    against the largest, ``directions`` whether blocks may travel as such."""

    form: Form
    relative: int
    top: float
    c: Ints
    directions: bool

    @property
    def blocks(self) -> Blocks:
        """How the components are coded; the same integers and floats at both ends."""
        whole, part = np.divmod(self.c, STEPS)
        sigma = self.top * np.ldexp(_FRACTIONS[part], -whole)
        places = np.arange(self.c.size)
        jumps = slope.jumps_of(places, slope.EARLY) if self.directions else None
        steps = slope.steps_of(self.relative, -self.c * (UNITS // STEPS), jumps)
        return Blocks.of(self.form.sizes, TAIL_SETS * places, sigma, steps)

    @property
    def numbers(self) -> int:
        """How many block numbers the components take."""
        return TAIL_SETS * self.c.size

    @property
    def multiplier(self) -> Vector:
        """What decoded multiples are worth, float32 ``[blocks]``."""
        blocks = self.blocks
        gain = quantizers.gain_of(blocks.steps, blocks.sizes) * (1 + quantizers.error_of(blocks.steps, blocks.sizes))
        worth: Vector = np.minimum(blocks.sigma * quantizers.step_size(blocks.steps) / gain, LARGEST).astype(np.float32)
        return worth

    @property
    def energy(self) -> float:
        """||P_hat||² to expect."""
        blocks, of_a = self.blocks, slice(len(self.form.runs))
        captured = blocks.sizes * blocks.sigma**2 / (1 + quantizers.error_of(blocks.steps, blocks.sizes))
        return math.fsum(captured[of_a])

    @property
    def code_bits(self) -> float:
        """How many bits the codes of the components are expected to take."""
        blocks = self.blocks
        return float(quantizers.bits_of(blocks.steps, blocks.sizes).sum())

    def pack(self) -> bytes:
        """Return what travels beside the codes."""
        return _HEAD.pack(self.form.rank, self.relative, self.top) + self.c.astype(np.uint8).tobytes()

    def product(self, decoded: Vector) -> Vector:
        """Return P_hat, float32 ``[rows · columns]`` and finite, from the ``decoded`` components."""
        a, b = self.form.part(decoded)
        down, exponent = _whole(a)
        right, _ = _whole(b)
        square = (right * right).sum(axis=1)  # exact
        blocks, of_u = self.blocks, slice(len(self.form.runs), None)
        v = quantizers.error_of(blocks.steps[of_u], blocks.sizes[of_u])
        scale = _FINE / np.sqrt(np.maximum(square, 1) * (1 + v))
        product = down.T @ np.rint(right * scale[:, None])
        p_hat: Vector = np.clip(np.ldexp(product.ravel() / _FINE, -exponent), -LARGEST, LARGEST).astype(np.float32)
        return p_hat


def _whole(x: Vector) -> tuple[Doubles, int]:
    """Return ``x`` in multiples of 2^-e, at most 2^20 of them, and e."""
    exponent = 20 - math.frexp(float(np.abs(x).max(initial=0.0)))[1]
    return np.rint(np.ldexp(x.astype(np.float64), exponent)), exponent


def read_factors(data: bytes, start: int, shape: Shape | None, classes: Ints, directions: bool) -> tuple[Factors, int]:
    """Return the factors that begin at ``start``, and where they end. ``classes``: of the chunks.

    Raises:
        CodecError: ``data`` ends before, or no encoder makes such factors.
    """
    if shape is None:
        raise CodecError("expected no factors of a matrix of this shape, got some")
    if len(data) < start + _HEAD.size:
        raise CodecError(f"expected factors, got a payload of {len(data)} bytes")
    rank, relative, top = _HEAD.unpack_from(data, start)
    if not (1 <= rank <= HIGHEST_RANK and rank * shape.rows >= SMALLEST_ROTATED):
        raise CodecError(f"expected 1 to {HIGHEST_RANK} factors, got {rank}")
    if not (math.isfinite(top) and top > 0):
        raise CodecError(f"expected a scale of factors that is finite and positive, got {top}")
    form, start = Form.of(shape, rank, classes), start + _HEAD.size
    count = len(form.runs) + rank
    if len(data) < start + count:
        raise CodecError(f"expected the scales of {rank} factors, got a payload of {len(data)} bytes")
    c = np.frombuffer(data, np.uint8, count, start).astype(np.int64)
    return Factors(form, relative, top, c, directions), start + count


@dataclass(frozen=True, slots=True)
class _Component:
    """a and u, float64 ``[rows]`` and ``[columns]``, and of the rows of a u' the energy, float64 ``[rows]``."""

    a: Doubles
    u: Doubles
    energy: Doubles


class Search:
    """Looks for the components of one vector that are worth their bits, the strongest first."""

    def __init__(self, x: Vector, chunks: Chunks, shape: Shape) -> None:
        self.shape, self.sizes = shape, chunks.sizes(x.size)
        self.whole, _ = energies(x, self.sizes)
        self.energy = self.whole  # of what is left, by chunk
        self.weight, self.bits = 1.0, 0.0  # w, and what components take
        matrix = x[shape.where].reshape(shape.rows, shape.columns).astype(np.float64)
        self.exponent = 15 - math.frexp(float(np.abs(matrix).max()))[1]
        self.matrix = np.rint(np.ldexp(matrix, self.exponent))
        sample = self.matrix[:: -(-shape.rows // _SAMPLE)]
        self.left = _to_range(sample.T @ sample)
        self.known: list[_Component] = []
        self.rank = 0  # how many of them are taken
        # Runs are not known before the rest is; rows by the energy that they have now are nearly as good.
        self.by_energy = np.argsort(-self.whole[shape.lines], kind="stable")
        self.edges = np.arange(0, shape.rows - SHORTEST_RUN + 1, SHORTEST_RUN)
        self.runs = np.diff(self.edges, append=shape.rows)

    def extend(self, at_slope: int) -> None:
        """Take as many components as make the cost at ``at_slope`` least, the strongest first.

        One alone may not pay where several do: a fifth of the energy is worth the more, the less there is beside it.
        """
        cost, error = slope.cost_of(at_slope, self.whole, self.sizes)
        least = float(cost)
        self.rank, self.energy, self.bits = 0, self.whole, 0.0
        self.weight = float(_relative(error, self.whole.sum()))
        first = 0
        while first < HIGHEST_RANK and first < self.rank + _AHEAD and self._know(first + _AHEAD):
            costs, left, weights, bits = self._prefixes(first, at_slope)
            best = int(np.argmin(costs))
            if costs[best] < least:
                self.rank, least = first + best + 1, float(costs[best])
                self.energy, self.weight, self.bits = left[best], float(weights[best]), float(bits[best])
            first += len(costs)

    def _know(self, count: int) -> bool:
        """Find components until there are ``count``; whether there are more than before the last ``_AHEAD``."""
        while len(self.known) < min(count, HIGHEST_RANK) and (found := self._direction()):
            self.known.append(found)
        return len(self.known) > count - _AHEAD

    def _prefixes(self, first: int, at_slope: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Return, for the first ``first`` + 1, + 2, .. components: the cost, what energy they leave in each chunk, what
        an error in them costs, and what they take."""
        known = self.known[: first + _AHEAD]
        ranks, last = np.arange(first + 1, len(known) + 1), len(known)
        rows = np.array([component.energy for component in known])
        left = np.repeat(self.whole[None], ranks.size, axis=0)
        left[:, self.shape.lines] = np.maximum(left[:, self.shape.lines] - np.cumsum(rows, axis=0)[first:], 0.0)
        weights = _relative(slope.cost_of(at_slope, left, self.sizes)[1], left.sum(axis=1))
        runs = np.add.reduceat(np.cumsum(rows, axis=0)[first:, self.by_energy], self.edges, axis=1)
        of_a = runs / (self.runs * ranks[:, None])
        of_b = np.repeat(rows.sum(axis=1)[None] / self.shape.columns, ranks.size, axis=0)
        counts_b = self.shape.columns * (np.arange(last) < ranks[:, None])
        v, rate = slope.parts_of(at_slope, weights, np.concatenate([of_a, of_b], axis=1))
        wrong = v / (1 + v)
        from_a, from_b = wrong[:, : self.runs.size], wrong[:, self.runs.size :] * (counts_b > 0)
        noise = np.empty((ranks.size, self.shape.rows))
        noise[:, self.by_energy] = np.repeat(from_a * of_a * ranks[:, None], self.runs, axis=1)
        left[:, self.shape.lines] += noise + from_b @ rows
        counts = np.concatenate([self.runs * ranks[:, None], counts_b], axis=1)
        bits = (counts * rate).sum(axis=1) + 8 * (_HEAD.size + ranks + _RUNS)
        cost = slope.cost_of(at_slope, left, self.sizes)[0] + slope.price_of_bit(at_slope) * bits
        return np.where(ranks * self.shape.rows >= SMALLEST_ROTATED, cost, np.inf), left, weights, bits

    @property
    def levels(self) -> Levels:
        """The chunks as factors leave them."""
        return levels_of(self.energy, self.sizes)

    def _direction(self) -> _Component | None:
        """Return the strongest component that is left, and take it off."""
        start = self.left[self.left.diagonal().argmax()]
        for last in (False,) * _ROUNDS + (True,):
            highest = max(start.max(), -start.min())
            if highest == 0:
                return None
            whole = np.rint(start * ((16_384 if last else 4096) / highest))
            start = self.left @ whole
        length = math.sqrt(float(whole @ whole))
        u, beside = whole / length, start / length
        beside -= u * (0.5 * math.fsum(u * beside))
        off = np.multiply.outer(u, beside)
        self.left = np.rint(self.left - off - off.T)
        a = np.ldexp((self.matrix @ whole) / length, -self.exponent)
        return _Component(a, u, a * a)

    def factors(self, at_slope: int, classes: Ints) -> tuple[Factors, Vector] | None:
        """Return what was found with steps for ``at_slope``, and its numbers in sending order, float32; None if it was
        nothing. ``classes``: of the chunks."""
        if self.rank == 0:
            return None
        found = self.known[: self.rank]
        form = Form.of(self.shape, self.rank, classes)
        strengths = [math.sqrt(float(component.energy.sum())) for component in found]
        b = np.array([s * component.u for s, component in zip(strengths, found, strict=True)])
        numbers = form.join(np.array([component.a for component in found]), b)
        rms = np.sqrt(energies(numbers, form.sizes)[0] / form.sizes)
        top = np.float32(rms.max())
        if not 0 < top < np.inf:
            return None
        below = -STEPS * np.log2(np.maximum(rms / float(top), 2.0**-9))
        level = UNITS * math.log2(float(top)) + UNITS / 2 * math.log2(self.weight)
        relative = min(max(at_slope - round(level), -(1 << 15)), (1 << 15) - 1)
        c = np.clip(np.rint(below), 0, 255).astype(np.int64)
        return Factors(form, relative, float(top), c, directions=True), numbers


def _relative(error: Doubles, energy: Doubles) -> Doubles:
    """Return w, error over energy: finite, and more than nothing, even where factors leave nothing."""
    with np.errstate(over="ignore"):
        relative: Doubles = np.clip(error / np.maximum(energy, 1e-300), 1e-300, 2.0**60)
    return relative


def levels_of(energy: Doubles, sizes: Ints) -> Levels:
    """Return chunks as the slope sees them, those of zeros left out; they may travel as directions."""
    alive = energy > 0
    energy, sizes = energy[alive], sizes[alive]
    levels = np.rint(UNITS / 2 * np.log2(energy / sizes)).astype(np.int64)
    return Levels(sizes, levels, levels, slope.jumps_of(np.arange(sizes.size), slope.EARLY), whole=False)


def _to_range(gram: Doubles) -> Doubles:
    """Return ``gram`` in whole numbers of at most 2^30."""
    return np.rint(np.ldexp(gram, 30 - math.frexp(float(np.abs(gram).max()))[1]))


def predict(factors: Factors, numbers: Vector, seed: int) -> Vector:
    """Return P_hat, float32 ``[rows · columns]``, as both ends will have it."""
    blocks = factors.blocks
    codes, _ = encode_blocks(numbers, blocks, seed, 1)
    decoded = np.zeros_like(numbers)
    decode_blocks(codes, blocks, factors.multiplier, seed, 1, None, decoded, None)
    return factors.product(decoded)
