"""M22: few coordinates, at the levels that lose least, by a distortion that may lean on the large ones.

Keep the K largest coordinates of an update, quantize their magnitudes to the levels of a two-parameter law (generalized
normal or double Weibull) designed for |g|^M (g - ĝ)², and send positions, signs and cells. Y. Liu, S. Rini, S.
Salehkalaibar, J. Chen, M22: A Communication-Efficient Algorithm for Federated Learning Inspired by Rate-Distortion,
https://arxiv.org/abs/2301.09269. Here every bit counts against the budget: positions, values and side information.

    >>> codec = M22(bits=0.5)
    >>> x = np.float32([0, 3, 0, 0, -3, 0, 0, 0.1] * 8)
    >>> codec.decode(codec.encode(x, seed=1), x.size, seed=1)[:5].tolist()
    [0.0, 3.0, 0.0, 0.0, -3.0]

M22 is not unbiased: what is below the threshold is lost, and the mean over devices keeps that. It is a *contraction*:
with ``amplitude="guarded"``

    ‖x̂ - x‖² = (1 - cos²)·‖x‖²,   cos² = <x, x̂>²/(‖x‖²·‖x̂‖²) >= 1/d wherever anything is kept,

to the precision of a level (2^-16 of ‖x‖²), with "lengthened" at most 1 - 0.64·cos²; a payload states its own error.
So with error feedback nothing is lost for good (``fedge.feedback``). At R = 1, M = 0, guarded, it is STC: top K, one
magnitude, signs.

Bytes: ``payload.py``, ``subset.py``. Transmission order is the order of the coordinates; a lost one is zero, and the
rest are multiplied by sent/received.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, get_args

import numpy.typing as npt

from fedge.codecs.base import (
    Mask,
    Part,
    Sum,
    Vector,
    add_weighted,
    as_mask,
    as_vector,
    check_finite,
    check_size,
    check_sum,
    drop_and_rescale,
)
from fedge.codecs.m22 import payload
from fedge.codecs.m22.codebook import Family
from fedge.codecs.m22.encoder import Amplitude, Settings, encode_together
from fedge.codecs.m22.payload import HEAD_BYTES, MOST_LEVELS_BITS, SMALLEST_CODED
from fedge.errors import CodecError

LOWEST_BITS, HIGHEST_BITS = 0.05, 8.0
HIGHEST_MAGNITUDE = 100.0
SIDE_BYTES = 10
"""What a payload may take beside ``bits`` a coordinate and levels: head, and heads of positions and cells."""
MOST_BYTES_OF_ONE, SLACK_BYTES = 4, 64
MOST_COORDINATES = 1 << 32
"""A payload does not say how many coordinates it is of, so a short one could be of any number."""


@dataclass(frozen=True, slots=True)
class M22:
    """M22 at ``bits`` per coordinate, 0.05 to 8, positions and side information included.

    ``magnitude``: M >= 0 of the distortion. ``levels_bits``: R, 1 to 8 bits of sign and level for a kept coordinate;
    None takes what is predicted to lose least. ``family``: "gennorm", "weibull", "auto" (by likelihood, vector by
    vector) or "empirical" (levels from the kept coordinates themselves). ``amplitude``: "guarded", "lengthened",
    "projection" or "designed" (``encoder.py``).

    Raises:
        CodecError: a setting out of its range; the message names it.
    """

    code: ClassVar[int] = 2

    bits: float = 1.0
    magnitude: float = 0.0
    levels_bits: int | None = None
    family: Family = "auto"
    amplitude: Amplitude = "guarded"

    def __post_init__(self) -> None:
        if not (_is_number(self.bits) and LOWEST_BITS <= self.bits <= HIGHEST_BITS):
            raise CodecError(f"expected {LOWEST_BITS:g} to {HIGHEST_BITS:g} bits per coordinate, got {self.bits!r}")
        if not (_is_number(self.magnitude) and 0.0 <= self.magnitude <= HIGHEST_MAGNITUDE):
            raise CodecError(f"expected a magnitude M of 0 to {HIGHEST_MAGNITUDE:g}, got {self.magnitude!r}")
        if self.levels_bits is not None and self.levels_bits not in range(1, MOST_LEVELS_BITS + 1):
            raise CodecError(f"expected levels_bits of 1 to {MOST_LEVELS_BITS} or None, got {self.levels_bits!r}")
        for what, value, known in (
            ("family", self.family, get_args(Family)),
            ("amplitude", self.amplitude, get_args(Amplitude)),
        ):
            if value not in known:
                raise CodecError(f"expected {what} to be one of {', '.join(known)}, got {value!r}")

    @property
    def name(self) -> str:
        """ "m22": whatever the settings, the bytes say themselves how to read them."""
        return "m22"

    @classmethod
    def at_rate(cls, bits: float) -> Self:
        """Return M22 at ``bits`` per coordinate, all else as by default."""
        return cls(bits)

    def encode(self, x: npt.ArrayLike, seed: int) -> bytes:
        """Encode ``x``, shape ``[d]``, any real dtype. ``seed`` draws which of equal magnitudes are kept.

        Raises:
            CodecError: if ``x`` has not one axis, or a coordinate is not finite in float32 (names the first).
            TypeError: if ``seed`` is not a whole number.
        """
        return self.encode_all([Part(as_vector(x), seed)])[0]

    def encode_all(self, parts: Sequence[Part]) -> list[bytes]:
        """Encode vectors together: one threshold for all, so that bits go where the energy is.

        Raises:
            CodecError, TypeError: as :meth:`encode`.
        """
        seeds = [operator.index(part.seed) for part in parts]
        vectors = [as_vector(part.vector) for part in parts]
        for x in vectors:
            if x.size < SMALLEST_CODED:  # the others are looked at when they are measured
                check_finite(x)
        coded = [Part(x, seed) for x, seed in zip(vectors, seeds, strict=True) if x.size >= SMALLEST_CODED]
        settings = Settings(self.magnitude, self.levels_bits, self.family, self.amplitude)
        most = sum(self.size_bytes(part.vector.size) for part in coded)
        payloads = iter(encode_together(coded, settings, most) if coded else [])
        return [next(payloads) if x.size >= SMALLEST_CODED else payload.encode_as_they_are(x) for x in vectors]

    def decode(self, data: bytes, size: int, seed: int, received: Mask | None = None) -> Vector:
        """Decode a payload of ``size`` coordinates into float32 ``[size]``, always finite. ``seed`` is unused.

        Raises:
            CodecError: if ``data`` is not a payload of this size, or the mask does not fit.
        """
        self.check(data, size)
        x = payload.decode(data, size)
        return x if received is None else drop_and_rescale(x, as_mask(received, size))

    def accumulate(
        self, data: bytes, size: int, seed: int, weight: float, out: Sum, received: Mask | None = None
    ) -> None:
        """Add ``weight`` times the decoded vector to ``out``, float32 or float64 ``[size]``, in place.

        Raises:
            CodecError: as :meth:`decode`, or if ``weight`` is not finite, or ``out`` not a contiguous, writeable
                vector of this size. ``out`` is then left as it was.
        """
        x = self.decode(data, size, seed, received)
        check_sum(weight, out, size)
        add_weighted(weight, x, out)

    def check(self, data: bytes, size: int) -> None:
        """Raise :class:`CodecError` unless ``data`` has a length that a payload of ``size`` coordinates can have.

        The payloads of one update share its bytes, so one alone may have more than :meth:`size_bytes`.
        """
        check_size(size)
        if size > MOST_COORDINATES:
            raise CodecError(f"expected at most {MOST_COORDINATES} coordinates, got {size}")
        most = MOST_BYTES_OF_ONE * size + SLACK_BYTES
        if not HEAD_BYTES <= len(data) <= most:
            raise CodecError(f"expected {HEAD_BYTES} to {most} bytes for {size} coordinates, got {len(data)}")

    def error(self, data: bytes, size: int) -> float:
        """Return A of a payload, ‖x̂ - x‖² = A·‖x‖², as the encoder measured it, rounded up by at most 9 %.

        Raises:
            CodecError: ``data`` is too short to say.
        """
        return payload.error_of(data)

    def size_bytes(self, size: int) -> int:
        """The most bytes that ``size`` coordinates take: ⌊bits·size/8⌋ + 10 + 2·levels; 4·size + 3 below 32 of them.

        There are as many levels, 1 up to one bit and 128 at eight, as keeping all at ``bits`` has: at most size/4.
        """
        if size < SMALLEST_CODED:
            return HEAD_BYTES + 4 * size
        levels = 1 << (math.ceil(max(self.bits, 1.0)) - 1)
        return math.floor(self.bits * size / 8) + SIDE_BYTES + 2 * min(levels, size // 4)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
