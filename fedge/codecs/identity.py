"""The codec that does nothing: float32 coordinates as they are.

Layout: d × float32, little-endian. Transmission order is the order of the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from fedge.codecs.base import (
    Mask,
    Sum,
    Vector,
    add_weighted,
    as_mask,
    as_vector,
    check_finite,
    check_length,
    check_size,
    check_sum,
    drop_and_rescale,
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Send every coordinate as a float32. Without loss, decoding gives back the very same numbers."""

    name: ClassVar[str] = "identity"
    code: ClassVar[int] = 0

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
        check_size(size)
        check_length(self, data, size)
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

    def size_bytes(self, size: int) -> int:
        """Return ``4 * size``."""
        return 4 * size
