"""FedAvg: the mean of the deltas, weighted by examples.

    x_k  = E epochs of SGD from the anchor
    θ    ← θ + Σ n_k · D̂_k / Σ n_k,   over the devices that delivered, segment by segment

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
Algorithm 1 (https://arxiv.org/abs/1602.05629).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedge.aggregation import SegmentSums
from fedge.algorithms.base import Dual, Floats, LocalTerms, ServerState
from fedge.layout import Segment


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Average the deltas."""

    name: ClassVar[str] = "fedavg"
    stateful: ClassVar[bool] = False

    def weight(self, num_examples: int) -> float:
        """Return n_k."""
        return float(num_examples)

    def local_terms(self, dual: Dual | None, relative_size: float) -> LocalTerms:
        """Return nothing to add."""
        return LocalTerms(pull=0.0)

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
        """Return θ plus the mean delta; what is broadcast is what is published."""
        return averaged(state, sums)


def averaged(state: ServerState, sums: SegmentSums) -> ServerState:
    """Return ``state`` moved by the mean delta. A segment nobody delivered keeps its value."""
    sums.layout.check(state.params)
    params = (state.params + sums.mean()).astype(state.params.dtype)
    return ServerState(params, params)
