"""The codec that does nothing: float32 coordinates as they are.

Layout: d × float32, little-endian. Transmission order is the order of the coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
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
from fedge.errors import CodecError


@dataclass(frozen=True, slots=True)
class Identity:
    """Send every coordinate as a float32. Without loss, decoding gives back the very same numbers."""

    code: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """Its name in the table of codecs."""
        return "identity"

    @property
    def bits(self) -> float:
        """Always 32."""
        return 32.0

    @classmethod
    def at_rate(cls, bits: float) -> Self:
        """Return the codec. It has one rate, so ``bits`` is not used."""
        return cls()

    def encode(self, x: npt.ArrayLike, seed: int) -> bytes:
        """Return the coordinates of ``x``. ``seed`` is unused."""
        vector = as_vector(x)
        check_finite(vector)
        return vector.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, size: int, seed: int, received: Mask | None = None) -> Vector:
        """Return the coordinates, float32 ``[size]``, in memory of their own. ``seed`` is unused.

        Raises:
            CodecError: if ``data`` is not ``4 * size`` bytes or holds a number that is not finite.
        """
        self.check(data, size)
        vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
        check_finite(vector)
        return vector if received is None else drop_and_rescale(vector, as_mask(received, size))

    def accumulate(
        self, data: bytes, size: int, seed: int, weight: float, out: Sum, received: Mask | None = None
    ) -> None:
        """Add ``weight`` times the coordinates to ``out``, float32 or float64 ``[size]``, in place."""
        x = self.decode(data, size, seed, received)
        check_sum(weight, out, size)
        add_weighted(weight, x, out)

    def encode_all(self, parts: Sequence[Part]) -> list[bytes]:
        """Encode each."""
        return [self.encode(part.vector, part.seed) for part in parts]

    def check(self, data: bytes, size: int) -> None:
        """Raise :class:`CodecError` unless ``data`` is ``4 * size`` bytes."""
        check_size(size)
        if len(data) != 4 * size:
            raise CodecError(f"expected {4 * size} bytes for {size} coordinates as float32, got {len(data)}")

    def error(self, data: bytes, size: int) -> float:
        """Return 0."""
        return 0.0

    def size_bytes(self, size: int) -> int:
        """Return ``4 * size``."""
        return 4 * size
