"""Codes of 1 to 8 bits, or of up to 6 bits and a trit, packed without a gap.

A *width* says what a code is: 1 to 8 are so many bits, 2^width levels. ``TRIT + w``, w = 1 to 7, is a trit above w - 1
bits, code = trit·2^(w-1) + bits: 3·2^(w-1) levels, for w + 0.6 bits.

Bits are split into planes of 8, 4, 2 and 1 (7 = 4 + 2 + 1), largest first; each plane takes the lowest bits not yet
taken. A plane of p bits for k codes is L = ⌈k·p/8⌉ bytes, and byte l holds the codes l, L + l, 2L + l, ...:

    byte l = Σ_j  field(code[j·L + l]) << (p·j),   j = 0 .. 8/p - 1

so a plane is packed and unpacked by shifting whole rows of L bytes, which suits vector units of any width, has no
byte order, and wastes less than a byte. Unused bits of the last fields are zero and are ignored on reading.

A plane of trits comes last, five to a byte (3^5 = 243), L = ⌈k/5⌉ bytes in rows as before. With v the number whose
digits in base 3 are trits l, L + l, .., 4L + l, the first one leading,

    byte l = v + ⌈55·v/1024⌉,   so that v/243 <= byte/256 < (v + 1)/243

and a byte is read as a fraction: three times it, the carry is the first trit, the rest again times three gives the
second. No division, and every byte reads as five trits. Unused trits are zero and are ignored on reading.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import numpy as np
import numpy.typing as npt

TRIT = 8
TRITS_PER_BYTE = 5

_BIT_TO_SIGN = np.arange(31, 23, -1, dtype=np.uint32)[:, None]  # bit j of a byte, where a float32 has its sign
Bytes = npt.NDArray[np.uint8]
Number = TypeVar("Number", np.float32, np.int16)


def levels_of(width: int) -> int:
    """Return how many codes of this width there are."""
    return 1 << width if width <= TRIT else 3 << (width - TRIT - 1)


def bits_of(width: int) -> float:
    """Return what a code of this width takes, but for rounding to whole bytes."""
    return float(width) if width <= TRIT else width - TRIT + 0.6


def planes(width: int) -> list[tuple[int, int]]:
    """Return (bits, shift) of every plane of bits."""
    found, shift, below = [], 0, width if width <= TRIT else width - TRIT - 1
    for bits in (8, 4, 2, 1):
        if below & bits:
            found.append((bits, shift))
            shift += bits
    return found


def packed_bytes(count: int, width: int) -> int:
    """Return the length of ``count`` packed codes of ``width``."""
    trits = -(-count // TRITS_PER_BYTE) if width > TRIT else 0
    return sum((count * bits + 7) // 8 for bits, _ in planes(width)) + trits


def pack(codes: Bytes, width: int) -> Bytes:
    """Pack ``codes``, shape ``[k, columns]``, into shape ``[packed_bytes(k, width), columns]``."""
    parts = []
    for bits, shift in planes(width):
        fields = _in_fields(codes, 8 // bits)
        if shift or bits < width:
            fields = (fields >> np.uint8(shift)) & np.uint8((1 << bits) - 1)
        plane = fields[-1].copy()
        for field in fields[-2::-1]:
            for _ in range(bits):
                plane += plane  # faster than a shift
            plane |= field
        parts.append(plane)
    if width > TRIT:
        trits = _in_fields(codes >> np.uint8(width - TRIT - 1), TRITS_PER_BYTE)
        number = trits[0].astype(np.uint16)
        for j in range(1, TRITS_PER_BYTE):
            number = 3 * number + trits[j]
        parts.append((number + (55 * number + 1023 >> 10)).astype(np.uint8))
    return np.concatenate(parts)


def unpack(packed: Bytes, count: int, width: int) -> Bytes:
    """Undo :func:`pack`: shape ``[packed_bytes(count, width), columns]`` to ``[count, columns]``."""
    columns, start = packed.shape[1], 0
    codes = np.zeros((count, columns), dtype=np.uint8)
    for bits, shift in planes(width):
        fields, length = 8 // bits, (count * bits + 7) // 8
        plane = packed[start : start + length]
        start += length
        spread = np.empty((fields, length, columns), dtype=np.uint8)
        for j in range(fields):
            spread[j] = (plane >> np.uint8(bits * j)) & np.uint8((1 << bits) - 1)
        codes |= spread.reshape(-1, columns)[:count] << np.uint8(shift)
    if width > TRIT:
        fraction = packed[start:].astype(np.uint16)
        trits = np.empty((TRITS_PER_BYTE, *fraction.shape), dtype=np.uint8)
        for j in range(TRITS_PER_BYTE):
            fraction = 3 * fraction
            trits[j] = fraction >> 8
            fraction &= np.uint16(255)
        codes |= trits.reshape(-1, columns)[:count] << np.uint8(width - TRIT - 1)
    return codes


def look_up(packed: Bytes, width: int, table: npt.NDArray[Number], out: npt.NDArray[Number]) -> None:
    """Write ``table[unpack(packed, k, width)]`` to ``out``, float32 or int16 ``[k, columns]``, contiguous.

    Where codes fill their bytes, they are not looked up one by one; a bit becomes a sign.
    """
    count = len(out)
    if width not in (1, 2, 4) or count * width != 8 * len(packed):
        out[:] = table.take(unpack(packed, count, width))
    elif width == 1 and table[0] == -table[1] and table.dtype == np.float32:
        bits = out.view(np.uint32).reshape(8, -1)
        np.left_shift(packed.reshape(-1).astype(np.uint32), _BIT_TO_SIGN, out=bits)
        bits &= np.uint32(0x80000000)
        bits ^= table[0].view(np.uint32)
    else:
        _look_up_together(packed.reshape(-1), width, table, out.reshape(8 // width, -1))


def _look_up_together(packed: Bytes, width: int, table: npt.NDArray[Number], out: npt.NDArray[Number]) -> None:
    """Write what the codes in field j of ``packed``, uint8 ``[n]``, stand for to row j of ``out``.

    Field j of 8 / ``width`` bytes side by side, seen as one word, is brought into its top byte by a multiplication, in
    which nothing is carried; and what all codes of a byte stand for is looked up at once.
    """
    together = 8 // width
    entries = np.ascontiguousarray(table[_codes_in_bytes(width)].T)
    whole = packed.size - packed.size % together
    words = packed[:whole].view(f"<u{together}")
    number = words.dtype.type
    lowest = number(sum((1 << width) - 1 << 8 * k for k in range(together)))
    to_top = number(sum(1 << (8 - width) * (k + 1) for k in range(together)))
    for field, row in enumerate(out):
        index = ((words >> number(width * field)) & lowest) * to_top >> number(8 * together - 8)
        row = row[:whole].reshape(-1, together)
        entries.take(index.astype(np.intp), axis=0, out=row, mode="clip")  # any other mode takes a copy of the row
    out[:, whole:] = entries[packed[whole:]].T


@functools.cache
def _codes_in_bytes(width: int) -> Bytes:
    """The codes in every byte, first to last, ``[8 / width, 256]``."""
    return unpack(np.arange(256, dtype=np.uint8)[None], 8 // width, width)


def _in_fields(codes: Bytes, fields: int) -> Bytes:
    """Return ``codes``, shape ``[k, columns]``, as ``[fields, ⌈k/fields⌉, columns]``, with zeros behind the last."""
    count, columns = codes.shape
    length = -(-count // fields)
    if fields * length == count:
        return codes.reshape(fields, length, columns)
    padded = np.zeros((fields * length, columns), dtype=np.uint8)
    padded[:count] = codes
    return padded.reshape(fields, length, columns)
