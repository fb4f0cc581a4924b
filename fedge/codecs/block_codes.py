"""Blocks of coordinates to what travels of them and back: the part of ``entropy.py`` that takes time.

Blocks of which levels are sent become range-coded multiples of their steps, the others words of directions:

    words u16 of every group (``spherical.py``)  |  low bits, packed  |  states u32, words u16 (``rans.py``)

each for all blocks of their kind in order. In NumPy here, and in C in ``kernels``; the same bytes and the same floats.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.codecs import gaussian, packing, quantizers, rans, rotation, spherical
from fedge.codecs.base import LARGEST, Mask, Sum, Vector, add_weighted
from fedge.codecs.gaussian import Doubles, Ints
from fedge.codecs.native import kernels
from fedge.codecs.rotation import BLOCK, Workspace
from fedge.codecs.twin import lane_product
from fedge.errors import CodecError

_REPLACE, _ADD_TO_FLOAT32, _ADD_TO_FLOAT64 = range(3)  # what the extension does with decoded coordinates
_NO_RUNS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How each block of a vector is coded, one entry a block; a block with ``sigma`` 0 is not.

    ``steps`` says how finely, t of ``quantizers.py`` relative to sigma: into how many ``groups`` a block is cut whose
    directions are sent, or the distance between levels, where that is 0. Of levels, ``low`` is how many bits of their
    multiples travel as they are, ``klass`` the frequencies of the rest.
    """

    sizes: Ints
    numbers: Ints
    sigma: Doubles
    steps: Ints
    groups: Ints
    low: Ints
    klass: Ints

    @classmethod
    def of(cls, sizes: Ints, numbers: Ints, sigma: Doubles, steps: Ints) -> Blocks:
        """Return blocks with all that follows from their steps."""
        low, groups = quantizers.low_bits(steps), quantizers.groups_of(steps, sizes)
        return cls(sizes, numbers, sigma, steps, groups, low, quantizers.class_of(steps, low))

    @property
    def levels(self) -> Mask:
        """Which blocks travel as levels."""
        chosen: Mask = (self.sigma > 0) & (self.groups == 0)
        return chosen

    @property
    def directions(self) -> Mask:
        """Which blocks travel as directions."""
        chosen: Mask = (self.sigma > 0) & (self.groups > 0)
        return chosen

    def places(self, chosen: Mask) -> Iterator[tuple[int, slice]]:
        """Yield number in the list and coordinates of every ``chosen`` block."""
        stops = np.cumsum(self.sizes)
        for k in np.flatnonzero(chosen):
            yield int(k), slice(int(stops[k] - self.sizes[k]), int(stops[k]))

    @classmethod
    def joined(cls, first: Blocks, second: Blocks) -> Blocks:
        """Return the blocks of both, those of ``first`` before those of ``second``."""
        pairs = ((getattr(first, part.name), getattr(second, part.name)) for part in fields(cls))
        return cls(*(np.concatenate(pair) for pair in pairs))

    @property
    def shift(self) -> Ints:
        """The power of two, -126 .. 126, that brings each block's coordinates near 1."""
        shift: Ints = np.clip(-np.frexp(self.sigma)[1].astype(np.int64), -126, 126)
        return shift

    @property
    def magnification(self) -> Doubles:
        """How much longer rotated, shifted coordinates are than they should be."""
        length = np.where(self.sizes == BLOCK, float(BLOCK), 1.0)
        return np.ldexp(length, self.shift)

    @property
    def inverse(self) -> Vector:
        """What a rotated, shifted coordinate is multiplied by to count steps, float32."""
        with np.errstate(divide="ignore", over="ignore"):
            step = self.sigma * quantizers.step_size(self.steps)
            inverse: Vector = (1 / (step * self.magnification)).astype(np.float32)
        return inverse


def energies(x: Vector, sizes: Ints, more: Ints = _NO_RUNS) -> tuple[Doubles, Doubles]:
    """Return the energy Σ x² of consecutive runs of ``sizes`` coordinates, float64, summed over 16 lanes; and of other
    runs of the same coordinates, ``more``, without reading them from memory twice."""
    if kernels is None:
        return _energies(x, sizes), _energies(x, more)
    found, others = np.empty(sizes.size), np.empty(more.size)
    kernels.energies(x, sizes, found, more, others)
    return found, others


def _energies(x: Vector, sizes: Ints) -> Doubles:
    found = np.empty(sizes.size)
    start, edges = 0, np.flatnonzero(np.diff(sizes, prepend=-1, append=-1))
    with np.errstate(over="ignore", invalid="ignore"):
        for first, last in itertools.pairwise(edges.tolist()):
            size = int(sizes[first])
            per = max(1, (1 << 16) // size)
            for k in range(first, last, per):
                rows = min(per, last - k)
                wide = np.ascontiguousarray(x[start : start + rows * size].reshape(rows, size).T.astype(np.float64))
                found[k : k + rows] = lane_product(wide, wide)
                start += rows * size
    return found


def encode_blocks(x: Vector, blocks: Blocks, seed: int, lanes: int) -> tuple[bytes, Doubles]:
    """Return what travels of ``x``, float32 ``[n]`` in sending order, and <y, q> of every block.

    y is the rotated block, q its multiples of the step or ±1; the product is in the units of x. ``lanes`` of the range
    coder, 0 where no block has levels.
    """
    products = np.zeros(blocks.sizes.size)
    said = _encode_directions(x, blocks, seed, products)
    return said + (_encode_levels(x, blocks, seed, lanes, products) if lanes else b""), products / blocks.magnification


def _encode_levels(x: Vector, blocks: Blocks, seed: int, lanes: int, products: Doubles) -> bytes:
    if kernels is not None:
        found = np.zeros(int(np.count_nonzero(blocks.levels)))
        arrays = _arrays(blocks, blocks.levels, blocks.inverse)
        data: bytes = kernels.encode_codes(x, seed, lanes, *arrays, *_kinds(blocks), found)
        products[blocks.levels] = found
        return data
    raw: list[bytes] = []
    codes: list[tuple[Ints, int]] = []
    shift, inverse, work = blocks.shift, blocks.inverse, Workspace(1)
    for k, here in blocks.places(blocks.levels):
        y = _rotate(x[here] * np.ldexp(np.float32(1), shift[k]), seed, int(blocks.numbers[k]), work)
        low, klass = int(blocks.low[k]), int(blocks.klass[k])
        half = (1 << low) >> 1
        most = rans.tables(klass).last << low
        rounded = np.clip(np.rint(y * inverse[k]), -most - half, most + max(half - 1, 0))
        products[k] = lane_product(y[:, None].astype(np.float64), rounded[:, None].astype(np.float64))[0]
        levels = rounded.astype(np.int64) + half
        codes.append((levels >> low, klass))
        if low:
            rest = (levels & ((1 << low) - 1)).astype(np.uint8)
            raw.append(packing.pack(rest[:, None], low).tobytes())
    return b"".join(raw) + rans.encode(codes, lanes)


def _encode_directions(x: Vector, blocks: Blocks, seed: int, products: Doubles) -> bytes:
    chosen = blocks.directions
    if not chosen.any():
        return b""
    if kernels is not None:
        words = np.empty(int(blocks.groups[chosen].sum()), "<u2")
        found = np.zeros(int(np.count_nonzero(chosen)))
        arrays = _arrays(blocks, chosen, blocks.inverse)
        kernels.encode_directions(x, seed, *arrays, blocks.groups[chosen], spherical.signs(), words, found)
        products[chosen] = found
        return words.tobytes()
    said, shift, work = list[bytes](), blocks.shift, Workspace(1)
    for k, here in blocks.places(chosen):
        y = _rotate(x[here] * np.ldexp(np.float32(1), shift[k]), seed, int(blocks.numbers[k]), work)
        of_block, q = spherical.encode(y, int(blocks.groups[k]))
        products[k] = lane_product(y[:, None].astype(np.float64), q[:, None].astype(np.float64))[0]
        said.append(of_block.astype("<u2").tobytes())
    return b"".join(said)


def decode_blocks(
    data: bytes,
    blocks: Blocks,
    multiplier: Vector,
    seed: int,
    lanes: int,
    received: Mask | None,
    out: Sum,
    weight: float | None,
) -> None:
    """Decode into ``out``, ``[n]`` in sending order, or add ``weight`` times it. What no block codes is left alone.

    ``multiplier``: what each block's multiples are worth. ``received``: bool ``[n]``, in sending order.

    ``data``: words of directions, low bits, states and words.

    Raises:
        CodecError: ``data`` does not end where the codes do; ``out`` is as it was.
    """
    said = 2 * int(blocks.groups[blocks.directions].sum())
    if len(data) < said or (lanes == 0 and (len(data) > said or blocks.levels.any())):
        raise CodecError(f"expected {said} bytes of directions{' and codes' if lanes else ''}, got {len(data)} bytes")
    onto = _Target(multiplier, seed, received, out, weight)
    if lanes:
        _decode_levels(data[said:], blocks, lanes, onto)
    if said:
        _decode_directions(data[:said], blocks, onto)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where decoded blocks go, and how: the arguments of :func:`decode_blocks`."""

    multiplier: Vector
    seed: int
    received: Mask | None
    out: Sum
    weight: float | None

    @property
    def how(self) -> tuple[Sum, int, float, int]:
        """What the C extension wants to know."""
        if self.weight is None:
            return self.out, _REPLACE, 1.0, self.seed
        return self.out, _ADD_TO_FLOAT64 if self.out.dtype == np.float64 else _ADD_TO_FLOAT32, self.weight, self.seed

    def take(self, blocks: Blocks, k: int, here: slice, values: Vector, work: Workspace) -> None:
        """Hand over block k, whose multiples are ``values``."""
        factor = self.multiplier[k]
        if self.received is not None:
            values = np.where(self.received[here], values, np.float32(0))
            factor = _for_loss(factor, self.received[here])
        x = _unrotate(values, self.seed, int(blocks.numbers[k]), work)
        with np.errstate(over="ignore"):
            x = np.clip(x * factor, -LARGEST, LARGEST)
        if self.weight is None:
            self.out[here] = x
        else:
            add_weighted(self.weight, x, self.out[here])


def _decode_levels(data: bytes, blocks: Blocks, lanes: int, onto: _Target) -> None:
    if kernels is not None:
        arrays = _arrays(blocks, blocks.levels, onto.multiplier)
        if not kernels.decode_codes(data, *onto.how, lanes, *arrays, *_kinds(blocks), onto.received):
            raise CodecError(f"expected codes that end where the payload does, got {len(data)} bytes of others")
        return
    raw, start = _read_low(data, blocks)
    work = Workspace(1)
    shape = [(here.stop - here.start, int(blocks.klass[k])) for k, here in blocks.places(blocks.levels)]
    codes = rans.decode(data[start:], shape, lanes)
    for (k, here), code in zip(blocks.places(blocks.levels), codes, strict=True):
        low = int(blocks.low[k])
        levels = (code << low) - ((1 << low) >> 1) + raw[k] if low else code
        onto.take(blocks, k, here, levels.astype(np.float32), work)


def _decode_directions(data: bytes, blocks: Blocks, onto: _Target) -> None:
    chosen, words = blocks.directions, np.frombuffer(data, "<u2")
    if kernels is not None:
        arrays = _arrays(blocks, chosen, onto.multiplier)
        groups = (blocks.groups[chosen], spherical.signs())
        kernels.decode_directions(words, *onto.how, *arrays, *groups, onto.received)
        return
    work, first = Workspace(1), 0
    for k, here in blocks.places(chosen):
        stop = first + int(blocks.groups[k])
        onto.take(blocks, k, here, spherical.decode(words[first:stop], here.stop - here.start), work)
        first = stop


def _arrays(blocks: Blocks, chosen: Mask, scale: Vector) -> tuple[npt.NDArray[Any], ...]:
    """The ``chosen`` blocks as the C extension takes them; ``scale`` is what it multiplies by last."""
    coded = np.flatnonzero(chosen)
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    factor = np.ldexp(np.float32(1), blocks.shift)
    return tuple(array[coded] for array in (starts, blocks.sizes, blocks.numbers, factor, scale))


def _kinds(blocks: Blocks) -> tuple[npt.NDArray[Any], ...]:
    """The levels of all blocks that have any, as the C extension takes them."""
    coded = np.flatnonzero(blocks.levels)
    return blocks.low[coded].astype(np.uint8), blocks.klass[coded].astype(np.uint8), _frequencies()


@functools.cache
def _frequencies() -> npt.NDArray[np.uint16]:
    return gaussian.frequencies().of.astype(np.uint16)


def _for_loss(factor: np.float32, received: Mask) -> np.float32:
    came = int(np.count_nonzero(received))
    return np.float32(np.clip(float(factor) * (received.size / came), -LARGEST, LARGEST)) if came else np.float32(0)


def _read_low(data: bytes, blocks: Blocks) -> tuple[dict[int, Ints], int]:
    """Return the low bits of the blocks that have them, and where they end."""
    found, start = {}, 0
    for k, here in blocks.places(blocks.levels):
        low, count = int(blocks.low[k]), here.stop - here.start
        if low:
            stop = start + packing.packed_bytes(count, low)
            if stop > len(data):
                raise CodecError(f"expected at least {stop} bytes of low bits, got {len(data)}")
            packed = np.frombuffer(data, np.uint8, stop - start, start)[:, None]
            found[k], start = packing.unpack(packed, count, low)[:, 0].astype(np.int64), stop
    return found, start


def _rotate(x: Vector, seed: int, number: int, work: Workspace) -> Vector:
    if x.size == BLOCK:
        work.x[:, 0] = x
        work.rotate(rotation.block_lanes(seed, number, 1))
        return work.x[:, 0]
    return rotation.rotate_tail(x, seed, number)


def _unrotate(y: Vector, seed: int, number: int, work: Workspace) -> Vector:
    if y.size == BLOCK:
        np.multiply(y, np.float32(1 / BLOCK), out=work.x[:, 0])
        work.unrotate(rotation.block_lanes(seed, number, 1))
        return work.x[:, 0]
    return rotation.unrotate_tail(y, seed, number)
