"""A spherical code: sixteen bits for the direction of m coordinates together.

Where less than about a bit goes to a coordinate, rounding each by itself is 1.6 times above the rate-distortion floor
1/(4^b - 1). A code for many together comes nearer (D. J. Sakrison, A Geometric Treatment of the Source Encoding of a
Gaussian Random Variable, IEEE Transactions on Information Theory, 1968). Here it is 2^16 words of ±1,

    C = {±D_j H_n e_r : 0 <= j < 2^15/n, 0 <= r < n},    q = argmax_{c in C} <y, c>

n the power of two from m on, H_n Hadamard's matrix in natural order, D_j fixed random signs, the first m entries of
each word used. So the best word falls out of 2^15/n Hadamard transforms, as Reed-Muller codes are decoded (F. J.
MacWilliams & N. J. A. Sloane, The Theory of Error-Correcting Codes, chapter 14). Each costs log2 n additions a
coordinate.

    m                  18     21     26     32     48     64     128    256    1024
    bits a coordinate  .89    .76    .62    .5     .33    .25    .125   .0625  .0156
    vNMSE              .628   .748   .962   1.28   2.11   2.95   6.42   13.3   54.9
    over the floor     1.53   1.40   1.30   1.28   1.24   1.22   1.22   1.21   1.20

<y, q> > 0 in every group, so EDEN's scale S = ||y||²/<y, q> is exact at the lowest rates too. A block of N coordinates
is cut into ``groups`` as even as can be. A word's index is 2(n·j + r), and one more for -D_j H_n e_r.

The search is in whole numbers of 16 bits, every sum of which fits: each group is rounded to multiples of
max|y|/(⌊32767/n⌋ - 1), so all machines find the same word, of several as near the one of the lowest index.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs.base import Vector
from fedge.codecs.gaussian import Doubles, Ints

GROUP_BITS = 16
DIRECTIONS = 1 << 15
SHORTEST, LONGEST = 16, 1024  # coordinates of a group
_SEED = 1
_SMALLEST_PEAK = np.float32(2.0**-100)  # of a group that is not taken for zeros
_ROOM = 1 << 18  # whole numbers that are worked on at once
# E max_c <z, c>/√m for z ~ N(0, 1)^m, of 60,000 draws each (30,000 from 152 on). A test draws some again.
_LENGTHS = (
    16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128, 152, 181, 215, 256, 304, 362, 431, 512, 609, 724, 861, 1024,
)  # fmt: skip
_REACHED = (
    3.174, 3.365, 3.536, 3.653, 3.751, 3.833, 3.907, 3.969, 4.017, 4.056, 4.103, 4.127, 4.155,
    4.167, 4.191, 4.209, 4.221, 4.229, 4.243, 4.251, 4.256, 4.256, 4.269, 4.271, 4.275,
)  # fmt: skip

Words = npt.NDArray[np.uint16]
Signs = npt.NDArray[np.int16]


@functools.cache
def signs() -> Signs:
    """Return the signs of all D_j, ±1, int16 ``[2^15]``: entry n·j + i is that of coordinate i in D_j, whatever n."""
    bits = np.unpackbits(seeds.words(_SEED, DIRECTIONS // 64).astype("<u8").view(np.uint8), bitorder="little")
    drawn: Signs = 1 - 2 * bits.astype(np.int16)
    drawn.flags.writeable = False
    return drawn


def gain_of(length: Doubles) -> Doubles:
    """Return E<y, q>/m of groups of ``length`` m coordinates N(0, 1), float64, on average, the same bits everywhere."""
    at = np.array(_LENGTHS)
    node = np.clip(np.searchsorted(at, length, side="right") - 1, 0, at.size - 2)
    reached = np.array(_REACHED)
    rise = (reached[node + 1] - reached[node]) / (at[node + 1] - at[node])
    gain: Doubles = (reached[node] + rise * (length - at[node])) / np.sqrt(length)
    return gain


def error_of(length: Doubles) -> Doubles:
    """Return the relative squared error of the unbiased estimate, 1/gain² - 1."""
    gain = gain_of(length)
    error: Doubles = 1 / (gain * gain) - 1
    return error


def cut(size: int, groups: int) -> Ints:
    """Return where each group of a block of ``size`` coordinates begins, and its end, int64 ``[groups + 1]``."""
    edges: Ints = np.arange(groups + 1) * size // groups
    return edges


def _order_of(size: int, groups: int) -> int:
    """Return n, the power of two that the longest of ``groups`` fits in."""
    return max(SHORTEST, 1 << (-(-size // groups) - 1).bit_length())


def encode(y: Vector, groups: int) -> tuple[Words, Vector]:
    """Return the nearest words of a block y, float32 ``[N]``: uint16 ``[groups]``, and what they say, ±1, ``[N]``."""
    n, edges = _order_of(y.size, groups), cut(y.size, groups)
    inside = np.arange(n) < np.diff(edges)[:, None]
    z = np.zeros((groups, n), np.float32)
    z[inside] = y
    highest = np.abs(z).max(axis=1, keepdims=True)
    whole = np.rint(z * (np.float32(32767 // n - 1) / np.where(highest > _SMALLEST_PEAK, highest, np.float32(1))))
    transform, of_j = _hadamard(n), signs().astype(np.float32).reshape(-1, n)
    best, found = np.full(groups, -1.0, np.float32), np.zeros(groups, np.int64)
    per = max(1, _ROOM // (n * groups))
    for first in range(0, DIRECTIONS // n, per):
        # Sums of whole numbers below 2^24: exact, in whatever order a BLAS adds.
        x = (whole[:, None] * of_j[first : first + per]).reshape(-1, n) @ transform
        magnitude = np.abs(x, out=x).reshape(groups, -1)
        at = magnitude.argmax(axis=1)
        most = magnitude[np.arange(groups), at]
        found = np.where(most > best, first * n + at, found)
        best = np.maximum(most, best)
    q = np.zeros_like(z)
    q[inside] = decode((2 * found).astype(np.uint16), y.size)
    negative = (q * whole).sum(axis=1) < 0
    words = (2 * found + negative).astype(np.uint16)
    return words, decode(words, y.size)


@functools.cache
def _hadamard(n: int) -> Vector:
    """H_n in natural order."""
    h = np.ones((1, 1), np.float32)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


def decode(words: Words, size: int) -> Vector:
    """Return what ``words``, uint16 ``[groups]``, say of a block of ``size`` coordinates: ±1, float32 ``[size]``."""
    edges, n = cut(size, words.size), _order_of(size, words.size)
    lengths = np.diff(edges)
    index = np.repeat(words.astype(np.int64), lengths)
    i = np.arange(size) - np.repeat(edges[:-1], lengths)
    r = (index >> 1) & (n - 1)
    odd = (np.bitwise_count(r & i) + index) & 1
    said: Vector = ((1 - 2 * odd) * signs()[(index >> 1) - r + i]).astype(np.float32)
    return said
