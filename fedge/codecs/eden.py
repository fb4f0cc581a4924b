"""EDEN: an unbiased estimate of a vector at any number of bits per coordinate from 0.05 to 8.

Rotate at random, so that every coordinate looks Gaussian; quantize with the Lloyd-Max quantizer of N(0, 1); send one
scale. Vargaftik et al., EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated Learning,
ICML 2022 (https://arxiv.org/abs/2108.08842). Here the rotation acts on blocks of 4096 coordinates (``rotation.py``),
each with a scale of its own, and nothing is padded. The relative squared error does not depend on the vector:

    bits      0.1    0.5    1      2      3       4        8          1.3    1.6    2.3     2.6     3.6
    vNMSE     14.7   2.14   .571   .133   .0358   .0096    4.12e-5    .383   .235   .0962   .0615   .0166

and errors of different seeds are independent, so the mean over n devices has 1/n of it.

Codes take 1, 1.6, 2, 2.6, .. 8 bits. At rates between, some coordinates have the longer and some the shorter ones, and
vNMSE/(1 + vNMSE) is linear in b (``plan.py``).

That is ``coding="fixed"``, whose length is known beforehand. With ``coding="entropy"`` levels are uniform and range
coded, and blocks get their rates by equal slope: the same bits where all blocks are alike, and then

    vNMSE     9.93   1.61   .535   .0976   .0227   .00559   2.17e-5

a fifth less below a bit where there is time to look for directions, and several times less on real updates
(``entropy.py``). A payload says itself which it is; either object reads both.

Layout of the fixed form, little-endian, F full blocks, then a last block of r = n mod 4096 coordinates ("tail" if
r >= 32); version 4, which is written where b > 1 is no whole number, has two tails instead where that would leave
fewer than 32. Version 7, which is written at 1, 2, 3 and 4 bits where there are full blocks, has these rotated in whole
numbers, with levels and an order of codes of its own (``whole.py``):

    version u8 = 1, 4 or 7
    scales     no rotated block: nothing; one: scale f32; several: top f32 | code u16 per block
    codes      per block: wide codes, then narrow codes (``plan.py`` says how many, ``packing.py`` their order)
    raw        r × f32 if r < 32

A scale code 0 is a block of zeros; otherwise, e its upper 5 bits and m its lower 11,
scale = top · 2^(e-31) · (1 + m/2048), rounded up or down at random (by the seed) so that its expectation is exact.
The largest scale has code 65535; blocks whose scale is 2^-32 of it or less become zeros. Scales are S/32 (``twin.py``).

Transmission order, which ``received`` follows, goes through the positions 0 .. 4095 and at each through all blocks
that reach so far: B of them, beginning with block  word_p(seed 0) mod B  (fedge.seeds). Position p of a block is its
p-th code (p-th coordinate if raw). So any contiguous burst hits all blocks alike, and so does any
stride. Coordinates that the rate leaves unsent have entries too; they are not read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs import entropy, lloyd, sharing, twin, whole
from fedge.codecs.base import (
    Mask,
    Part,
    Sum,
    Vector,
    add_weighted,
    as_mask,
    as_vector,
    check_finite,
    check_size,
    check_sum,
    drop_and_rescale,
)
from fedge.codecs.grouping import Chunks
from fedge.codecs.native import kernels
from fedge.codecs.plan import SMALLEST_ROTATED, WHOLE, Plan, Run, plan, versions
from fedge.codecs.rotation import BLOCK
from fedge.errors import CodecError

LOWEST_BITS, HIGHEST_BITS = 0.05, 8.0
CODINGS = ("fixed", "entropy")
LUCK, MODEL = 1.5, 0.001  # bits beside what codes cost on average: of the draw, and of coordinates nearly Gaussian
MOST_BYTES_OF_ONE, SLACK_BYTES = 4, 64  # of an entropy-coded coordinate, and of a payload beside
_SEEDS = 1 << 64
_REPLACE, _ADD_TO_FLOAT32, _ADD_TO_FLOAT64 = range(3)  # what the extension does with decoded coordinates
_GAINS = np.array([lloyd.gain(width) for width in lloyd.WIDTHS])


@dataclass(frozen=True, slots=True)
class Eden:
    """EDEN at ``bits`` per coordinate, any real number from 0.05 to 8, ``coding`` "fixed" or "entropy"."""

    code: ClassVar[int] = 1

    bits: float = 1.0
    coding: Literal["fixed", "entropy"] = "fixed"

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, (int, float)) and LOWEST_BITS <= self.bits <= HIGHEST_BITS):
            raise CodecError(f"expected {LOWEST_BITS:g} to {HIGHEST_BITS:g} bits per coordinate, got {self.bits!r}")
        if self.coding not in CODINGS:
            raise CodecError(f"expected a coding of {' or '.join(CODINGS)}, got {self.coding!r}")

    @property
    def name(self) -> str:
        """ "eden", or "eden-entropy", as the table of codecs has it."""
        return "eden" if self.coding == "fixed" else "eden-entropy"

    @classmethod
    def at_rate(cls, bits: float) -> Self:
        """Return fixed-rate EDEN at ``bits`` per coordinate."""
        return cls(bits)

    @classmethod
    def entropy_coded(cls, bits: float) -> Self:
        """Return entropy-coded EDEN at ``bits`` per coordinate."""
        return cls(bits, "entropy")

    def encode(self, x: npt.ArrayLike, seed: int) -> bytes:
        """Encode ``x``, shape ``[d]``, any real dtype; ``d = 0`` gives the version byte alone.

        It is not looked at thoroughly: low rank and directions are what :meth:`encode_all` looks for.

        Raises:
            CodecError: if ``x`` has not one axis, or a coordinate is not finite in float32 (names the first).
            TypeError: if ``seed`` is not a whole number.
        """
        return self.encode_all([Part(as_vector(x), seed, thorough=False)])[0]

    def encode_all(self, parts: Sequence[Part]) -> list[bytes]:
        """Encode vectors together: with entropy coding they share the bits by equal slope.

        Raises:
            CodecError: as :meth:`encode`.
        """
        vectors = [as_vector(part.vector) for part in parts]
        if self.coding == "fixed":
            return [self._encode_fixed(x, _in_stream(part.seed)) for x, part in zip(vectors, parts, strict=True)]
        most = sum(self.size_bytes(x.size) for x in vectors)
        seeded = [(x, _in_stream(p.seed), Chunks(*p.rows), p.thorough) for x, p in zip(vectors, parts, strict=True)]
        return sharing.encode_together(seeded, self.bits, most)

    def _encode_fixed(self, vector: Vector, seed: int) -> bytes:
        shape = plan(self.bits, vector.size)
        if kernels is None:
            check_finite(vector)
            return twin.encode(vector, shape, seed)
        data: bytes | None = kernels.encode(vector, seed, shape.size_bytes, *shape.runs, lloyd.TABLES)
        if data is None:
            check_finite(vector)
            raise CodecError("the vector changed while it was being encoded")
        return data

    def decode(self, data: bytes, size: int, seed: int, received: Mask | None = None) -> Vector:
        """Decode a payload of ``size`` coordinates into float32 ``[size]``, always finite.

        ``received``: bool ``[size]``, in transmission order (see the module); what is missing counts as zero and
        each block is scaled up by sent/received. A block of which nothing came is zero.

        Raises:
            CodecError: if ``data`` is not a payload of this size and rate, or the mask does not fit.
        """
        self.check(data, size)
        if data[0] in entropy.VERSIONS:
            return entropy.read(data, size, _in_stream(seed), None if received is None else as_mask(received, size))
        shape, mask = self._checked(data, size, received)
        if kernels is None:
            x = twin.decode(data, shape, _in_stream(seed), mask)
        else:
            x = np.empty(size, dtype=np.float32)
            kernels.decode(data, x, size, _REPLACE, 1.0, _in_stream(seed), *shape.runs, lloyd.TABLES, _GAINS, mask)
        if shape.raw:
            x[-shape.raw :] = _raw(data, shape, mask)
        return x

    def accumulate(
        self, data: bytes, size: int, seed: int, weight: float, out: Sum, received: Mask | None = None
    ) -> None:
        """Add ``weight`` times the decoded vector to ``out``, float32 or float64 ``[size]``, in place.

        The same numbers as ``out += np.float64(weight) * decode(...)``, without a vector in between: what a server
        does with every update. In a float32 sum, large weights may overflow to inf.

        Raises:
            CodecError: as :meth:`decode`, or if ``weight`` is not finite, or ``out`` not a contiguous, writeable
                vector of this size. ``out`` is then left as it was.
        """
        self.check(data, size)
        check_sum(weight, out, size)
        if data[0] in entropy.VERSIONS:
            mask = None if received is None else as_mask(received, size)
            return entropy.add(data, size, _in_stream(seed), mask, weight, out)
        shape, mask = self._checked(data, size, received)
        if kernels is None:
            twin.accumulate(data, shape, _in_stream(seed), mask, weight, out)
        else:
            target = _ADD_TO_FLOAT64 if out.dtype == np.float64 else _ADD_TO_FLOAT32
            kernels.decode(data, out, size, target, weight, _in_stream(seed), *shape.runs, lloyd.TABLES, _GAINS, mask)
        if shape.raw:
            add_weighted(weight, _raw(data, shape, mask), out[-shape.raw :])
        return None

    def check(self, data: bytes, size: int) -> None:
        """Raise :class:`CodecError` unless ``data`` has the length of a payload of ``size`` coordinates.

        That of fixed-rate payloads follows from size and rate. Entropy-coded ones of one update share its bits, so
        one alone may have more than :meth:`size_bytes`; none is longer than the coordinates themselves would be, or
        so short that it could not hold a scale for each block.
        """
        check_size(size)
        if data and data[0] in entropy.VERSIONS:
            least, most = entropy.least_bytes(size), MOST_BYTES_OF_ONE * size + SLACK_BYTES
            if not least <= len(data) <= most:
                raise CodecError(f"expected {least} to {most} bytes for {size} coordinates, got {len(data)}")
            return
        expected = self._plan_of(data, size).size_bytes
        if len(data) != expected:
            rate = f"{size} coordinates at {self.bits:g} bits"
            raise CodecError(f"expected {expected} bytes for {rate}, got {len(data)}")

    def _checked(self, data: bytes, size: int, received: Mask | None) -> tuple[Plan, Mask | None]:
        """Return the payload's shape and the mask in block order; :class:`CodecError` if anything does not fit."""
        shape = self._plan_of(data, size)
        if data[0] != shape.version:
            *known, last = sorted((*entropy.VERSIONS, *versions(self.bits, size)))
            one_of = f"{', '.join(map(str, known))} or {last}"
            raise CodecError(f"expected EDEN payload version {one_of}, got {data[0]}")
        _check_numbers(data, shape)
        return shape, None if received is None else block_order(as_mask(received, size), shape)

    def _plan_of(self, data: bytes, size: int) -> Plan:
        """The shape that the payload says it has if it can have it, else that of the payloads written here."""
        known = versions(self.bits, size)
        return plan(self.bits, size, data[0] if data and data[0] in known else known[0])

    def error(self, data: bytes, size: int) -> float:
        """Return A of a payload: E||x_hat - x||² = A·||x||² over seeds.

        Fixed rate: 1/(p·(1 - D)) - 1, p the share of coordinates sent and D their quantizer's error, whatever the
        numbers in ``data``; that is D/(1 - D) from one bit on, π/(2b) - 1 below. Entropy-coded: from scales and slope.

        Raises:
            CodecError: an entropy-coded payload that cannot be taken apart.
        """
        if data and data[0] in entropy.VERSIONS:
            return entropy.error(data, size)
        shape = self._plan_of(data, size)
        if shape.version == WHOLE:
            full = 1 / whole.GAINS[shape.full_run.width - 1] - 1
        else:
            full = _run_error(shape.full_run, BLOCK) if shape.blocks else 0.0
        tails = (n * _run_error(run, n) for n, run in zip(shape.tails, shape.tail_runs, strict=True))
        return (shape.blocks * BLOCK * full + sum(tails)) / max(size, 1)

    def size_bytes(self, size: int) -> int:
        """The most bytes that ``size`` coordinates take; with fixed rate, exactly what they take.

        Fixed: at most ``(bits + .0045)·size/8 + 16`` and raw ones. Entropy-coded: codes of ``bits`` on average, room
        for the luck of the draw, 1.5·√size + size/1000 bits, and what travels beside them.
        """
        if self.coding == "fixed":
            return plan(self.bits, size).size_bytes
        codes = math.floor(((self.bits + MODEL) * size + LUCK * math.sqrt(size)) / 8)
        coded = size >= SMALLEST_ROTATED
        return entropy.side_bytes(size) + (codes + entropy.lane_bytes(codes) + 2 if coded else 0)


def _in_stream(seed: int) -> int:
    """Any whole number, NumPy's too, as the 64 bits of a seed; TypeError if it is none."""
    return operator.index(seed) % _SEEDS


def _run_error(run: Run, size: int) -> float:
    captured = sum((stop - start) * lloyd.gain(width) for start, stop, width in run.parts)
    return size / captured - 1.0


def _raw(data: bytes, shape: Plan, mask: Mask | None) -> Vector:
    """The raw coordinates at the payload's end."""
    raw: Vector = np.frombuffer(data, "<f4", shape.raw, len(data) - 4 * shape.raw)
    return raw if mask is None else drop_and_rescale(raw, mask[-shape.raw :])


def block_order(received: Mask, shape: Plan) -> Mask:
    """Bring a mask from transmission order, bool ``[size]``, into the order of blocks."""
    if shape.blocks == 0 and len(shape.sizes) < 2:
        return received
    out = np.empty_like(received)
    full = out[: shape.blocks * BLOCK].reshape(shape.blocks, BLOCK)
    shorter = np.split(out[shape.blocks * BLOCK :], np.cumsum(shape.sizes)[:-1])
    first = taken = 0
    for end in sorted({*shape.sizes, BLOCK} if shape.blocks else {*shape.sizes}):
        reaching = [part for part in shorter if part.size >= end]
        blocks = shape.blocks + len(reaching)
        count = (end - first) * blocks
        dealt = _deal(received[taken : taken + count].reshape(end - first, blocks), first)
        full[:, first:end] = dealt[:, : shape.blocks].T
        for k, part in enumerate(reaching, shape.blocks):
            part[first:end] = dealt[:, k]
        first, taken = end, taken + count
    return out


def _deal(received: Mask, position: int) -> Mask:
    """Turn each row of ``received``, shape ``[positions, B]``, so that column k is block k. ``position`` is the
    first row's."""
    count, blocks = received.shape
    start = (seeds.words(position * seeds.GAMMA, count) % np.uint64(blocks)).astype(np.int64)
    return np.take_along_axis(received, (np.arange(blocks) - start[:, None]) % blocks, axis=1)


def _check_numbers(data: bytes, shape: Plan) -> None:
    """Raise :class:`CodecError` unless scale and raw coordinates can come from an encoder."""
    if shape.scales:
        scale = float(np.frombuffer(data, "<f4", 1, 1)[0])
        if not (math.isfinite(scale) and math.copysign(1.0, scale) > 0):  # -0.0 too: no encoder writes it
            raise CodecError(f"expected a scale that is finite and not negative, got {scale}")
    if shape.raw:
        raw = np.frombuffer(data, "<f4", shape.raw, len(data) - 4 * shape.raw)
        if not np.isfinite(raw).all():
            raise CodecError(f"expected finite raw coordinates, got {raw[~np.isfinite(raw)][0]}")
