"""Scales of blocks on the wire: the largest as float32, and 16 bits for each if there are several.

A code 0 is a block of zeros; otherwise, e its upper 5 bits and m its lower 11,

    scale = top · 2^(e-31) · (1 + m/2048)

rounded up or down at random (by the seed) so that its expectation is exact. The largest scale has code 65535; blocks
whose scale is 2^-32 of it or less become zeros.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs.base import LARGEST
from fedge.errors import CodecError

MANTISSA = 2048  # steps per octave of a scale code
HIGHEST_CODE = 65_535

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def size_bytes(count: int) -> int:
    """Return the length of ``count`` packed scales."""
    return 0 if count == 0 else 4 if count == 1 else 4 + 2 * count


def pack(scales: Doubles, seed: int) -> bytes:
    """Pack scales, float64 ``[count]``. The seed decides between rounding up and down: no bias over seeds."""
    if scales.size < 2:
        return np.minimum(scales, LARGEST).astype("<f4").tobytes()
    top = np.float32(scales.max() * (MANTISSA / (2 * MANTISSA - 1)))
    if top == 0:
        return bytes(4 + 2 * scales.size)
    fraction, exponent = np.frexp(scales / np.float64(top))
    position = ((30 + exponent) + (2 * fraction - 1)) * MANTISSA
    dither = seeds.uniform(int(seeds.words(seed, 2)[1]), scales.size)
    codes = np.where(scales > 0, np.clip(np.floor(position + dither), 0, HIGHEST_CODE), 0)
    side: bytes = top.astype("<f4").tobytes() + codes.astype("<u2").tobytes()
    return side


def read(data: bytes, count: int, offset: int) -> tuple[float, Codes]:
    """Return the first number of ``count`` packed scales at ``offset``, and the codes, int64 ``[count]``; the one code
    of a single scale is the highest.

    Raises:
        CodecError: the number is no finite one of at least 0.
    """
    if count == 0:
        return 0.0, np.empty(0, np.int64)
    top = float(np.frombuffer(data, "<f4", 1, offset)[0])
    if not (math.isfinite(top) and top >= 0):
        raise CodecError(f"expected a scale that is finite and not negative, got {top}")
    if count == 1:
        return top, np.full(1, HIGHEST_CODE, np.int64)
    return top, np.frombuffer(data, "<u2", count, offset + 4).astype(np.int64)


def values(top: float, codes: Codes) -> Doubles:
    """Return the scales that :func:`read` found, float64 ``[count]``."""
    if codes.size < 2:
        return np.full(codes.size, top)
    factor = np.ldexp(1 + (codes % MANTISSA) / MANTISSA, codes // MANTISSA - 31)
    return np.where(codes > 0, top * factor, 0.0)
