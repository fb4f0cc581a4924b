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

Signs = npt.NDArray[np.uint32]


def sign_sets(seed: int, first: int, count: int) -> Signs:
    """Return sets ``first`` .. ``first + count - 1`` as float32 sign bits, uint32 ``[count, 4096]``."""
    base = int(seeds.words(seed, 1)[0]) + first * WORDS_PER_SET * seeds.GAMMA
    lanes = seeds.words(base, count * WORDS_PER_SET).astype("<u8", copy=False).view("<u4").reshape(count, 128)
    bits = np.empty((count, 32, 128), dtype=np.uint32)
    for j in range(32):
        np.left_shift(lanes, np.uint32(31 - j), out=bits[:, j])
    bits &= np.uint32(0x80000000)
    return bits.reshape(count, BLOCK)


def block_signs(seed: int, first: int, count: int) -> Signs:
    """Return both sets of blocks ``first`` .. ``first + count - 1``, uint32 ``[count, 2, 4096]``."""
    sets = sign_sets(seed, SETS_PER_BLOCK * first, SETS_PER_BLOCK * count)
    return sets.reshape(count, SETS_PER_BLOCK, BLOCK)


def _flip(x: Vector, signs: Signs) -> Vector:
    """Negate the entries of ``x`` where ``signs`` say so."""
    return (np.ascontiguousarray(x).view(np.uint32) ^ signs).view(np.float32)


def _butterflies(x: Vector) -> Vector:
    """Apply the unnormalized H_m along axis 1 of ``x``, shape ``[blocks, m, inner]``."""
    blocks, m, inner = x.shape
    distance = 1
    while distance < m:
        pairs = x.reshape(blocks, m // (2 * distance), 2, distance * inner)
        mixed = np.empty_like(pairs)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 1])
        x = mixed.reshape(blocks, m, inner)
        distance *= 2
    return x


def _square(x: Vector) -> Vector:
    """Apply H' = C·T·C to every row of ``x``, shape ``[blocks, 4096]``."""
    matrix = _butterflies(x.reshape(-1, SIDE, SIDE))
    matrix = _butterflies(np.ascontiguousarray(matrix.swapaxes(1, 2)))
    return matrix.reshape(-1, BLOCK)


def rotate(x: Vector, signs: Signs) -> Vector:
    """Rotate full blocks, float32 ``[blocks, 4096]``, by ``signs`` ``[blocks, 2, 4096]``; the result is 4096 times
    too long."""
    return _square(_flip(_square(_flip(x, signs[:, 0])), signs[:, 1]))


def unrotate(y: Vector, signs: Signs) -> Vector:
    """Undo :func:`rotate`, again 4096 times too long."""
    return _flip(_square(_flip(_square(y), signs[:, 1])), signs[:, 0])


def _hadamard(x: Vector) -> Vector:
    """Return H_N·x / √N for a power of two N."""
    norm = np.float32(1 / math.sqrt(x.size))
    return _butterflies(x.reshape(1, -1, 1)).reshape(-1) * norm


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
