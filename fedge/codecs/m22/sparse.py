"""The hot loops of M22, each in NumPy here and in C in ``kernels/sparse*.c``: the same numbers to the last bit.

A *bitmap* is uint8 ``[⌈n/8⌉]``: thing i is bit i mod 8 of byte ⌊i/8⌋, and what is behind the last thing is zero.
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
Bitmap = npt.NDArray[np.uint8]

MAGNITUDE_MASK = np.uint32(0x7FFFFFFF)
BIN_SHIFT = 15
"""A float32 has 31 bits of magnitude: a bin is what shares 8 of exponent and 8 of mantissa, a 256th of an octave."""
BINS = 1 << (31 - BIN_SHIFT)
TRIED_LOW_BITS = 3
_WAYS = 4
_CHUNK = 1 << 23


def measure(values: Words) -> tuple[Ints, Ints, Ints]:
    """Return the bins that magnitudes of ``values``, float32 as uint32 ``[n]``, are in, ascending, int64 ``[bins]``.

    With those, how many are in each, and the sums of the bits below the bin's, int64 both.
    """
    if kernels is None or values.size >= _CHUNK << 1:
        return _measure(values)
    bins, counts, lows = np.empty(BINS, np.uint32), np.empty(BINS, np.int64), np.empty(BINS, np.int64)
    found = kernels.measure(values, bins, counts, lows)
    return bins[:found].astype(np.int64), counts[:found].copy(), lows[:found].copy()


def _measure(values: Words) -> tuple[Ints, Ints, Ints]:
    counts, lows = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        if kernels is not None:
            bins, some, low = measure(chunk)
            counts[bins] += some
            lows[bins] += low
            continue
        magnitudes = chunk & MAGNITUDE_MASK
        inside, rest = magnitudes >> np.uint32(BIN_SHIFT), magnitudes & np.uint32((1 << BIN_SHIFT) - 1)
        counts += np.bincount(inside, minlength=BINS)
        lows += np.bincount(inside, rest, BINS).astype(np.int64)  # exact: below 2^53
    used = np.flatnonzero(counts)
    return used, counts[used], lows[used]


def between(values: Words, least: int, below: int, count: int) -> Words:
    """Return the magnitude bits of ``values`` that are at least one number and below another; ``count`` at most."""
    if kernels is None:
        magnitudes = values & MAGNITUDE_MASK
        return magnitudes[(magnitudes >= np.uint32(least)) & (magnitudes < np.uint32(below))]
    found = np.empty(count, np.uint32)
    return found[: kernels.between(values, least, below, found)]


def select(values: Words, least: int) -> tuple[Bitmap, Words]:
    """Return the bitmap of ``values``, float32 as uint32 ``[n]``, whose magnitude bits reach ``least``, and those."""
    if kernels is None:
        chosen = (values & MAGNITUDE_MASK) >= np.uint32(least)
        return np.packbits(chosen, bitorder="little"), values[chosen]
    bitmap, taken = np.empty((values.size + 7) // 8, np.uint8), np.empty(values.size, np.uint32)
    return bitmap, taken[: kernels.select(values, least, bitmap, taken)]


def cells_of(values: Vector, edges: Doubles) -> tuple[Cells, Doubles, Doubles]:
    """Return how many of the ascending ``edges``, fewer than 128, the magnitude of each of ``values`` is above.

    With that, uint8 ``[n]``, how many values each of the cells has, and the sum of their magnitudes, float64 both.
    """
    count = edges.size + 1
    if kernels is None:
        magnitudes = np.abs(values).astype(np.float64)
        cells = np.searchsorted(edges, magnitudes).astype(np.uint8)
        ways = np.arange(values.size) % _WAYS * count + cells
        each = np.bincount(cells, minlength=count).astype(np.float64)
        first, second, third, fourth = np.bincount(ways, magnitudes, _WAYS * count).reshape(_WAYS, count)
        return cells, each, np.asarray(first + second + third + fourth, np.float64)
    cells = np.empty(values.size, np.uint8)
    counts, sums = np.empty(count), np.empty(count)
    kernels.cells(values, edges, cells, counts, sums)
    return cells, counts, sums


def above(cells: Cells, level: int) -> tuple[Bitmap, Cells]:
    """Return the bitmap of ``cells``, uint8 ``[n]``, that are above ``level``, and those."""
    if kernels is None:
        higher = cells > level
        return np.packbits(higher, bitorder="little"), cells[higher]
    bitmap, rest = np.empty((cells.size + 7) // 8, np.uint8), np.empty(cells.size, np.uint8)
    return bitmap, rest[: kernels.above(cells, level, bitmap, rest)]


def places_of(bitmap: Bitmap, size: int, others: bool = False) -> Ints:
    """Return which of ``size`` things are in ``bitmap``, or which are not, ascending, int64."""
    bits = np.unpackbits(bitmap, count=size, bitorder="little")
    return np.flatnonzero(bits == 0 if others else bits.view(np.bool_))


def bitmap_of(places: Ints, size: int) -> Bitmap:
    """Return the bitmap of ``places``, int64, of ``size`` things."""
    bits = np.zeros(size, np.bool_)
    bits[places] = True
    return np.packbits(bits, bitorder="little")


def others_of(places: Ints, size: int) -> Ints:
    """Return what of 0 .. ``size`` - 1 is not in ``places``, ascending."""
    keep = np.ones(size, np.bool_)
    keep[places] = False
    return np.flatnonzero(keep)


def gap_bytes(bitmap: Bitmap, size: int, others: bool, low_bits: int) -> tuple[int, int, int]:
    """Return the bytes of both streams of gaps (``subset.py``) with ``low_bits``, one more and two more.

    Those between what is in ``bitmap``, of ``size`` things, or between all ``others``.
    """
    if kernels is not None:
        found: tuple[int, int, int] = kernels.gap_bytes(bitmap, size, others, low_bits)
        return found
    places = places_of(bitmap, size, others)
    quotients = (np.diff(places, prepend=-1) - 1) >> low_bits
    one, two, three = (
        (places.size * (low_bits + r) + 7) // 8 + (places.size + int((quotients >> r).sum()) + 7) // 8
        for r in range(TRIED_LOW_BITS)
    )
    return one, two, three


def pack_gaps(bitmap: Bitmap, size: int, others: bool, low_bits: int, size_bytes: int) -> bytes:
    """Return the two streams of gaps, ``size_bytes`` in all."""
    if kernels is not None:
        data: bytes = kernels.pack_gaps(bitmap, size, others, low_bits, size_bytes)
        return data
    gaps = np.diff(places_of(bitmap, size, others), prepend=-1) - 1
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


def solve_tridiagonal(lower: Doubles, diagonal: Doubles, upper: Doubles, right: Doubles) -> Doubles:
    """Solve tridiagonal systems, float64 ``[systems, n]`` all, by elimination from the first row down."""
    n, x = right.shape[1], np.array(right, order="C")
    if kernels is not None:
        kernels.tridiagonal(*map(np.ascontiguousarray, (lower, diagonal, upper)), x, n)
        return x
    factor = np.zeros_like(x)
    pivot = diagonal[:, 0]
    x[:, 0] /= pivot
    for j in range(1, n):
        factor[:, j - 1] = upper[:, j - 1] / pivot
        pivot = diagonal[:, j] - lower[:, j] * factor[:, j - 1]
        x[:, j] = (x[:, j] - lower[:, j] * x[:, j - 1]) / pivot
    for j in range(n - 2, -1, -1):
        x[:, j] -= factor[:, j] * x[:, j + 1]
    return x
