"""The uniform quantizer of N(0, 1): rate, error, gain and code frequencies at every step.

    Q(z) = s·k,  k = round(z/s),      gain(s) = E[z Q(z)] = 2 s Σ_{k≥1} φ((k - ½) s)
    v(s) = E[Q(z)²]/gain(s)² - 1,     R(s) = bits of the code for k

x_hat = Q(z)/gain is the unbiased estimate and v(s) its relative squared error: the entropy-coded form of EDEN
(Vargaftik et al., ICML 2022, https://arxiv.org/abs/2108.08842, section 4.3). On a sphere of n coordinates, where
rotated blocks really live, the density is φ(z)·(1 + (3z²/2 - z⁴/4 - 3/4)/n + O(1/n²)), so that

    gain_n(s) = gain(s) + g1(s)/n,    g1(s) = 2 s Σ_{k≥1} (1/4 + a²/2 - a⁴/4) φ(a),  a = (k - ½) s

Steps are counted in 1/2048 octaves: s = 2^(t/2048), -10.5 <= log2 s <= 2.75, that is 12.5 down to 0.01 bits. Below
s = 2^-2.5 the lowest r = ⌈-2.5 - log2 s⌉ bits of k are as good as uniform and travel as they are;
h = (k + 2^(r-1)) >> r is coded with the frequencies of step 2^r·s rounded to 1/16 octave, out of 4096; that step is
at least 2^-2.5. |h| stops at 5 σ, which is ⌈5/step⌉ of the rounded step, 29 at most. Where r = 0, h is k.

Everything a decoder needs is rounded to integers, or to multiples of 2^-30, far from any tie (a test looks): the last
digit of ``exp`` and ``erfc`` may differ between C libraries, and decoded floats may not.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNITS = 2048  # per octave of a step
FINEST, COARSEST = -21 * UNITS // 2, 11 * UNITS // 4
SPLIT = -5 * UNITS // 2  # finer steps send their lowest bits as they are
CLASS_UNITS = 128
CLASSES = (COARSEST - SPLIT) // CLASS_UNITS + 1
PRECISION_BITS = 12
TOTAL = 1 << PRECISION_BITS  # of the frequencies of one class
MOST_LEVELS = 32  # of one sign, 0 included
_REACH = 5.0  # sigmas
_GRID = 2.0**30

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.floating[Any]]


def _upper(a: Reals) -> Doubles:
    """Return P(z > a)."""
    tails = np.fromiter((0.5 * math.erfc(value / math.sqrt(2)) for value in a.ravel()), np.float64, a.size)
    return tails.reshape(a.shape)


def _density(a: Reals) -> Doubles:
    density: Doubles = np.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    return density


def _on_grid(x: Doubles) -> Doubles:
    return np.rint(x * _GRID) / _GRID


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How often, out of 4096, each magnitude |h| is expected of each class: ``of[c, |h|]``, int64 ``[classes, 32]``, 0
    beyond ``last[c]``, int64 ``[classes]``. Both signs have the same; entry 0 stands for the one code 0."""

    of: Ints
    last: Ints


@functools.cache
def frequencies() -> Frequencies:
    """Return the code frequencies of every class; class c is for steps near 2^(-2.5 + c/16)."""
    steps = np.exp2((SPLIT + CLASS_UNITS * np.arange(CLASSES)) / UNITS)
    last = np.minimum(np.ceil(_REACH / steps), MOST_LEVELS - 1).astype(np.int64)
    h = np.arange(1, MOST_LEVELS + 1)
    above = _upper((h - 0.5) * steps[:, None])  # P(|h| or more, one sign)
    above[h > last[:, None]] = 0.0
    of = np.zeros((CLASSES, MOST_LEVELS), np.int64)
    share = above[:, :-1] - above[:, 1:]
    of[:, 1:] = np.where(h[:-1] <= last[:, None], np.maximum(np.floor(share * TOTAL + 0.5), 1), 0)
    of[:, 0] = TOTAL - 2 * of[:, 1:].sum(axis=1)
    return Frequencies(of, last)


def low_bits(steps: Ints) -> Ints:
    """Return r, how many bits of every multiple travel as they are, int64, for steps t: 0 from 2^-2.5 on, 8 at most."""
    r: Ints = np.maximum(-((steps - SPLIT) // UNITS), 0)
    return r


def class_of(steps: Ints, low: Ints) -> Ints:
    """Return the class of frequencies, int64, for steps t with r = ``low``."""
    c: Ints = (steps + low * UNITS - SPLIT + CLASS_UNITS // 2) // CLASS_UNITS
    return c


def share_not_zero(steps: Ints) -> Doubles:
    """Return the share of multiples that are not zero, float64, about, for steps t."""
    low = low_bits(steps)
    zero = frequencies().of[class_of(steps, low), 0] / TOTAL
    return np.where(low > 0, 1.0, 1.0 - zero)


def step_size(steps: Ints) -> Doubles:
    """Return s = 2^(t/2048), float64, the same bits everywhere."""
    size: Doubles = np.ldexp(_mantissas()[steps % UNITS], steps // UNITS)
    return size


@functools.cache
def _mantissas() -> Doubles:
    return _on_grid(np.exp2(np.arange(UNITS) / UNITS))


@functools.cache
def _gains() -> tuple[Doubles, Doubles]:
    """gain and g1 of every step from 2^-2 up; below, they are 1 and 0 to 1e-30."""
    s = np.exp2(np.arange(-2 * UNITS, COARSEST + 1) / UNITS)
    gain, first = np.zeros_like(s), np.zeros_like(s)
    for k in range(1, 48):
        a = (k - 0.5) * s
        density = 2 * s * _density(a)
        gain += density
        first += density * (0.25 + 0.5 * a**2 - 0.25 * a**4)
    return _on_grid(gain), _on_grid(first)


def gain_of(steps: Ints, sizes: Ints) -> Doubles:
    """Return gain_n(s) of blocks of ``sizes`` coordinates at steps t, float64, the same bits everywhere."""
    gain, first = _gains()
    index = np.maximum(steps + 2 * UNITS, 0)
    total: Doubles = gain[index] + first[index] / sizes
    return total


@functools.cache
def _nodes() -> tuple[Ints, Doubles, Doubles]:
    """Steps t every 1/64 octave, and R and v there."""
    t = np.arange(FINEST, COARSEST + 1, UNITS // 64)
    low = low_bits(t)
    table, klass = frequencies(), class_of(t, low)
    coarse, k = np.exp2(t / UNITS + low), np.arange(1, 400)
    above = _upper((k[:MOST_LEVELS] - 0.5) * coarse[:, None])
    above[k[:MOST_LEVELS] > table.last[klass, None]] = 0.0
    share = np.column_stack((1 - 2 * above[:, 0], 2 * (above[:, :-1] - above[:, 1:])))
    with np.errstate(divide="ignore"):
        length = np.where(share > 0, PRECISION_BITS - np.log2(table.of[klass]), 0.0)
    rate = low + (share * length).sum(axis=1)
    s = np.exp2(np.maximum(t, SPLIT) / UNITS)
    second, gain = np.empty_like(s), np.empty_like(s)
    # A few steps at a time: all at once would be the most memory that a device needs for an EDEN payload.
    for first in range(0, s.size, 16):
        own = s[first : first + 16]
        a = (k - 0.5) * own[:, None]
        second[first : first + 16] = 2 * own**2 * ((2 * k - 1) * _upper(a)).sum(axis=1)
        gain[first : first + 16] = 2 * own * _density(a).sum(axis=1)
    error = np.where(t < SPLIT, np.exp2(2 * t / UNITS) / 12, second / gain**2 - 1)
    return t, rate, error


@functools.cache
def _rates() -> Doubles:
    t, rate, _ = _nodes()
    return np.interp(np.arange(FINEST, COARSEST + 1), t, rate)


def rate_of(steps: Ints) -> Doubles:
    """Return R(s) of steps t in bits, float64: what the coder spends on one coordinate."""
    rate: Doubles = _rates()[steps - FINEST]
    return rate


@functools.cache
def _errors() -> Doubles:
    t, _, error = _nodes()
    return _on_grid(np.exp(np.interp(np.arange(FINEST, COARSEST + 1), t, np.log(error))))


def error_of(steps: Ints) -> Doubles:
    """Return v(s) of steps t, float64, to 2^-30."""
    error: Doubles = _errors()[steps - FINEST]
    return error
