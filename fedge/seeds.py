"""Chance from integers alone, the same on every CPU.

Every random choice in fedge is a pure function of a 64-bit seed, and every seed is derived from names both ends
know (run, round, device, segment), so no seed travels and a replay draws the same numbers.

    derive(p_1, .., p_k) = BLAKE2b-64 of the length-prefixed parts
    word_i(seed)         = mix(seed + (i + 1)·γ mod 2^64),   γ = 0x9E3779B97F4A7C15

mix is the finalizer of SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014,
https://doi.org/10.1145/2660193.2660195, variant 13 of Stafford's constants). The generator is counter-based: word i
needs no word before it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def derive(*parts: int | str) -> int:
    """Return the 64-bit seed named by ``parts``. ``1`` and ``"1"`` name different seeds."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = f"i{part}".encode() if isinstance(part, int) else b"s" + part.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def words(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Return words 0 .. ``count`` - 1 of the stream named by ``seed``, uint64 ``[count]``."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z *= np.uint64(GAMMA)
        z += np.uint64(seed & _MASK)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def uniform(seed: int, count: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1), float64, from the top 53 bits of each word."""
    return (words(seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, count: int) -> npt.NDArray[np.int64]:
    """Return a random order of 0 .. ``count`` - 1, int64: positions sorted by their words."""
    return np.argsort(words(seed, count), kind="stable")
