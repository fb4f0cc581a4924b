"""A range coder for codes whose frequencies both ends know: interleaved rANS, in NumPy.

J. Duda, Asymmetric numeral systems, 2013 (https://arxiv.org/abs/1311.2540); F. Giesen, Interleaved entropy coders,
2014 (https://arxiv.org/abs/1402.3392), whose layout for vector units this is. N lanes have a state x of 31 bits each,
L = 2^15 <= x < 2^31, and code i of a block goes through lane i mod N:

    decode   slot = x mod 4096;  h: start_h <= slot < start_h + f_h;  x <- f_h·⌊x/4096⌋ + slot - start_h
             after each row of N codes, lanes in order:  if x < L:  x <- 2^16·x + next word
    encode   backwards through everything:  if x >= 2^19·f_h:  emit x mod 2^16, x <- ⌊x/2^16⌋
             x <- 4096·⌊x/f_h⌋ + x mod f_h + start_h

The encoder begins with x = L in every lane, so the decoder must end there with no word left: a second checksum. Layout,
little-endian: N states u32, then the words u16. Codes of a class are -last .. last, symmetrical, ``gaussian.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fedge.codecs.gaussian import PRECISION_BITS, TOTAL, Ints, frequencies
from fedge.errors import CodecError

LOWEST = 1 << 15
WORD_BITS = 16
_ROOM = 31 - PRECISION_BITS

Words = npt.NDArray[np.uint16]


class Tables:
    """Frequencies, starts and slots of one class, int64: the first two ``[2·last + 1]``, codes counted from -last as 0;
    ``symbol`` ``[4096]``, which of them a slot belongs to."""

    def __init__(self, klass: int) -> None:
        table = frequencies()
        self.last = int(table.last[klass])
        half = table.of[klass, : self.last + 1]
        self.frequency = np.concatenate((half[:0:-1], half))
        self.start = np.cumsum(self.frequency) - self.frequency
        self.symbol = np.repeat(np.arange(self.frequency.size), self.frequency)


_tables: dict[int, Tables] = {}


def tables(klass: int) -> Tables:
    """Return the tables of a class, made once."""
    if klass not in _tables:
        _tables[klass] = Tables(klass)
    return _tables[klass]


def encode(blocks: Sequence[tuple[Ints, int]], lanes: int) -> bytes:
    """Encode blocks of (codes h, int64 ``[n]``, each -last .. last of its class, class) with ``lanes`` lanes."""
    x = np.full(lanes, LOWEST, np.int64)
    emitted: list[Ints] = []
    for codes, klass in reversed(blocks):
        table = tables(klass)
        symbols = codes + table.last
        for first in range((codes.size - 1) // lanes * lanes, -1, -lanes):
            row = symbols[first : first + lanes]
            f = table.frequency[row]
            lane = x[: row.size]
            full = lane >= f << _ROOM
            if full.any():
                emitted.append((lane[full] & 0xFFFF)[::-1])
                lane[full] >>= WORD_BITS
            quotient, rest = np.divmod(lane, f)
            lane[:] = (quotient << PRECISION_BITS) + rest + table.start[row]
    words = np.concatenate([np.empty(0, np.int64), *emitted])[::-1]
    return x.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def decode(data: bytes, blocks: Iterable[tuple[int, int]], lanes: int) -> list[Ints]:
    """Decode blocks of (number of codes, class) into codes, int64 ``[n]`` each.

    Raises:
        CodecError: ``data`` is not what an encoder made of such blocks.
    """
    if len(data) < 4 * lanes or len(data) % 2:
        raise CodecError(f"expected {lanes} states and whole words, got {len(data)} bytes")
    x = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(data, "<u2", -1, 4 * lanes).astype(np.int64)
    if ((x < LOWEST) | (x >> 31 > 0)).any():
        raise CodecError(f"expected states of {LOWEST} to 2^31 - 1, got {x.min()} to {x.max()}")
    read, found = 0, []
    for count, klass in blocks:
        table, codes = tables(klass), np.empty(count, np.int64)
        for first in range(0, count, lanes):
            lane = x[: min(lanes, count - first)]
            slot = lane & (TOTAL - 1)
            symbol = table.symbol[slot]
            lane[:] = table.frequency[symbol] * (lane >> PRECISION_BITS) + slot - table.start[symbol]
            codes[first : first + lanes] = symbol
            low = np.flatnonzero(lane < LOWEST)
            if low.size:
                if read + low.size > words.size:
                    raise CodecError(f"expected more than {words.size} words of codes, got no more")
                lane[low] = (lane[low] << WORD_BITS) | words[read : read + low.size]
                read += low.size
        found.append(codes - table.last)
    if read < words.size or (x != LOWEST).any():
        raise CodecError(f"expected codes that end where they began, got {words.size - read} words left")
    return found
