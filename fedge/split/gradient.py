"""The bytes of what comes down in a split step: the gradient of a batch. Both ends.

EDEN takes the gradient as one vector, whose chunks are the rows: rotated blocks get their rates by equal slope, so that
bits go to the few examples that are still wrong, which have nearly all of the gradient. On real gradients that is 7 to
10,000 times less error than uniform rounding at the same bytes (``docs/split.md``), and it goes below two bits, to any
number. The other way rounds each coordinate to one of 2^b levels between its row's least and greatest:

    G_i ≈ lo_i + Δ_i·k,   Δ_i = (max G_i - min G_i)/(2^b - 1),   k = ⌊(G_i - lo_i)/Δ_i + r⌋,   r ~ U[0, 1)

Both are unbiased. Layout, little-endian:

    offset  type  field
    0       u8    version, 1
    1       u8    2: gradients
    2       u8    0: EDEN; otherwise bits b, 2 .. 8, or 32 for float32
    3       u8    0
    4       u16   B
    6       u32   d
    10            float32 × B·d; or
                  (lo f32 | step f32) × B, then B·d codes of b bits, packed; or
                  seed u64, then an EDEN payload of B·d coordinates, entropy-coded, version 2; row after row

The seed travels, so that an answer needs nothing but itself to be read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from fedge import seeds
from fedge.codecs import Eden, Part, entropy
from fedge.codecs.eden import HIGHEST_BITS, LOWEST_BITS
from fedge.codecs.grouping import CHUNK, LONGEST_CHUNK
from fedge.codecs.indices import pack_bits, packed_bytes, unpack_bits
from fedge.codecs.product import Floats, Indices
from fedge.errors import CodecError
from fedge.split.message import FLOAT_BITS, GRADIENTS, MOST_VALUES, VERSION, read_head
from fedge.split.quantizer import LARGEST_MAGNITUDE, MOST_EXAMPLES

_HEAD = struct.Struct("<BBBBHI")
_SEED = struct.Struct("<Q")
_EDEN = 0
_MOST_ROUNDED = 1.001 * LARGEST_MAGNITUDE  # a step of 1/255 of 2^25 may end a rounding beyond
_READER = Eden.entropy_coded(1.0)  # payloads say themselves at which rate they are


class GradientCoding(StrEnum):
    """How a gradient travels that is not left in float32."""

    EDEN = "eden"  # 0.05 to 8 bits, any real number
    UNIFORM = "uniform"  # 2 to 8, whole


@dataclass(frozen=True, slots=True, eq=False)
class GradientMessage:
    """What the server answers: a gradient as it comes out, float32 ``[B, d]``, and its bytes."""

    gradient: Floats
    data: bytes

    @classmethod
    def of(
        cls, gradient: Floats, bits: float, seed: int, coding: GradientCoding = GradientCoding.EDEN
    ) -> GradientMessage:
        """Round a finite ``gradient``, float32 ``[B, d]``, to ``bits``, or leave it as it is with 32.

        Raises:
            CodecError: other bits, not a batch, or numbers that are not finite.
        """
        check_gradient_bits(bits, coding)
        if gradient.ndim != 2 or not (1 <= len(gradient) <= MOST_EXAMPLES and gradient.shape[1] >= 1):
            raise CodecError(f"expected a gradient of shape (examples, values), got {gradient.shape}")
        _check_magnitude(gradient, LARGEST_MAGNITUDE)
        if bits == FLOAT_BITS:
            return cls(gradient, _head(FLOAT_BITS, gradient) + gradient.astype("<f4").tobytes())
        if coding is GradientCoding.EDEN:
            return cls._by_eden(gradient, bits, seed)
        return cls._by_levels(gradient, int(bits), seed)

    @classmethod
    def _by_eden(cls, gradient: Floats, bits: float, seed: int) -> GradientMessage:
        part = Part(gradient.reshape(-1), seed, (_chunk(gradient.shape[1]), 0), thorough=False)
        payload = Eden.entropy_coded(bits).encode_all([part])[0]
        decoded = _from_eden(payload, seed, gradient.shape)
        return cls(decoded, _head(_EDEN, gradient) + _SEED.pack(seed % (1 << 64)) + payload)

    @classmethod
    def _by_levels(cls, gradient: Floats, bits: int, seed: int) -> GradientMessage:
        lo, levels = gradient.min(1), (1 << bits) - 1
        step = ((gradient.max(1) - lo) / np.float32(levels)).astype(np.float32)
        r = (seeds.words(seed, gradient.size) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        k = (gradient - lo[:, None]) / np.where(step > 0, step, 1)[:, None]
        codes = np.minimum(k + r.reshape(k.shape), levels).astype(np.uint8)  # both are positive: this rounds down
        data = _head(bits, gradient) + np.stack([lo, step], 1).astype("<f4").tobytes() + pack_bits(codes, bits)
        return cls(_from_codes(lo, step, codes), data)

    @classmethod
    def from_bytes(cls, data: bytes, most_values: int = MOST_VALUES) -> GradientMessage:
        """Read a message of B·d <= ``most_values``.

        Raises:
            CodecError: it is none, is larger, or has numbers out of range.
        """
        bits, zero, examples, values = read_head(_HEAD, data, GRADIENTS, "gradients")
        if zero or not 1 <= examples * values <= most_values:
            raise CodecError(f"expected 1 to {most_values} gradients, got {examples} x {values} and {zero}")
        rest = memoryview(data)[_HEAD.size :]
        if bits == _EDEN:
            if len(rest) < _SEED.size:
                raise CodecError(f"expected a seed of {_SEED.size} bytes, got {len(rest)}")
            (seed,) = _SEED.unpack_from(rest)
            return cls(_from_eden(bytes(rest[_SEED.size :]), seed, (examples, values)), data)
        check_gradient_bits(bits, GradientCoding.UNIFORM)
        rows = 0 if bits == FLOAT_BITS else 8 * examples
        expected = 4 * examples * values if bits == FLOAT_BITS else rows + packed_bytes(examples * values, bits)
        if len(rest) != expected:
            raise CodecError(f"expected {expected} bytes of gradients, got {len(rest)}")
        if bits == FLOAT_BITS:
            gradient = np.frombuffer(rest, "<f4").astype(np.float32).reshape(examples, values)
        else:
            lo, step = np.frombuffer(rest, "<f4", 2 * examples).astype(np.float32).reshape(examples, 2).T
            codes = unpack_bits(rest[rows:], bits, examples * values).reshape(examples, values)
            with np.errstate(over="ignore", invalid="ignore"):
                gradient = _from_codes(lo, step, codes)
        _check_magnitude(gradient, _MOST_ROUNDED)
        return cls(gradient, data)


def check_gradient_bits(bits: float, coding: GradientCoding) -> None:
    """Raise :class:`CodecError` unless gradients can have ``bits`` by this coding."""
    if bits == FLOAT_BITS:
        return
    if coding is GradientCoding.EDEN and not LOWEST_BITS <= bits <= HIGHEST_BITS:
        allowed = f"{LOWEST_BITS:g} to {HIGHEST_BITS:g} bits"
        raise CodecError(f"expected {allowed} a gradient, or {FLOAT_BITS}, got {bits:g}")
    if coding is GradientCoding.UNIFORM and bits not in range(2, 9):
        raise CodecError(f"expected 2 to 8 bits a gradient, or {FLOAT_BITS}, got {bits:g}")


def _head(bits: int, gradient: Floats) -> bytes:
    return _HEAD.pack(VERSION, GRADIENTS, bits, 0, *gradient.shape)


def _chunk(values: int) -> int:
    """Return how many coordinates EDEN takes for of like energy: a row, or as many short ones as it describes well."""
    return min(values * -(-CHUNK // values), LONGEST_CHUNK)


def _from_eden(payload: bytes, seed: int, shape: tuple[int, ...]) -> Floats:
    # Others never come: fixed rates would have to be told, and factors take a device ten times as long.
    if payload[:1] != bytes([entropy.VERSION]):
        raise CodecError(f"expected an EDEN payload of version {entropy.VERSION}, got {payload[:1].hex() or 'none'}")
    found: Floats = _READER.decode(payload, shape[0] * shape[1], seed).reshape(shape)
    _check_magnitude(found, _MOST_ROUNDED)
    return found


def _from_codes(lo: Floats, step: Floats, codes: Indices) -> Floats:
    found: Floats = codes.astype(np.float32)
    found *= step[:, None]
    found += lo[:, None]
    return found


def _check_magnitude(gradient: Floats, most: float) -> None:
    if not max(float(gradient.max()), -float(gradient.min())) <= most:
        raise CodecError(f"expected gradients of magnitude {LARGEST_MAGNITUDE:g} or less, got others")
