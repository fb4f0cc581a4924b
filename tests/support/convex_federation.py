"""FedDyn on softmax regression: fedge's own device and server functions, right, or with one known mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.linalg import norm

from fedge.aggregation import SegmentSums
from fedge.algorithms import FedDyn
from fedge.frames import read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import decode_applied, encode_update, uplink
from tests.support.softmax_regression import CLASSES, DEVICES, DIM, PER_ROUND, SIZE, Array, Problem, draw, rounds
from tests.support.textbook_feddyn import textbook

LAYOUT = Layout.of([TensorSpec("weight", (DIM, CLASSES), Kind.WEIGHT), TensorSpec("bias", (CLASSES,), Kind.RAW)])


class Mistake(StrEnum):
    MISREAD_SUM = "the server adds Σ x_k - θ to S, not Σ (x_k - θ)"
    NO_DUALS = "no duals: FedProx with the same α"
    COMMIT_LOST = "devices commit what was lost"
    COMMIT_TRUE = "devices commit the true delta, the server the decoded one"
    WEIGHTED_MEANS = "sizes in the means as well"
    FULL_TRUST = "both sides count every decoded delta in full"


@dataclass(frozen=True)
class Case:
    """What one run does to the problem of one draw."""

    seed: int
    alpha: float
    sigma: float = 0.0
    """Spread of the devices' sizes."""
    lost: float = 0.0
    by_segment: bool = False
    """Whether segments are lost one by one, and not whole uploads."""
    bits: float | tuple[float, ...] | None = None
    """The codec's rate on the way up; of several, device k has the k-th, over and over; None sends float64."""
    codec: str = "eden"
    mistake: Mistake | None = None

    @property
    def problem(self) -> Problem:
        return draw(self.seed, self.sigma)

    def rounds(self, count: int) -> Iterator[tuple[list[int], npt.NDArray[np.bool_]]]:
        """Yield participants, and which segments arrive, bool ``[4, segments]``."""
        segments = len(LAYOUT.segments)
        for participants, arrived in rounds(self.seed, count, self.lost, segments if self.by_segment else 1):
            yield participants, np.broadcast_to(arrived, (PER_ROUND, segments))

    def counted(self, delta: Array, number: int, k: int, algorithm: FedDyn) -> Array:
        """Return what both sides count for the delta of device ``k`` in round ``number``, by way of its frames."""
        if self.bits is None:
            return delta
        rates = self.bits if isinstance(self.bits, tuple) else (self.bits,)
        stream = uplink(self.seed, number, f"device-{k}")
        frames = map(
            read_frame, encode_update(LAYOUT, delta.astype(np.float32), stream, self.codec, rates[k % len(rates)])
        )
        trust = (lambda error: 1.0) if self.mistake is Mistake.FULL_TRUST else algorithm.trust
        return decode_applied(LAYOUT, {f.segment: f for f in frames}, stream, range(len(LAYOUT.segments)), trust)


@dataclass(frozen=True, eq=False)
class Run:
    """What the server had after each round."""

    case: Case
    published: Array
    """``[rounds, 155]``"""
    params: Array
    """``[rounds, 155]``"""
    drifts: Array
    """‖mean of the duals - S/m‖, ``[rounds]``."""

    def gap(self, number: int) -> float:
        """Return the gap of the model published after round ``number``, from 1."""
        return self.case.problem.gap(self.published[number - 1])

    @cached_property
    def last(self) -> float:
        return self.gap(len(self.published))


def federate(case: Case, count: int) -> Run:
    """Run ``count`` rounds of FedDyn through ``fedge``."""
    devices, sizes, mistake = case.problem.devices(), case.problem.sizes, case.mistake
    algorithm = FedDyn(case.alpha)
    state = algorithm.initial(np.zeros(SIZE))
    duals = [np.zeros(SIZE) for _ in devices]
    published, params, drifts = [], [], []
    for number, (participants, arrivals) in enumerate(case.rounds(count)):
        sums = SegmentSums(LAYOUT)
        for k, arrived in zip(participants, arrivals, strict=True):
            terms = algorithm.local_terms(duals[k], float(sizes[k]))
            delta = devices[k].solve(terms.pull * (terms.dual - state.params), terms.pull) - state.params
            decoded = case.counted(delta, number, k, algorithm)
            applied = [s for s in LAYOUT.segments if arrived[s.index]]
            scale = sizes[k] if mistake is Mistake.WEIGHTED_MEANS else 1.0
            for s in applied:
                sums.add(s.index, scale * decoded[s.slice], algorithm.weight(len(devices[k].labels)))
            if mistake is not Mistake.NO_DUALS:
                committed = LAYOUT.segments if mistake is Mistake.COMMIT_LOST else applied
                duals[k] = algorithm.commit(duals[k], committed, delta if mistake is Mistake.COMMIT_TRUE else decoded)
        if mistake is Mistake.MISREAD_SUM:
            state = replace(state, h=state.h + (PER_ROUND - 1) * state.params)
        state = algorithm.server_step(state, sums, DEVICES)
        if mistake is Mistake.NO_DUALS:
            state = replace(state.without_duals(), params=state.published)
        published.append(state.published)
        params.append(state.params)
        drifts.append(norm(np.mean(duals, axis=0) - state.h / DEVICES))
    return Run(case, np.array(published), np.array(params), np.array(drifts))


def federate_by_the_book(case: Case, count: int) -> Run:
    """Run the textbook FedDyn on the same data, participants and losses."""
    lengths = [s.size for s in LAYOUT.segments]
    masks = ((who, np.repeat(arrived, lengths, axis=1)) for who, arrived in case.rounds(count))
    models = list(textbook(case.problem.devices(), case.problem.sizes, case.alpha, masks))
    sel, cloud = (np.array(series) for series in zip(*models, strict=True))
    return Run(case, sel, cloud, np.zeros(count))


def disagreement(a: Run, b: Run) -> float:
    """Return the largest relative distance of published and broadcast models, over the rounds that both made."""
    pairs = (a.published, b.published), (a.params, b.params)
    count = min(len(a.published), len(b.published))
    return max(float((norm(x[:count] - y[:count], axis=1) / norm(y[:count], axis=1)).max()) for x, y in pairs)
