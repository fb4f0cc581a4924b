"""FedDyn over a compressed downlink on heterogeneous quadratics: fedge's own functions, right or with one mistake.

Device k of 20 has the loss ½·(x - c_k)'A_k(x - c_k), d = 32, eigenvalues log-uniform in [0.05, 1], c_k ~ N(0, I); 6
devices a round, drawn without replacement; local problems are solved exactly. This is the setting of the measurements
in §3.2 of the specification of MCM that fedge follows; whatever gap remains is the composition's.

Everything that fedge adds up is float64 here, since ledger, equations and FedDyn keep the dtype of what they are given:
the public base and the params are float64. What travels is as in the field: frames that hold a difference in a few
bits, decoded to float32. As differences go to 0 so do the errors of their codes; the sums are what float32 would stop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedge.aggregation import SegmentSums
from fedge.algorithms import FedDyn
from fedge.algorithms.base import ServerState
from fedge.downlink.ledger import Asked, Ledger, receive, step
from fedge.downlink.mcm import Channel, advance
from fedge.downlink.message import Floats, State, public_base
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import by_segment, decode_applied, encode_update, uplink

DEVICES, PER_ROUND, SIZE, ALPHA = 20, 6, 32, 0.3
LAYOUT = Layout.of([TensorSpec("w", (SIZE,), Kind.WEIGHT)])
BASE = public_base(LAYOUT, np.zeros(SIZE))
Array = npt.NDArray[np.float64]


class Mistake(StrEnum):
    DRIFT_FROM_PARAMS = "the server adds Σ (θ_i - w) to h, the devices their decoded deltas"
    ABSOLUTE_MODELS = "the textbook's server: mean and h are of θ_i - w"
    COMMIT_TRUE = "devices commit the true delta, the server the decoded one"
    NO_MEMORY = "the params themselves are compressed, α_dwn = 0"
    COMMIT_ON_SEND = "the server steps its memory though the download was lost"


@dataclass(frozen=True)
class Problem:
    """The devices of one draw."""

    seed: int

    @cached_property
    def devices(self) -> list[tuple[Array, Array]]:
        rng = np.random.default_rng(self.seed)

        def one() -> tuple[Array, Array]:
            basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
            values = np.exp(rng.uniform(np.log(0.05), 0.0, SIZE))
            return (basis * values) @ basis.T, rng.normal(size=SIZE)

        return [one() for _ in range(DEVICES)]

    @cached_property
    def hessian(self) -> Array:
        return np.mean([matrix for matrix, _ in self.devices], axis=0)

    @cached_property
    def optimum(self) -> Array:
        return np.linalg.solve(self.hessian, np.mean([matrix @ centre for matrix, centre in self.devices], axis=0))

    def gap(self, x: Floats) -> float:
        """Return F(x) - F*."""
        return float((x - self.optimum) @ self.hessian @ (x - self.optimum) / 2)


@dataclass(frozen=True)
class Case:
    """How models and updates travel. ``up`` None: float64."""

    seed: int
    down: float = 2.0
    up: float | None = None
    alpha: float | None = None
    codec: str = "eden"
    lost: float = 0.0
    """Of each download and, apart from it, of each update: nothing is committed by either end."""
    mistake: Mistake | None = None


@dataclass
class Federation:
    """One run; ``params`` float64 ``[32]`` after each round."""

    case: Case
    problem: Problem = field(init=False)
    state: ServerState = field(init=False)

    def __post_init__(self) -> None:
        self.problem, self.feddyn = Problem(self.case.seed), FedDyn(ALPHA)
        self.state = self.feddyn.initial(np.zeros(SIZE))
        self.duals = [np.zeros(SIZE) for _ in range(DEVICES)]
        self.ledgers, self.states = [Ledger() for _ in range(DEVICES)], [BASE] * DEVICES
        self.steps = [self._newton(matrix) for matrix, _ in self.problem.devices]
        self.rng = np.random.default_rng(1000 + self.case.seed)
        self.perturbation = 0.0

    @staticmethod
    def _newton(matrix: Array) -> Array:
        return np.linalg.inv(matrix + ALPHA * np.eye(SIZE))

    def run(self, rounds: int) -> Federation:
        for number in range(1, rounds + 1):
            self.play(number)
        return self

    @property
    def gap(self) -> float:
        return self.problem.gap(self.state.published)

    def play(self, number: int) -> None:
        sums, wrong = SegmentSums(LAYOUT), np.zeros(SIZE)
        everything, self.perturbation = range(len(LAYOUT.segments)), 0.0
        for k in self.rng.choice(DEVICES, PER_ROUND, replace=False):
            anchor = self._download(k, number)
            if anchor is None or self.rng.random() < self.case.lost:
                continue
            self.perturbation += float(np.square(anchor - self.state.params).sum()) / PER_ROUND
            matrix, centre = self.problem.devices[k]
            delta = self.steps[k] @ (matrix @ centre + ALPHA * (anchor - self.duals[k])) - anchor
            counted = delta
            if self.case.up is not None:
                stream = uplink(self.case.seed, number, f"d{k}")
                frames = encode_update(LAYOUT, delta.astype(np.float32), stream, self.case.codec, self.case.up)
                counted = decode_applied(LAYOUT, by_segment(frames), stream, everything, self.feddyn.trust)
            own = delta if self.case.mistake is Mistake.COMMIT_TRUE else counted
            self.duals[k] = self.feddyn.commit(self.duals[k], LAYOUT.segments, own)
            off = anchor - self.state.params
            sums.add(0, counted + off if self.case.mistake is Mistake.ABSOLUTE_MODELS else counted, 1.0)
            wrong += off if self.case.mistake is Mistake.DRIFT_FROM_PARAMS else 0.0
        assert self.state.h is not None
        self.state = ServerState(self.state.params, self.state.published, self.state.h + wrong)
        self.state = self.feddyn.server_step(self.state, sums, DEVICES)

    def _download(self, k: int, number: int) -> Floats | None:
        """Return the anchor of device ``k``, None if the download was lost."""
        case, channel = self.case, Channel(LAYOUT, self.case.seed, f"d{k}", self.case.codec, (BASE,))
        lost = self.rng.random() < case.lost
        before, own = self.ledgers[k], self.states[k]
        said = own.id
        if case.mistake is Mistake.COMMIT_ON_SEND and before.state is not None:
            said = before.state.id  # what the server believes
        self.ledgers[k], (send,) = step(channel, before, Asked(said, self.state.params, number, case.down, case.alpha))
        if case.mistake is Mistake.COMMIT_ON_SEND:
            return self._careless(channel, k, send.message, lost)
        if lost:
            return None
        delivered = receive(channel, own, send.message)
        if case.mistake is Mistake.NO_MEMORY:
            self.ledgers[k] = Ledger(State(BASE.id, BASE.vector))
        else:
            self.states[k] = delivered.state
        return delivered.anchor

    def _careless(self, channel: Channel, k: int, message: bytes, lost: bool) -> Floats | None:
        """Step the server's memory at once; the device adds the next message to whatever it has."""
        base = self.ledgers[k].state or BASE
        change = receive(channel, base, message)
        self.ledgers[k] = Ledger(change.state)
        if lost:
            return None
        anchor, memory = advance(self.states[k].vector, change.anchor - base.vector, 1.0)
        self.states[k] = State(change.state.id, memory)
        return anchor
