"""Codes of 1 to 8 bits, packed without a gap.

A width is split into planes of 8, 4, 2 and 1 bits (7 = 4 + 2 + 1), largest first; each plane takes the lowest bits
not yet taken. A plane of p bits for k codes is L = ⌈k·p/8⌉ bytes, and byte l holds the codes l, L + l, 2L + l, ...:

    byte l = Σ_j  field(code[j·L + l]) << (p·j),   j = 0 .. 8/p - 1

so a plane is packed and unpacked by shifting whole rows of L bytes, which suits vector units of any width, has no
byte order, and wastes less than a byte. Unused bits of the last fields are zero and are ignored on reading.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def planes(width: int) -> list[tuple[int, int]]:
    """Return (bits, shift) of every plane of ``width``-bit codes."""
    found, shift = [], 0
    for bits in (8, 4, 2, 1):
        if width & bits:
            found.append((bits, shift))
            shift += bits
    return found


def packed_bytes(count: int, width: int) -> int:
    """Return the length of ``count`` packed codes of ``width`` bits."""
    return sum((count * bits + 7) // 8 for bits, _ in planes(width))


def pack(codes: Bytes, width: int) -> Bytes:
    """Pack ``codes``, shape ``[rows, k]``, into shape ``[rows, packed_bytes(k, width)]``."""
    rows, count = codes.shape
    parts = []
    for bits, shift in planes(width):
        fields, length = 8 // bits, (count * bits + 7) // 8
        padded = codes
        if fields * length != count:
            padded = np.zeros((rows, fields * length), dtype=np.uint8)
            padded[:, :count] = codes
        rowwise = (padded.reshape(rows, fields, length) >> np.uint8(shift)) & np.uint8((1 << bits) - 1)
        plane = rowwise[:, 0].copy()
        for j in range(1, fields):
            plane |= rowwise[:, j] << np.uint8(bits * j)
        parts.append(plane)
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
    return codes
