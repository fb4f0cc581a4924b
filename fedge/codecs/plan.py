"""How many bits each rotated coordinate of a vector gets, and so how long its EDEN payload is.

A vector is cut into full blocks of 4096 and a last one of n mod 4096 coordinates, which is *raw* (float32) if that
is less than 32 and a rotated *tail* otherwise. Within a block the first ``high`` rotated coordinates get
``width + 1`` bits, the next ``low`` get ``width``, and the rest are not sent:

    b < 1:     width = 1, high = 0, low = b·n, at least min(n, 32): fewer would give the scale a heavy tail
    1 <= b:    width = ⌊b⌋, high = (b - ⌊b⌋)·n, low = n - high

Products are rounded down to a multiple of 8 in full blocks (whole bytes, never above the budget), to the nearest
integer in the tail.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fedge.codecs.packing import packed_bytes
from fedge.codecs.rotation import BLOCK

SMALLEST_ROTATED = 32


@dataclass(frozen=True, slots=True)
class Run:
    """The codes of one block: ``high`` of ``width + 1`` bits, then ``low`` of ``width`` bits."""

    width: int
    high: int
    low: int

    @property
    def sent(self) -> int:
        """Rotated coordinates that travel."""
        return self.high + self.low

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """(start, stop, width) of every stretch of codes of one width, in the order in which they travel."""
        both = ((0, self.high, self.width + 1), (self.high, self.sent, self.width))
        return tuple(part for part in both if part[0] < part[1])

    @property
    def size_bytes(self) -> int:
        """Packed length of all codes."""
        return sum(packed_bytes(stop - start, width) for start, stop, width in self.parts)


def run_of(bits: float, size: int) -> Run:
    """Return the codes of one block of ``size`` coordinates at ``bits`` per coordinate."""
    width = max(int(bits), 1)
    share = (bits if bits < 1 else bits - width) * size
    count = int(share) // 8 * 8 if size == BLOCK else round(share)
    if bits < 1:
        return Run(1, 0, min(size, max(count, SMALLEST_ROTATED)))
    return Run(width, count, size - count)


@dataclass(frozen=True, slots=True)
class Plan:
    """The shape of one payload."""

    size: int
    blocks: int  # full ones
    tail: int  # rotated coordinates of the last, shorter block
    raw: int  # coordinates that travel as float32
    full_run: Run
    tail_run: Run

    @property
    def scales(self) -> int:
        """Rotated blocks, each of which has a scale."""
        return self.blocks + (self.tail > 0)

    @property
    def scale_bytes(self) -> int:
        """Length of the scales: one float32, and 16 bits per block if there are several."""
        return 0 if self.scales == 0 else 4 if self.scales == 1 else 4 + 2 * self.scales

    @property
    def size_bytes(self) -> int:
        """Length of the payload, version byte included."""
        codes = self.blocks * self.full_run.size_bytes + self.tail_run.size_bytes
        return 1 + self.scale_bytes + codes + 4 * self.raw


@functools.lru_cache(maxsize=1024)
def plan(bits: float, size: int) -> Plan:
    """Return the payload's shape for ``size`` coordinates at ``bits`` per coordinate."""
    blocks, rest = divmod(size, BLOCK)
    tail = rest if rest >= SMALLEST_ROTATED else 0
    return Plan(size, blocks, tail, rest - tail, run_of(bits, BLOCK), run_of(bits, tail) if tail else Run(1, 0, 0))
