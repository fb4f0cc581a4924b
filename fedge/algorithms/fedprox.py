"""FedProx: FedAvg with a pull towards the anchor.

    x_k ≈ argmin L_k(x) + (μ/2)·‖x - anchor‖²,   the server's step is FedAvg's

Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Algorithm 2
(https://arxiv.org/abs/1812.06127).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedge.aggregation import SegmentSums
from fedge.algorithms.base import Dual, Floats, LocalTerms, ServerState, check_setting
from fedge.algorithms.fedavg import averaged
from fedge.layout import Segment


@dataclass(frozen=True, slots=True)
class FedProx:
    """Average the deltas of devices held near the anchor with strength ``mu``."""

    name: ClassVar[str] = "fedprox"
    stateful: ClassVar[bool] = False
    mu: float = 0.01

    def __post_init__(self) -> None:
        check_setting(self.name, "mu", self.mu, above=0.0, or_equal=True)

    def weight(self, num_examples: int) -> float:
        """Return n_k."""
        return float(num_examples)

    def local_terms(self, dual: Dual | None, relative_size: float) -> LocalTerms:
        """Return a pull of ``mu``, the same for every device."""
        return LocalTerms(pull=self.mu)

    def trust(self, error: float) -> float:
        """Return 1: errors of unbiased codes average out, and none is carried from round to round."""
        return 1.0

    def commit(self, dual: Dual, segments: Iterable[Segment], decoded: Floats) -> Dual:
        """Return ``dual`` as it is: there is none to keep."""
        return dual

    def initial(self, params: Floats) -> ServerState:
        """Return the state before the first round."""
        return ServerState(params, params)

    def server_step(self, state: ServerState, sums: SegmentSums, num_devices: int) -> ServerState:
        """Return θ plus the mean delta."""
        return averaged(state, sums)
