"""What a federated algorithm decides, apart from the local training loop and the wire.

    device:  x ← argmin L_k(x) + (pull/2)·‖x - anchor + u_k‖²      D_k = x - anchor, u_k the device's dual
             u_k ← u_k + D̂_k                                       once a receipt names D̂_k as applied
    server:  sums of decoded deltas D̂_k per segment  →  params of the next round

D̂_k is the delta as decoded from the bytes sent, times the trust in them, on both sides. Nothing here sees an absolute
device model: devices start from a lossy copy of the params, so only differences from what each really had can be added
up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fedge.aggregation import SegmentSums
from fedge.errors import AlgorithmError
from fedge.layout import Segment

Floats = npt.NDArray[np.floating[Any]]
"""float32 in the field; float64 where a test wants the algebra without rounding. Results keep the dtype."""

Dual = npt.NDArray[np.float64]
"""A device's dual u_k, float64 [d]: float64 so that the mean of the duals stays the server's h to 1e-12."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalTerms:
    """What an algorithm adds to the gradient at x: ``pull * (x - anchor + dual)``; ``dual`` None is 0."""

    pull: float
    dual: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """The server's side of an algorithm.

    ``params`` ``[d]`` is broadcast next; ``published`` ``[d]`` is evaluated, served and exported; ``h``, float64
    ``[d]``, is FedDyn's sum of all devices' duals, None where an algorithm keeps none. In split training the back half
    is one of them (``fedge.algorithms.back``), and ``back_dual`` is its own: float64 ``[d]``, None for zeros.
    """

    params: Floats
    published: Floats
    h: npt.NDArray[np.float64] | None = None
    back_dual: Dual | None = None

    def without_duals(self) -> ServerState:
        """Return the state a new dual epoch starts from: every device's dual is 0 in it, so h is, and they agree."""
        return self if self.h is None else replace(self, h=np.zeros_like(self.h), back_dual=None)


class Algorithm(Protocol):
    """Weights, local terms, the device's state, the server's step. Instances are frozen dataclasses of settings."""

    name: ClassVar[str]
    stateful: ClassVar[bool]
    """Whether a device keeps a dual between rounds (float64 [d], zeros at first)."""

    def weight(self, num_examples: int) -> float:
        """Return the weight of a device's deltas in ``SegmentSums``."""
        ...

    def local_terms(self, dual: Dual | None, relative_size: float) -> LocalTerms:
        """Return what to add to the gradient. ``relative_size`` is n_k·m/Σn: 1 for a device of mean size."""
        ...

    def trust(self, error: float) -> float:
        """Return γ, 0 < γ <= 1, by which both ends multiply a decoded frame of relative squared error ``error``."""
        ...

    def commit(self, dual: Dual, segments: Iterable[Segment], decoded: Floats) -> Dual:
        """Return ``dual`` after the server applied ``segments`` of ``decoded``, float ``[d]``."""
        ...

    def initial(self, params: Floats) -> ServerState:
        """Return the server's state before the first round."""
        ...

    def server_step(self, state: ServerState, sums: SegmentSums, num_devices: int) -> ServerState:
        """Return the state after a round. ``num_devices`` is m: all devices that take part in the run."""
        ...


def check_setting(algorithm: str, name: str, value: Any, *, above: float, or_equal: bool = False) -> None:
    """Raise ``AlgorithmError`` unless ``value`` is a finite number above (or equal to) ``above``."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
    if not (number and (value > above or (or_equal and value == above))):
        bound = "at least" if or_equal else "above"
        raise AlgorithmError(f"{algorithm}: expected {name} to be a number {bound} {above:g}, got {value!r}")
