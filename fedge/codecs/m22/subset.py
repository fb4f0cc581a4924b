"""Which k of n things: both ends of the one coder that M22 uses for positions and for cells.

    kind u8          k                 then
    0  none          0
    1  all           n
    2  bitmap        as it counts      ⌈n/8⌉ bytes, thing i is bit i mod 8 of byte ⌊i/8⌋
    32 + r  members  varint k          gaps of the k members, coded as below
    64 + r  others   varint n - k      gaps of the n - k others

Gaps g_1, g_2, .. between one and the next (the first from 0) are Rice codes with r low bits (R. F. Rice, Some Practical
Universal Noiseless Coding Techniques, JPL 1979; S. W. Golomb, Run-length encodings, 1966), in two streams, so that
NumPy reads and writes them without a loop:

    low bits     ⌈k·r/8⌉ bytes: r bits of each gap, least significant first
    high bits    for each gap ⌊g/2^r⌋ zeros and a one, the last byte filled with zeros

Of members taken at random with density q a gap takes r + 1/(1 - (1 - q)^(2^r)) bits, at most 2.3 % above the entropy
H₂(q)/q for q <= 0.3, and 5 % at 0.38, from where on the bitmap is no longer. A varint is LEB128. The encoder takes what
is shortest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22 import sparse
from fedge.codecs.m22.sparse import Bitmap, Ints
from fedge.errors import CodecError

NONE, ALL, BITMAP, MEMBERS, OTHERS = 0, 1, 2, 32, 64
HIGHEST_LOW_BITS = 31
MOST_VARINT_BYTES = 5
_LOG_OF_GOLDEN = math.log((math.sqrt(5.0) - 1.0) / 2.0)


@dataclass(frozen=True, slots=True)
class Subset:
    """A way to code one subset of ``size`` things, ``count`` members, by its bitmap (``sparse.py``)."""

    kind: int
    size: int
    count: int
    size_bytes: int
    bitmap: Bitmap

    def to_bytes(self) -> bytes:
        """Return the coded subset, ``size_bytes`` long."""
        head = bytes([self.kind])
        if self.kind in (NONE, ALL):
            return head
        if self.kind == BITMAP:
            return head + self.bitmap.tobytes()
        others = self.kind >= OTHERS
        head += varint(self.size - self.count if others else self.count)
        return head + sparse.pack_gaps(self.bitmap, self.size, others, self.kind % MEMBERS, self.size_bytes - len(head))


def choose(members: Ints, size: int) -> Subset:
    """Return the shortest way to code ``members``, int64 ``[k]``, ascending, of 0 .. ``size`` - 1."""
    return choose_from(sparse.bitmap_of(members, size), members.size, size)


def choose_from(bitmap: Bitmap, count: int, size: int) -> Subset:
    """Return the shortest way to code the ``count`` members that ``bitmap`` has of ``size`` things."""
    if count in (0, size):
        return Subset(NONE if count == 0 else ALL, size, count, 1, bitmap)
    listed, others = min(count, size - count), 2 * count > size
    first = _first_low_bits(listed / size)
    lengths = sparse.gap_bytes(bitmap, size, others, first)
    low_bits, length = min(enumerate(lengths, first), key=lambda tried: tried[1])
    kind = (OTHERS if others else MEMBERS) + low_bits
    size_bytes = 1 + _varint_bytes(listed) + length
    if size_bytes < 1 + bitmap.size:
        return Subset(kind, size, count, size_bytes, bitmap)
    return Subset(BITMAP, size, count, 1 + bitmap.size, bitmap)


def read(data: bytes, start: int, size: int, bits_each: int = 0) -> tuple[Ints, int]:
    """Return the members, int64 ``[k]``, ascending, of the subset of 0 .. ``size`` - 1 at ``start``, and where it ends.

    Behind it ``data`` must have ``bits_each`` for every member, which is checked before there is memory for them.

    Raises:
        CodecError: there is no such subset in ``data``.
    """
    kind = _byte(data, start)
    start += 1
    if kind in (NONE, ALL):
        _check_behind(data, start, size * bits_each if kind == ALL else 0)
        return np.arange(size if kind == ALL else 0, dtype=np.int64), start
    if kind == BITMAP:
        length = (size + 7) // 8
        bits = np.unpackbits(_bytes(data, start, length), bitorder="little")
        if bits[size:].any():
            raise CodecError(f"expected a bitmap of {size} bits, got more of them")
        return np.flatnonzero(bits.view(np.bool_)), start + length
    if not MEMBERS <= kind <= OTHERS + HIGHEST_LOW_BITS:
        raise CodecError(f"expected a kind of subset (0, 1, 2, 32 to 95), got {kind}")
    count, start = read_varint(data, start)
    if not 0 < count <= size:
        raise CodecError(f"expected 1 to {size} things in a list, got {count}")
    _check_behind(data, start, (size - count if kind >= OTHERS else count) * bits_each)
    listed, end = sparse.unpack_gaps(data, start, count, kind % MEMBERS, size)
    return (listed if kind < OTHERS else sparse.others_of(listed, size)), end


def expected_bits(density: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a thing takes on average, bits, where members are random with ``density``, float64 of any shape."""
    q = np.minimum(density, 1.0 - density)
    log_of_others = np.log1p(-np.maximum(q, 1e-12))
    r = np.maximum(0, 1 + np.floor(np.log2(_LOG_OF_GOLDEN / log_of_others)))
    listed = q * (r - 1.0 / np.expm1(np.exp2(r) * log_of_others))
    bits: npt.NDArray[np.float64] = np.minimum(listed, q > 0)
    return bits


def varint(number: int) -> bytes:
    """Return ``number`` >= 0 as LEB128: seven bits a byte, least significant first, the top bit says that more come."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Return the varint at ``start`` and where it ends; :class:`CodecError` if there is none."""
    number = 0
    for k in range(MOST_VARINT_BYTES):
        byte = _byte(data, start + k)
        number |= (byte & 127) << (7 * k)
        if byte < 128:
            return number, start + k + 1
    raise CodecError(f"expected a count of at most {MOST_VARINT_BYTES} bytes, got a longer one")


def _first_low_bits(density: float) -> int:
    """Return the least of three values of r to try, about the expected best for a ``density`` of 0.5 at most."""
    expected = 1 + math.floor(math.log2(_LOG_OF_GOLDEN / math.log1p(-density)))
    return min(max(0, expected - 1), HIGHEST_LOW_BITS + 1 - sparse.TRIED_LOW_BITS)


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _check_behind(data: bytes, start: int, bits: int) -> None:
    if bits > 8 * (len(data) - start):
        raise CodecError(f"expected {bits} bits and more behind a subset, got {len(data) - start} bytes")


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CodecError(f"expected a byte at {at}, got {len(data)} bytes in all")
    return data[at]


def _bytes(data: bytes, start: int, length: int) -> npt.NDArray[np.uint8]:
    if start + length > len(data):
        raise CodecError(f"expected {length} bytes at {start}, got {len(data)} in all")
    return np.frombuffer(data, np.uint8, length, start)
