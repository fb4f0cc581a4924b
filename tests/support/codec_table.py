"""Every codec in every mode, for tests that hold for all of them. A new mode is one line of :data:`FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedge.codecs import M22, Codec, Eden, Identity

EDEN_RATES = (0.05, 0.3, 0.5, 1.0, 1.5, 1.6, 2.0, 2.7, 3.0, 3.4, 4.0, 4.2, 5.0, 5.5, 6.0, 7.0, 7.9, 8.0)

M22_RATES = (0.05, 0.3, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One codec in one mode; ``rates`` are the bits per coordinate at which its loops take different ways."""

    name: str
    at_rate: Callable[[float], Codec]
    rates: tuple[float, ...]

    @property
    def has_fixed_length(self) -> bool:
        """Whether a payload's length follows from size and rate."""
        return self.name not in ("eden-entropy", "m22")


FAMILIES = (
    Family("identity", Identity.at_rate, (32.0,)),
    Family("eden", Eden, EDEN_RATES),
    Family("eden-entropy", Eden.entropy_coded, EDEN_RATES),
    Family("m22", M22.at_rate, M22_RATES),
)
