"""Random rotations from integers alone: randomized Hadamard transforms without padding.

A block of 4096 is seen as a 64 × 64 matrix X. Let C apply the unnormalized Hadamard matrix H_64 to every column and
T transpose; H' = C·T·C is 64 times an orthonormal matrix and is its own inverse up to that factor. With random
signs D_1, D_2

    rotate = H'·D_2·H'·D_1,   4096 times an orthonormal matrix: the power of two is left to the caller.

Two rounds, not one: after one, a vector with a few large entries has only a few distinct rotated values, and its
quantization error does not average out over seeds.

A tail of n < 4096 coordinates has N = 2^⌊log2 n⌋ and three rounds of: signs and H_N/√N on the first N entries; if
n > N, fresh signs and H_N/√N on the last N; and a riffle (even entries, then odd ones), which carries half of either
end to the other. Three more riffles at the end let the first k entries be drawn from everywhere, for rates that send
no more. Every step is orthonormal, so n coordinates stay n coordinates. (Without the fresh signs, H_N and H_N moved
by one entry nearly cancel for n = N + 1.)

Signs come from the SplitMix64 stream (fedge.seeds) of word 0 of the seed's own stream, in sets of 64 words: block k
takes sets 2k and 2k + 1, and the tail, which comes last, up to six sets from 2k on. A set is 128 lanes of 32 bits,
low halves first; entry 128·j + l is negated if bit j of lane l is set.

All arithmetic is float32 addition and subtraction in the order written here (columns: distance 1, 2, 4, .., 32;
H_N: distance 1, 2, 4, .., N/2), and one multiplication in a tail, so that every machine gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs.base import Vector

BLOCK = 4096
SIDE = 64
WORDS_PER_SET = 64
SETS_PER_BLOCK = 2
TAIL_ROUNDS = 3
LAST_RIFFLES = 3
SMALLEST_BUFFER = 16  # that NumPy takes
ROWS = 8  # of signs made at once

Number = TypeVar("Number", np.uint8, np.uint32, np.float32)
Signs = npt.NDArray[np.uint32]

_SIGN = np.uint32(0x80000000)
_TO_SIGN = np.arange(31, -1, -1, dtype=np.uint32)[:, None]  # how far to the left bit j of a lane is from the sign


@contextmanager
def unbuffered() -> Iterator[None]:
    """Let NumPy work on rows where they lie.

    It otherwise gathers those of less than half its buffer of 8192 numbers in there first, which takes longer than
    adding them. (Where types have to be converted on the way, the buffer is of use.)
    """
    with np.errstate():  # restores the buffer's size
        np.setbufsize(SMALLEST_BUFFER)
        yield


def to_columns(rows: npt.NDArray[Number], out: npt.NDArray[Number]) -> None:
    """Write ``rows`` as columns to ``out``."""
    count, n = rows.shape
    # Rows a power of two apart would share a few lines of the cache.
    apart = np.empty((count, n + 64 // rows.itemsize), dtype=rows.dtype)[:, :n]
    apart[:] = rows
    out[:] = apart.T


def _lanes(seed: int, first: int, count: int) -> Signs:
    """Return the lanes of sets ``first`` .. ``first + count - 1``, uint32 ``[count, 128]``."""
    base = int(seeds.words(seed, 1)[0]) + first * WORDS_PER_SET * seeds.GAMMA
    words = seeds.words(base, count * WORDS_PER_SET)
    return words.astype("<u8", copy=False).view("<u4").reshape(count, 2 * WORDS_PER_SET)


def sign_sets(seed: int, first: int, count: int) -> Signs:
    """Return sets ``first`` .. ``first + count - 1`` as float32 sign bits, uint32 ``[count, 4096]``."""
    bits = _lanes(seed, first, count)[:, None] << _TO_SIGN
    return (bits & _SIGN).reshape(count, BLOCK)


def block_lanes(seed: int, first: int, count: int) -> Signs:
    """Return the lanes of both sets of blocks ``first`` .. ``first + count - 1``, uint32 ``[2, 128, count]``."""
    lanes = _lanes(seed, SETS_PER_BLOCK * first, SETS_PER_BLOCK * count).reshape(count, -1)
    found = np.empty((lanes.shape[1], count), dtype=np.uint32)
    to_columns(lanes, found)
    return found.reshape(SETS_PER_BLOCK, -1, count)


def _flip(x: Vector, signs: Signs) -> Vector:
    """Negate the entries of ``x`` where ``signs`` say so."""
    return (np.ascontiguousarray(x).view(np.uint32) ^ signs).view(np.float32)


def _stages(x: Vector, scratch: Vector) -> list[tuple[Vector, Vector, Vector, Vector]]:
    """Return left and right halves of all pairs, and where their sums and differences go, stage by stage, for the
    unnormalized H_m along axis 0 of ``x``, shape ``[m, inner]``. The arrays take turns; x has the first."""
    m, inner = x.shape
    found, distance = [], 1
    while distance < m:
        pairs, mixed = (a.reshape(m // (2 * distance), 2, distance * inner) for a in (x, scratch))
        found.append((pairs[:, 0], pairs[:, 1], mixed[:, 0], mixed[:, 1]))
        x, scratch = scratch, x
        distance *= 2
    return found


class Workspace:
    """Rotates ``blocks`` full blocks at once, in place: the columns of ``x``, float32 ``[4096, blocks]``.

    With coordinates before blocks, whatever is added lies in long rows. All views of the arrays are made once,
    because making them takes as long as adding 16 blocks does.
    """

    def __init__(self, blocks: int, memory: Vector | None = None) -> None:
        """Make one in ``memory``, float32 ``[2, at least 4096 * blocks]``, if given: that of one no longer in use."""
        memory = np.empty((2, BLOCK * blocks), dtype=np.float32) if memory is None else memory
        self.x, self.scratch = memory[:, : BLOCK * blocks].reshape(2, BLOCK, blocks)
        self._x_rows, self._scratch_rows = (a.reshape(32, -1) for a in (self.x, self.scratch))
        columns, turned = (a.reshape(SIDE, -1) for a in (self.x, self.scratch))
        # An even number of stages ends where it began.
        self._in_x, self._in_scratch = _stages(columns, turned), _stages(turned, columns)
        entry = np.dtype((np.void, 4 * blocks))  # the same entry of all blocks moves as one
        self._matrix, self._turned = columns.view(entry), turned.view(entry)

    def rotate(self, lanes: Signs) -> None:
        """Rotate by ``lanes``, ``[2, 128, blocks]``; the result is 4096 times too long."""
        with unbuffered():
            _flip_by(lanes[0], self._x_rows)
            self._square_twice(lanes[1])

    def unrotate(self, lanes: Signs, factors: Vector | None = None) -> None:
        """Undo :meth:`rotate`, again 4096 times too long, or that times ``factors``, float32 ``[blocks]``."""
        with unbuffered():
            self._square_twice(lanes[1])
            _flip_by(lanes[0], self._x_rows, factors)

    def _square_twice(self, lanes: Signs) -> None:
        """Apply H'·D·H', H' = C·T·C, with D of ``lanes``: to scratch and back."""
        _add_up(self._in_x)
        np.copyto(self._turned, self._matrix.T)
        _add_up(self._in_scratch)
        _flip_by(lanes, self._scratch_rows)
        _add_up(self._in_scratch)
        np.copyto(self._matrix, self._turned.T)
        _add_up(self._in_x)


def _flip_by(lanes: Signs, x: Vector, factors: Vector | None = None) -> None:
    """Negate entries of ``x``, float32 ``[32, 128 * blocks]``, as one set's ``lanes``, ``[128, blocks]``, say, and
    multiply them by their block's of ``factors``, if given: a few rows at a time, which stay in the cache."""
    signs = np.empty((ROWS, lanes.size), dtype=np.uint32)
    tiled = None if factors is None else np.tile(factors, len(lanes))
    for row in range(0, len(x), ROWS):
        here = x[row : row + ROWS]
        bits = here.view(np.uint32)
        np.left_shift(lanes.reshape(-1), _TO_SIGN[row : row + ROWS], out=signs)
        np.bitwise_and(signs, _SIGN, out=signs)
        np.bitwise_xor(bits, signs, out=bits)
        if tiled is not None:
            np.multiply(here, tiled, out=here)


def _add_up(stages: list[tuple[Vector, Vector, Vector, Vector]]) -> None:
    for left, right, sums, differences in stages:
        np.add(left, right, out=sums)
        np.subtract(left, right, out=differences)


def _hadamard(x: Vector) -> Vector:
    """Return H_N·x / √N for a power of two N."""
    both = x.reshape(-1, 1).copy(), np.empty((x.size, 1), dtype=np.float32)
    stages = _stages(*both)
    _add_up(stages)
    return both[len(stages) % 2].reshape(-1) * np.float32(1 / math.sqrt(x.size))


def _spans(n: int) -> list[slice]:
    """Return the entries on which H_N acts in one round."""
    power = 1 << (n.bit_length() - 1)
    return [slice(0, power)] if n == power else [slice(0, power), slice(n - power, n)]


def _riffle(x: Vector) -> Vector:
    return np.concatenate((x[0::2], x[1::2]))


def _unriffle(y: Vector) -> Vector:
    x = np.empty_like(y)
    even = (y.size + 1) // 2
    x[0::2], x[1::2] = y[:even], y[even:]
    return x


def rotate_tail(x: Vector, seed: int, block: int) -> Vector:
    """Rotate one tail, float32 ``[n]``, which is block number ``block``. Orthonormal."""
    spans = _spans(x.size)
    signs = iter(sign_sets(seed, SETS_PER_BLOCK * block, TAIL_ROUNDS * len(spans)))
    x = x.copy()
    for _ in range(TAIL_ROUNDS):
        for span in spans:
            x[span] = _hadamard(_flip(x[span], next(signs)[: x[span].size]))
        x = _riffle(x)
    for _ in range(LAST_RIFFLES):
        x = _riffle(x)
    return x


def unrotate_tail(y: Vector, seed: int, block: int) -> Vector:
    """Undo :func:`rotate_tail`."""
    spans = _spans(y.size)
    signs = iter(sign_sets(seed, SETS_PER_BLOCK * block, TAIL_ROUNDS * len(spans))[::-1])
    x = y
    for _ in range(LAST_RIFFLES):
        x = _unriffle(x)
    for _ in range(TAIL_ROUNDS):
        x = _unriffle(x)
        for span in reversed(spans):
            x[span] = _flip(_hadamard(x[span]), next(signs)[: x[span].size])
    return x
