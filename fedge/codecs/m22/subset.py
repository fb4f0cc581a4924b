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

from fedge.errors import CodecError

Ints = npt.NDArray[np.int64]

NONE, ALL, BITMAP, MEMBERS, OTHERS = 0, 1, 2, 32, 64
HIGHEST_LOW_BITS = 31
MOST_VARINT_BYTES = 5
_LOG_OF_GOLDEN = math.log((math.sqrt(5.0) - 1.0) / 2.0)


@dataclass(frozen=True, slots=True)
class Subset:
    """A way to code one subset: ``gaps`` int64 of what is listed, or the bitmap's ``members``."""

    kind: int
    size: int
    size_bytes: int
    gaps: Ints
    members: Ints

    def to_bytes(self) -> bytes:
        """Return the coded subset, ``size_bytes`` long."""
        head = bytes([self.kind])
        if self.kind in (NONE, ALL):
            return head
        if self.kind == BITMAP:
            bits = np.zeros(self.size, np.uint8)
            bits[self.members] = 1
            return head + np.packbits(bits, bitorder="little").tobytes()
        low_bits = self.kind % MEMBERS
        return head + varint(self.gaps.size) + _pack_gaps(self.gaps, low_bits)


def choose(members: Ints, size: int) -> Subset:
    """Return the shortest way to code ``members``, int64 ``[k]``, ascending, of 0 .. ``size`` - 1."""
    none = np.empty(0, np.int64)
    if members.size in (0, size):
        return Subset(NONE if members.size == 0 else ALL, size, 1, none, none)
    candidates = [Subset(BITMAP, size, 1 + (size + 7) // 8, none, members)]
    listed = members if 2 * members.size <= size else others_of(members, size)
    kind = MEMBERS if listed is members else OTHERS
    gaps = np.diff(listed, prepend=-1) - 1
    low_bits, length = _best_low_bits(gaps, listed.size / size)
    candidates.append(Subset(kind + low_bits, size, 1 + _varint_bytes(gaps.size) + length, gaps, none))
    return min(candidates, key=lambda subset: subset.size_bytes)


def read(data: bytes, start: int, size: int) -> tuple[Ints, int]:
    """Return the members, int64 ``[k]``, ascending, of the subset of 0 .. ``size`` - 1 at ``start``, and where it ends.

    Raises:
        CodecError: there is no such subset in ``data``.
    """
    kind = _byte(data, start)
    start += 1
    if kind in (NONE, ALL):
        return np.arange(size if kind == ALL else 0, dtype=np.int64), start
    if kind == BITMAP:
        length = (size + 7) // 8
        bits = np.unpackbits(_bytes(data, start, length), bitorder="little")
        if bits[size:].any():
            raise CodecError(f"expected a bitmap of {size} bits, got more of them")
        return np.flatnonzero(bits), start + length
    if not MEMBERS <= kind <= OTHERS + HIGHEST_LOW_BITS:
        raise CodecError(f"expected a kind of subset (0, 1, 2, 32 to 95), got {kind}")
    count, start = read_varint(data, start)
    if not 0 < count <= size:
        raise CodecError(f"expected 1 to {size} things in a list, got {count}")
    gaps, end = _unpack_gaps(data, start, count, kind % MEMBERS, size)
    listed = np.cumsum(gaps + 1) - 1
    if int(listed[-1]) >= size:
        raise CodecError(f"expected a list of things below {size}, got {int(listed[-1])}")
    return (listed if kind < OTHERS else others_of(listed, size)), end


def others_of(members: Ints, size: int) -> Ints:
    """Return what of 0 .. ``size`` - 1 is not in ``members``, ascending."""
    keep = np.ones(size, np.bool_)
    keep[members] = False
    return np.flatnonzero(keep)


def expected_bits(density: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a thing takes on average, bits, where members are random with ``density``, float64 of any shape."""
    q = np.minimum(density, 1.0 - density)
    inside = np.clip(q, 1e-12, 0.5)
    r = np.maximum(0, 1 + np.floor(np.log2(_LOG_OF_GOLDEN / np.log1p(-inside))))
    listed = q * (r + 1.0 / -np.expm1(np.exp2(r) * np.log1p(-inside)))
    bits: npt.NDArray[np.float64] = np.minimum(listed, np.where(q > 0, 1.0, 0.0))
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


def _best_low_bits(gaps: Ints, density: float) -> tuple[int, int]:
    """Return r and the bytes of both streams, the least of three values of r about the expected best."""
    expected = max(0, 1 + math.floor(math.log2(_LOG_OF_GOLDEN / math.log1p(-min(density, 0.5)))))
    lengths = {
        r: (gaps.size * r + 7) // 8 + (gaps.size + int((gaps >> r).sum()) + 7) // 8
        for r in range(max(0, expected - 1), min(expected + 1, HIGHEST_LOW_BITS) + 1)
    }
    r = min(lengths, key=lambda low_bits: lengths[low_bits])
    return r, lengths[r]


def _pack_gaps(gaps: Ints, low_bits: int) -> bytes:
    low = (gaps[:, None] >> np.arange(low_bits)) & 1
    ones = np.cumsum((gaps >> low_bits) + 1) - 1
    high = np.zeros(int(ones[-1]) + 1, np.uint8)
    high[ones] = 1
    packed = (np.packbits(bits, bitorder="little") for bits in (low.astype(np.uint8).reshape(-1), high))
    return b"".join(part.tobytes() for part in packed)


def _unpack_gaps(data: bytes, start: int, count: int, low_bits: int, size: int) -> tuple[Ints, int]:
    if count * low_bits > 8 * (len(data) - start):
        raise CodecError(f"expected {count} gaps of {low_bits} bits and more, got {len(data) - start} bytes")
    length = (count * low_bits + 7) // 8
    bits = np.unpackbits(_bytes(data, start, length), bitorder="little")
    low = bits[: count * low_bits].reshape(count, low_bits).astype(np.int64) << np.arange(low_bits)
    start += length
    most = (count + (size >> low_bits) + 7) // 8  # the quotients of gaps whose sum is below size
    high = np.unpackbits(np.frombuffer(data, np.uint8, min(most, len(data) - start), start), bitorder="little")
    ones = np.flatnonzero(high)
    if ones.size < count:
        raise CodecError(f"expected the ends of {count} gaps, got {ones.size}")
    end = (int(ones[count - 1]) + 8) // 8
    if ones.size > count and int(ones[count]) < 8 * end:
        raise CodecError(f"expected {count} gaps, got more")
    quotients = np.diff(ones[:count], prepend=-1) - 1
    return (quotients << low_bits) + low.sum(axis=1), start + end


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CodecError(f"expected a byte at {at}, got {len(data)} bytes in all")
    return data[at]


def _bytes(data: bytes, start: int, length: int) -> npt.NDArray[np.uint8]:
    if start + length > len(data):
        raise CodecError(f"expected {length} bytes at {start}, got {len(data)} in all")
    return np.frombuffer(data, np.uint8, length, start)
