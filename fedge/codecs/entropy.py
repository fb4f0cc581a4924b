"""EDEN with entropy-coded levels and rates by equal slope: the payload of version 2, both ends.

Every block is rotated (``rotation.py``), its coordinates y/σ are rounded to multiples of a step s (``gaussian.py``),
and the multiples travel through a range coder with the frequencies of a Gaussian (``rans.py``). How fine each block's
step is follows from its scale σ and one number for all of them, the slope (``slope.py``). Where it pays, coordinates of
like energy are brought together first (``grouping.py``).

    k = round(y/(σ s)),    x_hat = S · R^-1·k,    S = ||y||²/<y, k>,    E[x_hat] = x

Layout, little-endian, of n coordinates:

    version u8 = 2
    x f32 × n                                               if n < 32; nothing else then
    flags u8      bits 0, 1: 0, 1 or 2 for 1, 4 or 16 lanes; bit 2: grouped; the others 0
    slope i16     in 1/2048 octave, relative to the largest σ
    length u16 | phase u16 | classes of the chunks          if grouped (``grouping.py``)
    scales        top f32, then per block c u8 | f u8 (``block_scales.py``)
    low bits      per block that has them, packed (``packing.py``), filled up to whole bytes
    high parts    states u32, then words u16 (``rans.py``)

How blocks are cut follows from n or from the classes, and from there on blocks come in that order. A block whose scale
is zero has neither low bits nor codes.

``received`` masks follow the blocks: entry i is the i-th rotated coordinate if all blocks are laid end to end, those of
zeros too (the i-th coordinate if n < 32).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedge.codecs import block_scales, gaussian, grouping, slope
from fedge.codecs.base import Mask, Sum, Vector, add_weighted, check_finite, drop_and_rescale
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks, energies
from fedge.codecs.gaussian import UNITS, Doubles, Ints
from fedge.codecs.grouping import Chunks, Cut
from fedge.codecs.plan import SMALLEST_ROTATED
from fedge.codecs.rotation import BLOCK
from fedge.codecs.slope import Levels
from fedge.errors import CodecError

VERSION = 2
_HEAD = struct.Struct("<BBh")
_CHUNKS = struct.Struct("<HH")
_LANES = (1, 4, 16)
_LANES_FROM_BYTES = (0, 4096, 65_536)
_GROUPED = 4
WORTH_GROUPING = 0.97


@dataclass(frozen=True, slots=True)
class Sketch:
    """A vector measured and cut up, before its rates are known.

    ``order`` is which coordinate travels at which place, None if they travel as they are; ``head`` what says so.
    """

    vector: Vector
    order: Ints | None
    head: bytes
    cut: Cut
    energy: Doubles
    top: np.float32
    coarse: Ints
    reference: int  # log2 of the strongest scale, in 1/2048 octave

    @property
    def levels(self) -> Levels:
        """The blocks that are not zero, as the slope sees them."""
        alive = (self.coarse > 0) & (self.energy > 0)
        sizes = self.cut.sizes[alive]
        true = np.rint(UNITS / 2 * np.log2(self.energy[alive] / sizes)).astype(np.int64)
        return Levels(sizes, self.reference - block_scales.octaves_below(self.coarse[alive]), true)

    @property
    def side_bytes(self) -> int:
        """What travels beside codes and states."""
        return _HEAD.size + len(self.head) + block_scales.size_bytes(self.coarse.size)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What grouping would give, known from the chunks' energies before a coordinate is moved."""

    sizes: Ints
    classes: Ints
    chunks: Chunks
    levels: Levels  # one a class

    @property
    def side_bytes(self) -> int:
        """What would travel beside codes and states."""
        head = _HEAD.size + _CHUNKS.size + grouping.packed_bytes(self.classes)
        return head + block_scales.size_bytes(self.levels.sizes.size)


def prospect(chunks: Chunks, sizes: Ints, energy: Doubles) -> Prospect | None:
    """Return what grouping chunks of these sizes and energies would give; None if they are all of one class."""
    classes = grouping.classes_of(energy, sizes)
    if (classes == classes[0]).all():
        return None
    count = np.bincount(classes, weights=sizes.astype(np.float64))
    total = np.bincount(classes, weights=energy)
    alive = total > 0
    levels = np.rint(UNITS / 2 * np.log2(total[alive] / count[alive])).astype(np.int64)
    return Prospect(sizes, classes, chunks, Levels(count[alive].astype(np.int64), levels, levels))


def survey(x: Vector, chunks: Chunks) -> tuple[Sketch, Prospect | None]:
    """Measure finite ``x``, float32 ``[n]``, n >= 32, to be sent as it is, and what grouping its chunks would give.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    cut, sizes = grouping.cut([x.size]), chunks.sizes(x.size)
    energy, of_chunks = energies(x, cut.sizes, sizes)
    return _sketch(x, None, b"", cut, energy), prospect(chunks, sizes, of_chunks)


def regroup(plain: Sketch, to: Prospect) -> Sketch:
    """Return ``plain`` with its coordinates grouped."""
    order = grouping.order_of(to.classes, to.sizes)
    head = _CHUNKS.pack(to.chunks.length, to.chunks.phase) + grouping.pack_classes(to.classes)
    vector, cut = plain.vector[order], grouping.cut(grouping.runs_of(to.classes, to.sizes))
    return _sketch(vector, order, head, cut, energies(vector, cut.sizes)[0])


def _sketch(vector: Vector, order: Ints | None, head: bytes, cut: Cut, energy: Doubles) -> Sketch:
    if not np.isfinite(energy).all():
        check_finite(vector)
        raise CodecError("the vector changed while it was being encoded")
    top, coarse = block_scales.coarse(energy, cut.sizes)
    reference = round(UNITS * math.log2(top)) if top > 0 else 0
    return Sketch(vector, order, head, cut, energy, top, coarse, reference)


def _worth_grouping(plain: Sketch, grouped: Prospect, at_slope: int) -> bool:
    """Whether grouping saves 3 % of the cost: error, and bits at the price of error. Vectors without structure gain
    about as much as the order costs, and stay as they are. The price is that of a slope for which the order was free,
    too low where the order takes much of the bits: see :class:`_Choice`."""

    def cost(levels: Levels, side: int) -> float:
        bits = slope.bits_at(at_slope, [levels]) + 8 * side
        return slope.error_at(at_slope, levels) + slope.price_of_bit(at_slope) * bits

    return cost(grouped.levels, grouped.side_bytes) < WORTH_GROUPING * cost(plain.levels, plain.side_bytes)


def encode_together(parts: Sequence[tuple[Vector, int, Chunks]], bits: float, most_bytes: int) -> list[bytes]:
    """Return a payload for each (vector, seed, chunks), all by one slope: ``bits`` per coordinate on average.

    All of them take at most ``most_bytes``; ``bits`` pays for codes, and for what grouping needs beside them.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    known = {i: write_raw(x) for i, (x, _, _) in enumerate(parts) if x.size < SMALLEST_ROTATED}
    surveys = {i: survey(x, chunks) for i, (x, _, chunks) in enumerate(parts) if i not in known}
    plain = {i: way for i, (way, _) in surveys.items()}
    prospects = {i: found for i, (_, found) in surveys.items() if found}
    budget = bits * sum(way.vector.size for way in plain.values())
    hoped = Levels.joined([(prospects.get(i) or way).levels for i, way in plain.items()])
    at_slope = slope.solve(budget, [hoped])
    worth = {i: to for i, to in prospects.items() if _worth_grouping(plain[i], to, at_slope)}
    seeds, room = [seed for _, seed, _ in parts], most_bytes - sum(map(len, known.values()))
    choices = [_Choice.of(plain, budget)]
    if worth:
        grouped = plain | {i: regroup(plain[i], to) for i, to in worth.items()}
        extra = sum(grouped[i].side_bytes - plain[i].side_bytes for i in worth)
        choices.append(_Choice.of(grouped, budget - 8 * extra))
    for choice in sorted(choices, key=lambda choice: choice.error):
        if (written := _write_within(room, choice, seeds)) is not None:
            return [(known | written)[i] for i in range(len(parts))]
    raise CodecError(f"expected room for {len(plain)} vectors at the coarsest steps, got {room} bytes")


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to send an update. At the lowest rates, to say of which class each chunk is may take more than there is,
    so what grouping gives is compared once more when all of it is known."""

    ways: dict[int, Sketch]
    budget: float
    at_slope: int
    error: float  # that is expected; inf if the codes cannot have so few bits

    @classmethod
    def of(cls, ways: dict[int, Sketch], budget: float) -> _Choice:
        """Return ``ways`` with ``budget`` bits for codes."""
        levels = Levels.joined([way.levels for way in ways.values()])
        at_slope = slope.solve(budget, [levels])
        fits = slope.bits_at(at_slope, [levels]) <= budget
        return cls(ways, budget, at_slope, slope.error_at(at_slope, levels) if fits else math.inf)


def _write_within(room: int, choice: _Choice, seeds: Sequence[int]) -> dict[int, bytes] | None:
    """Return the payloads; None if the coarsest steps take more than ``room`` bytes."""
    at_slope, ways = choice.at_slope, choice.ways
    coarsest = slope.coarsest([way.levels for way in ways.values()])
    while True:
        written = {i: write(way, at_slope, seeds[i]) for i, way in ways.items()}
        over = sum(map(len, written.values())) - room
        if over <= 0:
            return written
        if at_slope >= coarsest:
            return None
        at_slope = min(at_slope + 1 + int(8 * over * UNITS / max(choice.budget, 1.0)), coarsest)


def side_bytes(size: int) -> int:
    """Return what a vector of ``size`` coordinates sent as it is needs beside codes and lanes."""
    if size < SMALLEST_ROTATED:
        return 1 + 4 * size
    return _HEAD.size + block_scales.size_bytes(grouping.cut([size]).sizes.size)


def least_bytes(size: int) -> int:
    """Return a length below which nothing is a payload of ``size`` coordinates: scales and states have to be there."""
    if size < SMALLEST_ROTATED:
        return 1 + 4 * size
    return _HEAD.size + block_scales.size_bytes(-(-size // BLOCK)) + 4


def lane_bytes(code_bytes: float) -> int:
    """Return what the states of the range coder take for about ``code_bytes`` of codes."""
    return 4 * _lanes_for(code_bytes)[1]


def _lanes_for(code_bytes: float) -> tuple[int, int]:
    index = max(i for i, least in enumerate(_LANES_FROM_BYTES) if code_bytes >= least)
    return index, _LANES[index]


def write(sketch: Sketch, at_slope: int, seed: int) -> bytes:
    """Return the payload of ``sketch`` with steps by ``at_slope``, an absolute slope."""
    relative = min(max(at_slope - sketch.reference, -(1 << 15)), (1 << 15) - 1)
    blocks = _blocks(sketch.cut, float(sketch.top), sketch.coarse, relative)
    expected = slope.bits_at(relative + sketch.reference, [sketch.levels]) / 8
    index, lanes = _lanes_for(expected)
    head = _HEAD.pack(VERSION, index | (_GROUPED if sketch.order is not None else 0), relative)
    codes, products = encode_blocks(sketch.vector, blocks, seed, lanes)
    fine = block_scales.fine(sketch.energy, products, sketch.cut.sizes, blocks.sigma, blocks.steps, seed)
    return head + sketch.head + block_scales.pack(sketch.top, sketch.coarse, fine) + codes


def write_raw(x: Vector) -> bytes:
    """Return the payload of fewer than 32 finite coordinates.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    check_finite(x)
    return bytes([VERSION]) + x.astype("<f4").tobytes()


def _blocks(cut: Cut, top: float, coarse: Ints, relative: int) -> Blocks:
    """Return how each block that is not zero is coded; both ends compute it from the same integers."""
    sigma = block_scales.sigma_of(top, coarse)
    steps = slope.steps_of(relative, -block_scales.octaves_below(coarse))
    low = gaussian.low_bits(steps)
    return Blocks(cut.sizes, cut.numbers, sigma, steps, low, gaussian.class_of(steps, low))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A payload taken apart: everything but the codes."""

    order: Ints | None
    blocks: Blocks
    multiplier: Vector  # what decoded multiples are worth, one a block
    lanes: int
    start: int  # of the low bits


def parse(data: bytes, size: int) -> Parsed:
    """Take apart a payload of ``size`` >= 32 coordinates.

    Raises:
        CodecError: ``data`` is no such payload.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"expected at least {_HEAD.size} bytes for {size} coordinates, got {len(data)}")
    _, flags, relative = _HEAD.unpack_from(data)
    if flags & ~(_GROUPED | 3) or flags & 3 >= len(_LANES):
        raise CodecError(f"expected flags of 1, 4 or 16 lanes, grouped or not, got {flags:#x}")
    order, cut, start = _read_order(data, size) if flags & _GROUPED else (None, grouping.cut([size]), _HEAD.size)
    count = cut.sizes.size
    top, coarse, fine = block_scales.read(data, count, start)
    blocks = _blocks(cut, top, coarse, relative)
    multiplier = block_scales.multipliers(blocks.sigma, blocks.steps, cut.sizes, fine)
    return Parsed(order, blocks, multiplier, _LANES[flags & 3], start + block_scales.size_bytes(count))


def _read_order(data: bytes, size: int) -> tuple[Ints, Cut, int]:
    start = _HEAD.size + _CHUNKS.size
    if len(data) < start:
        raise CodecError(f"expected the chunks of {size} coordinates, got {len(data)} bytes")
    chunks = Chunks(*_CHUNKS.unpack_from(data, _HEAD.size))
    sizes = chunks.sizes(size)
    classes, taken = grouping.unpack_classes(np.frombuffer(data, np.uint8, -1, start), sizes.size)
    return grouping.order_of(classes, sizes), grouping.cut(grouping.runs_of(classes, sizes)), start + taken


def read(data: bytes, size: int, seed: int, received: Mask | None) -> Vector:
    """Decode a payload into float32 ``[size]``, always finite.

    Raises:
        CodecError: ``data`` is no payload of this size, or does not end where its codes do.
    """
    if size < SMALLEST_ROTATED:
        return _read_raw(data, size, received)
    parsed, x = parse(data, size), np.zeros(size, np.float32)
    decode_blocks(data[parsed.start :], parsed.blocks, parsed.multiplier, seed, parsed.lanes, received, x, None)
    if parsed.order is None:
        return x
    out = np.empty_like(x)
    out[parsed.order] = x
    return out


def add(data: bytes, size: int, seed: int, received: Mask | None, weight: float, out: Sum) -> None:
    """Add ``weight`` times what :func:`read` returns to ``out``; raises as it does, with ``out`` as it was."""
    if size < SMALLEST_ROTATED:
        return add_weighted(weight, _read_raw(data, size, received), out)
    parsed = parse(data, size)
    if parsed.order is not None:
        return add_weighted(weight, read(data, size, seed, received), out)
    codes = data[parsed.start :]
    return decode_blocks(codes, parsed.blocks, parsed.multiplier, seed, parsed.lanes, received, out, weight)


def error(data: bytes, size: int) -> float:
    """Return A of a payload, E||x_hat - x||² = A·||x||², from its scales and its slope.

    Raises:
        CodecError: ``data`` is no payload of this size.
    """
    if size < SMALLEST_ROTATED:
        return 0.0
    blocks = parse(data, size).blocks
    energy = blocks.sizes * blocks.sigma**2
    total = math.fsum(energy)
    return math.fsum(energy * gaussian.error_of(blocks.steps)) / total if total > 0 else 0.0


def _read_raw(data: bytes, size: int, received: Mask | None) -> Vector:
    if len(data) != 1 + 4 * size:
        raise CodecError(f"expected {1 + 4 * size} bytes for {size} coordinates, got {len(data)}")
    x: Vector = np.frombuffer(data, "<f4", size, 1).astype(np.float32)
    if not np.isfinite(x).all():
        raise CodecError(f"expected finite raw coordinates, got {x[~np.isfinite(x)][0]}")
    return x if received is None else drop_and_rescale(x, received)
