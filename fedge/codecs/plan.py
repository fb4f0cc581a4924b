"""How many levels each rotated coordinate of a vector gets, and so how long its EDEN payload is.

A vector is cut into full blocks of 4096 and a last one of n mod 4096 coordinates, which is *raw* (float32) if that
is less than 32 and a rotated *tail* otherwise. Within a block the first ``high`` rotated coordinates get the width
``wide`` (``packing.py``), the next ``low`` get ``width``, and the rest are not sent. Version 1:

    b < 1:     width = 1, high = 0, low = b·n, at least min(n, 32): fewer would give the scale a heavy tail
    1 <= b:    width = ⌊b⌋, wide = width + 1, high = (b - ⌊b⌋)·n, low = n - high

Products are rounded down to a multiple of 8 in full blocks (whole bytes, never above the budget), to the nearest
integer in the tail.

Version 4 is what is written between whole numbers of bits, because codes with a trit take 1.6, 2.6, .. 7.6 bits. On
the ladder 1, 1.6, 2, 2.6, .. 8, ``width`` is the highest step at which a full block fits into ⌊b·4096/8⌋ bytes,
``wide`` the next one, and ``high`` the largest number for which the block's codes fit into ⌊b·n/8⌋ bytes (0 if none
does), a multiple of 8 in full blocks. D is linear in b from step to step, and vNMSE = D/(1 - D) comes to

    bits         1.3     1.5     1.6     2.3     2.5     2.6     3.4     3.6
    version 1    .408    .317    .275    .102    .0823   .0726   .0251   .0199
    version 4    .383    .280    .235    .0962   .0728   .0615   .0229   .0166

And where fewer than 32 coordinates are left behind full blocks, they and the last of these are cut into two tails.

Version 7 is what is written at 1, 2, 3 and 4 bits where there are full blocks: of the same shape as version 1, but
rotated in whole numbers (``whole.py``).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from fedge.codecs.packing import TRIT, bits_of, packed_bytes
from fedge.codecs.rotation import BLOCK

SMALLEST_ROTATED = 32
WIDTHS_ALONE, WITH_TRITS, WHOLE = 1, 4, 7  # versions
MOST_WHOLE_BITS = 4
_LADDER = sorted(range(1, TRIT + 8), key=bits_of)  # 1, 1.6, 2, 2.6, .. 8 bits
_NUMBERS_OF_A_TAIL = 3  # block numbers whose signs a tail takes: rotation.py


@dataclass(frozen=True, slots=True)
class Run:
    """The codes of one block: ``high`` of the width ``wide``, then ``low`` of the width ``width``."""

    width: int
    wide: int
    high: int
    low: int

    @property
    def sent(self) -> int:
        """Rotated coordinates that travel."""
        return self.high + self.low

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """(start, stop, width) of every stretch of codes of one width, in the order in which they travel."""
        both = ((0, self.high, self.wide), (self.high, self.sent, self.width))
        return tuple(part for part in both if part[0] < part[1])

    @property
    def size_bytes(self) -> int:
        """Packed length of all codes."""
        return sum(packed_bytes(stop - start, width) for start, stop, width in self.parts)


def run_of(bits: float, size: int, version: int) -> Run:
    """Return the codes of one block of ``size`` coordinates at ``bits`` per coordinate."""
    if version == WITH_TRITS:
        return _run_with_trits(bits, size)
    width = max(int(bits), 1)
    share = (bits if bits < 1 else bits - width) * size
    count = int(share) // 8 * 8 if size == BLOCK else round(share)
    if bits < 1:
        return Run(1, 1, 0, min(size, max(count, SMALLEST_ROTATED)))
    return Run(width, min(width + 1, TRIT), count, size - count)


def _run_with_trits(bits: float, size: int) -> Run:
    wide = next(width for width in _LADDER if packed_bytes(BLOCK, width) > bits * BLOCK / 8)
    width = _LADDER[_LADDER.index(wide) - 1]
    step, most_bytes = 8 if size == BLOCK else 1, math.floor(bits * size / 8)
    share = (bits - bits_of(width)) / (bits_of(wide) - bits_of(width))
    high = min(size, math.ceil(share * size / step) * step)
    while high and Run(width, wide, high, size - high).size_bytes > most_bytes:
        high -= step
    return Run(width, wide, high, size - high)


@dataclass(frozen=True)
class Plan:
    """The shape of one payload; without slots, so that what follows from it is computed once."""

    version: int
    size: int
    blocks: int  # full ones
    tails: tuple[int, ...]  # rotated coordinates of shorter blocks, the longer first
    raw: int  # coordinates that travel as float32
    full_run: Run
    tail_runs: tuple[Run, ...]

    @property
    def scales(self) -> int:
        """Rotated blocks, each of which has a scale."""
        return self.blocks + len(self.tails)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many coordinates each block behind the full ones has, raw ones included."""
        return (*self.tails, self.raw) if self.raw else self.tails

    def signs(self, block: int) -> int:
        """The number with which the signs of a rotated block are drawn."""
        return block if block <= self.blocks else block + _NUMBERS_OF_A_TAIL - 1

    @property
    def scale_bytes(self) -> int:
        """Length of the scales: one float32, and 16 bits per block if there are several."""
        return 0 if self.scales == 0 else 4 if self.scales == 1 else 4 + 2 * self.scales

    @functools.cached_property
    def runs(self) -> tuple[int, *tuple[tuple[int, int, int, int], ...]]:
        """As the C extension takes it: version; width, wide, high, low of full blocks, and of up to two tails."""
        none = Run(1, 1, 0, 0)
        first, second = (*self.tail_runs, none, none)[:2]
        return self.version, *((run.width, run.wide, run.high, run.low) for run in (self.full_run, first, second))

    @functools.cached_property
    def size_bytes(self) -> int:
        """Length of the payload, version byte included."""
        codes = self.blocks * self.full_run.size_bytes + sum(run.size_bytes for run in self.tail_runs)
        return 1 + self.scale_bytes + codes + 4 * self.raw


def versions(bits: float, size: int) -> tuple[int, ...]:
    """Return the versions that a payload may have; the first is the one that is written."""
    if bits in range(1, MOST_WHOLE_BITS + 1) and size >= BLOCK:
        return WHOLE, WIDTHS_ALONE
    between = bits > 1 and bits != int(bits) and size >= SMALLEST_ROTATED
    return (WITH_TRITS, WIDTHS_ALONE) if between else (WIDTHS_ALONE,)


@functools.lru_cache(maxsize=1024)
def plan(bits: float, size: int, version: int | None = None) -> Plan:
    """Return the shape of a payload of ``size`` coordinates at ``bits`` per coordinate, by default the one written."""
    version = version or versions(bits, size)[0]
    blocks, rest = divmod(size, BLOCK)
    tails: tuple[int, ...] = (rest,) if rest >= SMALLEST_ROTATED else ()
    if version == WITH_TRITS and 0 < rest < SMALLEST_ROTATED and blocks:
        blocks, tails = blocks - 1, ((BLOCK + rest + 1) // 2, (BLOCK + rest) // 2)
    full_run, *tail_runs = (run_of(bits, n, version) for n in (BLOCK, *tails))
    return Plan(version, size, blocks, tails, size - blocks * BLOCK - sum(tails), full_run, tuple(tail_runs))
