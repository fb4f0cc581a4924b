"""What travels beside the codes of each block: its scale, coarse for the quantizer and fine for the estimate.

    top f32 | per block:  c u8, f u8          c = 0: a block of zeros; top is the largest σ, of c = 255
    σ = top · 2^((c - 255)/8)                 decides step and frequencies, and so does not have to be exact
    x_hat = m·(1 + (f - 128)·√v/32) · R^-1·k  with  m = σ s/gain_n(s), what a Gaussian of this σ would want

f brings the estimate to the scale that the codes really call for,

    S = ||y||²/<y, k>,   so that <x, x_hat> = ||x||² whatever the vector

(Vargaftik et al., EDEN, ICML 2022, section 3; https://arxiv.org/abs/2108.08842), and, where so few codes are not zero
that S would be all luck, to the expected one for the block's true σ, which is unbiased too. f is rounded up or down by
the seed: its expectation is exact. Its unit is 1/32 of the block's own relative error, so rounding adds 1/6000 to it.
Of directions every coordinate says something, and S is never luck.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.codecs import quantizers
from fedge.codecs.base import LARGEST
from fedge.codecs.gaussian import COARSEST, FINEST, UNITS, Doubles, Ints
from fedge.codecs.quantizers import FIRST_LENGTH
from fedge.errors import CodecError

STEPS = 8  # coarse steps an octave
HIGHEST, MIDDLE = 255, 128
RESOLUTION = 32.0  # fine steps in one √v
ENOUGH_CODES, ENOUGH_SHARE = 64, 0.2  # that are not zero, for S to be trusted: from about one bit on
_TINY = np.float32(2.0**-149)
_EIGHTHS = np.array([math.sqrt(math.sqrt(math.sqrt(2.0**k))) for k in range(STEPS)])

Bytes = npt.NDArray[np.uint8]


def size_bytes(count: int) -> int:
    """Return the length of the scales of ``count`` blocks."""
    return 4 + 2 * count


def coarse(energy: Doubles, sizes: Ints) -> tuple[np.float32, Ints]:
    """Return top and c, int64 ``[blocks]``, from the energies of blocks, float64, and their sizes, int64: top so that
    half of the blocks are below what c says, and half above."""
    alive = energy > 0
    octaves = np.log2(energy, where=alive, out=np.zeros_like(energy)) / 2 - np.log2(sizes) / 2
    if not alive.any():
        return np.float32(0), np.zeros(sizes.size, np.int64)
    below = STEPS * (octaves - octaves[alive].max())
    offset = float(np.median((below - np.rint(below))[alive]))
    top = np.exp2(octaves[alive].max() + offset / STEPS)
    c = np.where(alive, np.clip(np.rint(below - offset), -HIGHEST, 0) + HIGHEST, 0).astype(np.int64)
    # Not less than float32's smallest: a block of next to nothing must not look like a block of zeros.
    return np.float32(np.clip(top, _TINY, LARGEST)), c


def sigma_of(top: float, c: Ints) -> Doubles:
    """Return σ of every block, float64, the same bits everywhere."""
    below = c - HIGHEST
    sigma = top * np.ldexp(_EIGHTHS[below % STEPS], below // STEPS)
    return np.where(c > 0, sigma, 0.0)


def octaves_below(c: Ints) -> Ints:
    """Return by how much every block is weaker than the strongest, in 1/2048 octave."""
    below: Ints = (HIGHEST - c) * (UNITS // STEPS)
    return below


def unit_of(steps: Ints) -> Doubles:
    """Return what one fine step is worth at steps t, relative to m."""
    unit: Doubles = _units()[steps - FINEST]
    return unit


@functools.cache
def _units() -> Doubles:
    """Twelve bits of each: far enough from ties that every C library rounds alike (a test looks)."""
    mantissa, exponent = np.frexp(_exact_units())
    units: Doubles = np.ldexp(np.rint(mantissa * 4096) / 4096, exponent)
    return units


def _exact_units() -> Doubles:
    _, error = quantizers.nominal()
    unit: Doubles = np.sqrt(error) / RESOLUTION
    return unit


def fine(energy: Doubles, products: Doubles, sizes: Ints, sigma: Doubles, steps: Ints, seed: int) -> Bytes:
    """Return f, uint8 ``[blocks]``; 0 for blocks of zeros. ``products`` is <y, k> of every block, float64, y rotated,
    in the units of x.

    ``sigma`` and ``steps`` are those the codes were made with. The dither is word 1 of the stream of ``seed``, so that
    it is none of the signs'.
    """
    alive = sigma > 0
    true = np.sqrt(energy / sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(alive & (true > 0), np.rint(UNITS * np.log2(sigma / true)), 0.0)
        reached = np.clip(steps + gap, FINEST, COARSEST).astype(np.int64)
        predicted = quantizers.gain_of(steps, sizes)
        expected = predicted / quantizers.gain_of(reached, sizes)
        exact = energy * predicted / (products * sigma * quantizers.step_size(steps))
    share = quantizers.share_not_zero(steps)
    enough = (steps >= FIRST_LENGTH) | ((share >= ENOUGH_SHARE) & (sizes * share >= ENOUGH_CODES))
    trusted = enough & (products > 0)
    ratio = np.where(trusted, exact, expected)
    dither = seeds.uniform(int(seeds.words(seed, 2)[1]), sizes.size)
    with np.errstate(invalid="ignore"):
        f = np.floor((ratio - 1) / unit_of(steps) + dither) + MIDDLE
    return np.where(alive, np.clip(np.nan_to_num(f, nan=MIDDLE), 0, 255), 0).astype(np.uint8)


def multipliers(sigma: Doubles, steps: Ints, sizes: Ints, f: Bytes) -> npt.NDArray[np.float32]:
    """Return what decoded multiples of every block are worth, float32 ``[blocks]``, never infinite, the same bits
    everywhere. ``sigma`` is float64, ``steps`` and ``sizes`` are int64, ``f`` is uint8."""
    m = sigma * quantizers.step_size(steps) / quantizers.gain_of(steps, sizes)
    corrected = m * (1 + (f.astype(np.float64) - MIDDLE) * unit_of(steps))
    limited: npt.NDArray[np.float32] = np.clip(corrected, -LARGEST, LARGEST).astype(np.float32)
    return limited


def pack(top: np.float32, c: Ints, f: Bytes) -> bytes:
    """Return the scales as they travel."""
    scales: bytes = top.astype("<f4").tobytes() + np.column_stack((c.astype(np.uint8), f)).tobytes()
    return scales


def read(data: bytes, count: int, offset: int) -> tuple[float, Ints, Bytes]:
    """Return top, c, int64 ``[count]``, and f, uint8 ``[count]``, of ``count`` blocks whose scales begin at ``offset``.

    Raises:
        CodecError: ``data`` ends before, or top is no finite number of at least 0.
    """
    if len(data) < offset + size_bytes(count):
        raise CodecError(f"expected the scales of {count} blocks, got a payload of {len(data)} bytes")
    top = np.frombuffer(data, "<f4", 1, offset)[0]
    if not np.isfinite(top) or np.signbit(top):
        raise CodecError(f"expected a scale that is finite and not negative, got {top}")
    both = np.frombuffer(data, np.uint8, 2 * count, offset + 4).reshape(count, 2)
    return float(top), both[:, 0].astype(np.int64), both[:, 1]
