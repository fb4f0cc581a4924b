"""Damaged payloads, and what a codec owes whoever sends one.

A codec decodes to finite float32 of the declared size, or raises ``CodecError``; accumulating then gives the same
numbers or leaves the sum as it was; every implementation does the same to the last bit; and memory stays within
what the declared size calls for, or, where the payload is refused, within what the bytes that came do.
"""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import dataclass
from random import Random

import numpy as np

from fedge import seeds
from fedge.codecs import M22, Codec, Part, twin
from fedge.codecs.plan import WHOLE, plan, versions
from fedge.errors import CodecError
from tests.fuzz.damage import DAMAGES
from tests.support.codec_table import FAMILIES
from tests.support.kernels import IMPLEMENTATIONS, ISAS, implementation

MODES = tuple((family, rate) for family in FAMILIES for rate in family.rates)
# Small ones are quick and hold most ways to go wrong; the list is drawn from evenly.
SIZES = (0, 1, 2, 3, 7, 31, 32, 33, 34, 40, 63, 64, 65, 100, 127, 128, 129, 300, 511, 1000, 2047)
LARGE = (4095, 4096, 4097, 4127, 4128, 5000, 8192, 8225, 12_345)
ABSURD = (-(2**63), -1, 65_537, 2**20, 2**31 - 1, 2**32 - 1, 2**40, 2**63)
LARGEST = 65_536
COLUMNS = 32  # of matrices
# Three bytes of M22's stand for any number of zeros: 2^32 - 1 would be decoded, to the 16 GiB that were asked for.
MOST_ZEROS = 2**20
# Measured at 100 to 65,536 coordinates: 4 bytes for each, 30 with a mask, 40 in NumPy, which also fills a few tables.
BASE_BYTES, BYTES_PER_COORDINATE = 1 << 18, 64


@dataclass(frozen=True, slots=True)
class Case:
    """One payload, how it is said to have been made, and how it came about."""

    codec: Codec
    data: bytes
    size: int
    seed: int
    received: np.ndarray | None
    weight: float
    damage: str


@functools.cache
def originals(mode: int, size: int) -> tuple[bytes, ...]:
    """Return sound payloads of three vectors: like a normal one, sparse with huge numbers, and subnormal; entropy-coded
    ones also of two, of which one is a matrix of low rank, as a device sends them; and of fixed-rate EDEN one as it
    was written before, where it is another.

    From integers alone, so that every machine begins with the same bytes.
    """
    family, rate = MODES[mode]
    codec = family.at_rate(rate)
    normal = sum(seeds.uniform(stream, size) for stream in range(4)) - 2.0
    sparse = np.where(seeds.uniform(5, size) < 0.03, normal * 1.5e38, 0.0)
    alone = tuple(codec.encode(x, seed=9) for x in (normal, sparse, normal * 1e-41))
    if codec.name == "eden":
        older = (plan(rate, size, version) for version in versions(rate, size)[1:])
        return (*alone, *(twin.encode(normal.astype(np.float32), shape, 9) for shape in older))
    if codec.name != "eden-entropy":
        return alone
    rows = -(-size // COLUMNS)
    ranked = (4 * seeds.uniform(6, rows)[:, None] * (seeds.uniform(7, COLUMNS) - 0.5)).ravel()[:size] + normal / 16
    vectors = (x.astype(np.float32) for x in (np.ldexp(normal, -(np.arange(size) // COLUMNS % 7)), ranked))
    return (*alone, *(codec.encode_all([Part(x, 9, (COLUMNS, 0))])[0] for x in vectors))


def draw(rng: Random) -> Case:
    """Draw one damaged payload."""
    mode, size = rng.randrange(len(MODES)), rng.choice(LARGE if rng.random() < 0.1 else SIZES)
    of_other = (mode, size) if rng.random() < 0.7 else (rng.randrange(len(MODES)), rng.choice(SIZES))
    damage = rng.choice(tuple(DAMAGES))
    data = DAMAGES[damage](rng, rng.choice(originals(mode, size)), rng.choice(originals(*of_other)))
    declared = size if rng.random() < 0.97 else rng.choice((*SIZES, *ABSURD, size + 1, size - 1))
    family, rate = MODES[mode]
    codec = family.at_rate(rate)
    if isinstance(codec, M22) and MOST_ZEROS < declared < 2**40:
        declared = MOST_ZEROS
    return Case(
        codec,
        data,
        declared,
        rng.getrandbits(64),
        draw_mask(rng, declared),
        rng.choice((1.0, -0.7, 1e30)),
        damage,
    )


def draw_mask(rng: Random, size: int) -> np.ndarray | None:
    """Draw what was received: mostly everything, now and then nothing, or a mask of another size."""
    if rng.random() < 0.6 or not 0 <= size <= LARGEST:
        return None
    size = max(size - (rng.random() < 0.05), 0)
    return np.frombuffer(rng.randbytes(size), np.uint8) < rng.choice((0, 1, 128, 250, 256))


def decoded(case: Case) -> np.ndarray | None:
    """Decode ``case``; None if it was refused."""
    try:
        x = case.codec.decode(case.data, case.size, case.seed, case.received)
    except CodecError:
        return None
    assert (x.shape, x.dtype) == ((case.size,), np.float32), f"{x.dtype} of shape {x.shape}"
    assert np.isfinite(x).all(), "a number that is not finite"
    return x


def check_sum(case: Case, x: np.ndarray | None, dtype: type) -> None:
    """Assert that accumulating ``case`` adds what was decoded, or nothing."""
    total = np.arange(case.size, dtype=dtype) - 3
    expected = total.copy()
    with np.errstate(over="ignore"):
        try:
            case.codec.accumulate(case.data, case.size, case.seed, case.weight, total, case.received)
        except CodecError:
            assert x is None, "decoded, but not accumulated"
        else:
            assert x is not None, "accumulated, but not decoded"
            expected += np.float64(case.weight) * x
    assert total.tobytes() == expected.tobytes(), "another sum than by decoding and adding"


def check_memory(case: Case) -> None:
    """Assert that decoding ``case`` takes no more memory than its size calls for."""
    tracemalloc.start()
    try:
        x = decoded(case)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    counted = max(len(case.data), min(case.size, LARGEST) if x is None else case.size)
    allowed = BASE_BYTES + BYTES_PER_COORDINATE * counted
    assert peak <= allowed, f"{peak} bytes of memory, expected at most {allowed}"


def check(case: Case, number: int) -> np.ndarray | None:
    """Assert everything; the costly things for some numbers only. Returns what was decoded, None if refused."""
    x = decoded(case)
    if number % 64 == 0 or case.size > LARGEST:
        check_memory(case)
    if number % 4 == 1 and 0 <= case.size <= LARGEST:
        check_sum(case, x, np.float32 if number % 8 == 1 else np.float64)
    in_whole_numbers = x is not None and case.data[:1] == bytes([WHOLE])  # few of so large a size survive their damage
    if number % 16 == 2 or in_whole_numbers:
        for name in IMPLEMENTATIONS if number % 256 == 2 or in_whole_numbers else ISAS:
            with implementation(name):
                same = decoded(case)
            assert (x is None) == (same is None), f"{name} refuses what others decode, or the other way round"
            assert x is None or same is None or x.tobytes() == same.tobytes(), f"{name} decodes to other numbers"
    return x
