"""The bytes of M22: kept coordinates as positions, signs and cells of magnitude, with the codebook beside them.

Layout, little-endian, for n coordinates of which K are kept, each with one of 2^(R-1) magnitudes and a sign:

    version u8     1
    R u8           0: nothing is kept and nothing follows but A;  255: n × f32 follow, as they are (n < 32)
    A u8           relative squared error of the payload, in steps of an eighth of an octave (``error_of``)
    levels         2^(R-1) × u16, ascending (``pack_levels``)
    positions      which K of n: ``subset.py``
    signs          ⌈K/8⌉ bytes, coordinate i's is bit i mod 8 of byte ⌊i/8⌋: 1 is negative
    cells          R > 1 only: coder u8 and then which level each has; 0 packed, 1 peeled

*Packed* cells are codes of R - 1 bits (``fedge.codecs.packing``). *Peeled* ones are subsets: of all K which are above
the lowest level, of those which are above the second, and so on, 2^(R-1) - 1 times. Outer cells of a good quantizer are
rare, so that takes less: within 3 % of the entropy of the cells, never more than a byte or two above packed ones,
because the shorter of the two is taken. The wire bytes are

    3 + 2·2^(R-1) + positions + ⌈K/8⌉ + cells                                    (``Sizes``)

A level is 9 bits of exponent e and 7 of mantissa m: 2^(e - 150)·(1 + m/128), zero where e is 0. That is the precision
of bfloat16 over all magnitudes of float32, the subnormal ones included. The decoder needs no model, no table and no
logarithm, so it gives the same floats on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.codecs import packing
from fedge.codecs.base import LARGEST, Vector
from fedge.codecs.m22 import sparse, subset
from fedge.codecs.m22.prices import MOST_PEELED_BITS
from fedge.codecs.m22.sparse import Cells, Ints
from fedge.errors import CodecError

VERSION = 1
AS_THEY_ARE = 255
SMALLEST_CODED = 32  # coordinates; fewer travel as float32
MOST_LEVELS_BITS = 8
HEAD_BYTES = 3
PACKED, PEELED = 0, 1

Levels = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint16]

_MANTISSA_BITS = 7
_BIAS = 150
_STEPS_PER_OCTAVE = 8
_ZERO_ERROR = 192  # the code of A = 1
# 2^(k/8), literals so that both ends have the same bits on any machine.
_OCTAVE = (
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    1.4142135623730951,
    1.5422108254079407,
    1.6817928305074292,
    1.8340080864093424,
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a payload spends its bytes on; they add up to its length."""

    side: int
    positions: int
    values: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.side + self.positions + self.values


@dataclass(frozen=True, slots=True)
class CodedCells:
    """Cells on their way to bytes: ``peeled`` subsets, or packed as codes of ``width`` bits."""

    cells: Cells
    width: int
    peeled: tuple[subset.Subset, ...] | None
    size_bytes: int

    def to_bytes(self) -> bytes:
        """Return the coded cells, ``size_bytes`` long."""
        if self.width == 0:
            return b""
        if self.peeled is not None:
            return bytes([PEELED]) + b"".join(part.to_bytes() for part in self.peeled)
        return bytes([PACKED]) + packing.pack(self.cells[:, None], self.width).tobytes()


@dataclass(frozen=True, slots=True)
class Coded:
    """What is kept of one vector, on its way to bytes.

    ``negative`` bool ``[K]``; ``levels``, level codes uint16 ``[2^(R-1)]``, ascending. ``error``: ‖x̂ - x‖²/‖x‖².
    """

    levels_bits: int
    levels: Codes
    positions: subset.Subset
    negative: npt.NDArray[np.bool_]
    cells: CodedCells
    error: float

    @property
    def size_bytes(self) -> int:
        """The length of the payload."""
        signs = (self.negative.size + 7) // 8
        return side_bytes(self.levels_bits) + self.positions.size_bytes + signs + self.cells.size_bytes

    def to_bytes(self) -> bytes:
        """Return the payload, ``size_bytes`` long."""
        head = bytes([VERSION, self.levels_bits, error_code(self.error)]) + self.levels.astype("<u2").tobytes()
        signs = np.packbits(self.negative, bitorder="little").tobytes()
        return head + self.positions.to_bytes() + signs + self.cells.to_bytes()


@dataclass(frozen=True, slots=True)
class Nothing:
    """What is kept of a vector of which nothing is."""

    error: float
    size_bytes: int = HEAD_BYTES

    def to_bytes(self) -> bytes:
        """Return the payload."""
        return bytes([VERSION, 0, error_code(self.error)])


@dataclass(frozen=True, slots=True)
class Kept:
    """What a payload of ``size`` coordinates says that is kept.

    ``positions`` int64 ``[K]``, ascending; ``negative`` bool ``[K]``; ``cells`` uint8 ``[K]``, indices into ``levels``,
    level codes uint16 ``[2^(R-1)]``, ascending. ``error``: ‖x̂ - x‖²/‖x‖².
    """

    size: int
    levels_bits: int
    levels: Codes
    positions: Ints
    negative: npt.NDArray[np.bool_]
    cells: Cells
    error: float


def side_bytes(levels_bits: int) -> int:
    """Return what a payload takes beside positions, signs and cells: head and levels."""
    return HEAD_BYTES + 2 * (1 << (levels_bits - 1))


def take_apart(data: bytes, size: int) -> tuple[Kept, Sizes]:
    """Return what a payload of ``size`` coordinates, at least 32, keeps, and what it spends.

    Raises:
        CodecError: ``data`` is not such a payload, to the last byte.
    """
    levels_bits = _check_head(data)
    if levels_bits == 0:
        if len(data) != HEAD_BYTES:
            raise CodecError(f"expected {HEAD_BYTES} bytes where nothing is kept, got {len(data)}")
        nothing = np.empty(0, np.int64)
        flags, cells, codes = np.empty(0, np.bool_), np.empty(0, np.uint8), np.empty(0, np.uint16)
        return Kept(size, 0, codes, nothing, flags, cells, error_of(data)), Sizes(HEAD_BYTES, 0, 0)
    count = 1 << (levels_bits - 1)
    side = side_bytes(levels_bits)
    if len(data) < side:
        raise CodecError(f"expected {count} levels, got {len(data)} bytes in all")
    levels = np.frombuffer(data, "<u2", count, HEAD_BYTES).astype(np.uint16)
    if (levels[1:] < levels[:-1]).any() or int(levels[-1]) > HIGHEST_LEVEL:
        raise CodecError(f"expected ascending, finite levels, got codes {levels.tolist()[:4]} ..")
    positions, end = subset.read(data, side, size, bits_each=1)
    kept, length = positions.size, (positions.size + 7) // 8
    if end + length > len(data):
        raise CodecError(f"expected {kept} signs, got {len(data) - end} bytes")
    signs = np.unpackbits(np.frombuffer(data, np.uint8, length, end), bitorder="little")
    if signs[kept:].any():
        raise CodecError(f"expected {kept} signs, got more")
    cells, stop = _read_cells(data, end + length, kept, levels_bits)
    if stop != len(data):
        raise CodecError(f"expected {stop} bytes for {kept} kept coordinates, got {len(data)}")
    found = Kept(size, levels_bits, levels, positions, signs[:kept].astype(np.bool_), cells, error_of(data))
    return found, Sizes(side, end - side, stop - end)


def decode(data: bytes, size: int) -> Vector:
    """Return the vector that a payload of ``size`` coordinates stands for, float32 ``[size]``, always finite.

    Raises:
        CodecError: ``data`` is not such a payload, to the last byte.
    """
    if size < SMALLEST_CODED:
        return _read_as_they_are(data, size)
    kept, _ = take_apart(data, size)
    levels = unpack_levels(kept.levels).astype(np.float32)
    values: Vector = np.concatenate((levels, -levels)).take(kept.cells + kept.negative * np.uint8(levels.size))
    if kept.positions.size == size:
        return values
    x = np.zeros(size, np.float32)
    x[kept.positions] = values
    return x


def encode_as_they_are(x: Vector) -> bytes:
    """Return the payload of fewer than 32 coordinates."""
    return bytes([VERSION, AS_THEY_ARE, 0]) + x.astype("<f4").tobytes()


def pack_levels(levels: Levels) -> Codes:
    """Return the nearest level codes of magnitudes, float64 ``[n]``, uint16 ``[n]``; at most float32's largest."""
    magnitudes = np.clip(levels, 0.0, float(LARGEST))
    mantissa, exponent = np.frexp(magnitudes)  # magnitudes = mantissa · 2^exponent, 0.5 <= mantissa < 1
    steps = np.rint(np.ldexp(mantissa, _MANTISSA_BITS + 1)).astype(np.int64)  # 128 .. 256
    codes = ((exponent + _BIAS - 1) << _MANTISSA_BITS) + steps - (1 << _MANTISSA_BITS)
    is_zero = (magnitudes == 0.0) | (codes < 1 << _MANTISSA_BITS)
    packed: Codes = np.where(is_zero, 0, np.minimum(codes, HIGHEST_LEVEL)).astype(np.uint16)
    return packed


def unpack_levels(codes: Codes) -> Levels:
    """Return the magnitudes of level codes, float64 of the same shape; each is a float32."""
    wide = codes.astype(np.int64)
    exponent, mantissa = wide >> _MANTISSA_BITS, wide & ((1 << _MANTISSA_BITS) - 1)
    exact = np.ldexp(1.0 + mantissa / (1 << _MANTISSA_BITS), (exponent - _BIAS).astype(np.int32))
    levels: Levels = np.where(exponent > 0, exact, 0.0).astype(np.float32).astype(np.float64)
    return levels


def error_code(error: float) -> int:
    """Return the code of a relative squared error, rounded up: 2^((code - 192)/8); 0 is none at all."""
    mantissa, exponent = np.frexp(error)
    if error <= 0.0:
        return 0
    step = next((k for k, least in enumerate(_OCTAVE) if 2.0 * float(mantissa) <= least), _STEPS_PER_OCTAVE)
    return min(max(_STEPS_PER_OCTAVE * (int(exponent) - 1) + step + _ZERO_ERROR, 1), 255)


def error_of(data: bytes) -> float:
    """Return the relative squared error that a payload states, to 9 %; :class:`CodecError` if it is too short."""
    if len(data) < HEAD_BYTES:
        raise CodecError(f"expected at least {HEAD_BYTES} bytes, got {len(data)}")
    code = data[2]
    octaves, step = divmod(code - _ZERO_ERROR, _STEPS_PER_OCTAVE)
    return 0.0 if code == 0 else _OCTAVE[step] * 2.0**octaves


HIGHEST_LEVEL = ((128 + _BIAS - 1) << _MANTISSA_BITS) + (1 << _MANTISSA_BITS) - 1  # 2^127·(1 + 127/128) < float32's end


def _check_head(data: bytes) -> int:
    if len(data) < HEAD_BYTES or data[0] != VERSION:
        got = f"version {data[0]}" if len(data) >= HEAD_BYTES else f"{len(data)} bytes"
        raise CodecError(f"expected an M22 payload of version {VERSION}, got {got}")
    if data[1] > MOST_LEVELS_BITS:
        raise CodecError(f"expected 0 to {MOST_LEVELS_BITS} bits of levels, got {data[1]}")
    return data[1]


def _read_as_they_are(data: bytes, size: int) -> Vector:
    expected = HEAD_BYTES + 4 * size
    if len(data) != expected:
        raise CodecError(f"expected {expected} bytes for {size} coordinates as float32, got {len(data)}")
    if data[:2] != bytes([VERSION, AS_THEY_ARE]):
        raise CodecError(f"expected version {VERSION} and coordinates as they are, got {data[0]} and {data[1]}")
    x = np.frombuffer(data, "<f4", size, HEAD_BYTES).astype(np.float32)
    if not np.isfinite(x).all():
        raise CodecError(f"expected finite coordinates, got {x[~np.isfinite(x)][0]}")
    return x


def code_cells(cells: Cells, levels_bits: int) -> CodedCells:
    """Return the shorter of both ways to code cells."""
    width = max(levels_bits - 1, 0)
    if width == 0:
        return CodedCells(cells, width, None, 0)
    packed = packing.packed_bytes(cells.size, width)
    if levels_bits > MOST_PEELED_BITS:
        return CodedCells(cells, width, None, 1 + packed)
    peeled, rest = list[subset.Subset](), cells
    for level in range((1 << width) - 1):
        size = rest.size
        bitmap, rest = sparse.above(rest, level)
        peeled.append(subset.choose_from(bitmap, rest.size, size))
    length = sum(part.size_bytes for part in peeled)
    return CodedCells(cells, width, None if length >= packed else tuple(peeled), 1 + min(length, packed))


def _read_cells(data: bytes, start: int, count: int, levels_bits: int) -> tuple[Cells, int]:
    if levels_bits == 1:
        return np.zeros(count, np.uint8), start
    if start >= len(data):
        raise CodecError(f"expected the cells of {count} coordinates, got none")
    coder, start = data[start], start + 1
    if coder == PACKED:
        length = packing.packed_bytes(count, levels_bits - 1)
        if start + length > len(data):
            raise CodecError(f"expected {length} bytes of cells, got {len(data) - start}")
        packed = np.frombuffer(data, np.uint8, length, start)[:, None]
        return packing.unpack(packed, count, levels_bits - 1)[:, 0], start + length
    if coder != PEELED or levels_bits > MOST_PEELED_BITS:
        raise CodecError(f"expected cells that are packed (0) or peeled (1, up to 4 bits), got {coder}")
    cells, inside = np.zeros(count, np.uint8), np.arange(count)
    for _ in range((1 << (levels_bits - 1)) - 1):
        above, start = subset.read(data, start, inside.size)
        inside = inside[above]
        cells[inside] += np.uint8(1)
    return cells, start
