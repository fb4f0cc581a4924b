"""Coordinates of like energy side by side.

A rotation spreads a block's energy evenly, and with it whatever was known about where the energy lay. In real updates
some rows of a matrix move a hundred times more than others. So the vector is seen as *chunks* (rows, where the caller
knows them), each chunk gets a class, its exponent of two, and chunks travel by class, the strongest first:

    class = min(14, ⌊log2 rms of the strongest⌋ - ⌊log2 rms⌋),  15 for a chunk of zeros

Blocks are then cut within classes: at most 4096 coordinates, at least 512 unless there are no more, a class of fewer
joined to the next (the last to the one before). The order depends on the vector alone, not on the rotation, so nothing
is biased by it.

Classes travel as differences between neighbours, c - c_before mapped to 0, 1, -1, 2, -2, .. -> 0, 1, 2, 3, 4, .., each
as so many ones and a zero, lowest bit first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.codecs.gaussian import Doubles, Ints
from fedge.codecs.rotation import BLOCK
from fedge.errors import CodecError

CHUNK = 128
LONGEST_CHUNK = 65_535
WEAKEST, ZERO = 14, 15
SMALLEST_BLOCK = 512
TAIL_SETS, FULL_SETS = 3, 1  # block numbers, two sets each, that a block's signs take: see rotation.py

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of ``length`` coordinates, 1 to 65,535; the first ends at ``phase`` < ``length`` if that is not 0, and the
    last may be shorter. :class:`CodecError` if there are no such chunks."""

    length: int = CHUNK
    phase: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.phase < self.length <= LONGEST_CHUNK:
            expected = f"chunks of 1 to {LONGEST_CHUNK} coordinates that begin within that"
            raise CodecError(f"expected {expected}, got {self.length} and {self.phase}")

    def sizes(self, count: int) -> Ints:
        """Return how many coordinates every chunk of a vector of ``count`` has, int64."""
        first = min(self.phase, count)
        whole, rest = divmod(count - first, self.length)
        found = np.full((first > 0) + whole + (rest > 0), self.length, np.int64)
        if first:
            found[0] = first
        if rest:
            found[-1] = rest
        return found


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks: how many coordinates each has, and the number its signs are drawn with, int64 ``[blocks]``."""

    sizes: Ints
    numbers: Ints


def cut(runs: Sequence[int]) -> Cut:
    """Cut ``runs``, how many coordinates belong together each, into blocks; a run may span blocks, and a block runs.

    The number of a block is how many block numbers those before it take: no two share a sign set.
    """
    groups, waiting = list[int](), 0
    for run in runs:
        waiting += run
        if waiting >= SMALLEST_BLOCK:
            groups.append(waiting)
            waiting = 0
    if groups:
        groups[-1] += waiting
    elif waiting:
        groups.append(waiting)
    sizes = np.array([size for group in groups for size in _blocks_of(group)], np.int64)
    signs = np.where(sizes == BLOCK, FULL_SETS, TAIL_SETS)
    return Cut(sizes, np.cumsum(signs) - signs)


def _blocks_of(count: int) -> list[int]:
    whole, rest = divmod(count, BLOCK)
    if rest == 0 or rest >= SMALLEST_BLOCK or whole == 0:
        return [BLOCK] * whole + [rest] * (rest > 0)
    return [BLOCK] * (whole - 1) + [(BLOCK + rest + 1) // 2, (BLOCK + rest) // 2]


def classes_of(energies: Doubles, sizes: Ints) -> Ints:
    """Return the class of every chunk, int64 ``[chunks]``, from its energy, float64, and its size, int64."""
    exponent = (np.frexp(energies / sizes)[1].astype(np.int64) - 1) >> 1
    alive = energies > 0
    top = exponent[alive].max(initial=-(1 << 20))
    return np.where(alive, np.minimum(top - exponent, WEAKEST), ZERO)


def runs_of(classes: Ints, sizes: Ints) -> list[int]:
    """Return how many coordinates each class has, the strongest first, classes without any left out. ``classes`` and
    ``sizes``, here and below: of the chunks, int64 ``[chunks]``."""
    counts = np.bincount(classes, weights=sizes.astype(np.float64))
    return [int(count) for count in counts if count]


def order_of(classes: Ints, sizes: Ints) -> Ints:
    """Return which coordinate travels at which place, int64 ``[d]``: ``x[order]`` is what is cut into blocks."""
    order = np.argsort(classes, kind="stable")
    starts, lengths = (np.cumsum(sizes) - sizes)[order], sizes[order]
    places = np.cumsum(lengths) - lengths
    spread: Ints = np.repeat(starts - places, lengths)
    spread += np.arange(spread.size)
    return spread


def _mapped(classes: Ints) -> Ints:
    change = np.diff(classes, prepend=0)
    return np.where(change > 0, 2 * change - 1, -2 * change)


def packed_bytes(classes: Ints) -> int:
    """Return the length of the packed classes."""
    return -(-(int(_mapped(classes).sum()) + classes.size) // 8)


def pack_classes(classes: Ints) -> bytes:
    """Pack at least one class; the first as its difference from 0. The last byte is filled up with zeros."""
    ends = np.cumsum(_mapped(classes) + 1) - 1
    bits = np.ones(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 0
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_classes(data: Bytes, count: int) -> tuple[Ints, int]:
    """Return ``count`` classes, int64 ``[count]``, and how many of ``data``, uint8, they took in bytes.

    Raises:
        CodecError: ``data`` ends before, or holds a class that there is none of.
    """
    ends, taken = np.empty(0, np.int64), count // 2
    while ends.size < count and taken < 2 * data.size:
        taken *= 2
        ends = np.flatnonzero(np.unpackbits(data[: taken + 8], bitorder="little") == 0)
        taken += 8
    if ends.size < count:
        raise CodecError(f"expected the classes of {count} chunks, got those of {ends.size}")
    mapped = np.diff(ends[:count], prepend=-1) - 1
    classes = np.cumsum(np.where(mapped % 2 == 1, (mapped + 1) // 2, -(mapped // 2)))
    if classes.min() < 0 or classes.max() > ZERO:
        raise CodecError(f"expected classes of 0 to {ZERO}, got one of {classes.min()} or {classes.max()}")
    return classes, int(ends[count - 1]) // 8 + 1
