"""One run of ``per_bit_accuracy``: a few devices, a method of compression, a rate, a seed.

The local loop, frames, error feedback, sums and the server's step are fedge's own. The baselines code all weights as
one vector, under the budget that M22 has for them, and pay for the same frame headers and biases.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from benchmarks.sparse_baselines import Baseline, baselines
from fedge import feedback, seeds
from fedge.aggregation import SegmentSums
from fedge.algorithms import FedAvg
from fedge.algorithms.base import Floats
from fedge.algorithms.local import LocalSpec, Optimizer, evaluate, train
from fedge.codecs.m22.codec import HIGHEST_BITS, LOWEST_BITS
from fedge.errors import TaskError
from fedge.frames import HEADER_BYTES
from fedge.layout import Kind, Layout, Vector
from fedge.tasks import partition
from fedge.tasks.base import Dataset
from fedge.tasks.fashion_mnist import task
from fedge.tasks.torch_model import get_params, layout_of
from fedge.update import FLOAT32_BITS, Stream, by_segment, decode_applied, encode_update, update_bytes, uplink

ROUNDS, EXAMPLES = 10, 1000
BETA, POOL, LEAST_EXAMPLES = 1.0, 3, 25
"""Of Dirichlet; examples are dealt from a third of the training set; the least a device trains on in a round."""
LOCAL: Mapping[str, LocalSpec] = {
    "sgd": LocalSpec(1, 5, 0.1, 0.0, 10.0, "sgd"),
    "adam": LocalSpec(1, 10, 0.002, 0.0, 10.0, "adam"),
}
TESTED, TESTED_AT_END, AT_ONCE = 500, 2000, 250


@dataclass(frozen=True, slots=True)
class Method:
    """How updates travel: a codec with its options, or a baseline. ``last_magnitude``: M goes there in a line."""

    codec: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    last_magnitude: float | None = None

    def in_round(self, t: int, rounds: int) -> Mapping[str, Any]:
        """Return the codec's options in round ``t`` of 0 .. ``rounds`` - 1."""
        if self.last_magnitude is None:
            return self.options
        first, share = self.options["magnitude"], t / max(rounds - 1, 1)
        return {**self.options, "magnitude": first + share * (self.last_magnitude - first)}


METHODS: Mapping[str, Method] = {
    "none": Method("none"),
    "eden": Method("eden-entropy"),
    "m22": Method("m22"),
    "m22-empirical": Method("m22", {"family": "empirical"}),
    "m22-M2": Method("m22", {"magnitude": 2.0}),
    "m22-M4to0": Method("m22", {"magnitude": 4.0}, 0.0),
    "m22-lengthened": Method("m22", {"amplitude": "lengthened"}),
    "m22-projection": Method("m22", {"amplitude": "projection"}),
    "m22-M2-designed": Method("m22", {"magnitude": 2.0, "amplitude": "designed"}),
    **{name: Method() for name in ("stc", "topk-fp8", "topk-fp4", "topk-uniform", "tinyscript", "qsgd", "sketch")},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    devices: int
    optimizer: Optimizer
    method: str
    feedback: bool
    bits: float
    seed: int
    participation: float = 1.0
    rounds: int = ROUNDS
    examples: int = EXAMPLES

    @property
    def key(self) -> str:
        """What names the run in the file of results."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def place(self) -> Case:
        """The run without compression, which trains the same devices on the same examples from the same params."""
        return replace(self, method="none", feedback=False, bits=FLOAT32_BITS)

    def cohort(self, t: int) -> list[int]:
        """Return who takes part in round ``t``, at least one."""
        draws = seeds.uniform(seeds.derive(self.seed, "cohort", t), self.devices)
        return [int(k) for k in np.flatnonzero(draws < self.participation)] or [int(draws.argmin())]


class Federation:
    """The devices of a case, their examples, the model: all but how updates travel."""

    def __init__(self, case: Case) -> None:
        self.case, (self.pool, self.test) = case, _data()
        self.model = task.model(case.seed)
        self.layout = layout_of(self.model)
        self.initial = get_params(self.model, self.layout)
        if case.devices == 2:
            self.owned = partition.iid(len(self.pool), case.devices, case.seed)
        else:
            self.owned = partition.dirichlet(self.pool.targets, case.devices, BETA, case.seed)
        self.share = max(LEAST_EXAMPLES, round(case.examples / (case.devices * case.participation)))
        self.score_before = self.score(self.initial, TESTED_AT_END)
        self.first = self._train(self.initial, 0)

    @property
    def cuts(self) -> list[int]:
        """Where the tensors of weights after the first begin."""
        return [self.layout.offsets[one.name] for one in self.layout.tensors if one.kind is Kind.WEIGHT][1:]

    def deltas(self, params: Floats, t: int) -> Mapping[int, Vector]:
        """Return the delta, float32 ``[d]``, of everyone who takes part in round ``t``."""
        return self.first if t == 0 else self._train(params, t)

    def _train(self, params: Floats, t: int) -> Mapping[int, Vector]:
        found, spec, nothing = {}, LOCAL[self.case.optimizer], FedAvg().local_terms(None, 1.0)
        for k in self.case.cohort(t):
            rows = np.take(self.owned[k], np.arange(t * self.share, (t + 1) * self.share), mode="wrap")
            data, seed = Dataset(self.pool.inputs[rows], self.pool.targets[rows]), seeds.derive(self.case.seed, t, k)
            anchor = params.astype(np.float32)
            found[k] = train(task, self.model, data, anchor, self.layout, nothing, spec, seed).delta
        return found

    def score(self, params: Floats, count: int) -> dict[str, float]:
        """Return the metrics on the first ``count`` examples, in pieces that fit a cache."""
        scores = []
        for k in range(0, count, AT_ONCE):
            piece = Dataset(self.test.inputs[k : k + AT_ONCE], self.test.targets[k : k + AT_ONCE])
            scores.append(evaluate(task, self.model, params.astype(np.float32), self.layout, piece))
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


federation_of = lru_cache(maxsize=1)(Federation)
"""Runs of one place follow each other: what comes before the first update is done once."""


@lru_cache(maxsize=1)
def _data() -> tuple[Dataset, Dataset]:
    """Return the examples that are dealt out, and those to test on."""
    test = task.test_data()
    if test is None:
        raise TaskError("expected --data DIR or the data's place in the environment, got neither")
    pool = task.train_data({"partition": "iid", "devices": POOL, "device": 0})
    return pool, Dataset(test.inputs[:TESTED_AT_END], test.targets[:TESTED_AT_END])


def send(
    case: Case, layout: Layout, v: Vector, stream: Stream, t: int, baseline: Baseline | None
) -> tuple[Vector, int]:
    """Return what the server has of ``v`` float32 ``[d]`` and the bytes that it took, headers and all."""
    method = METHODS[case.method]
    budget = update_bytes(layout, "m22", min(case.bits, HIGHEST_BITS))
    if baseline is not None:
        count = sum(segment.size for segment in layout.segments if segment.kind is Kind.WEIGHT)
        besides = HEADER_BYTES * len(layout.segments) + 4 * (layout.size - count)
        x_hat, used = baseline(np.ascontiguousarray(v[:count]), budget - besides, stream.frame_seed(0))
        return np.concatenate((x_hat, v[count:])), used + besides
    rate = case.bits
    frames = encode_update(layout, v, stream, method.codec, rate, method.in_round(t, case.rounds))
    # EDEN has no budget for a whole update, and may take a percent more than M22.
    while method.codec == "eden-entropy" and sum(map(len, frames)) > budget and rate > LOWEST_BITS:
        rate = max(rate - 8 * (sum(map(len, frames)) - budget) / layout.size - 1e-4, LOWEST_BITS)
        frames = encode_update(layout, v, stream, method.codec, rate)
    every = range(len(layout.segments))
    return decode_applied(layout, by_segment(frames), stream, every, FedAvg().trust), sum(map(len, frames))


def run(case: Case) -> dict[str, Any]:
    """Return the result of one run: accuracy, loss and bits sent, before the first round and after each."""
    torch.set_num_threads(1)
    began, algorithm, federation = time.process_time(), FedAvg(), federation_of(case.place)
    layout, rounds = federation.layout, range(case.rounds)
    baseline = None if METHODS[case.method].codec else baselines(federation.cuts)[case.method]
    state, sent, figures = algorithm.initial(federation.initial), [0], [federation.score_before]
    memories: dict[int, feedback.Memory] = {}
    for t in rounds:
        sums, bits = SegmentSums(layout), 0
        deltas = federation.deltas(state.params, t)
        if case.method == "sketch":  # linear: what is decoded is the mean of all sketches, drawn from one seed
            deltas = dict.fromkeys(deltas, np.mean(list(deltas.values()), axis=0, dtype=np.float32))
        for k, delta in deltas.items():
            target = feedback.corrected(delta, memories.get(k))
            stream = uplink(case.seed, t, "all" if case.method == "sketch" else f"device-{k}")
            decoded, size = send(case, layout, target, stream, t, baseline)
            bits += 8 * size
            for segment in layout.segments:
                sums.add(segment.index, decoded[segment.slice], 1.0)
            if case.feedback:
                memories[k] = feedback.commit(memories.get(k), layout.segments, target - decoded)
        state = algorithm.server_step(state, sums, case.devices)
        sent.append(sent[-1] + bits)
        figures.append(federation.score(state.params, TESTED_AT_END if t == rounds[-1] else TESTED))
    return {
        **asdict(case),
        "accuracy": [round(one["accuracy"], 5) for one in figures],
        "loss": [round(one["loss"], 5) for one in figures],
        "uplink_bits": sent,
        "bits_per_coordinate": sent[-1] / layout.size / sum(len(case.cohort(t)) for t in rounds),
        "cpu_seconds": round(time.process_time() - began, 2),
    }
