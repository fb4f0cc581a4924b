"""Fixed-rate blocks of 1 to 4 whole bits, rotated in whole numbers: version 7 of EDEN's payloads.

The same codec as in ``twin.py``, x_hat = S·R^-1·q, of full blocks, in arithmetic that costs about half: 16 sums of 16
bits go where eight of float32 go, and being exact they may be made in any order. With H the unnormalized Hadamard
matrix of 4096 entries, H[a, b] = (-1)^(number of bits that a and b share), so that H = stage 0 · stage 1 · .. stage 11,
a *stage* m the sums and differences of entries whose index differs in bit m, and signs D_1, D_2:

    rotate = H·D_2·H·D_1,   4096 times an orthonormal matrix

    encode   E = <x, x>, g = NORM/(32·√E);  D_1·round(g·x), up or down by chance        root mean square 127
             stages 6 to 9 | halved | stages 10, 11 and 0 to 5                          508, 254, 4064
             halved | D_2, halved | stages 8, 9 | halved | 10, 11 | halved        2032; 1016, 2032; 1016, 2032; 1016
             stages 7, 2 | a fourth | stages 6, 0, 1, 3, 4, 5                           2032, 508, 4064
             y, the result:  level(y_i) by |y_i|/64,  S = 64·√E·NORM·NOISE / Σ|y_i|·level(y_i)
    decode   u = D_2·H·(±level)                                                         16 bits, root mean square ≤ 4064
             x_hat = S·D_1·H·u / (64·4096)                                              32 bits, then float32

Sums of 16 bits are modulo 2^16. None gets there in the first six stages, by Cauchy-Schwarz. Behind random signs a
number would have to be eight times its root mean square, which one in 10^14 is; just behind D_2, whose signs meet equal
numbers where x has structure, there is room for 16 times. That is not enough once in 200,000 blocks for the worst x
known, 64 equal numbers in a row and nothing else: such a block comes out with an error of up to its own energy, here as
in C.

Rounding g·x is round(g·x + (2·r + 1 - 2^16)/2^17), ties to even, r the 16 bits of lane i mod 256 of D_2's set for
coordinate i: so the error has no mean whatever x is. That matters where x has a few large entries, whose roundings all
devices would share. What lies between two goes up, whatever the sign, so halving has no mean either beside random
signs; but dividing by four also rounds 1/4 down and 3/4 up, which shortens and lengthens, and so is only done to sums
of 64. All together they add 1.2e-5 to the energy, by which scales would be too small: NOISE. (4 bits leave 1e-2.)

The norm of y is NORM, 64·4064, whatever x is: so thresholds are constants. Levels are whole numbers near the Lloyd-Max
centroids times 62 to 65; a magnitude is cut down to m = min(⌊|y|/64⌋, 255), and the level is the number of thresholds
not above m. vNMSE is 1, 1.00006, 1.0001 and 1.0011 times that of real levels, at 1 to 4 bits.

Signs are the lanes of a set (``rotation.py``) as 256 of 16 bits: the entry in place 256·k + l is negated if bit k of
lane l is set; and codes travel in the order of a place. Bits of the index, the highest of the place first:

    D_1      11 10 9 8   7 6 5 4 2 3 1 0
    D_2      11 10 9 8   7 2 1 0 3 6 5 4
    codes    3 6 5       11 10 9 8 7 4 2 1 0

This module is NumPy's side, in which blocks are columns; ``kernels/whole.h`` is the C side.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedge.codecs import packing, rotation
from fedge.codecs.base import Mask, Vector
from fedge.codecs.rotation import BLOCK, SIDE, Signs, Workspace

# Of the magnitudes: levels, and the m from which on each but the first is taken. Also in kernels/job.h.
LEVELS = ((51,), (29, 97), (16, 49, 87, 139), (8, 24, 41, 59, 79, 102, 130, 171))
THRESHOLDS = ((), (62,), (32, 67, 111), (16, 33, 51, 70, 92, 118, 153))
# E[z Q(z)]² / E[Q(z)²] of z of N(0, 1), 1 to 4 bits: the share of the energy that levels hold.
GAINS = (0.6366197723675815, 0.8825122482546917, 0.9654485331081096, 0.9904886354733432)
NORM, ONE = 4064.0 * SIDE, 64.0
NOISE = 1 + 1.2e-5  # the energy of y over that of what is rounded
UNIT = np.float32(32 / (ONE * BLOCK))  # of what is decoded: scales travel as S/32 (twin.py)
_UPPER = range(6, 12)  # bits of a place
_SIGN = np.uint32(0x80000000)

Number = TypeVar("Number", np.int16, np.int32)
Words = npt.NDArray[np.int16]
Bits16 = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def encode(work: Workspace, lanes: Signs, width: int) -> tuple[npt.NDArray[np.float64], Bytes]:
    """Encode the blocks that are the columns of ``work.x``, each with its largest magnitude near 1, or zeros.

    ``lanes``: of both sets of signs, uint32 ``[2, 128, blocks]``. Returns the scales S, float64 ``[blocks]``, 0 for
    zeros, and packed codes, uint8 ``[512 * width, blocks]``. Overwrites ``work``.
    """
    norm = np.sqrt(_energies(work.x))
    first, second = (_halves(one) for one in lanes)
    with np.errstate(divide="ignore"):
        factors = np.where(norm > 0, NORM / 32 / norm, 0).astype(np.float32)
    y, free = _in_words(work.scratch)
    _round(work.x, factors, second, y)
    _flip(y, _by_index(first))
    y, free = _shorten(*_stages(y, free, (6, 7, 8, 9)), 1)
    y, free = _stages(y, free, (10, 11))
    y, free = _turn(*_stages(*_turn(y, free), _UPPER))
    y, free = _shorten(y, free, 1)
    _flip(y, _by_place(second))
    y, free = _shorten(y, free, 1)
    y, free = _shorten(*_stages(y, free, (8, 9)), 1)
    y, free = _shorten(*_stages(y, free, (10, 11)), 1)
    y, free = _shorten(*_stages(y, free, (7, 2)), 2)
    y, free = _turn(*_stages(y, free, (6,)))
    y, free = _stages(y, free, (6, 7, 9, 10, 11))
    codes, product = _quantize(y, np.abs(y, out=free), width)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(product > 0, norm * (NORM * ONE * NOISE) / product, 0.0)
    return scale, packing.pack(codes, width)


def decode(work: Workspace, packed: Bytes, lanes: Signs, width: int, received: Mask | None) -> None:
    """Decode blocks into the columns of ``work.x``, for S = 32.

    ``packed``: uint8 ``[512 * width, blocks]``; ``received``: bool ``[4096, blocks]``, in the order of codes.
    """
    y, free = _in_words(work.x)
    level = np.array([*(-level for level in LEVELS[width - 1][::-1]), *LEVELS[width - 1]], dtype=np.int16)
    packing.look_up(packed, width, level, free)
    if received is not None:
        free[~received] = 0
    # Bits 3 | 6 | 5 | 11 10 9 8 7 | 4 | 2 1 0 to 5 | 4 | 3 | 2 1 0 | 11 10 9 8 7 | 6.
    turned = free.reshape(2, 2, 2, 32, 2, 8, -1).transpose(2, 4, 0, 5, 3, 1, 6)
    np.copyto(y.reshape(turned.shape), turned)
    y, free = _stages(y, free, _UPPER)
    y, free = _stages(*_turn(y, free), _UPPER)
    first, second = (_halves(one) for one in lanes)
    _flip(y, _by_place(second))
    x, other = (a.view(np.int32) for a in (work.scratch, work.x))
    np.copyto(_turned(x), y.reshape(SIDE, SIDE, -1))
    x, other = _stages(x, other, _UPPER)
    x, other = _stages(*_turn(x, other), _UPPER)
    signs = _by_index(first).astype(np.uint32)
    rows, out = (a.reshape(16, -1) for a in (x, work.x))
    part = np.empty(rows[0].size, dtype=np.float32)
    for k, row in enumerate(rows):  # the same memory: not all at once
        np.multiply(row, UNIT, out=part, dtype=np.float32, casting="unsafe")
        bits = part.view(np.uint32)
        bits ^= signs << np.uint32(31 - k) & _SIGN
        out[k] = part


def _energies(x: Vector) -> npt.NDArray[np.float64]:
    """Return <x, x> of each column of ``x``, float32 ``[4096, blocks]``: entry i in sum i mod 64, first to last, then
    halves of the sums added to each other down to eight, in float32; these in order in float64."""
    rows = x.reshape(SIDE, -1)
    sums, square = np.square(rows[0]), np.empty_like(rows[0])
    for row in rows[1:]:
        np.multiply(row, row, out=square)
        sums += square
    for half in (32, 16, 8):
        sums = np.add(*sums.reshape(2, half * x.shape[1]))
    total = np.zeros(x.shape[1])
    for one in sums.reshape(8, -1):
        total += one
    return total


def _in_words(memory: Vector) -> tuple[Words, Words]:
    """Return two arrays of 16 bits in the place of ``memory``, each of its shape."""
    first, second = memory.reshape(-1).view(np.int16).reshape(2, *memory.shape)
    return first, second


def _turned(x: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """View ``x``, ``[4096, blocks]``, with bits 0 to 5 of the index before 6 to 11, ``[64, 64, blocks]``.

    Stages of higher bits go along longer rows, which is worth a copy.
    """
    return x.reshape(SIDE, SIDE, -1).transpose(1, 0, 2)


def _turn(x: npt.NDArray[Number], free: npt.NDArray[Number]) -> tuple[npt.NDArray[Number], npt.NDArray[Number]]:
    """Exchange bits 0 to 5 of the place and bits 6 to 11; return the result and the array not used."""
    np.copyto(_turned(free), x.reshape(SIDE, SIDE, -1))
    return free, x


def _halves(lanes: Signs) -> Bits16:
    """Return one set's ``lanes``, ``[128, blocks]``, as 16 bits each, ``[256, blocks]``."""
    pairs = np.stack((lanes & np.uint32(0xFFFF), lanes >> np.uint32(16)), axis=1)
    return pairs.astype(np.uint16).reshape(-1, lanes.shape[1])


def _round(x: Vector, factors: Vector, chances: Bits16, out: Words) -> None:
    """Write ``x``, ``[4096, blocks]``, times ``factors``, rounded up or down as ``chances``, ``[256, blocks]``, say, to
    ``out``."""
    chance = (chances.astype(np.float32) * np.float32(2.0**-16) - np.float32(32767.5 / 65536)).reshape(-1)
    part, tiled = np.empty_like(chance), np.tile(factors, len(chances))
    low = part.view(np.int16)[::2]
    for row, rounded in zip(x.reshape(16, -1), out.reshape(16, -1), strict=True):
        np.multiply(row, tiled, out=part)
        part += chance
        part += np.float32(12582912.0)  # 1.5·2^23 leaves the integer in the lowest bits
        rounded[:] = low


def _stages(
    x: npt.NDArray[Number], free: npt.NDArray[Number], bits: Iterable[int]
) -> tuple[npt.NDArray[Number], npt.NDArray[Number]]:
    """Apply the stages of ``bits`` of the place to the columns of ``x``; return the result and the array not used."""
    with rotation.unbuffered():
        for bit in bits:
            pairs, mixed = (a.reshape(-1, 2, x.shape[1] << bit) for a in (x, free))
            np.add(pairs[:, 0], pairs[:, 1], out=mixed[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=mixed[:, 1])
            x, free = free, x
    return x, free


def _by_index(halves: Bits16) -> Bits16:
    """Bring bits 7 6 5 4 | 2 | 3 | 1 0 of the index to their order; flat."""
    return halves.reshape(16, 2, 2, 4, -1).transpose(0, 2, 1, 3, 4).reshape(-1)


def _by_place(halves: Bits16) -> Bits16:
    """Bring bits 7 | 2 1 0 | 3 | 6 5 4 of the index to their order; flat."""
    return halves.reshape(2, 8, 2, 8, -1).transpose(0, 3, 2, 1, 4).reshape(-1)


def _flip(x: Words, halves: Bits16) -> None:
    """Negate entries of ``x`` where ``halves`` say so, in the order of bits 7 to 0 of the index: their bit k of the
    entries whose bits 11 to 8 are k."""
    signs = halves.view(np.int16)
    mask = np.empty_like(signs)
    for here in x.reshape(16, -1)[::-1]:
        np.right_shift(signs, 15, out=mask)
        here ^= mask
        here -= mask
        signs += signs


def _shorten(x: Words, free: Words, bits: int) -> tuple[Words, Words]:
    """Divide ``x`` by 2^bits and round; halves go up."""
    if bits > 1:
        x >>= bits - 1
    np.bitwise_and(x, 1, out=free)
    x >>= 1
    x += free
    return x, free


def _quantize(y: Words, magnitude: Words, width: int) -> tuple[Bytes, Integers]:
    """Return the codes of ``y``, ``[4096, blocks]``, bits 0 to 5 of whose index come first, in the order of codes; and
    Σ |y|·level of each block."""
    half, levels = 1 << (width - 1), LEVELS[width - 1]
    code, value = np.full(y.shape, half, dtype=np.uint8), np.full(y.shape, levels[0], dtype=np.uint8)
    small = np.clip(magnitude >> 6, 0, 255).astype(np.uint8)
    above = np.empty(y.shape, dtype=np.bool_)
    for k, threshold in enumerate(THRESHOLDS[width - 1]):
        np.greater_equal(small, np.uint8(threshold), out=above)
        code += above
        value += above.view(np.uint8) * np.uint8(levels[k + 1] - levels[k])
    code ^= np.negative((y < 0).view(np.uint8)) & np.uint8(2 * half - 1)
    # Bits 5 | 4 | 3 | 2 1 0 | 11 10 9 8 7 | 6 to 3 | 6 | 5 | 11 10 9 8 7 | 4 | 2 1 0.
    codes = code.reshape(2, 2, 2, 8, 32, 2, -1).transpose(2, 5, 0, 4, 1, 3, 6).reshape(y.shape)
    return codes, _product(magnitude, value)


def _product(a: Words, b: Bytes) -> Integers:
    """Return Σ a·b of each column of ``[4096, blocks]``."""
    terms = a.astype(np.int32)
    terms *= b
    rows = len(terms)
    while rows > SIDE:  # in long rows, while sums fit into 32 bits
        rows //= 2
        terms[:rows] += terms[rows : 2 * rows]
    total: Integers = terms[:rows].sum(axis=0, dtype=np.int64)
    return total
