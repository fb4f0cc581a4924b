"""FedDyn: device optima and the global optimum agree, under partial participation.

    device:  x_k ≈ argmin L_k(x) + (α_k/2)·‖x - θ + u_k‖²,   α_k = α/w_k,   w_k = n_k·m/Σn,   D_k = x_k - θ
             u_k ← u_k + D̂_k              once a receipt says that D̂_k was applied, and only then
    server:  S ← S + Σ D̂_k,   θ̄ = θ + (1/|P|)·Σ D̂_k,   θ ← θ̄ + κ·S/m      P: devices that delivered, m: all

u_k = -g_k/α and S = -m·h/α in the paper's symbols: scaled so, only the device's step knows α, and the server's
state is a plain sum. θ̄ is published, θ broadcast.

The invariant that everything rests on is S = Σ_k u_k over all devices, after every round and any loss. It needs
the same D̂_k, decoded, on both sides. What a codec loses stays in the local first-order condition and is sent next
time: FedDyn is its own error feedback. Feedback wants a code that is nearer to x than 0 is; an unbiased one of
bits is not, E‖x̂ - x‖² = A‖x‖² with A above 1 below about 0.8 bits, and the duals diverge. So D̂_k = γ·x̂_k with

    γ = min(1, 1.5/(1 + A)),      E‖γx̂ - x‖² = (1 - 2γ + γ²(1 + A))·‖x‖² <= (1 - γ/2)·‖x‖²,  < ‖x‖² at every rate

on both sides, in S and in the mean alike: the mean is short by γ, and what is missing comes in later rounds. Both
server sums are unweighted, sizes enter through α_k alone. Each segment has its own P. BUFFER segments are averaged and
have no u_k and no S.

κ (``integral_gain``) is 1 in the paper; S/m acts as the integral part of a controller and tolerates 1/4 to 4.
α must not change during a run: u_k and S are in units of 1/α.

Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, Algorithm 1
(https://arxiv.org/abs/2111.04263), with Σ_k (x_k - θ) in the step of h.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedge.aggregation import SegmentSums
from fedge.algorithms.base import Dual, Floats, LocalTerms, ServerState, check_setting
from fedge.errors import AlgorithmError
from fedge.layout import Kind, Segment

FULL_TRUST_ERROR = 0.5
"""Codes of at most this error, A, count in full: those of 1.2 bits and more."""
TRUST_STEPS = 4096
"""γ goes down to a multiple of 1/4096. Both ends must have the same bits on any machine: A is made of literals, of
tables on a grid and of single IEEE operations, and γ is exact in float32. Were A's last digit another one on some
machine, then one γ in 10^12 would be."""


@dataclass(frozen=True, slots=True)
class FedDyn:
    """Dynamic regularization with strength ``alpha``."""

    name: ClassVar[str] = "feddyn"
    stateful: ClassVar[bool] = True
    alpha: float = 0.1
    integral_gain: float = 1.0

    def __post_init__(self) -> None:
        check_setting(self.name, "alpha", self.alpha, above=0.0)
        check_setting(self.name, "integral_gain", self.integral_gain, above=0.0)

    def weight(self, num_examples: int) -> float:
        """Return 1: examples enter through α_k, and weighting the means too would count them twice."""
        return 1.0

    def local_terms(self, dual: Dual | None, relative_size: float) -> LocalTerms:
        """Return a pull of α / w_k towards ``anchor - dual``."""
        check_setting(self.name, "relative_size", relative_size, above=0.0)
        return LocalTerms(self.alpha / relative_size, dual)

    def trust(self, error: float) -> float:
        """Return γ = min(1, 1.5/(1 + A)), in whole steps: the device and the server must have the same."""
        return min(1.0, math.floor(TRUST_STEPS * (1.0 + FULL_TRUST_ERROR) / (1.0 + error)) / TRUST_STEPS)

    def commit(self, dual: Dual, segments: Iterable[Segment], decoded: Floats) -> Dual:
        """Return u_k + D̂_k on the applied ``segments``, a new float64 ``[d]``; elsewhere u_k as it was."""
        if dual.dtype != np.float64 or dual.shape != decoded.shape:
            got = f"{dual.dtype} {list(dual.shape)} and {list(decoded.shape)}"
            raise AlgorithmError(f"feddyn: expected a float64 dual of the delta's shape, got {got}")
        moved = dual.copy()
        for segment in segments:
            if segment.kind is not Kind.BUFFER:
                moved[segment.slice] += decoded[segment.slice]
        return moved

    def initial(self, params: Floats) -> ServerState:
        """Return the state before the first round: S = 0."""
        return ServerState(params, params, np.zeros(params.shape))

    def server_step(self, state: ServerState, sums: SegmentSums, num_devices: int) -> ServerState:
        """Return θ̄, θ and S after a round; a segment nobody delivered keeps its value in all three."""
        if state.h is None:
            raise AlgorithmError("feddyn: expected a state with h, got one without")
        if num_devices < 1:
            raise AlgorithmError(f"feddyn: expected at least 1 device, got {num_devices}")
        if not np.array_equal(sums.weight, sums.count):
            raise AlgorithmError(f"feddyn: expected deltas of weight 1, got {sums.weight} for {sums.count} devices")
        sums.layout.check(state.params)
        delivered, trained = sums.mask, sums.trained()
        h = state.h + np.where(trained, sums.total, 0.0)
        mean = state.params + sums.mean()
        published = np.where(delivered, mean, state.published)
        params = mean + np.where(trained, self.integral_gain / num_devices * h, 0.0)
        dtype = state.params.dtype
        return ServerState(params.astype(dtype), published.astype(dtype), h, state.back_dual)
