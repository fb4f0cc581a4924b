"""The hot loops of M22, each in NumPy here and in C in ``kernels/sparse.c``: integers, comparisons, the same results.

Only the sums of :func:`cells_of` are added in another order, so their last bits may differ; levels travel to 8 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import Vector
from fedge.codecs.native import kernels
from fedge.errors import CodecError

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]
Cells = npt.NDArray[np.uint8]

MAGNITUDE_MASK = np.uint32(0x7FFFFFFF)
TRIED_LOW_BITS = 3


def largest(values: Words, threshold: int, positions: Ints | None = None) -> tuple[Ints, Words]:
    """Return where the magnitude bits of ``values``, float32 as uint32 ``[n]``, reach ``threshold``, and those.

    ``positions``, int64 ``[n]``, say where each is; left out, they are 0, 1, ..
    """
    if kernels is None:
        places = np.flatnonzero((values & MAGNITUDE_MASK) >= np.uint32(threshold))
        return places if positions is None else positions[places], values[places]
    places, found = np.empty(values.size + 1, np.int64), np.empty(values.size + 1, np.uint32)
    count = kernels.largest(values, threshold, positions, places, found)
    return places[:count], found[:count]


def bins_of(values: Words, bin_bits: int) -> tuple[npt.NDArray[np.uint16], Ints]:
    """Return in which of at most 2^``bin_bits`` bins the magnitude of each of ``values`` is, and how many each bin has.

    Bins are equal parts of what magnitude bits there are, from the least; uint16 ``[n]`` and int64, ``bin_bits`` <= 16.
    """
    magnitudes = values & MAGNITUDE_MASK
    lowest, highest = (int(magnitudes.min()), int(magnitudes.max())) if values.size else (0, 0)
    shift = max(0, (highest - lowest).bit_length() - bin_bits)
    counts = np.zeros(((highest - lowest) >> shift) + 1, np.int64)
    if kernels is None:
        bins = ((magnitudes - np.uint32(lowest)) >> np.uint32(shift)).astype(np.uint16)
        counts += np.bincount(bins, minlength=counts.size)
        return bins, counts
    bins = np.empty(values.size, np.uint16)
    kernels.bins(values, lowest, shift, bins, counts)
    return bins, counts


def cells_of(values: Vector, edges: Doubles) -> tuple[Cells, Doubles, Doubles]:
    """Return how many of the ascending ``edges``, fewer than 128, the magnitude of each of ``values`` is above.

    With that, uint8 ``[n]``, how many values each of the cells has, and the sum of their magnitudes, float64 both.
    """
    counts, sums = np.empty(edges.size + 1), np.empty(edges.size + 1)
    if kernels is None:
        magnitudes = np.abs(values).astype(np.float64)
        cells = np.searchsorted(edges, magnitudes).astype(np.uint8)
        counts[:] = np.bincount(cells, minlength=edges.size + 1)
        sums[:] = np.bincount(cells, magnitudes, edges.size + 1)
        return cells, counts, sums
    cells = np.empty(values.size, np.uint8)
    kernels.cells(values, edges, cells, counts, sums)
    return cells, counts, sums


def above(cells: Cells, level: int) -> tuple[Ints, Cells]:
    """Return where ``cells``, uint8 ``[n]``, are above ``level``, and those."""
    if kernels is None:
        places = np.flatnonzero(cells > level)
        return places, cells[places]
    places, rest = np.empty(cells.size + 1, np.int64), np.empty(cells.size + 1, np.uint8)
    count = kernels.above(cells, level, places, rest)
    return places[:count], rest[:count]


def gap_bytes(places: Ints, low_bits: int, others_below: int = 0) -> tuple[int, int, int]:
    """Return the bytes of both streams of gaps (``subset.py``) with ``low_bits``, one more and two more.

    Those of ``places``, int64 ``[k]``, ascending, or of all others below ``others_below``, if that is not 0.
    """
    if kernels is not None:
        found: tuple[int, int, int] = kernels.gap_bytes(places, low_bits, others_below)
        return found
    if others_below:
        places = others_of(places, others_below)
    quotients = (np.diff(places, prepend=-1) - 1) >> low_bits
    one, two, three = (
        (places.size * (low_bits + r) + 7) // 8 + (places.size + int((quotients >> r).sum()) + 7) // 8
        for r in range(TRIED_LOW_BITS)
    )
    return one, two, three


def others_of(places: Ints, size: int) -> Ints:
    """Return what of 0 .. ``size`` - 1 is not in ``places``, ascending."""
    keep = np.ones(size, np.bool_)
    keep[places] = False
    return np.flatnonzero(keep)


def pack_gaps(places: Ints, low_bits: int, size_bytes: int) -> bytes:
    """Return the two streams of gaps, ``size_bytes`` in all."""
    if kernels is not None:
        data: bytes = kernels.pack_gaps(places, low_bits, size_bytes)
        return data
    gaps = np.diff(places, prepend=-1) - 1
    low = (gaps[:, None] >> np.arange(low_bits)) & 1
    ones = np.cumsum((gaps >> low_bits) + 1) - 1
    high = np.zeros(int(ones[-1]) + 1, np.uint8)
    high[ones] = 1
    packed = (np.packbits(bits, bitorder="little") for bits in (low.astype(np.uint8).reshape(-1), high))
    return b"".join(part.tobytes() for part in packed)


def unpack_gaps(data: bytes, start: int, count: int, low_bits: int, size: int) -> tuple[Ints, int]:
    """Return ``count`` ascending places below ``size`` from the streams at ``start``, and where those end.

    Raises:
        CodecError: there are no such streams.
    """
    refused = CodecError(f"expected {count} places below {size}, by gaps of {low_bits} bits and more, got others")
    if count * low_bits > 8 * (len(data) - start):
        raise refused
    if kernels is not None:
        places = np.empty(count, np.int64)
        end = kernels.unpack_gaps(data, start, low_bits, size, places)
        if end < 0:
            raise refused
        return places, end
    length = (count * low_bits + 7) // 8
    bits = np.unpackbits(np.frombuffer(data, np.uint8, length, start), bitorder="little")
    low = bits[: count * low_bits].reshape(count, low_bits).astype(np.int64) << np.arange(low_bits)
    start += length
    most = (count + (size >> low_bits) + 7) // 8 + 1  # the quotients of gaps whose sum is below size
    high = np.unpackbits(np.frombuffer(data, np.uint8, min(most, len(data) - start), start), bitorder="little")
    ones = np.flatnonzero(high)
    end = (int(ones[count - 1]) + 8) // 8 if ones.size >= count else 0
    if ones.size < count or (ones.size > count and int(ones[count]) < 8 * end):
        raise refused
    quotients = np.diff(ones[:count], prepend=-1) - 1
    places = np.cumsum((quotients << low_bits) + low.sum(axis=1) + 1) - 1
    if int(places[-1]) >= size:
        raise refused
    return places, start + end


def lloyd_steps(x: Doubles, mass: Doubles, moment: Doubles, levels: Doubles, steps: int) -> Doubles:
    """Return ``levels`` after so many steps of Lloyd's iteration, ascending.

    ``x``, float64 ``[n]``, ascends; ``mass`` and ``moment``, ``[n + 1]``, are the sums of weights and of weight times x
    over what comes before each place.
    """
    found = levels.copy()
    if kernels is not None:
        kernels.lloyd(x, mass, moment, found, steps)
        return found
    for _ in range(steps):
        bounds = np.concatenate(([0], np.searchsorted(x, (found[1:] + found[:-1]) / 2), [x.size]))
        inside = np.diff(mass[bounds])
        mean = np.divide(np.diff(moment[bounds]), inside, out=found.copy(), where=inside > 0)
        found = np.maximum.accumulate(mean)
    return found
