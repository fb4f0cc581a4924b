"""What can happen to bytes on their way: a table of ways to damage them, each a pure function of a generator.

``random.Random`` draws the same numbers on every machine, so a damaged payload is named by its seed alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from random import Random

FLOATS = (0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1e38, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
EXTREMES = (
    *(struct.pack("<f", value) for value in FLOATS),
    *(bytes([value]) for value in (0, 1, 2, 127, 128, 255)),
    *(struct.pack("<H", value) for value in (0, 1, 2047, 2048, 32767, 65535)),
    *(struct.pack("<I", value) for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)),
    struct.pack("<I", 0x7F800001),  # a NaN that signals
    bytes(16),
    b"\xff" * 16,
)


def whole(rng: Random, data: bytes, other: bytes) -> bytes:
    """As it was sent."""
    return data


def noise(rng: Random, data: bytes, other: bytes) -> bytes:
    """Random bytes of the right length."""
    return rng.randbytes(len(data))


def noise_behind_the_version(rng: Random, data: bytes, other: bytes) -> bytes:
    """The first byte kept, the rest random."""
    return data[:1] + rng.randbytes(max(len(data) - 1, 0))


def noise_behind_the_start(rng: Random, data: bytes, other: bytes) -> bytes:
    """Version and first scale kept, the rest random."""
    return data[:5] + rng.randbytes(max(len(data) - 5, 0))


def truncated(rng: Random, data: bytes, other: bytes) -> bytes:
    """The end is missing, often only a byte of it."""
    return data[: max(len(data) - 1, 0) if rng.random() < 0.5 else rng.randrange(len(data) + 1)]


def extended(rng: Random, data: bytes, other: bytes) -> bytes:
    """More bytes than there were."""
    return data + rng.randbytes(rng.choice((1, 2, 4, 64, 5000)))


def beheaded(rng: Random, data: bytes, other: bytes) -> bytes:
    """The beginning is missing."""
    return data[rng.randrange(len(data) + 1) :]


def flipped(rng: Random, data: bytes, other: bytes) -> bytes:
    """One to eight bits are the other way round."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def swapped(rng: Random, data: bytes, other: bytes) -> bytes:
    """Two stretches have changed places."""
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def spliced(rng: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another, of the length of the first if it can be."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[-(len(data) - at) :] if at < len(data) else data


def extreme(rng: Random, data: bytes, other: bytes) -> bytes:
    """One to three fields, mostly near either end, hold the most or least that fits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(EXTREMES)[: len(data)]
        last = len(data) - len(value)
        at = rng.choice((0, 1, 5, 7, rng.randint(0, 40), last, last - 4, rng.randint(0, last)))
        at = min(max(at, 0), last)
        changed[at : at + len(value)] = value
    return bytes(changed)


def filled(rng: Random, data: bytes, other: bytes) -> bytes:
    """From some byte on, all are the same."""
    at = rng.choice((1, 5, rng.randrange(len(data) + 1)))
    return data[:at] + rng.choice((b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")) * max(len(data) - at, 0)


def another(rng: Random, data: bytes, other: bytes) -> bytes:
    """A sound payload of something else."""
    return other


Damage = Callable[[Random, bytes, bytes], bytes]
DAMAGES: Mapping[str, Damage] = {
    damage.__name__: damage
    for damage in (
        whole,
        noise,
        noise_behind_the_version,
        noise_behind_the_start,
        truncated,
        extended,
        beheaded,
        flipped,
        swapped,
        spliced,
        extreme,
        filled,
        another,
    )
}
