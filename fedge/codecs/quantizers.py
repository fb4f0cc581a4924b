"""Both quantizers of entropy-coded EDEN on one axis: what a step t means for a block.

    FINEST .. COARSEST             levels that lie 2^(t/2048) σ apart, range coded (``gaussian.py``)
    COARSEST + 1 + j, 0 <= j       directions of groups of about 16·2^(j/256) coordinates (``spherical.py``)

Of the first kind, rate and error are those of Gaussian coordinates. Of the second, the rate is exact: 16 bits for each
group of a block, whose number follows from the block's size.
"""

from __future__ import annotations

import functools

import numpy as np

from fedge.codecs import gaussian, spherical
from fedge.codecs.gaussian import COARSEST, FINEST, Doubles, Ints

FIRST_LENGTH = COARSEST + 1
LENGTH_UNITS = 256  # of the length of a group, an octave
_OCTAVES = (spherical.LONGEST // spherical.SHORTEST).bit_length() - 1
COARSEST_OF_ALL = FIRST_LENGTH + LENGTH_UNITS * _OCTAVES
_GRID = 2.0**30


@functools.cache
def _lengths() -> Doubles:
    """The length of a group that is asked for, of every step from FIRST_LENGTH on."""
    octave = np.rint(np.exp2(np.arange(LENGTH_UNITS) / LENGTH_UNITS) * _GRID) / _GRID
    whole, part = np.divmod(np.arange(COARSEST_OF_ALL - FIRST_LENGTH + 1), LENGTH_UNITS)
    return np.ldexp(octave[part] * spherical.SHORTEST, whole)


def groups_of(steps: Ints, sizes: Ints) -> Ints:
    """Return into how many groups blocks of ``sizes`` coordinates are cut, int64; 0 where levels are sent.

    About as many as the step asks for. Words of m coordinates are worst where m is a little more than a power of two:
    such groups are cut to that length, where this takes at most a sixteenth more of them.
    """
    length = _lengths()[np.maximum(steps - FIRST_LENGTH, 0)]
    least, most = -(-sizes // spherical.LONGEST), sizes // spherical.SHORTEST
    groups = np.minimum(np.maximum(np.floor(sizes / length + 0.5).astype(np.int64), least), most)
    power = np.exp2(np.frexp(np.maximum(sizes // np.maximum(groups, 1), 1))[1] - 1).astype(np.int64)
    even = -(-sizes // power)
    groups = np.where((16 * even <= 17 * groups) & (even <= most), even, groups)
    return np.where(steps < FIRST_LENGTH, 0, groups)


def bits_of(steps: Ints, sizes: Ints) -> Doubles:
    """Return what the codes of blocks of ``sizes`` coordinates take at steps t, float64."""
    levels = sizes * gaussian.rate_of(np.minimum(steps, COARSEST))
    groups = groups_of(steps, sizes)
    bits: Doubles = np.where(groups > 0, spherical.GROUP_BITS * groups, levels)
    return bits


def gain_of(steps: Ints, sizes: Ints) -> Doubles:
    """Return E<y, Q(y)>/n of blocks of ``sizes`` coordinates on the sphere, float64, the same bits everywhere."""
    groups = groups_of(steps, sizes)
    levels = gaussian.gain_of(np.minimum(steps, COARSEST), sizes)
    return np.where(groups > 0, spherical.gain_of(sizes / np.maximum(groups, 1)), levels)


def error_of(steps: Ints, sizes: Ints) -> Doubles:
    """Return v of blocks of ``sizes`` coordinates at steps t, float64, the same bits everywhere."""
    groups = groups_of(steps, sizes)
    levels = gaussian.error_of(np.minimum(steps, COARSEST))
    return np.where(groups > 0, spherical.error_of(sizes / np.maximum(groups, 1)), levels)


def step_size(steps: Ints) -> Doubles:
    """Return what one multiple is worth in σ, float64; of a direction, the coordinates of a word are ±1."""
    return np.where(steps < FIRST_LENGTH, gaussian.step_size(np.minimum(steps, COARSEST)), 1.0)


@functools.cache
def nominal() -> tuple[Doubles, Doubles]:
    """Return rate and error of every step from FINEST on, of blocks that can be cut as asked."""
    steps, lengths = np.arange(FINEST, COARSEST + 1), _lengths()
    rate = np.concatenate([gaussian.rate_of(steps), spherical.GROUP_BITS / lengths])
    return rate, np.concatenate([gaussian.error_of(steps), spherical.error_of(lengths)])


def low_bits(steps: Ints) -> Ints:
    """Return how many bits of every multiple travel as they are, int64."""
    return gaussian.low_bits(np.minimum(steps, COARSEST))


def class_of(steps: Ints, low: Ints) -> Ints:
    """Return the class of frequencies, int64, for steps t with ``low`` low bits; 0 where there are no multiples."""
    return np.where(steps < FIRST_LENGTH, gaussian.class_of(np.minimum(steps, COARSEST), low), 0)


def share_not_zero(steps: Ints) -> Doubles:
    """Return the share of coordinates that say something of y, about; all of a direction do."""
    return np.where(steps < FIRST_LENGTH, gaussian.share_not_zero(np.minimum(steps, COARSEST)), 1.0)
