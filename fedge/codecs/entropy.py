"""EDEN with entropy-coded levels and rates by equal slope: payloads of versions 2, 5 and 6, both ends.

Every block is rotated (``rotation.py``), its coordinates y/σ are rounded to multiples of a step s (``gaussian.py``),
and the multiples travel through a range coder with the frequencies of a Gaussian (``rans.py``). How fine each block's
step is follows from its scale σ and one number for all of them, the slope (``slope.py``). Where it pays, coordinates of
like energy are brought together first (``grouping.py``). Where a few products of a column and a row say much of a
matrix, they travel before it, and all of this is done to the rest (``factors.py``). Blocks that get less than about a
bit may travel as directions of groups of coordinates instead, which takes longer to find (``spherical.py``). What pays
is decided for a whole update at once (``sharing.py``).

    k = round(y/(σ s)),    x_hat = S · R^-1·k,    S = ||y||²/<y, k>,    E[x_hat] = x

Layout, little-endian, of n coordinates:

    version u8    2; 5 with factors; 6 where blocks may travel as directions, with factors or not
    x f32 × n                                               if n < 32; nothing else then; version 2
    flags u8      bits 0, 1: 0, 1 or 2 for 1, 4 or 16 lanes, 3 in version 6 for none, where no block has levels;
                  bit 2: grouped, always in version 5; in version 6 also bit 3: factors, then grouped too, and bit 4:
                  blocks become directions late (``slope.py``); the others 0
    slope i16     in 1/2048 octave, relative to the largest σ
    length u16 | phase u16 | classes of the chunks          if grouped (``grouping.py``)
    rank u8 | slope i16 | scales                            with factors (``factors.py``)
    scales        top f32, then per block c u8 | f u8 (``block_scales.py``)
    directions    in version 6: u16 per group of every block that travels as such (``spherical.py``)
    low bits      per block that has them, packed (``packing.py``), filled up to whole bytes
    high parts    states u32, then words u16 (``rans.py``)

Versions 2 and 6 are written; 5 is read. All vectors that are encoded together have version 6 where one of them is
looked at thoroughly, unless levels alone are expected to leave less error, which happens to a few dozen coordinates;
their scale is less sure than that of directions (``block_scales.py``).

How blocks are cut follows from n or from the classes, and from there on blocks come in that order, after those of
factors, which have the first block numbers. A block whose scale is zero has neither low bits nor codes.

``received`` masks follow the blocks: entry i is the i-th rotated coordinate if all blocks are laid end to end, those of
zeros too (the i-th coordinate if n < 32). What factors say is not among them, and always there.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

import numpy as np

from fedge.codecs import block_scales, gaussian, grouping, quantizers, slope, spherical
from fedge.codecs.base import LARGEST, Mask, Sum, Vector, add_weighted, check_finite, drop_and_rescale
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks, energies
from fedge.codecs.factors import Factors, read_factors, shape_of
from fedge.codecs.gaussian import UNITS, Doubles, Ints
from fedge.codecs.grouping import Chunks, Cut
from fedge.codecs.plan import SMALLEST_ROTATED
from fedge.codecs.rotation import BLOCK
from fedge.codecs.slope import Levels
from fedge.errors import CodecError

VERSION, FACTORED_VERSION, DIRECTED_VERSION = VERSIONS = 2, 5, 6
_HEAD = struct.Struct("<BBh")
_CHUNKS = struct.Struct("<HH")
_LANES = (1, 4, 16, 0)
_LANES_FROM_BYTES = (0, 4096, 65_536)
_NO_LANES, _GROUPED, _FACTORED, _JUMPING_LATE = 3, 4, 8, 16  # of the flags
_FLAGS = {
    VERSION: {lanes | grouped for lanes in range(3) for grouped in (0, _GROUPED)},
    FACTORED_VERSION: {lanes | _GROUPED for lanes in range(3)},
    DIRECTED_VERSION: {
        lanes | how | jump
        for lanes in range(4)
        for how in (0, _GROUPED, _GROUPED | _FACTORED)
        for jump in (0, _JUMPING_LATE)
    },
}


@dataclass(frozen=True, slots=True)
class Lead:
    """Factors that travel with a vector, ``numbers`` what of them is coded, and the classes of its chunks."""

    factors: Factors
    numbers: Vector
    classes: Ints


@dataclass(frozen=True, slots=True)
class Subject:
    """What is encoded: a vector, or what a ``lead`` leaves of it. ``jump``: from where on blocks travel as directions
    (``slope.py``); None if they may not."""

    vector: Vector
    chunks: Chunks
    jump: int | None = None
    lead: Lead | None = None

    def head(self, classes: Ints) -> bytes:
        """Return what says how coordinates are grouped and which factors there are."""
        chunks = _CHUNKS.pack(self.chunks.length, self.chunks.phase)
        return chunks + grouping.pack_classes(classes) + (self.lead.factors.pack() if self.lead else b"")


@dataclass(frozen=True, slots=True)
class Sketch:
    """A subject measured and cut up, before its rates are known.

    ``vector`` is in sending order; ``order`` is which coordinate travels at which place, None if they travel as they
    are; ``head`` what says so.
    """

    subject: Subject
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
        jumps = _jumps(np.flatnonzero(alive), self.subject.jump)
        return Levels(sizes, self.reference - block_scales.octaves_below(self.coarse[alive]), true, jumps)

    def jumping(self, jump: int | None) -> Sketch:
        """Return this to be sent with another jump."""
        return replace(self, subject=replace(self.subject, jump=jump))

    @property
    def side_bytes(self) -> int:
        """What travels beside codes and states."""
        return _HEAD.size + len(self.head) + block_scales.size_bytes(self.coarse.size)

    @property
    def factor_bits(self) -> float:
        """What the codes of factors are expected to take."""
        return self.subject.lead.factors.code_bits if self.subject.lead else 0.0


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


def prospect(subject: Subject, sizes: Ints, energy: Doubles) -> Prospect | None:
    """Return what grouping chunks of these sizes and energies would give; None if they are all of one class."""
    classes = subject.lead.classes if subject.lead else grouping.classes_of(energy, sizes)
    if not subject.lead and (classes == classes[0]).all():
        return None
    count = np.bincount(classes, weights=sizes.astype(np.float64))
    total = np.bincount(classes, weights=energy)
    alive = total > 0
    levels = np.rint(UNITS / 2 * np.log2(total[alive] / count[alive])).astype(np.int64)
    jumps = _jumps(np.arange(levels.size), subject.jump)
    of_classes = Levels(count[alive].astype(np.int64), levels, levels, jumps, whole=False)
    return Prospect(sizes, classes, subject.chunks, of_classes)


def _jumps(places: Ints, jump: int | None) -> Ints | None:
    return None if jump is None else slope.jumps_of(places, jump)


def survey(of: Subject) -> tuple[Sketch, Prospect | None]:
    """Measure a finite vector, float32 ``[n]``, n >= 32, to be sent as it is, and what grouping its chunks would give.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    cut, sizes = grouping.cut([of.vector.size]), of.chunks.sizes(of.vector.size)
    energy, of_chunks = energies(of.vector, cut.sizes, sizes)
    return _sketch(of, of.vector, None, None, cut, energy), prospect(of, sizes, of_chunks)


def regroup(of: Subject, to: Prospect) -> Sketch:
    """Measure a vector to be sent with its coordinates grouped."""
    order, runs = grouping.order_of(to.classes, to.sizes), grouping.runs_of(to.classes, to.sizes)
    vector, cut = of.vector[order], grouping.cut(runs)
    return _sketch(of, vector, order, to.classes, cut, energies(vector, cut.sizes)[0])


def _sketch(of: Subject, vector: Vector, order: Ints | None, classes: Ints | None, cut: Cut, energy: Doubles) -> Sketch:
    if not np.isfinite(energy).all():
        check_finite(vector)
        raise CodecError("the vector changed while it was being encoded")
    top, coarse = block_scales.coarse(energy, cut.sizes)
    reference = round(UNITS * math.log2(top)) if top > 0 else 0
    head = b"" if classes is None else of.head(classes)
    return Sketch(of, vector, order, head, cut, energy, top, coarse, reference)


def side_bytes(size: int) -> int:
    """Return what a vector of ``size`` coordinates sent as it is needs beside codes and lanes."""
    if size < SMALLEST_ROTATED:
        return 1 + 4 * size
    return _HEAD.size + block_scales.size_bytes(grouping.cut([size]).sizes.size)


def least_bytes(size: int) -> int:
    """Return a length below which nothing is a payload of ``size`` coordinates: scales have to be there."""
    if size < SMALLEST_ROTATED:
        return 1 + 4 * size
    return _HEAD.size + block_scales.size_bytes(-(-size // BLOCK))


def lane_bytes(code_bytes: float) -> int:
    """Return what the states of the range coder take for about ``code_bytes`` of codes."""
    return 4 * _lanes_for(code_bytes)[1]


def _lanes_for(code_bytes: float) -> tuple[int, int]:
    index = max(i for i, least in enumerate(_LANES_FROM_BYTES) if code_bytes >= least)
    return index, _LANES[index]


def write(sketch: Sketch, at_slope: int, seed: int) -> bytes:
    """Return the payload of ``sketch`` with steps by ``at_slope``, an absolute slope."""
    relative = min(max(at_slope - sketch.reference, -(1 << 15)), (1 << 15) - 1)
    lead, jump = sketch.subject.lead, sketch.subject.jump
    factors = lead.factors if lead else None
    blocks = _blocks(sketch.cut, float(sketch.top), sketch.coarse, relative, factors, jump)
    vector, coded = sketch.vector, blocks
    if lead:
        vector, coded = np.concatenate([lead.numbers, vector]), Blocks.joined(lead.factors.blocks, blocks)
    expected = (slope.bits_at(relative + sketch.reference, [sketch.levels]) + sketch.factor_bits) / 8
    flags = _NO_LANES if jump is not None and not coded.levels.any() else _lanes_for(expected)[0]
    lanes = _LANES[flags]
    flags |= (_GROUPED if sketch.order is not None else 0) | (_FACTORED if lead else 0)
    flags |= _JUMPING_LATE if jump == slope.LATE else 0
    codes, products = encode_blocks(vector, coded, seed, lanes)
    products = products[products.size - blocks.sizes.size :]
    fine = block_scales.fine(sketch.energy, products, sketch.cut.sizes, blocks.sigma, blocks.steps, seed)
    head = _HEAD.pack(VERSION if jump is None else DIRECTED_VERSION, flags, relative)
    return head + sketch.head + block_scales.pack(sketch.top, sketch.coarse, fine) + codes


def write_raw(x: Vector) -> bytes:
    """Return the payload of fewer than 32 finite coordinates.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    check_finite(x)
    return bytes([VERSION]) + x.astype("<f4").tobytes()


def _blocks(cut: Cut, top: float, coarse: Ints, relative: int, factors: Factors | None, jump: int | None) -> Blocks:
    """Return how each block that is not zero is coded; both ends compute it from the same integers."""
    sigma = block_scales.sigma_of(top, coarse)
    below = -block_scales.octaves_below(coarse)
    steps = slope.steps_of(relative, below, _jumps(np.arange(coarse.size), jump))
    return Blocks.of(cut.sizes, cut.numbers + (factors.numbers if factors else 0), sigma, steps)


def prepare_reading() -> None:
    """Make the tables that payloads are read with, once a process.

    Who has much to allocate and free besides does it first: tables stay where they are made, and a heap that has them
    in its middle no longer finds room there for large arrays.
    """
    gaussian.frequencies()
    spherical.signs()
    one = grouping.cut([BLOCK])
    blocks = _blocks(one, 1.0, np.full(1, block_scales.HIGHEST), 0, None, slope.EARLY)
    block_scales.multipliers(blocks.sigma, blocks.steps, one.sizes, np.zeros(1, np.uint8))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A payload taken apart: everything but the codes. ``classes`` and ``sizes`` of the chunks, where it is grouped."""

    classes: Ints | None
    sizes: Ints
    factors: Factors | None
    blocks: Blocks  # but those of factors
    multiplier: Vector  # what decoded multiples are worth, one a block
    lanes: int
    start: int  # of the low bits

    @property
    def order(self) -> Ints | None:
        """Which coordinate travels at which place, None if they travel as they are; larger than the payload may be, so
        it is for payloads whose codes were read."""
        return None if self.classes is None else grouping.order_of(self.classes, self.sizes)


def parse(data: bytes, size: int) -> Parsed:
    """Take apart a payload of ``size`` >= 32 coordinates.

    Raises:
        CodecError: ``data`` is no such payload.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"expected at least {_HEAD.size} bytes for {size} coordinates, got {len(data)}")
    version, flags, relative = _HEAD.unpack_from(data)
    if flags not in _FLAGS[version]:
        raise CodecError(f"expected flags of a payload of version {version}, got {flags:#x}")
    jump = None if version != DIRECTED_VERSION else slope.LATE if flags & _JUMPING_LATE else slope.EARLY
    classes, sizes, cut, factors, start = None, np.array([size]), grouping.cut([size]), None, _HEAD.size
    if flags & _GROUPED:
        chunks, classes, start = _read_classes(data, size)
        sizes = chunks.sizes(size)
        cut = grouping.cut(grouping.runs_of(classes, sizes))
        if version == FACTORED_VERSION or flags & _FACTORED:
            factors, start = read_factors(data, start, shape_of(chunks, size), classes, jump is not None)
    count = cut.sizes.size
    top, coarse, fine = block_scales.read(data, count, start)
    blocks = _blocks(cut, top, coarse, relative, factors, jump)
    multiplier = block_scales.multipliers(blocks.sigma, blocks.steps, cut.sizes, fine)
    start += block_scales.size_bytes(count)
    return Parsed(classes, sizes, factors, blocks, multiplier, _LANES[flags & 3], start)


def _read_classes(data: bytes, size: int) -> tuple[Chunks, Ints, int]:
    start = _HEAD.size + _CHUNKS.size
    if len(data) < start:
        raise CodecError(f"expected the chunks of {size} coordinates, got {len(data)} bytes")
    chunks = Chunks(*_CHUNKS.unpack_from(data, _HEAD.size))
    classes, taken = grouping.unpack_classes(np.frombuffer(data, np.uint8, -1, start), chunks.sizes(size).size)
    return chunks, classes, start + taken


def read(data: bytes, size: int, seed: int, received: Mask | None) -> Vector:
    """Decode a payload into float32 ``[size]``, always finite.

    Raises:
        CodecError: ``data`` is no payload of this size, or does not end where its codes do.
    """
    if size < SMALLEST_ROTATED:
        return _read_raw(data, size, received)
    parsed = parse(data, size)
    blocks, multiplier, factors, ahead = parsed.blocks, parsed.multiplier, parsed.factors, 0
    if factors:
        ahead = factors.form.size
        blocks = Blocks.joined(factors.blocks, blocks)
        multiplier = np.concatenate([factors.multiplier, multiplier])
        received = None if received is None else np.concatenate([np.ones(ahead, np.bool_), received])
    all_of_it = np.zeros(ahead + size, np.float32)
    decode_blocks(data[parsed.start :], blocks, multiplier, seed, parsed.lanes, received, all_of_it, None)
    x = all_of_it[ahead:]
    if (order := parsed.order) is not None:
        x = np.empty_like(x)
        x[order] = all_of_it[ahead:]
    if factors:
        there = factors.form.shape.where
        x[there] = np.clip(x[there].astype(np.float64) + factors.product(all_of_it[:ahead]), -LARGEST, LARGEST)
    return x


def add(data: bytes, size: int, seed: int, received: Mask | None, weight: float, out: Sum) -> None:
    """Add ``weight`` times what :func:`read` returns to ``out``; raises as it does, with ``out`` as it was."""
    if size < SMALLEST_ROTATED:
        return add_weighted(weight, _read_raw(data, size, received), out)
    parsed = parse(data, size)
    if parsed.classes is not None or parsed.factors:
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
    parsed = parse(data, size)
    blocks = parsed.blocks
    energy = blocks.sizes * blocks.sigma**2
    total = math.fsum(energy) + (parsed.factors.energy if parsed.factors else 0.0)
    return math.fsum(energy * quantizers.error_of(blocks.steps, blocks.sizes)) / total if total > 0 else 0.0


def _read_raw(data: bytes, size: int, received: Mask | None) -> Vector:
    if len(data) != 1 + 4 * size:
        raise CodecError(f"expected {1 + 4 * size} bytes for {size} coordinates, got {len(data)}")
    if size and data[0] != VERSION:
        raise CodecError(f"expected version {VERSION} of fewer than {SMALLEST_ROTATED} coordinates, got {data[0]}")
    x: Vector = np.frombuffer(data, "<f4", size, 1).astype(np.float32)
    if not np.isfinite(x).all():
        raise CodecError(f"expected finite raw coordinates, got {x[~np.isfinite(x)][0]}")
    return x if received is None else drop_and_rescale(x, received)
