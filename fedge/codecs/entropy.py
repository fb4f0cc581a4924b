"""EDEN with entropy-coded levels and rates by equal slope: payloads of versions 2 and 5, both ends.

Every block is rotated (``rotation.py``), its coordinates y/σ are rounded to multiples of a step s (``gaussian.py``),
and the multiples travel through a range coder with the frequencies of a Gaussian (``rans.py``). How fine each block's
step is follows from its scale σ and one number for all of them, the slope (``slope.py``). Where it pays, coordinates of
like energy are brought together first (``grouping.py``). Where a few products of a column and a row say much of a
matrix, they travel before it, and all of this is done to the rest (``factors.py``).

    k = round(y/(σ s)),    x_hat = S · R^-1·k,    S = ||y||²/<y, k>,    E[x_hat] = x

Layout, little-endian, of n coordinates:

    version u8 = 2; 5 with factors
    x f32 × n                                               if n < 32; nothing else then
    flags u8      bits 0, 1: 0, 1 or 2 for 1, 4 or 16 lanes; bit 2: grouped, always in version 5; the others 0
    slope i16     in 1/2048 octave, relative to the largest σ
    length u16 | phase u16 | classes of the chunks          if grouped (``grouping.py``)
    rank u8 | slope i16 | scales                            in version 5 (``factors.py``)
    scales        top f32, then per block c u8 | f u8 (``block_scales.py``)
    low bits      per block that has them, packed (``packing.py``), filled up to whole bytes
    high parts    states u32, then words u16 (``rans.py``)

How blocks are cut follows from n or from the classes, and from there on blocks come in that order, after those of
factors, which have the first block numbers. A block whose scale is zero has neither low bits nor codes.

``received`` masks follow the blocks: entry i is the i-th rotated coordinate if all blocks are laid end to end, those of
zeros too (the i-th coordinate if n < 32). What factors say is not among them, and always there.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedge.codecs import block_scales, gaussian, grouping, slope
from fedge.codecs.base import LARGEST, Mask, Sum, Vector, add_weighted, check_finite, drop_and_rescale
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks, energies
from fedge.codecs.factors import Factors, Search, levels_of, predict, read_factors, shape_of
from fedge.codecs.gaussian import UNITS, Doubles, Ints
from fedge.codecs.grouping import Chunks, Cut
from fedge.codecs.plan import SMALLEST_ROTATED
from fedge.codecs.rotation import BLOCK
from fedge.codecs.slope import Levels
from fedge.errors import CodecError

VERSION, FACTORED_VERSION = VERSIONS = 2, 5
_HEAD = struct.Struct("<BBh")
_CHUNKS = struct.Struct("<HH")
_LANES = (1, 4, 16)
_LANES_FROM_BYTES = (0, 4096, 65_536)
_GROUPED = 4
_PASSES = 3  # of looking for factors, each at the slope that those of the last have left
WORTH_GROUPING, WORTH_FACTORS = 0.97, 0.98


@dataclass(frozen=True, slots=True)
class Lead:
    """Factors that travel with a vector, ``numbers`` what of them is coded, and the classes of its chunks."""

    factors: Factors
    numbers: Vector
    classes: Ints


@dataclass(frozen=True, slots=True)
class Subject:
    """What is encoded: a vector, or what a ``lead`` leaves of it."""

    vector: Vector
    chunks: Chunks
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
        return Levels(sizes, self.reference - block_scales.octaves_below(self.coarse[alive]), true)

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


def _chunk_levels(subject: Subject) -> Levels:
    sizes = subject.chunks.sizes(subject.vector.size)
    return levels_of(energies(subject.vector, sizes)[0], sizes)


def prospect(subject: Subject, sizes: Ints, energy: Doubles) -> Prospect | None:
    """Return what grouping chunks of these sizes and energies would give; None if they are all of one class."""
    classes = subject.lead.classes if subject.lead else grouping.classes_of(energy, sizes)
    if not subject.lead and (classes == classes[0]).all():
        return None
    count = np.bincount(classes, weights=sizes.astype(np.float64))
    total = np.bincount(classes, weights=energy)
    alive = total > 0
    levels = np.rint(UNITS / 2 * np.log2(total[alive] / count[alive])).astype(np.int64)
    return Prospect(sizes, classes, subject.chunks, Levels(count[alive].astype(np.int64), levels, levels))


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
    subjects = {i: Subject(x, chunks) for i, (x, _, chunks) in enumerate(parts) if i not in known}
    seeds, room = [seed for _, seed, _ in parts], most_bytes - sum(map(len, known.values()))
    budget = bits * sum(subject.vector.size for subject in subjects.values())
    surveys = {i: survey(subject) for i, subject in subjects.items()}
    plain = {i: way for i, (way, _) in surveys.items()}
    prospects = {i: found for i, (_, found) in surveys.items() if found}
    hoped = Levels.joined([(prospects.get(i) or way).levels for i, way in plain.items()])
    at_slope = slope.solve(budget, [hoped])
    worth = {i: to for i, to in prospects.items() if _worth_grouping(plain[i], to, at_slope)}
    led = _led(subjects, budget, at_slope, slope.error_at(at_slope, hoped), seeds)
    for choice in itertools.chain(_with_leads(led, plain, worth, budget), _without(plain, worth, budget)):
        if (written := _write_within(room, choice, seeds)) is not None:
            return [(known | written)[i] for i in range(len(parts))]
    raise CodecError(f"expected room for {len(subjects)} vectors at the coarsest steps, got {room} bytes")


def _with_leads(
    led: Mapping[int, Subject], plain: Mapping[int, Sketch], worth: Mapping[int, Prospect], budget: float
) -> Iterator[_Choice]:
    """Yield the way to send vectors after what leads them, if there is one."""
    if led:
        grouped = {i: regroup(plain[i].subject, to) for i, to in worth.items() if i not in led}
        after = {i: regroup(subject, to) for i, subject in led.items() if (to := survey(subject)[1])}
        yield _Choice.of({**plain, **grouped, **after}, budget)


def _without(plain: Mapping[int, Sketch], worth: Mapping[int, Prospect], budget: float) -> Iterator[_Choice]:
    """Yield the ways to send vectors as they are and grouped, the better one first."""
    choices = [_Choice.of(plain, budget)]
    if worth:
        grouped = {i: regroup(plain[i].subject, to) for i, to in worth.items()}
        choices.append(_Choice.of({**plain, **grouped}, budget))
    yield from sorted(choices, key=lambda choice: choice.error)


def _left_for_codes(budget: float, ways: Mapping[int, Sketch]) -> float:
    """Return what is left of ``budget`` when grouping and factors have been paid."""
    extra = sum(way.side_bytes - side_bytes(way.vector.size) for way in ways.values())
    return budget - 8 * extra - sum(way.factor_bits for way in ways.values())


def _led(
    subjects: Mapping[int, Subject], budget: float, at_slope: int, error: float, seeds: Sequence[int]
) -> dict[int, Subject]:
    """Return those of ``subjects`` that have factors worth their bits, as what these leave of them; none if all of them
    would not save 2 % of ``error``, which is expected at ``at_slope`` without."""
    shapes = {i: shape_of(subject.chunks, subject.vector.size) for i, subject in subjects.items()}
    searches = {i: Search(subjects[i].vector, subjects[i].chunks, shape) for i, shape in shapes.items() if shape}
    others = [_chunk_levels(subject) for i, subject in subjects.items() if i not in searches]
    for _ in range(_PASSES):
        for search in searches.values():
            search.extend(at_slope)
        if not any(search.rank for search in searches.values()):
            return {}
        spent = sum(search.bits for search in searches.values())
        levels = Levels.joined([*(search.levels for search in searches.values()), *others])
        last, at_slope = at_slope, slope.solve(budget - spent, [levels])
        if at_slope > last - UNITS // 16:
            break
    if slope.error_at(at_slope, levels) > WORTH_FACTORS * error:
        return {}
    led = {}
    for i, search in searches.items():
        classes = grouping.classes_of(search.energy, search.sizes)
        if found := search.factors(at_slope, classes):
            rest = subjects[i].vector.copy()
            with np.errstate(over="ignore"):
                rest[search.shape.where] -= predict(*found, seeds[i])
            if np.isfinite(rest).all():
                led[i] = Subject(rest, subjects[i].chunks, Lead(*found, classes))
    return led


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to send an update. At the lowest rates, to say of which class each chunk is may take more than there is,
    so what grouping gives is compared once more when all of it is known."""

    ways: Mapping[int, Sketch]
    budget: float
    at_slope: int
    error: float  # that is expected; inf if the codes cannot have so few bits

    @classmethod
    def of(cls, ways: Mapping[int, Sketch], budget: float) -> _Choice:
        """Return ``ways`` with ``budget`` bits for codes, and for what grouping and factors need beside them."""
        budget = _left_for_codes(budget, ways)
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
    lead = sketch.subject.lead
    factors = lead.factors if lead else None
    blocks = _blocks(sketch.cut, float(sketch.top), sketch.coarse, relative, factors)
    expected = (slope.bits_at(relative + sketch.reference, [sketch.levels]) + sketch.factor_bits) / 8
    index, lanes = _lanes_for(expected)
    flags = index | (_GROUPED if sketch.order is not None else 0)
    head = _HEAD.pack(FACTORED_VERSION if lead else VERSION, flags, relative)
    vector, coded = sketch.vector, blocks
    if lead:
        vector, coded = np.concatenate([lead.numbers, vector]), Blocks.joined(lead.factors.blocks, blocks)
    codes, products = encode_blocks(vector, coded, seed, lanes)
    products = products[products.size - blocks.sizes.size :]
    fine = block_scales.fine(sketch.energy, products, sketch.cut.sizes, blocks.sigma, blocks.steps, seed)
    return head + sketch.head + block_scales.pack(sketch.top, sketch.coarse, fine) + codes


def write_raw(x: Vector) -> bytes:
    """Return the payload of fewer than 32 finite coordinates.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    check_finite(x)
    return bytes([VERSION]) + x.astype("<f4").tobytes()


def _blocks(cut: Cut, top: float, coarse: Ints, relative: int, factors: Factors | None) -> Blocks:
    """Return how each block that is not zero is coded; both ends compute it from the same integers."""
    sigma = block_scales.sigma_of(top, coarse)
    steps = slope.steps_of(relative, -block_scales.octaves_below(coarse))
    low = gaussian.low_bits(steps)
    numbers = cut.numbers + (factors.numbers if factors else 0)
    return Blocks(cut.sizes, numbers, sigma, steps, low, gaussian.class_of(steps, low))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A payload taken apart: everything but the codes."""

    order: Ints | None
    factors: Factors | None
    blocks: Blocks  # but those of factors
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
    version, flags, relative = _HEAD.unpack_from(data)
    if flags & ~(_GROUPED | 3) or flags & 3 >= len(_LANES) or (version == FACTORED_VERSION and not flags & _GROUPED):
        raise CodecError(f"expected flags of 1, 4 or 16 lanes, grouped or not, got {flags:#x}")
    order, cut, factors, start = None, grouping.cut([size]), None, _HEAD.size
    if flags & _GROUPED:
        chunks, classes, start = _read_classes(data, size)
        sizes = chunks.sizes(size)
        order, cut = grouping.order_of(classes, sizes), grouping.cut(grouping.runs_of(classes, sizes))
        if version == FACTORED_VERSION:
            factors, start = read_factors(data, start, shape_of(chunks, size), classes)
    count = cut.sizes.size
    top, coarse, fine = block_scales.read(data, count, start)
    blocks = _blocks(cut, top, coarse, relative, factors)
    multiplier = block_scales.multipliers(blocks.sigma, blocks.steps, cut.sizes, fine)
    return Parsed(order, factors, blocks, multiplier, _LANES[flags & 3], start + block_scales.size_bytes(count))


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
    if parsed.order is not None:
        x = np.empty_like(x)
        x[parsed.order] = all_of_it[ahead:]
    if factors:
        there = factors.form.shape.where
        x[there] = np.clip(x[there].astype(np.float64) + factors.product(all_of_it[:ahead]), -LARGEST, LARGEST)
    return x


def add(data: bytes, size: int, seed: int, received: Mask | None, weight: float, out: Sum) -> None:
    """Add ``weight`` times what :func:`read` returns to ``out``; raises as it does, with ``out`` as it was."""
    if size < SMALLEST_ROTATED:
        return add_weighted(weight, _read_raw(data, size, received), out)
    parsed = parse(data, size)
    if parsed.order is not None or parsed.factors:
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
    return math.fsum(energy * gaussian.error_of(blocks.steps)) / total if total > 0 else 0.0


def _read_raw(data: bytes, size: int, received: Mask | None) -> Vector:
    if len(data) != 1 + 4 * size:
        raise CodecError(f"expected {1 + 4 * size} bytes for {size} coordinates, got {len(data)}")
    x: Vector = np.frombuffer(data, "<f4", size, 1).astype(np.float32)
    if not np.isfinite(x).all():
        raise CodecError(f"expected finite raw coordinates, got {x[~np.isfinite(x)][0]}")
    return x if received is None else drop_and_rescale(x, received)
