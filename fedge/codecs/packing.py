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

import numpy as np
import numpy.typing as npt

TRIT = 8
TRITS_PER_BYTE = 5

Bytes = npt.NDArray[np.uint8]


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
    """Pack ``codes``, shape ``[rows, k]``, into shape ``[rows, packed_bytes(k, width)]``."""
    count = codes.shape[1]
    parts = []
    for bits, shift in planes(width):
        fields, length = 8 // bits, (count * bits + 7) // 8
        padded = _in_rows(codes, fields, length)
        rowwise = (padded >> np.uint8(shift)) & np.uint8((1 << bits) - 1)
        plane = rowwise[:, 0].copy()
        for j in range(1, fields):
            plane |= rowwise[:, j] << np.uint8(bits * j)
        parts.append(plane)
    if width > TRIT:
        trits = _in_rows(codes >> np.uint8(width - TRIT - 1), TRITS_PER_BYTE, -(-count // TRITS_PER_BYTE))
        number = trits[:, 0].astype(np.uint16)
        for j in range(1, TRITS_PER_BYTE):
            number = 3 * number + trits[:, j]
        parts.append((number + (55 * number + 1023 >> 10)).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def unpack(packed: Bytes, count: int, width: int) -> Bytes:
    """Undo :func:`pack`: shape ``[rows, packed_bytes(count, width)]`` to ``[rows, count]``."""
    rows, start = packed.shape[0], 0
    codes = np.zeros((rows, count), dtype=np.uint8)
    for bits, shift in planes(width):
        fields, length = 8 // bits, (count * bits + 7) // 8
        plane = packed[:, start : start + length]
        start += length
        spread = np.empty((rows, fields, length), dtype=np.uint8)
        for j in range(fields):
            spread[:, j] = (plane >> np.uint8(bits * j)) & np.uint8((1 << bits) - 1)
        codes |= spread.reshape(rows, fields * length)[:, :count] << np.uint8(shift)
    if width > TRIT:
        fraction = packed[:, start:].astype(np.uint16)
        trits = np.empty((rows, TRITS_PER_BYTE, fraction.shape[1]), dtype=np.uint8)
        for j in range(TRITS_PER_BYTE):
            fraction = 3 * fraction
            trits[:, j] = fraction >> 8
            fraction &= np.uint16(255)
        codes |= trits.reshape(rows, -1)[:, :count] << np.uint8(width - TRIT - 1)
    return codes


def _in_rows(codes: Bytes, fields: int, length: int) -> Bytes:
    """Return ``codes``, shape ``[rows, k]``, as ``[rows, fields, length]``, with zeros behind the last."""
    rows, count = codes.shape
    if fields * length == count:
        return codes.reshape(rows, fields, length)
    padded = np.zeros((rows, fields * length), dtype=np.uint8)
    padded[:, :count] = codes
    return padded.reshape(rows, fields, length)
